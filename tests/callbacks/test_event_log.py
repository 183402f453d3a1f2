"""The event log says what fired, for whom, and what was cancelled."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from eventtrain import (
    EVENTS,
    AvgStatsCallback,
    Callback,
    CancellationToken,
    EventBus,
    EventLog,
    Learner,
    Runner,
    accuracy,
    handler,
)
from eventtrain.callbacks import Checkpoint
from eventtrain.reports.replay import replay

ROOT = Path(__file__).resolve().parents[1]
Make = Callable[..., Learner]


def witness(run: Runner, *more: str) -> list[tuple[Any, ...]]:
    """Write down what a handler of every event sees that runs right after the log."""
    seen: list[tuple[Any, ...]] = []
    for name in (*(event.name for event in EVENTS), *more):

        def note(run: Runner, name: str = name) -> None:
            seen.append((name, run.token.scope, run.epoch, run.batch_index, run.token.outcome))

        run.on(name, note, priority=999_999, name="witness")
    return seen


def brief(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The fields of the log that a witness sees too."""
    return [(r["event"], r["scope"], r["epoch"], r["batch"], r["outcome"]) for r in records]


def quiet(run: Runner) -> None:
    """Do nothing."""


def of(log: EventLog, event: str) -> list[dict[str, Any]]:
    return [record for record in log.records if record["event"] == event]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# What fired


def test_the_trace_of_a_fit_is_what_handlers_saw(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    seen = witness(run)
    run.fit(2, learner)
    assert brief(log.records) == seen
    assert len(seen) == 2 * (3 * 7 + 2 * 4 + 7) + 2


@pytest.mark.parametrize("event", ["begin_fit", "begin_batch", "after_loss", "begin_validate"])
@pytest.mark.parametrize("index", [0, -1])
def test_the_trace_of_a_cancelled_fit_is_what_handlers_saw(
    event: str, index: int, learner: Learner
) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    seen = witness(run)

    def cancel(run: Runner) -> None:
        run.token.cancel(run.token.open_scopes[index], "why not")

    run.on(event, cancel)
    run.fit(2, learner)
    assert brief(log.records) == seen
    told = [c for record in log.records for c in record["cancellations"]]
    assert run.result is not None
    assert [c["by"] for c in told] == [c.by for c in run.result.cancellations]


def test_the_trace_of_a_failed_fit_is_what_handlers_saw(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    seen = witness(run)

    @run.on("after_loss")
    def fail(run: Runner) -> None:
        raise ValueError("no\nmore")

    with pytest.raises(ValueError):
        run.fit(2, learner)
    assert brief(log.records) == seen
    assert [record["event"] for record in log.records][-6:] == [
        "after_loss", "fit_failed", "after_batch", "after_train", "after_epoch", "after_fit"
    ]  # fmt: skip


def test_the_line_of_fit_failed_alone_names_the_exception(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    learner.loss_func = lambda out, yb: 1 / 0
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run.fit(1, learner)
    told = [(r["event"], r["exception"]) for r in log.records if "exception" in r]
    assert told == [("fit_failed", "ZeroDivisionError: division by zero")] * 2


def test_a_failure_outside_of_a_fit_is_told_in_the_first_closing_line(learner: Learner) -> None:
    log = EventLog()
    learner.loss_func = lambda out, yb: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Runner(cbs=log).validate(learner)
    assert [r["event"] for r in log.records if "exception" in r] == ["after_batch"]


def test_validation_and_prediction_alone_are_logged(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    seen = witness(run)
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert brief(log.records) == seen
    assert [record["event"] for record in log.records].count("after_pred") == 4
    assert log.records[-1]["event"] == "after_predict"
    assert log.records[-1]["scope"] is None


def test_custom_events_declared_before_the_run_are_logged(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    run.bus.declare("after_sample")
    seen = witness(run, "after_sample")
    run.on("begin_validate", lambda run: run.bus.emit("after_sample", run))
    run.fit(2, learner)
    assert len(of(log, "after_sample")) == 2
    assert brief(log.records) == seen


def test_custom_events_declared_during_a_run_are_logged_from_the_next_on(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    run.on("begin_fit", lambda run: run.bus.declare("after_sample") and None, once=True)
    run.on("after_fit", lambda run: run.bus.emit("after_sample", run))
    run.fit(1, learner)
    assert of(log, "after_sample") == []
    run.fit(1, learner)
    assert len(of(log, "after_sample")) == 1


def test_a_bus_with_a_vocabulary_of_its_own_is_logged(learner: Learner) -> None:
    log = EventLog()
    bus = EventBus([event for event in EVENTS if not event.name.startswith("after_cancel_")])
    Runner(cbs=log, bus=bus).fit(1, learner)
    assert log.records[-1]["event"] == "after_fit"


def test_a_fit_that_was_cancelled_before_it_began_leaves_no_line(learner: Learner) -> None:
    log = EventLog()
    token = CancellationToken()
    token.cancel("fit", "changed my mind")
    Runner(cbs=log).fit(1, learner, token=token)
    assert log.records == []


# Who handled it


def test_handlers_are_named_in_their_order_without_the_log(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=[AvgStatsCallback(accuracy, report=None), log])
    run.on("begin_epoch", lambda run: None, name="late", priority=-1)
    run.on("begin_epoch", lambda run: None, name="early", priority=60)
    run.fit(1, learner)
    assert of(log, "begin_epoch")[0]["handlers"] == ["train_eval", "early", "avg_stats", "late"]
    assert of(log, "after_pred")[0]["handlers"] == []


def test_handlers_that_come_and_go_are_named_while_they_are_there(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    run.on("after_loss", lambda run: None, name="first only", once=True)
    run.on("begin_validate", lambda run: run.on("after_loss", quiet, name="new") and None)
    stranger = Learner(None, None, print, learner.data)
    run.bus.on("after_loss", lambda run: None, name="of another", sender=stranger)
    run.fit(1, learner)
    assert [r["handlers"] for r in of(log, "after_loss")] == [
        ["first only"], [], [], ["new"], ["new"]
    ]  # fmt: skip


def test_names_are_looked_up_when_subscriptions_change_only(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    run.fit(1, learner)
    signal_class = type(run.bus.signal("after_loss"))
    calls: list[str] = []
    original = signal_class.handlers_for

    def counting(self: Any, sender: object) -> Any:
        calls.append(self.name)
        return original(self, sender)

    monkeypatch.setattr(signal_class, "handlers_for", counting)
    run.fit(5, learner)
    assert calls.count("after_loss") <= 2  # once by the emitter, once by the log


def test_the_log_sees_an_event_before_handlers_of_lower_priority(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    run.on("begin_batch", lambda run: run.token.cancel("fit", "at once"), priority=999_999)
    run.fit(1, learner)
    assert len(of(log, "begin_batch")) == 1


def test_a_cancellation_is_told_in_the_line_that_follows(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)

    @run.on("after_loss", every=2)
    def spike(run: Runner) -> None:
        run.token.cancel("batch", "a spike")

    run.fit(1, learner)
    told = [(a, b) for a, b in pairwise(log.records) if b["cancellations"]]
    assert [(a["event"], b["event"]) for a, b in told] == [("after_loss", "after_cancel_batch")] * 2
    (asked,) = told[0][1]["cancellations"]
    place = {"event": "after_loss", "epoch": 0, "batch": 1, "rank": None}
    said = {"scope": "batch", "reason": "a spike", "by": "spike"}
    assert {name: asked[name] for name in (*said, *place)} == {**said, **place}
    assert told[0][1]["outcome"] == "cancelled"


def test_cancellations_of_an_earlier_run_with_the_same_token_are_not_told_again(
    learner: Learner,
) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    run.on("begin_batch", lambda run: run.token.cancel("train"), once=True)
    token = CancellationToken()
    run.fit(1, learner, token=token)
    before = len(log.records)
    run.fit(1, learner, token=token)
    assert len(token.history) == 1
    assert not any(record["cancellations"] for record in log.records[before:])


def test_time_starts_anew_in_every_run_and_never_runs_back(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    for _ in range(2):
        log.records.clear()
        run.fit(1, learner)
        times = [record["t"] for record in log.records]
        assert times == sorted(times)
        assert times[0] < 1


# The file


def test_time_is_in_seconds_since_the_run_began(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    log = EventLog()
    run = Runner(log)
    run.on("begin_epoch", lambda run: now.append(now.pop() + 2.5))
    run.fit(1, learner)
    times = {record["event"]: record["t"] for record in log.records}
    assert (times["begin_fit"], times["begin_epoch"], times["after_fit"]) == (0.0, 0.0, 2.5)


def test_a_new_log_does_not_tell_what_its_token_went_through_before(learner: Learner) -> None:
    token = CancellationToken()
    first = Runner()
    first.on("begin_batch", lambda run: run.token.cancel("batch"), once=True)
    assert len(first.fit(1, learner, token=token).cancellations) == 1
    log = EventLog()
    Runner(log).fit(1, learner, token=token)
    assert [record["cancellations"] for record in log.records if record["cancellations"]] == []


def test_the_file_holds_what_memory_would_hold(learner: Learner, tmp_path: Path) -> None:
    in_memory, in_file = EventLog(), EventLog(tmp_path / "log.jsonl", flush_every=7)
    in_file.name = "on_disk"
    run = Runner(cbs=[in_memory, in_file])
    run.fit(2, learner)
    written = read(tmp_path / "log.jsonl")
    assert in_file.records == []
    for one, other in zip(in_memory.records, written, strict=True):
        for record in (one, other):
            del record["t"]
            record.get("run", {}).pop("began_at", None)
        # Each names the other.
        assert [name for name in one.pop("handlers") if name != "on_disk"] == [
            name for name in other.pop("handlers") if name != "event_log"
        ]
        assert one == other


def test_the_file_is_complete_when_the_run_has_ended_however_it_did(
    learner: Learner, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    run = Runner(cbs=EventLog(path, flush_every=10_000))
    learner.loss_func = lambda out, yb: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert read(path)[-1]["event"] == "after_fit"
    assert read(path)[-1]["outcome"] == "failed"


@pytest.mark.parametrize("flush_every", [1, 5])
def test_lines_are_written_whole_and_as_often_as_asked(
    flush_every: int, learner: Learner, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    run = Runner(cbs=EventLog(path, flush_every=flush_every))
    counts: list[int] = []
    run.on("after_loss", lambda run: counts.append(len(read(path))))
    run.fit(1, learner)
    expected = [i for i, r in enumerate(read(path), 1) if r["event"] == "after_loss"]
    assert counts == [i - i % flush_every for i in expected]


def test_the_first_run_replaces_the_file_and_later_ones_add_to_it(
    learner: Learner, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("something else\n")
    run = Runner(cbs=EventLog(path))
    run.fit(1, learner)
    run.validate(learner)
    roots = [r["event"] for r in read(path) if r["scope"] is None]
    assert roots == ["after_fit", "after_validate"]


def test_a_fit_that_is_to_go_on_adds_to_the_file_of_the_process_before(
    make_learner: Make, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    for epochs in (1, 2):
        Runner([EventLog(path), Checkpoint(tmp_path)]).fit(epochs, make_learner(), resume="auto")
        with path.open("a") as file:
            file.write('{"event": "torn')  # as a process that is killed leaves it
    whole = path.read_text().removesuffix('{"event": "torn').splitlines()
    lines = [json.loads(line) for line in whole]
    assert [line["event"] for line in lines if line["scope"] is None] == ["after_fit"] * 2
    assert [line["run"]["resumed"]["epoch"] for line in lines if "run" in line] == [0, 1]


def test_lines_are_held_back_for_no_longer_than_five_seconds(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, path, counts = [100.0], tmp_path / "log.jsonl", []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    run = Runner(EventLog(path, flush_every=10_000))
    run.on("after_pred", lambda run: now.append(now.pop() + 3), during="train")
    run.on("after_batch", lambda run: counts.append(len(read(path))), during="train")
    run.fit(1, learner)
    expected = [i for i, r in enumerate(read(path), 1) if r["event"] == "after_loss"]
    assert counts == [0, expected[1], expected[1]]


def test_steps_are_counted_in_every_line(learner: Learner) -> None:
    log = EventLog()
    Runner(log).fit(1, learner)
    assert [r["steps"] for r in of(log, "after_step")] == [1, 2, 3]
    assert log.records[-1]["steps"] == 3


def test_a_cancellation_tells_the_line_that_asked(learner: Learner) -> None:
    log = EventLog()
    run = Runner(log)

    def spike(run: Runner) -> None:
        run.token.cancel("batch", "a spike")

    run.on("after_loss", spike, once=True)
    run.fit(1, learner)
    (told,) = [c for record in log.records for c in record["cancellations"]]
    assert told["source"] == f"{__file__}:{spike.__code__.co_firstlineno + 1}"
    assert told["time"] <= time.time()


def test_a_file_that_cannot_be_written_is_told_before_any_event(
    learner: Learner, tmp_path: Path
) -> None:
    run = Runner(cbs=EventLog(tmp_path / "nowhere" / "log.jsonl"))
    seen = witness(run)
    with pytest.raises(FileNotFoundError):
        run.fit(1, learner)
    assert seen == []


@pytest.mark.parametrize("value", [0, -1])
def test_flush_every_must_be_positive(value: int) -> None:
    with pytest.raises(ValueError, match="flush_every"):
        EventLog(flush_every=value)


@pytest.mark.parametrize("value", [True, 2.0, "3"])
def test_flush_every_must_be_a_whole_number(value: Any) -> None:
    with pytest.raises(TypeError, match="flush_every"):
        EventLog(flush_every=value)


PROGRAM = """
import os, signal, sys, torch
from eventtrain import *
x, y = torch.randn(12, 5), torch.randint(0, 3, (12,))
dl = TensorLoader(x, y, bs=4)
model, opt = get_model(DataBunch(dl, dl, c=3))
learn = Learner(model, opt, torch.nn.functional.cross_entropy, DataBunch(dl, dl))
run = Runner(EventLog(sys.argv[1], flush_every=10))
run.on("after_train", lambda run: os.kill(os.getpid(), signal.SIGKILL), when=lambda r: r.epoch == 2)
run.fit(5, learn)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("cut", [0, 30])
def test_what_a_killed_process_leaves_can_be_replayed(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes().endswith(b"}\n")
    assert len(read(path)) % 10 == 0
    if cut:  # as when the machine went down with it
        os.truncate(path, path.stat().st_size - cut)
    picture = replay(path)
    assert "x 2, epochs 0 to 1" in picture
    assert "the log ends here, inside of fit > epoch" in picture
    assert ("cut off" in picture) == bool(cut)


# Living with others


def test_the_log_changes_no_weight_and_reads_nothing_from_the_device(
    make_learner: Make, no_sync: Any
) -> None:
    plain, logged = make_learner(), make_learner()
    Runner().fit(2, plain)
    run = Runner(cbs=EventLog())
    for phase in ("train", "validate"):
        run.on(f"begin_{phase}", lambda run: no_sync.__enter__())
        run.on(f"after_{phase}", lambda run: no_sync.__exit__(), priority=float("inf"))
    run.fit(2, logged)
    for one, other in zip(plain.model.parameters(), logged.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_one_log_for_two_runners_on_one_bus_hears_each_once(make_learner: Make) -> None:
    log, bus = EventLog(), EventBus()
    first, second = Runner(cbs=log, bus=bus), Runner(cbs=log, bus=bus)
    Runner(bus=bus).fit(1, make_learner())
    assert log.records == []
    first.validate(make_learner())
    second.validate(make_learner())
    assert len(of(log, "begin_validate")) == 2


def test_a_runner_ends_with_its_last_user_though_its_log_lives_on() -> None:
    log, bus = EventLog(), EventBus()
    run = Runner(cbs=log, bus=bus)
    reference = weakref.ref(run)
    del run
    gc.collect()
    assert reference() is None
    assert not any(bus.signal(name).receivers for name in bus)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda log: pickle.loads(pickle.dumps(log))])
def test_a_copy_of_a_log_is_a_log_of_its_own(clone: Any, make_learner: Make) -> None:
    log = EventLog()
    Runner(cbs=log).validate(make_learner())
    other = clone(log)
    assert other.records == log.records
    other.records.clear()
    Runner(cbs=other).validate(make_learner())
    assert len(other.records) == len(log.records)


def test_others_can_put_themselves_before_it(learner: Learner) -> None:
    log = EventLog()

    class First(Callback):
        @handler(before="event_log")
        def after_loss(self, run: Runner) -> None:
            run.token.cancel("fit", "unseen")

    Runner(cbs=[log, First()]).fit(1, learner)
    assert of(log, "after_loss") == []
    assert of(log, "after_cancel_fit")[0]["cancellations"] == []
    assert of(log, "after_batch")[0]["cancellations"][0]["reason"] == "unseen"


def test_blinkers_own_send_is_logged_too(learner: Learner) -> None:
    log = EventLog()
    run = Runner(cbs=log)
    run.bus["after_loss"].send(run)
    assert [record["event"] for record in log.records] == ["after_loss"]


def test_the_log_shows_in_a_profile(learner: Learner) -> None:
    run = Runner(cbs=EventLog())
    with run.bus.profile() as profile:
        run.fit(1, learner)
    assert "event_log" in profile.table()


def test_what_is_no_path_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="path must be a path, got 3"):
        EventLog(3)  # type: ignore[arg-type]
