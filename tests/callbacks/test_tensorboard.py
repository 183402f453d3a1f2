"""Event files, read back with tensorboard's own reader."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rates import WithoutRate

from eventtrain import AvgStatsCallback, Learner, Runner
from eventtrain.callbacks import TensorBoard
from eventtrain.priorities import CHECKPOINTS, METRICS, REPORTS

Make = Callable[..., Learner]


def test_without_tensorboard_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r'tensorboard: pip .*"eventtrain\[watch\]"'):
        TensorBoard(tmp_path)


reading = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="needs tensorboard (extra 'watch')",
)


def read(folder: Path) -> Any:
    events = reading.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return events.Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def losses_of(run: Runner) -> list[float]:
    """Collect what the run's training losses will be."""
    losses: list[float] = []
    run.on("after_loss", lambda run: losses.append(run.loss.item()), during="train")
    return losses


@pytest.mark.parametrize("live", [False, True])
def test_losses_and_rates_stand_at_their_own_steps(
    live: bool, learner: Learner, tmp_path: Path
) -> None:
    run = Runner(TensorBoard(tmp_path, every=2, live=live))
    losses = losses_of(run)
    run.fit(2, learner)
    written = scalars(tmp_path, "batch/loss")
    assert [step for step, _ in written] == [0, 2, 4]
    assert [value for _, value in written] == pytest.approx(losses[::2])
    assert [value for _, value in scalars(tmp_path, "batch/lr")] == pytest.approx([0.1] * 3)


def test_a_loss_changed_in_place_later_is_written_as_it_was(
    learner: Learner, tmp_path: Path
) -> None:
    run = Runner(TensorBoard(tmp_path, every=1))
    losses = losses_of(run)
    run.on("after_batch", lambda run: run.loss.detach().zero_(), during="train")
    run.fit(1, learner)
    assert [value for _, value in scalars(tmp_path, "batch/loss")] == pytest.approx(losses)


def test_an_epochs_metrics_stand_at_its_last_batch(learner: Learner, tmp_path: Path) -> None:
    run = Runner([AvgStatsCallback(report=None), TensorBoard(tmp_path)])
    history = run.fit(2, learner).history
    written = scalars(tmp_path, "epoch/valid_loss")
    assert [step for step, _ in written] == [2, 5]
    assert [value for _, value in written] == pytest.approx([r["valid_loss"] for r in history])


def test_what_others_write_to_the_row_before_the_reports_is_drawn(
    learner: Learner, tmp_path: Path
) -> None:
    run = Runner(TensorBoard(tmp_path))
    write = lambda run: run.history[-1].update(own=0.5)  # noqa: E731
    run.on("after_epoch", write, priority=REPORTS + 1)
    run.fit(1, learner)
    assert scalars(tmp_path, "epoch/own") == [(2, 0.5)]


def test_a_checkpoint_of_a_whole_epoch_has_nothing_left_to_write(
    learner: Learner, tmp_path: Path
) -> None:
    board = TensorBoard(tmp_path, every=1)
    run = Runner(board)
    waiting: list[int] = []
    look = lambda run: waiting.append(len(board.state_dict()["new"]))  # noqa: E731
    run.on(["after_train", "after_epoch"], look, priority=CHECKPOINTS + 1)
    run.fit(1, learner)
    assert waiting == [3, 0]


def test_the_loss_that_is_written_is_that_which_others_measure(
    learner: Learner, tmp_path: Path
) -> None:
    run = Runner(TensorBoard(tmp_path, every=1))
    for priority, factor in ((METRICS + 1, 2), (METRICS - 1, 1000)):
        weigh = lambda run, by=factor: setattr(run, "loss", run.loss * by)  # noqa: E731
        run.on("after_loss", weigh, during="train", priority=priority)
    loss = torch.nn.functional.cross_entropy
    x, y = next(iter(learner.data.train_dl))
    expected = 2 * loss(learner.model(x), y).item()
    run.fit(1, learner)
    assert scalars(tmp_path, "batch/loss")[0] == (0, pytest.approx(expected))


def test_every_group_has_its_rate(learner: Learner, tmp_path: Path) -> None:
    weight, bias = learner.model.parameters()
    groups: list[dict[str, Any]] = [{"params": [weight], "lr": 0.1}, {"params": [bias], "lr": 0.2}]
    learner.opt = torch.optim.SGD(groups)
    Runner(TensorBoard(tmp_path)).fit(1, learner)
    assert scalars(tmp_path, "batch/lr/1") == [(0, pytest.approx(0.2))]


def test_nothing_is_read_in_a_batch_unless_it_is_live(
    make_learner: Make, tmp_path: Path, no_sync: Any
) -> None:
    def fit(board: TensorBoard) -> None:
        run = Runner(board)
        run.on("begin_train", lambda run: no_sync.__enter__())
        run.on("after_train", lambda run: no_sync.__exit__())
        run.fit(1, make_learner())

    fit(TensorBoard(tmp_path / "a", every=1))
    with pytest.raises(AssertionError, match="makes the host wait"):
        fit(TensorBoard(tmp_path / "b", every=1, live=True))


def test_a_second_fit_goes_on_counting(learner: Learner, tmp_path: Path) -> None:
    run = Runner(TensorBoard(tmp_path, every=1))
    run.fit(1, learner)
    run.fit(1, learner)
    assert sorted(step for step, _ in scalars(tmp_path, "batch/loss")) == [0, 1, 2, 3, 4, 5]


def test_hyperparameters_and_texts_are_written_into_the_folder(
    learner: Learner, tmp_path: Path
) -> None:
    board = TensorBoard(tmp_path, hparams={"lr": 0.1, "kind": "sgd"}, text={"note": "hello"})
    run = Runner([AvgStatsCallback(report=None), board])
    history = run.fit(1, learner).history
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    events = read(tmp_path)
    assert events.Tensors("note/text_summary")[0].tensor_proto.string_val == [b"hello"]
    assert "_hparams_/session_start_info" in events.summary_metadata
    expected = pytest.approx(history[-1]["valid_loss"])
    assert scalars(tmp_path, "hparam/valid_loss")[0][1] == expected


@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_the_writer_is_closed_whatever_happens(how: str, learner: Learner, tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, every=1)
    run = Runner(board)
    losses = losses_of(run)
    writers: list[Any] = []
    run.on("begin_train", lambda run: writers.append(board.writer))

    @run.on("after_step", when=lambda run: run.batch_index == 1)
    def end(run: Runner) -> None:
        if how == "fail":
            raise RuntimeError("gone")
        run.token.cancel("fit")

    if how == "fail":
        with pytest.raises(RuntimeError, match="gone"):
            run.fit(1, learner)
    else:
        run.fit(1, learner)
    assert board.writer is None
    assert writers[0].all_writers is None  # torch's way to say that it is closed
    assert [v for _, v in scalars(tmp_path, "batch/loss")] == pytest.approx(losses)


def test_an_epoch_is_on_disk_when_it_ends(learner: Learner, tmp_path: Path) -> None:
    run = Runner([AvgStatsCallback(report=None), TensorBoard(tmp_path)])
    found: list[int] = []
    look = lambda run: found.append(len(scalars(tmp_path, "epoch/valid_loss")))  # noqa: E731
    run.on("after_epoch", look, priority=CHECKPOINTS)
    run.fit(2, learner)
    assert found == [1, 2]


def test_an_epoch_of_one_batch_stands_at_that_batch(make_learner: Make, tmp_path: Path) -> None:
    Runner([AvgStatsCallback(report=None), TensorBoard(tmp_path)]).fit(1, make_learner(train=1))
    assert [step for step, _ in scalars(tmp_path, "epoch/train_loss")] == [0]


def test_without_hyperparameters_none_are_written(learner: Learner, tmp_path: Path) -> None:
    Runner(TensorBoard(tmp_path)).fit(1, learner)
    assert "_hparams_/session_start_info" not in read(tmp_path).summary_metadata


def test_hyperparameters_of_a_fit_of_no_epochs_are_written(
    learner: Learner, tmp_path: Path
) -> None:
    Runner(TensorBoard(tmp_path, hparams={"lr": 0.1})).fit(0, learner)
    assert "_hparams_/session_start_info" in read(tmp_path).summary_metadata


def test_an_optimizer_without_rates_has_losses_alone(learner: Learner, tmp_path: Path) -> None:
    learner.opt = WithoutRate(learner.model.parameters())
    Runner(TensorBoard(tmp_path, every=1)).fit(1, learner)
    assert read(tmp_path).Tags()["scalars"] == ["batch/loss"]


def test_a_fit_that_fails_before_the_writer_is_open_fails_of_that_alone(
    learner: Learner, tmp_path: Path
) -> None:
    run = Runner(TensorBoard(tmp_path, hparams={"lr": 0.1}))
    run.on("begin_fit", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        run.fit(1, learner)
    assert len(caught.value.__notes__) == 1


def test_handlers_may_write_with_it(learner: Learner, tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    run = Runner(board)
    run.on("after_epoch", lambda run: board.writer.add_scalar("mine", 7, board.step))
    run.fit(1, learner)
    assert scalars(tmp_path, "mine") == [(3, 7.0)]


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_resumed_run_stands_in_the_folder_once(
    at: int, make_learner: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run goes on beyond the checkpoint, after ``at`` batches, and fails later."""
    states: list[dict[str, Any]] = []
    first = TensorBoard(tmp_path, every=1)
    run = Runner([AvgStatsCallback(report=None), first])
    losses = losses_of(run)
    save = lambda run: states.append(first.state_dict())  # noqa: E731
    run.on("after_batch", save, priority=-100, during="train", when=lambda run: run.n_iter == at)
    run.fit(2, make_learner())
    file = io.BytesIO()
    torch.save(states[0], file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    now = time.time  # files of one second are not read in the order of their making
    monkeypatch.setattr(time, "time", lambda: now() + 10)
    second = TensorBoard(tmp_path, every=1)
    run = Runner(second)
    left = losses[at:]
    run.on("begin_train", lambda run: second.load_state_dict(state), priority=-100)

    @run.on("after_loss", during="train", priority=100)
    def as_the_first_had_it(run: Runner) -> None:
        run.loss = run.loss * 0 + left[run.batch_index]

    run.fit(1, make_learner(train=6 - at))
    written = scalars(tmp_path, "batch/loss")
    assert [step for step, _ in written] == [0, 1, 2, 3, 4, 5]
    assert [value for _, value in written] == pytest.approx(losses)


def test_what_waited_in_a_run_that_was_killed_is_written_by_the_next(
    make_learner: Make, tmp_path: Path
) -> None:
    first, second = TensorBoard(tmp_path / "a", every=1), TensorBoard(tmp_path / "b", every=1)
    states: list[dict[str, Any]] = []
    run = Runner(first)
    losses = losses_of(run)
    run.on("after_batch", lambda run: states.append(first.state_dict()), priority=CHECKPOINTS)
    run.fit(1, make_learner())
    run = Runner(second)
    run.on("begin_train", lambda run: second.load_state_dict(states[1]), priority=-2000)
    run.fit(1, make_learner())
    written = scalars(tmp_path / "b", "batch/loss")
    assert [step for step, _ in written] == [0, 1, 2, 3, 4]
    assert [value for _, value in written] == pytest.approx(losses[:2] + losses)


def test_a_checkpoint_with_nothing_to_write_goes_on_at_its_step_with_one_writer(
    learner: Learner, tmp_path: Path
) -> None:
    board = TensorBoard(tmp_path, every=1)
    run = Runner(board)
    writers: list[Any] = []

    @run.on("begin_fit", priority=CHECKPOINTS)
    def go_on(run: Runner) -> None:
        writers.append(board.writer)
        board.load_state_dict({"step": 6, "new": []})

    run.fit(1, learner)
    assert [step for step, _ in scalars(tmp_path, "batch/loss")] == [6, 7, 8]
    assert writers[0].all_writers is None


def test_a_folder_that_cannot_be_made_is_told_before_training(
    learner: Learner, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    run = Runner(TensorBoard(tmp_path / "file" / "board"))
    with pytest.raises(OSError):
        run.fit(1, learner)
    assert run.result is not None and run.result.steps == 0


def test_validation_and_prediction_alone_and_no_epochs_are_no_trouble(
    learner: Learner, tmp_path: Path
) -> None:
    run = Runner(TensorBoard(tmp_path / "board"))
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert not (tmp_path / "board").exists()
    run.fit(0, learner)


def test_weights_are_those_of_a_run_without_it(make_learner: Make, tmp_path: Path) -> None:
    seen, unseen = make_learner(), make_learner()
    Runner(TensorBoard(tmp_path, every=1, live=True)).fit(2, seen)
    Runner().fit(2, unseen)
    assert torch.equal(seen.model.weight, unseen.model.weight)


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_bad_interval_is_refused(every: Any, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error, match="every"):
        TensorBoard(tmp_path, every=every)


@pytest.mark.parametrize(
    "options", [{"logdir": None}, {"hparams": 3}, {"hparams": "lr"}, {"text": ["a"]}]
)
def test_other_arguments_of_the_wrong_type_are_refused(options: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(options))} must be"):
        TensorBoard(**{"logdir": tmp_path, **options})


def test_the_metrics_of_a_validation_within_a_fit_stand_at_the_batch_before_it(
    learner: Learner, tmp_path: Path
) -> None:
    run = Runner([AvgStatsCallback(report=None), TensorBoard(tmp_path, every=1, hparams={"a": 1})])
    history = run.fit(steps=5, learn=learner, validate_every=2).history
    written = scalars(tmp_path, "row/valid_loss")
    assert [step for step, _ in written] == [1, 3, 4]
    assert [value for _, value in written] == pytest.approx([r["valid_loss"] for r in history])
    assert [step for step, _ in scalars(tmp_path, "batch/loss")] == [0, 1, 2, 3, 4]
    assert "row/step" not in read(tmp_path).Tags()["scalars"]
