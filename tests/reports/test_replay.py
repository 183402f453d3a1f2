"""A log drawn as the picture of its run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from eventtrain import EVENTS, DataError, EventLog, Learner, Runner
from eventtrain.reports.replay import draw, replay


def text_of(log: EventLog) -> list[str]:
    """The picture without its notes."""
    return [re.sub(r"(?<=\S)   .*", "", line) for line in draw(log.records)]


def line(**fields: Any) -> str:
    """One line of a log."""
    record = {
        "event": "begin_fit", "scope": "fit", "epoch": None, "batch": None, "outcome": None,
        "handlers": [], "cancellations": [], "t": 0.0, **fields,
    }  # fmt: skip
    return json.dumps(record)


@pytest.fixture
def file(learner: Learner, tmp_path: Path) -> Path:
    """The log of a fit of two epochs."""
    path = tmp_path / "log.jsonl"
    Runner(cbs=EventLog(path)).fit(2, learner)
    return path


def test_a_run_is_drawn_with_what_repeats_drawn_once(file: Path) -> None:
    picture = re.sub(r"after [\d.]+ s", "after SECONDS s", replay(file))
    assert (
        picture
        == """\
begin_fit
  begin_epoch            x 2, epochs 0 to 1
    begin_train
      begin_batch        x 3, batches 0 to 2
        after_pred
        after_loss
        after_backward
        begin_step
        after_step
      after_batch
    after_train
    begin_validate
      begin_batch        x 2, batches 0 to 1
        after_pred
        after_loss
      after_batch
    after_validate
  after_epoch
  after_row
after_fit                completed after SECONDS s"""
    )


def test_what_differs_is_drawn_apart_with_its_place(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)

    @run.on("after_loss", every=2, during="train")
    def spike(run: Runner) -> None:
        run.token.cancel("batch", "too\nhigh")

    run.fit(1, learner)
    notes = [re.split(" {2,}", line.strip(), maxsplit=1) for line in draw(log.records)]
    told = "cancelled, <- spike in after_loss cancelled the batch: too high"
    assert notes[2:23] == [
        ["begin_train"],
        ["begin_batch", "batch 0"], ["after_pred"], ["after_loss"],
        ["after_backward"], ["begin_step"], ["after_step"], ["after_batch"],
        ["begin_batch", "batch 1"], ["after_pred"], ["after_loss"],
        ["after_cancel_batch", told], ["after_batch", "cancelled"],
        ["begin_batch", "batch 2"], ["after_pred"], ["after_loss"],
        ["after_backward"], ["begin_step"], ["after_step"], ["after_batch"],
        ["after_train"],
    ]  # fmt: skip


@pytest.mark.parametrize("event", [event.name for event in EVENTS])
def test_scopes_close_where_they_opened_whatever_is_cancelled(event: str, learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)

    def cancel(run: Runner) -> None:
        if run.token.open_scopes:
            run.token.cancel(run.token.open_scopes[-1], "why not")

    run.on(event, cancel, once=True)
    run.fit(2, learner)
    assert_balanced(draw(log.records))


@pytest.mark.parametrize("event", [event.name for event in EVENTS])
def test_scopes_close_where_they_opened_wherever_it_fails(event: str, learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)

    def fail(run: Runner) -> None:
        raise ValueError("no")

    run.on(event, fail)
    try:
        run.fit(2, learner)
    except ValueError:
        assert run.result is not None
    lines = draw(log.records)
    assert_balanced(lines)
    if any("fit_failed" in line for line in lines):
        failed = next(i for i, line in enumerate(lines) if "fit_failed" in line)
        assert "ValueError: no" in lines[failed]
        column = [len(line) - len(line.lstrip()) for line in lines]
        # A step has no closing event that a failure leads to.
        assert column[failed] - column[failed + 1] == (2 if event == "begin_step" else 0)


def assert_balanced(lines: list[str]) -> None:
    """Every ``after_X`` stands below its ``begin_X``, in the same column."""
    stack: list[tuple[int, str]] = []
    for text in lines:
        name = text.split()[0]
        column = (len(text) - len(text.lstrip())) // 2
        verb, _, scope = name.partition("_")
        if verb == "begin" and scope != "step":
            assert column == len(stack)
            stack.append((column, scope))
        elif verb == "after" and any(scope == open_scope for _, open_scope in stack):
            assert stack.pop() == (column, scope)
    assert stack == []


def test_several_runs_in_a_file_are_drawn_one_after_the_other(
    learner: Learner, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    run = Runner(cbs=EventLog(path))
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    roots = [line.split()[0] for line in replay(path).splitlines() if line[0] != " "]
    assert roots == ["begin_validate", "after_validate", "begin_predict", "after_predict"]


def test_custom_events_stand_in_the_scope_they_fired_in(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    for name in ("drawn", "late"):
        run.bus.declare(name)
    run.on("after_loss", lambda run: run.bus.emit("drawn", run), during="train")
    run.on("after_fit", lambda run: run.bus.emit("late", run))
    run.fit(1, learner)
    lines = text_of(log)
    assert "        drawn" in lines
    assert lines[-2:] == ["after_fit", "late"]


def test_a_scope_whose_opening_event_did_not_fire_is_drawn(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    run.on("begin_fit", lambda run: run.token.cancel("fit"), priority=float("inf"))
    run.fit(1, learner)
    assert text_of(log) == ["after_cancel_fit", "after_fit"]


def test_a_long_run_is_folded_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    batch = [
        line(event="begin_batch", scope="batch", epoch=0, batch=0),
        line(event="after_batch", scope="train", epoch=0, batch=0, outcome="completed"),
    ]
    path.write_text("\n".join([line(), *batch * 20_000]) + "\n")
    picture = replay(path).splitlines()
    assert len(picture) == 4
    assert "x 20000" in picture[1]


# Damage


def test_a_last_line_that_is_cut_off_is_mentioned_and_left_out(file: Path) -> None:
    whole = file.read_bytes()
    lines = whole.count(b"\n")
    file.write_bytes(whole[:-20])
    picture = replay(file).splitlines()
    assert picture[-1] == f"(line {lines}, the last one, is cut off and left out)"
    assert picture[-2] == "(the log ends here, inside of fit)"


def test_a_log_may_be_cut_anywhere_behind_its_first_line(file: Path) -> None:
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole), 101):
        file.write_bytes(whole[:end])
        assert replay(file)


def test_a_last_line_that_lacks_only_its_end_of_line_counts(file: Path) -> None:
    whole = replay(file)
    file.write_bytes(file.read_bytes()[:-1])
    assert replay(file) == whole


def test_an_empty_log_says_so(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    assert replay(tmp_path / "log.jsonl").startswith("(the log is empty")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("", "not JSON"),
        ('{"event": "after_loss"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ('{"event": "after_loss"}', "has no field 'scope'"),
        (line(event=3), "field 'event' is 3"),
        (line(epoch="x"), "field 'epoch' is 'x'"),
        (line(t=None), "field 't' is None"),
        (line(cancellations=["spike"]), "'cancellations' holds 'spike'"),
        (line(cancellations=[{"scope": "fit"}]), "'cancellations' holds"),
        ("\udcff\udcfe", "not text"),
    ],
)
def test_damage_is_told_with_the_number_of_the_line(damage: str, message: str, file: Path) -> None:
    lines = file.read_bytes().splitlines()
    lines[4] = damage.encode("utf-8", "surrogateescape")
    file.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DataError, match=message) as caught:
        replay(file)
    assert f"{file}: line 5 is damaged" in str(caught.value)


@pytest.mark.parametrize("content", [b"hello\n", b"hello", b"\x89PNG\r\n\x1a\n", b'{"a": 1}'])
def test_a_file_that_is_no_log_is_told_at_its_first_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(content)
    with pytest.raises(DataError, match=r"line 1 is none of an event log.*EventLog\(path\)"):
        replay(tmp_path / "photo")


def test_what_a_log_says_cannot_move_the_cursor() -> None:
    told = [{"scope": "fit", "reason": "\x1b[2J\r\n", "by": "x", "event": None}]
    record = json.loads(line(event="own\x07", scope=None, cancellations=told))
    (drawn,) = draw([record])
    assert drawn.isprintable()
