"""Progress bars, as a terminal shows them in the end."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eventtrain import AvgStatsCallback, Learner, Runner
from eventtrain.callbacks import Checkpoint, Progress
from eventtrain.callbacks.shared.terminal_bars import TerminalBars

pytest.importorskip("tqdm", reason="needs tqdm (extra 'watch')")

Make = Callable[..., Learner]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """What stands on the screen: carriage returns, new lines and the cursor's way up obeyed."""
        rows, row, column, text = [""], 0, 0, self.getvalue()
        while text:
            if text.startswith("\x1b[A"):
                row, text = row - 1, text[3:]
                continue
            char, text = text[0], text[1:]
            if char == "\r":
                column = 0
            elif char == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            else:
                line = rows[row].ljust(column)
                rows[row] = line[:column] + char + line[column + 1 :]
                column += 1
        return [line.rstrip() for line in rows]


def shown(*callbacks: Any, learner: Learner, epochs: int = 2) -> Terminal:
    """Fit with one terminal for standard output and standard error."""
    terminal = Terminal()
    with redirect_stdout(terminal), redirect_stderr(terminal):
        Runner(callbacks).fit(epochs, learner)
    return terminal


def test_the_printed_lines_stand_whole_above_the_bar(learner: Learner) -> None:
    terminal = shown(AvgStatsCallback(), Progress(every=0), learner=learner, epochs=3)
    titles, *lines = [line for line in terminal.screen() if line]
    *metrics, bar = lines
    assert titles.split() == ["epoch", "train_loss", "valid_loss", "seconds"]
    assert [line.split()[0] for line in metrics] == ["0", "1", "2"]
    assert {len(line) for line in metrics} == {len(titles)}
    assert bar.startswith("epochs: 100%") and "3/3" in bar


def test_without_leave_only_the_lines_are_left(learner: Learner) -> None:
    terminal = shown(AvgStatsCallback(), Progress(every=0, leave=False), learner=learner)
    lines = [line for line in terminal.screen() if line]
    assert [line.split()[0] for line in lines] == ["epoch", "0", "1"]


def test_a_line_written_in_a_batch_is_not_torn(learner: Learner) -> None:
    terminal, progress = Terminal(), Progress(every=0)
    run = Runner(progress)
    run.on("after_loss", lambda run: progress.write(f"batch {run.batch_index}"), during="train")
    with redirect_stdout(terminal), redirect_stderr(terminal):
        run.fit(1, learner)
    lines = [line for line in terminal.screen() if line]
    assert lines[:3] == ["batch 0", "batch 1", "batch 2"]
    assert lines[3].startswith("epochs: 100%")


def test_a_line_printed_at_the_end_of_a_phase_is_not_run_into(learner: Learner) -> None:
    terminal, progress = Terminal(), Progress(every=0)
    run = Runner(progress)
    shows: list[bool] = []
    run.on("after_train", lambda run: shows.append(progress._view.batches is None), priority=100)
    with redirect_stderr(terminal):
        run.fit(1, learner)
    assert shows == [True]


def test_every_batch_of_every_phase_is_counted(learner: Learner) -> None:
    text = shown(Progress(every=0), learner=learner, epochs=1).getvalue()
    for count in ("0/3", "1/3", "2/3", "3/3"):
        assert f"| {count} " in text.split("epoch 0 validate")[0]
    assert "| 2/2 " in text.split("epoch 0 validate")[-1]


def test_between_drawings_nothing_is_drawn(learner: Learner) -> None:
    text = shown(Progress(every=3600), learner=learner, epochs=1).getvalue()
    assert "| 0/3 " in text
    assert "| 1/3 " not in text


def test_a_bar_that_is_drawn_again_has_all_the_batches_since(
    make_learner: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("eventtrain.callbacks.progress.time", clock)
    terminal = Terminal()
    run = Runner(Progress(every=10, file=terminal))
    run.on("after_loss", lambda run: now.__setitem__(0, now[0] + 4), during="train")
    run.fit(1, make_learner(8, 0))
    drawn = re.findall(r"train: .*?\| (\d)/8 ", terminal.getvalue())
    assert list(dict.fromkeys(drawn)) == ["0", "3", "6"]  # at 12 s and at 24 s


def test_without_bars_not_even_the_loss_is_read(learner: Learner, no_sync: Any) -> None:
    run = Runner(Progress(loss=True, every=0, disable=True))
    with no_sync:
        assert run.fit(1, learner).outcome == "completed"


def test_the_bar_over_epochs_shows_metrics_losses_first(learner: Learner) -> None:
    progress = Progress(every=0)
    run = Runner([AvgStatsCallback(report=None), progress])
    row = {"a": 1.0, "b": 2.0, "c": 3.0, "valid_loss": 4.0, "text": "no"}
    run.on("after_epoch", lambda run: run.history[-1].update(row))
    terminal = Terminal()
    with redirect_stderr(terminal):
        run.fit(1, learner)
    bar = terminal.screen()[0]
    assert "valid_loss=4, a=1, b=2]" in bar
    assert "train_loss=" in bar and "c=3" not in bar


def test_metrics_may_be_chosen(learner: Learner) -> None:
    stats = AvgStatsCallback(report=None)
    bar = shown(stats, Progress(every=0, metrics="valid_loss"), learner=learner).screen()[0]
    assert "valid_loss=" in bar and "train_loss=" not in bar


def test_where_there_is_no_terminal_not_a_byte_is_written(learner: Learner) -> None:
    file = io.StringIO()
    run = Runner(Progress(every=0, file=file))
    run.fit(1, learner)
    run.validate(learner)
    assert file.getvalue() == ""


def test_it_may_be_asked_to_write_anywhere(learner: Learner) -> None:
    file = io.StringIO()
    Runner(Progress(every=0, file=file, disable=False)).fit(1, learner)
    assert "epochs: 100%" in file.getvalue()


def test_nothing_is_read_unless_the_loss_is_shown(learner: Learner, no_sync: Any) -> None:
    run = Runner(Progress(every=0, file=io.StringIO(), disable=False))
    with no_sync:
        run.fit(1, learner)
        run.validate(learner)
    with no_sync, pytest.raises(AssertionError, match="makes the host wait"):
        Runner(Progress(loss=True, every=0, file=Terminal())).fit(1, learner)


def test_the_loss_that_is_shown_is_the_batchs(learner: Learner) -> None:
    terminal, losses = Terminal(), []
    run = Runner(Progress(loss=True, every=0, file=terminal))
    run.on("after_batch", lambda run: losses.append(run.loss.item()))
    run.fit(1, learner)
    for loss in losses:
        assert f"loss={loss:.4g}]" in terminal.getvalue()


def test_validation_and_prediction_alone_have_a_bar_that_goes_away(learner: Learner) -> None:
    terminal = Terminal()
    run = Runner(Progress(every=0, file=terminal))
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert "validate: 100%" in terminal.getvalue()
    assert "predict: 100%" in terminal.getvalue()
    assert not any(terminal.screen())


def test_a_loader_without_length_counts_alone(learner: Learner) -> None:
    class Endless:
        def __init__(self, batches: Any) -> None:
            self.batches = batches

        def __iter__(self) -> Any:
            return iter(self.batches)

    learner.data.train_dl = Endless(learner.data.train_dl)
    text = shown(Progress(every=0), learner=learner, epochs=1).getvalue()
    assert "epoch 0 train: 3batch" in text


@pytest.mark.parametrize("scope", ["batch", "train", "epoch", "fit"])
def test_bars_are_closed_after_a_cancellation(scope: str, learner: Learner) -> None:
    terminal, progress = Terminal(), Progress(every=0)
    run = Runner(progress)
    run.on("after_pred", lambda run: run.token.cancel(scope), during="train")
    with redirect_stderr(terminal):
        run.fit(1, learner)
    assert progress._view.batches is progress._view.epochs is None
    (bar,) = [line for line in terminal.screen() if line]
    assert ("1/1" in bar) == (scope in ("batch", "train"))


def test_bars_are_closed_after_a_failure_and_a_second_fit_starts_clean(learner: Learner) -> None:
    terminal, progress = Terminal(), Progress(every=0)
    run = Runner(progress)

    @run.on("after_pred", once=True)
    def fail(run: Runner) -> None:
        raise RuntimeError("gone")

    with redirect_stderr(terminal):
        with pytest.raises(RuntimeError, match="gone"):
            run.fit(1, learner)
        assert progress._view.batches is progress._view.epochs is None
        run.fit(1, learner)
    assert ["1/1" in line for line in terminal.screen() if line] == [False, True]


def test_weights_are_those_of_a_run_without_it(make_learner: Make) -> None:
    seen, unseen = make_learner(), make_learner()
    shown(Progress(loss=True, every=0), learner=seen)
    Runner().fit(2, unseen)
    assert torch.equal(seen.model.weight, unseen.model.weight)


def test_a_fit_of_no_epochs_is_no_trouble(learner: Learner) -> None:
    shown(Progress(every=0), learner=learner, epochs=0)


def test_a_fit_that_begins_in_the_middle_says_where_it_stands(learner: Learner) -> None:
    progress, terminal = Progress(every=0), Terminal()
    run = Runner(progress)

    @run.on("begin_epoch", priority=1000)
    def where_it_resumes(run: Runner) -> None:
        run.epoch += 5

    @run.on("begin_train")
    def shows(run: Runner) -> None:
        bar = progress._view.epochs
        seen.append((bar.n, bar.initial, bar.total))

    seen: list[tuple[int, int, int]] = []
    with redirect_stderr(terminal):
        run.fit(2, learner)
    assert seen == [(5, 5, 2), (6, 5, 2)]


@pytest.mark.parametrize(("every", "error"), [(-1, ValueError), ("1", TypeError)])
def test_a_bad_interval_is_refused(every: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="every"):
        Progress(every=every)


def test_without_tqdm_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tqdm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs tqdm: pip .*"eventtrain\[watch\]"'):
        Progress()


@pytest.mark.parametrize("options", [{"metrics": 3}, {"metrics": ["a", None]}, {"file": "log"}])
def test_other_arguments_of_the_wrong_type_are_refused(options: Any) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(options))} must be"):
        Progress(**options)


def test_a_fit_by_steps_has_a_bar_over_its_steps(learner: Learner) -> None:
    terminal = Terminal()
    with redirect_stdout(terminal), redirect_stderr(terminal):
        Runner(Progress(every=0)).fit(steps=5, learn=learner)
    assert "5/5" in terminal.screen()[-2] + terminal.screen()[-1]
    assert "steps:  80%" in terminal.getvalue()


def test_the_bar_over_steps_goes_on_where_a_fit_is_resumed(
    make_learner: Make, tmp_path: Path
) -> None:
    Runner(Checkpoint(tmp_path)).fit(steps=3, learn=make_learner())
    terminal = Terminal()
    run = Runner([Checkpoint(tmp_path), Progress(every=0)])
    with redirect_stdout(terminal), redirect_stderr(terminal):
        run.fit(steps=5, learn=make_learner(), resume="auto")
    assert "4/5" in terminal.getvalue()
    assert "1/5" not in terminal.getvalue()
    assert "5/5" in terminal.getvalue()


def test_a_validation_within_a_fit_has_a_bar_and_shows_its_metrics(learner: Learner) -> None:
    terminal = Terminal()
    with redirect_stdout(terminal), redirect_stderr(terminal):
        run = Runner([AvgStatsCallback(), Progress(every=0)])
        result = run.fit(steps=4, learn=learner, validate_every=2)
    assert "epoch 0 validate" in terminal.getvalue()
    lines = [line for line in terminal.screen() if line]
    assert [line.split()[:2] for line in lines[:3]] == [["epoch", "step"], ["0", "2"], ["1", "4"]]
    assert "4/4" in lines[-1]
    assert f"valid_loss={result.history[-1]['valid_loss']:.3g}"[:14] in lines[-1]


class Window:
    """A window of a terminal, with a program's end that can be written to."""

    def __init__(self, columns: int) -> None:
        ours, theirs = pty.openpty()
        self._ours, self.file = ours, os.fdopen(theirs, "w", encoding="utf-8")
        os.set_blocking(ours, False)
        self.resize(columns)

    def resize(self, columns: int) -> None:
        self.columns = columns
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self.file.fileno(), termios.TIOCSWINSZ, size)

    def lines(self) -> list[str]:
        """What has been drawn since the last call, from each return of the cursor to the next."""
        self.file.flush()
        text = b""
        with suppress(BlockingIOError):
            while found := os.read(self._ours, 65536):
                text += found
        return re.split(r"[\r\n]+", text.decode().replace("\x1b[A", "\n"))

    def close(self) -> None:
        self.file.close()
        os.close(self._ours)


@pytest.fixture
def window() -> Iterator[Window]:
    opened = Window(80)
    yield opened
    opened.close()


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_bar_is_wider_than_the_window(columns: int, window: Window, learner: Learner) -> None:
    window.resize(columns)
    run = Runner([AvgStatsCallback(report=None), Progress(loss=True, every=0, file=window.file)])
    run.on("after_epoch", lambda run: run.history[-1].update({"a_long_metric": 1 / 3, "b": 2 / 3}))
    widths: list[int] = []
    run.on("after_batch", lambda run: widths.extend(map(len, window.lines())), priority=-1000)
    run.fit(3, learner)
    widths += map(len, window.lines())
    assert columns - 25 < max(widths) < columns


def test_a_window_that_becomes_narrower_is_not_written_over(
    window: Window, learner: Learner
) -> None:
    window.resize(200)
    run = Runner([AvgStatsCallback(report=None), Progress(every=0, file=window.file)])
    before: list[int] = []
    after: list[int] = []

    @run.on("after_batch", priority=-1000)
    def read(run: Runner) -> None:
        widths = map(len, window.lines())
        (before if window.columns == 200 else after).extend(widths)
        if run.epoch == 1 and run.in_train and run.batch_index == 1:
            window.resize(40)

    run.fit(3, learner)
    after += map(len, window.lines())
    assert 100 < max(before) < 200
    assert 20 < max(after) < 40


def test_a_metric_for_which_there_is_no_room_is_left_out_whole(
    window: Window, learner: Learner
) -> None:
    run = Runner([AvgStatsCallback(report=None), Progress(every=0, file=window.file)])
    names = [f"metric_{number}" for number in range(3)]
    run.on("after_epoch", lambda run: run.history[-1].update(dict.fromkeys(names, 1 / 3)))
    run.fit(1, learner)
    *_, bar = [line for line in window.lines() if "1/1" in line]
    assert "train_loss=" in bar and "metric_2" not in bar
    assert re.search(r"=[\d.e-]+\]\s*$", bar)


def test_a_line_that_becomes_shorter_leaves_nothing_behind(learner: Learner) -> None:
    terminal = Terminal()
    with redirect_stderr(terminal):
        bar = Progress(file=terminal)._view
        assert isinstance(bar, TerminalBars)
        made = bar._made(total=3, desc="a description that is long", leave=True)
        made.set_description_str("short")
        made.close()
    (line,) = [line for line in terminal.screen() if line]
    assert line.startswith("short:") and line.count("]") == 1
