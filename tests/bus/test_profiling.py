"""Profiling: every call counted, nothing changed by it, and nothing left of it when off."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from eventtrain import CancellationToken, EventBus, Learner, Runner, Scope
from eventtrain.bus.profiling import MAX_SPANS, Profile
from eventtrain.bus.running import running_handler
from eventtrain.events import EVENTS, SCOPES

SCOPE_OF = {event.name: event.scope for event in EVENTS}


def nothing(run: Any) -> None: ...


def calls(profile: Profile) -> dict[tuple[str, str], int]:
    return {(row["event"], row["handler"]): row["calls"] for row in profile.to_dicts()}


def row(profile: Profile, handler: str) -> dict[str, Any]:
    (found,) = [each for each in profile.to_dicts() if each["handler"] == handler]
    return found


def compiled(bus: EventBus, event: str) -> list[Any]:
    return [handler.callee() for handler in bus.signal(event).handlers]


def in_emission(bus: EventBus, event: str) -> Any:
    """What the first line of the compiled emission calls."""
    names = bus.signal(event).emit.__globals__  # type: ignore[attr-defined]
    return next(value for name, value in names.items() if name.startswith("h0"))


def counting_run() -> tuple[Runner, Counter[str]]:
    """A runner with one handler on every event that counts for itself."""
    run, counted = Runner(), Counter[str]()
    for event in EVENTS:
        run.on(event.name, lambda run, name=event.name: counted.update([name]), name="count")
    return run, counted


def read_trace(path: Path) -> dict[str, Any]:
    """Read a trace and check it against the Trace Event format."""
    trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    events = trace["traceEvents"]
    times = [event["ts"] for event in events]
    assert times == sorted(times) and all(time >= 0 for time in times)
    open_spans: dict[int, list[str]] = {}
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    for event in events:
        assert {"name", "ph", "ts", "pid", "tid"} <= set(event)
        stack = open_spans.setdefault(event["tid"], [])
        if event["ph"] == "B":
            assert event["cat"] in ("scope", "handler") and event["tid"] in lanes
            stack.append(event["name"])
        elif event["ph"] == "E":
            assert stack.pop() == event["name"]
        else:
            assert event["ph"] == "M"
    assert not any(open_spans.values())
    return trace


def lanes_of(trace: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    events = trace["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    lanes: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] in "BE":
            lanes[names[event["tid"]]].append(event)
    return lanes


# Counts and times


def test_every_handler_of_a_fit_is_counted(learner: Learner) -> None:
    run, counted = counting_run()
    with run.bus.profile() as profile:
        run.fit(2, learner)
    found = {event: n for (event, name), n in calls(profile).items() if name == "count"}
    assert found == dict(counted)
    assert found["after_loss"] == 10 and found["after_step"] == 6


def test_filtered_handlers_are_counted_when_they_run(learner: Learner) -> None:
    run = Runner()
    run.on("after_loss", nothing, name="third", every=3)
    run.on("after_loss", nothing, name="first", once=True)
    run.on("after_loss", nothing, name="learning", during="train")
    run.on("after_loss", nothing, name="never", when=lambda run: False)
    run.on("after_loss", nothing, name="safe", every=2, on_error="warn")
    with run.bus.profile() as profile:
        run.fit(2, learner)
        shown = {each.handler: each.calls for each in run.bus.explain("after_loss")}
    found = {name: n for (event, name), n in calls(profile).items() if event == "after_loss"}
    assert found == {"third": 3, "first": 1, "learning": 6, "never": 0, "safe": 5}
    assert shown == {"third": 3, "learning": 6, "never": 0, "safe": 5}
    assert row(profile, "never")["mean_us"] is None


def test_handlers_and_events_added_in_the_block_are_counted() -> None:
    bus = EventBus()
    with bus.profile() as profile:
        bus.emit("after_fit", None)
        bus.on("after_fit", nothing, name="late")
        bus.emit("after_fit", None)
        bus.declare("own")
        bus.on("own", nothing)
        bus.signal("own").connect(nothing)
        bus.emit("own", None)
    assert calls(profile) == {("after_fit", "late"): 1, ("own", "nothing"): 2}


def test_handlers_for_a_sender_are_counted() -> None:
    bus = EventBus()
    first, second = Runner(bus=bus), Runner(bus=bus)
    first.on("after_fit", nothing, name="mine")
    with bus.profile() as profile:
        bus.emit("after_fit", first)
        bus.emit("after_fit", first)
        bus.emit("after_fit", second)
    assert row(profile, "mine")["calls"] == 2


def test_a_handler_that_emits_its_own_event_is_counted_once_a_call() -> None:
    bus, depth = EventBus(), [0]

    def again(run: Any) -> None:
        depth[0] += 1
        if depth[0] < 3:
            bus.emit("after_fit", run)

    bus.on("after_fit", again, when=lambda run: True)
    with bus.profile() as profile:
        bus.emit("after_fit", None)
    assert row(profile, "again")["calls"] == 3


def test_a_handler_that_fails_is_counted() -> None:
    bus = EventBus()
    bus.on("after_fit", lambda run: 1 / 0, name="plain")
    with bus.profile() as profile, pytest.raises(ZeroDivisionError):
        bus.emit("after_fit", None)
    assert row(profile, "plain")["calls"] == 1


def test_handlers_of_several_threads_are_counted() -> None:
    bus = EventBus()
    bus.on("after_fit", nothing)

    def emit() -> None:
        for _ in range(500):
            bus.emit("after_fit", None)

    threads = [threading.Thread(target=emit) for _ in range(4)]
    with bus.profile() as profile:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert row(profile, "nothing")["calls"] == 2000


def test_times_are_those_of_the_handlers() -> None:
    bus = EventBus()
    bus.on("after_fit", lambda run: time.sleep(0.02), name="slow")
    bus.on("after_fit", nothing, name="quick", when=lambda run: time.sleep(0.01) is None)
    with bus.profile() as profile:
        bus.emit("after_fit", None)
        bus.emit("after_fit", None)
    slow, quick = profile.to_dicts()
    assert (slow["handler"], quick["handler"]) == ("slow", "quick")
    assert slow["total_ms"] >= 39 and slow["mean_us"] == pytest.approx(slow["total_ms"] * 500)
    assert quick["total_ms"] >= 19, "a filter is part of what a handler costs"
    assert 0.5 < slow["share"] < slow["share"] + quick["share"] <= 1
    assert profile.seconds == pytest.approx(slow["total_ms"] / slow["share"] / 1000)


def test_explain_shows_the_time_of_every_handler_inside_of_the_block_only(
    learner: Learner,
) -> None:
    run = Runner()
    run.on("after_step", lambda run: time.sleep(0.002), name="slow")
    with run.bus.profile() as profile:
        assert {each.total_ms for each in run.bus.explain()} == {0.0}
        run.fit(1, learner)
        (shown,) = run.bus.explain("after_step")
        assert "total_ms" in str(run.bus.explain("after_step")).splitlines()[0]
    assert shown.total_ms == row(profile, "slow")["total_ms"] >= 6
    assert {each.total_ms for each in run.bus.explain()} == {None}


def test_explain_counts_the_calls_inside_of_the_block_only(learner: Learner) -> None:
    run, counted = counting_run()
    with run.bus.profile():
        assert {each.calls for each in run.bus.explain()} == {0}
        run.fit(1, learner)
        shown = {e.event: e.calls for e in run.bus.explain() if e.handler == "count"}
    assert shown == {event.name: counted[event.name] for event in EVENTS}
    assert {each.calls for each in run.bus.explain()} == {None}


def test_disconnected_handlers_keep_their_row_but_are_not_kept_alive() -> None:
    class Owner:
        def act(self, run: Any) -> None: ...

    bus, owner = EventBus(), Owner()
    with bus.profile() as profile:
        subscription = bus.on("after_fit", owner.act)
        bus.emit("after_fit", None)
        subscription.disconnect()
        gone = weakref.ref(owner)
        del owner, subscription
        gc.collect()
        assert gone() is None
    assert row(profile, "act")["calls"] == 1


# Nothing is changed by it


def test_weights_are_the_same_bit_for_bit(make_learner: Callable[..., Learner]) -> None:
    plain, profiled = make_learner(), make_learner()
    Runner().fit(3, plain)
    run = Runner()
    with run.bus.profile():
        run.fit(3, profiled)
    for one, other in zip(plain.model.parameters(), profiled.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_order_is_the_same() -> None:
    bus, ran = EventBus(), list[str]()
    for name, priority in (("c", 0), ("a", 10), ("d", 0), ("b", 5)):
        bus.on("after_fit", lambda run, name=name: ran.append(name), name=name, priority=priority)
    bus.emit("after_fit", None)
    with bus.profile():
        bus.emit("after_fit", None)
    bus.emit("after_fit", None)
    assert ran == ["a", "b", "c", "d"] * 3


def test_a_cancellation_names_its_handler_and_the_scopes_obey(learner: Learner) -> None:
    run, seen = Runner(), list[Any]()

    def stop(run: Any) -> None:
        seen.append(running_handler())
        run.token.cancel("epoch", "enough")

    run.on("after_loss", stop, once=True)
    run.on("after_loss", lambda run: seen.append("later"), during="validate")
    run.on("after_cancel_epoch", lambda run: seen.append(run.outcome))
    with run.bus.profile():
        result = run.fit(2, learner)
    (record,) = result.cancellations
    assert (record.by, record.event, record.epoch, record.batch) == ("stop", "after_loss", 0, 0)
    assert seen[0].name == "stop" and seen[1] == "cancelled"
    assert (result.outcome, result.epochs) == ("completed", 1)


def test_an_exception_has_its_note_and_fails_the_fit(learner: Learner) -> None:
    run, ended = Runner(), list[str]()
    run.on("after_loss", lambda run: 1 / 0, name="broken", when=lambda run: run.batch_index == 1)
    for name in ("fit_failed", "after_batch", "after_fit"):
        run.on(name, lambda run, name=name: ended.append(name))
    with run.bus.profile() as profile:
        with pytest.raises(ZeroDivisionError) as caught:
            run.fit(1, learner)
    (note,) = caught.value.__notes__
    assert "'broken' of event 'after_loss'" in note and "epoch 0, batch 1" in note
    assert ended == ["after_batch", "fit_failed", "after_batch", "after_fit"]
    assert row(profile, "broken")["calls"] == 1


def test_a_flag_is_refused_as_ever() -> None:
    bus = EventBus()
    bus.on("after_fit", lambda run: True)
    with bus.profile(), pytest.raises(TypeError, match="steers nothing"):
        bus.emit("after_fit", None)


def test_a_disabled_handler_leaves(learner: Learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: 1 / 0, name="broken", on_error="disable")
    with run.bus.profile() as profile:
        assert run.fit(1, learner).outcome == "completed"
    assert row(profile, "broken")["calls"] == 1


# Off


def test_off_the_compiled_calls_are_the_bare_functions() -> None:
    bus = EventBus()
    bus.on("after_fit", nothing)
    bus.emit("after_fit", None)
    assert in_emission(bus, "after_fit") is nothing
    with bus.profile():
        bus.emit("after_fit", None)
        assert in_emission(bus, "after_fit") is not nothing
    bus.emit("after_fit", None)
    assert in_emission(bus, "after_fit") is nothing
    assert compiled(bus, "after_fit") == [nothing]


def test_off_again_also_after_an_exception_and_in_the_middle_of_a_fit(learner: Learner) -> None:
    run, stack = Runner(), ExitStack()
    profiles: list[Profile] = []
    types: list[set[type]] = []

    def begin(run: Any) -> None:
        profiles.append(stack.enter_context(run.bus.profile()))

    def look(run: Any) -> None:
        types.append({type(getattr(run.scope, name)) for name in SCOPES})

    run.on("begin_train", begin, once=True)
    run.on("begin_train", look)
    run.on("after_batch", lambda run: stack.close(), every=2, name="end")
    run.on("after_batch", look)
    run.fit(1, learner)
    assert types[-1] == {Scope} and len(types[0] - {Scope}) == 1
    assert compiled(run.bus, "begin_train")[-1] is look
    assert {key: n for key, n in calls(profiles[0]).items() if key[1] != "count"} == {
        ("after_batch", "end"): 1,
        ("after_batch", "look"): 1,
    }
    with pytest.raises(KeyError), run.bus.profile():
        raise KeyError
    assert compiled(run.bus, "begin_train")[-1] is look


def test_scopes_are_plain_before_and_after_the_block() -> None:
    bus, token = EventBus(), CancellationToken()
    _emit, scope = bus.bind(None, token)
    assert type(scope.batch) is Scope
    with bus.profile():
        assert type(scope.batch) is not Scope and isinstance(scope.batch, Scope)
    assert type(scope.batch) is Scope


def test_a_handler_put_back_after_the_block_is_the_bare_function() -> None:
    bus, stack = EventBus(), ExitStack()
    signal = bus.signal("after_fit")
    signal.connect(nothing, weak=False)
    with bus.profile():
        bus.emit("after_fit", None)
        stack.enter_context(signal.connected_to(nothing))
    stack.close()
    bus.emit("after_fit", None)
    assert in_emission(bus, "after_fit") is nothing


def test_two_profiles_at_once_are_refused() -> None:
    bus = EventBus()
    bus.on("after_fit", nothing)
    with bus.profile() as profile:
        with pytest.raises(RuntimeError, match="being profiled already"), bus.profile():
            pass
        bus.emit("after_fit", None)
    assert row(profile, "nothing")["calls"] == 1
    with bus.profile() as second:
        pass
    assert calls(second) == {} and second.table() == "no handler was called"


@pytest.mark.parametrize(
    ("wrong", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)]
)
def test_a_number_of_spans_that_is_none_is_refused(wrong: Any, error: type[Exception]) -> None:
    bus = EventBus()
    with pytest.raises(error, match="max_spans"), bus.profile(wrong):
        pass
    with bus.profile():
        pass


# What comes out


def test_the_table_has_the_most_expensive_first() -> None:
    bus = EventBus()
    bus.on("after_fit", lambda run: time.sleep(0.01), name="slow")
    bus.on("begin_fit", nothing)
    with bus.profile() as profile:
        bus.emit("begin_fit", None)
        bus.emit("after_fit", None)
    title, first, second = str(profile).splitlines()
    titles = ["event", "handler", "source", "calls", "total", "ms", "mean", "us", "share"]
    assert title.split() == titles
    assert first.split()[:2] == ["after_fit", "slow"] and first.endswith("%")
    assert second.split()[:2] == ["begin_fit", "nothing"]
    assert profile.table() == str(profile)


def test_as_json_it_has_the_rows(tmp_path: Path) -> None:
    bus = EventBus()
    bus.on("begin_fit", nothing)
    with bus.profile() as profile:
        bus.emit("begin_fit", None)
    text = profile.to_json(tmp_path / "profile.json")
    data = json.loads((tmp_path / "profile.json").read_text())
    assert (
        data
        == json.loads(text)
        == {
            "seconds": profile.seconds,
            "dropped": 0,
            "handlers": profile.to_dicts(),
        }
    )
    assert profile.to_dicts()[0]["source"] == f"{__name__}:{nothing.__code__.co_firstlineno}"


def test_the_trace_has_a_lane_a_scope_with_the_handlers_in_its_spans(
    learner: Learner, tmp_path: Path
) -> None:
    run, counted = counting_run()
    run.on("begin_step", lambda run: run.token.cancel("step"), name="skip", every=2)
    with run.bus.profile() as profile:
        run.fit(2, learner)
    profile.to_chrome_trace(tmp_path / "trace.json")
    trace = read_trace(tmp_path / "trace.json")
    assert trace["otherData"]["dropped"] == 0
    assert trace["otherData"]["max_spans"] == MAX_SPANS
    lanes = lanes_of(trace)
    assert list(lanes) == ["fit", "epoch", "train", "validate", "batch", "step"]
    for scope, events in lanes.items():
        depth, spans, handlers = 0, 0, Counter[str]()
        for event in events:
            if event["ph"] == "E":
                depth -= 1
                continue
            if event["cat"] == "scope":
                assert (event["name"], depth) == (scope, 0)
                spans += 1
            else:
                name, _, handler = event["name"].partition("/")
                is_behind = name == "after_row"  # it fires when the epoch has closed
                assert depth == (not is_behind), "a handler lies in a span of its scope"
                assert SCOPE_OF[name] == scope and event["args"]["source"]
                handlers[name] += handler == "count"
            depth += 1
        assert spans == counted[f"begin_{scope}"]
        assert +handlers == Counter({n: c for n, c in counted.items() if SCOPE_OF[n] == scope})


@pytest.mark.parametrize("event", ["begin_fit", "after_loss", "begin_step", "after_batch"])
@pytest.mark.parametrize("how", ["fail", "cancel"])
def test_the_trace_balances_however_the_fit_ends(
    learner: Learner, tmp_path: Path, event: str, how: str
) -> None:
    run, _ = counting_run()

    def end(run: Any) -> None:
        if how == "fail":
            raise OSError
        run.token.cancel("fit")

    run.on(event, end, priority=1)
    with ExitStack() as stack:
        if how == "fail":
            stack.enter_context(pytest.raises(OSError))
        profile = stack.enter_context(run.bus.profile())
        run.fit(1, learner)
    profile.to_chrome_trace(tmp_path / "trace.json")
    lanes = lanes_of(read_trace(tmp_path / "trace.json"))
    assert lanes["fit"][0]["name"] == lanes["fit"][-1]["name"] == "fit"


def test_a_block_inside_of_a_fit_gives_a_trace_that_balances(
    learner: Learner, tmp_path: Path
) -> None:
    run, stack = Runner(), ExitStack()
    profiles: list[Profile] = []
    run.on("after_pred", nothing)
    run.on("begin_batch", lambda run: profiles.append(stack.enter_context(run.bus.profile())),
           once=True)  # fmt: skip
    run.on("after_loss", lambda run: stack.close(), every=2)
    run.fit(1, learner)
    profiles[0].to_chrome_trace(tmp_path / "trace.json")
    lanes = lanes_of(read_trace(tmp_path / "trace.json"))
    assert {name: sum(e["ph"] == "B" for e in events) for name, events in lanes.items()} == {
        # The second batch, after_pred in both, the after_loss that ended it.
        "batch": 1 + 2 + 1,
        "step": 1,
    }


def test_a_trace_can_be_written_inside_of_the_block(learner: Learner, tmp_path: Path) -> None:
    run, _ = counting_run()
    with run.bus.profile() as profile:
        run.on("after_loss", lambda run: profile.to_chrome_trace(tmp_path / "trace.json"))
        run.fit(1, learner)
    assert "fit" in lanes_of(read_trace(tmp_path / "trace.json"))


def test_handlers_of_own_events_and_of_other_threads_have_lanes(tmp_path: Path) -> None:
    bus = EventBus()
    bus.declare("own")
    bus.on("own", nothing)
    bus.on("after_fit", lambda run: bus.emit("own", run))
    with bus.profile() as profile:
        bus.emit("after_fit", None)
        thread = threading.Thread(target=bus.emit, args=("own", None), name="loader")
        thread.start()
        thread.join()
    profile.to_chrome_trace(tmp_path / "trace.json")
    lanes = lanes_of(read_trace(tmp_path / "trace.json"))
    assert set(lanes) == {"fit", "own events", "own events (loader)"}


def test_runs_in_two_threads_have_lanes_of_their_own(
    make_learner: Callable[..., Learner], tmp_path: Path
) -> None:
    bus = EventBus()
    runs = [Runner(bus=bus) for _ in range(2)]
    bus.on(("after_loss", "after_epoch"), nothing)
    threads = [
        threading.Thread(target=run.fit, args=(5, make_learner()), name=f"run {i}")
        for i, run in enumerate(runs)
    ]
    with bus.profile() as profile:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [run.result.epochs for run in runs if run.result] == [5, 5]
    profile.to_chrome_trace(tmp_path / "trace.json")
    lanes = lanes_of(read_trace(tmp_path / "trace.json"))
    assert len(lanes) == 2 * 6
    assert sum(e["name"] == "batch" for name in lanes for e in lanes[name]) == 2 * 2 * 25


def test_threads_that_come_one_after_the_other_have_lanes_of_their_own(tmp_path: Path) -> None:
    bus = EventBus()
    bus.on("after_fit", nothing)
    with bus.profile() as profile:
        bus.emit("after_fit", None)
        for name in ("first", "second"):
            thread = threading.Thread(target=bus.emit, args=("after_fit", None), name=name)
            thread.start()
            thread.join()  # the next one is given its number
    profile.to_chrome_trace(tmp_path / "trace.json")
    lanes = lanes_of(read_trace(tmp_path / "trace.json"))
    assert set(lanes) == {"fit", "fit (first)", "fit (second)"}


def test_beyond_the_cap_calls_are_counted_but_not_drawn(learner: Learner, tmp_path: Path) -> None:
    run, counted = counting_run()
    with run.bus.profile(max_spans=10) as profile:
        run.fit(2, learner)
    profile.to_chrome_trace(tmp_path / "trace.json")
    trace = read_trace(tmp_path / "trace.json")
    lanes = lanes_of(trace)
    assert sum(e["ph"] == "B" for events in lanes.values() for e in events) == 10
    assert trace["otherData"]["dropped"] == profile.dropped > 0
    assert calls(profile)["after_loss", "count"] == counted["after_loss"]
    assert [e["name"] for e in lanes["fit"]][-1] == "fit", "what began in time is drawn whole"


def test_without_room_or_calls_the_trace_is_still_one(tmp_path: Path) -> None:
    bus = EventBus()
    with bus.profile(max_spans=0) as profile:
        pass
    profile.to_chrome_trace(tmp_path / "trace.json")
    assert lanes_of(read_trace(tmp_path / "trace.json")) == {}


# torch


def test_handlers_are_ranges_in_the_trace_of_torchs_profiler() -> None:
    bus = EventBus()
    bus.on("after_fit", nothing, name="probe")
    with torch.profiler.profile() as without:
        bus.emit("after_fit", None)
    with bus.profile(), torch.profiler.profile() as within:
        bus.emit("after_fit", None)
        bus.emit("after_fit", None)
    ranges = {event.key: event.count for event in within.key_averages()}
    assert ranges["after_fit/probe"] == 2
    assert "after_fit/probe" not in {event.key for event in without.key_averages()}


def test_a_handler_may_start_and_stop_torchs_profiler() -> None:
    bus, profilers = EventBus(), [torch.profiler.profile()]
    bus.on("begin_fit", lambda run: profilers[0].start())
    bus.on("after_fit", lambda run: profilers[0].stop())
    with bus.profile() as profile:
        bus.emit("begin_fit", None)
        bus.emit("after_fit", None)
    assert sum(calls(profile).values()) == 2


def test_torchs_profiler_may_go_through_its_schedule_in_a_handler() -> None:
    bus = EventBus()
    bus.on("after_batch", nothing, name="probe")
    schedule = torch.profiler.schedule(wait=1, warmup=1, active=2, repeat=1)
    torchs = torch.profiler.profile(schedule=schedule)
    with bus.profile() as profile, torchs:
        bus.on("after_batch", lambda run: torchs.step(), name="step")
        for _ in range(10):
            bus.emit("after_batch", None)
    assert row(profile, "probe")["calls"] == row(profile, "step")["calls"] == 10


class FakeEvent:
    """Stands in for ``torch.cuda.Event``: two units pass from one record to the next."""

    clock = 0
    waited = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        FakeEvent.clock += 2
        self.time = FakeEvent.clock

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        FakeEvent.waited += 1

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.time - self.time


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEvent.clock = FakeEvent.waited = 0
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", object)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)


@pytest.mark.usefixtures("fake_cuda")
def test_device_times_are_read_when_the_block_ends() -> None:
    bus = EventBus()
    bus.on("after_fit", nothing)
    with bus.profile() as profile:
        for _ in range(3):
            bus.emit("after_fit", None)
        assert FakeEvent.waited == 0
    assert row(profile, "nothing")["device_ms"] == 6
    assert "device ms" in profile.table()


@pytest.mark.usefixtures("fake_cuda")
def test_device_times_that_are_there_are_read_in_between_without_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eventtrain.bus.profiling._UNREAD", 4)
    bus = EventBus()
    bus.on("after_fit", nothing)
    with bus.profile() as profile:
        for _ in range(10):
            bus.emit("after_fit", None)
        assert row(profile, "nothing")["device_ms"] == 16 and FakeEvent.waited == 0
    assert row(profile, "nothing")["device_ms"] == 20 and FakeEvent.waited == 2


@pytest.mark.usefixtures("fake_cuda")
def test_a_device_that_fails_keeps_nobody_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error")

    bus, ran = EventBus(), list[int]()
    bus.on("after_fit", ran.append)
    with bus.profile() as profile:
        bus.emit("after_fit", 1)
        monkeypatch.setattr(FakeEvent, "record", fail)
        monkeypatch.setattr(FakeEvent, "synchronize", fail)
        bus.emit("after_fit", 2)
    assert ran == [1, 2]
    assert row(profile, "append")["calls"] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_handlers_have_a_device_time() -> None:
    x = torch.randn(2000, 2000, device="cuda")
    bus = EventBus()
    bus.on("after_fit", lambda run: (x @ x, None)[1], name="multiply")
    with bus.profile() as profile:
        for _ in range(10):
            bus.emit("after_fit", None)
    assert row(profile, "multiply")["device_ms"] > 0


def test_nothing_waits_for_the_device(learner: Learner, no_sync: Any) -> None:
    run, _ = counting_run()
    with run.bus.profile(), no_sync:
        run.fit(1, learner)
