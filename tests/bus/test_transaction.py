"""A transaction that fails leaves a bus as it was, whatever was done to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import blinker
import pytest
from hypothesis import given, settings, strategies as st

from eventtrain import CancellationToken, Event, EventBus, Signal
from eventtrain.bus.handlers import Handler, Options
from eventtrain.events import ScopeSpec, Vocabulary

EVENTS = ("begin_fit", "after_loss", "after_batch", "after_fit", "mine")
CALLED: list[str] = []


class Sender:
    """Stands for a run."""

    phase = "train"


def noting(name: str) -> Callable[..., None]:
    def note(sender: Any, /, **arguments: Any) -> None:
        CALLED.append(name)

    note.__name__ = name
    return note


FUNCTIONS = [noting(f"f{i}") for i in range(4)]


class World:
    """A bus with handlers of every kind, a run that is bound to it, and what is kept open."""

    def __init__(self) -> None:
        self.bus = bus = EventBus()
        self.sender, self.other = Sender(), Sender()
        self.open: list[Any] = []
        bus.declare("mine")
        self.elsewhere = EventBus()
        self.elsewhere.on("after_loss", FUNCTIONS[0])
        self.subscriptions = [
            bus.on(["after_loss", "after_fit"], FUNCTIONS[0], priority=3),
            bus.on("after_loss", FUNCTIONS[1], name="second", every=2),
            bus.on("after_batch", FUNCTIONS[2], sender=self.sender),
            bus.on("after_loss", FUNCTIONS[2], sender="by value", during="train"),
            bus.on("begin_fit", FUNCTIONS[3], weak=True, once=True),
            bus.on("after_loss", FUNCTIONS[3], before="second"),
        ]
        bus["after_loss"].connect(FUNCTIONS[0])
        bus["mine"].connect(FUNCTIONS[1], sender=self.sender, weak=False)
        bus["after_fit"].receiver_connected.connect(FUNCTIONS[2])
        bus["after_step"].is_muted = True
        self.emit, self.scope = bus.bind(self.sender, CancellationToken())

    def state(self) -> Any:
        """All that can be seen of the bus, and whom its emissions call."""
        bus = self.bus
        return {
            "names": [(name, id(signal)) for name, signal in bus.items()],
            "scopes": (id(bus.vocabulary), list(bus.vocabulary.scopes.items())),
            "signals": [seen_of(signal) for signal in bus.values()],
            "rows": [
                [getattr(row, name) for name in row.__slots__ if name != "calls"]
                for row in bus.explain()  # with a time where the bus is being profiled
            ],
            "connected": [s.connected for s in self.subscriptions],
            "bound": (sorted(vars(self.emit)), sorted(vars(self.scope))),
            "closing": [
                (name, [c is None for c in (s.on_closed, s.on_cancelled, s.on_failed)])
                for name, s in vars(self.scope).items()
            ],
        }

    def calls(self) -> list[str]:
        """Whom the events call; filters count, so this is asked once."""
        CALLED.clear()
        for name in self.bus:
            for sender in (self.sender, self.other, "by value"):
                CALLED.append(name)
                with suppress(AttributeError):  # of a text, which has no phase
                    self.bus.emit(name, sender)
            if self.bus[name].event.kind != "closing":
                getattr(self.emit, name)()
        with self.scope.fit, self.scope.epoch, self.scope.train, self.scope.batch:
            pass
        return list(CALLED)


def seen_of(signal: Signal) -> Any:
    watchers = {
        name: (id(watched), list(watched.receivers), watched.is_muted)
        for name, watched in vars(signal).items()
        if name in ("receiver_connected", "receiver_disconnected")
    }
    return (
        (signal.name, signal.event, signal.__doc__, signal.is_muted, watchers),
        (list(signal.receivers), [id(receiver) for receiver in signal.receivers.values()]),
        {key: set(ids) for key, ids in signal._by_receiver.items() if ids},
        {key: set(ids) for key, ids in signal._by_sender.items() if ids},
        [
            (id(h), h.key, h.name, h.options, h.priority, h.before, h.after, h.plugin, h.source)
            for h in signal.handlers
        ],
        [(id(h.tally), list(map(id, h.tally.handlers)), h.tally.is_spent) for h in signal.handlers],
    )


def scope_spec(world: World, name: str, number: int) -> None:
    world.bus.vocabulary.scopes[name] = ScopeSpec(name, note=str(number))


def change_handlers(world: World, name: str, number: int) -> None:
    for handler in world.bus[name].handlers:
        handler.options = replace(handler.options, on_error="warn", priority=number)
        handler.priority, handler.name, handler.plugin = number, f"mine_{number}", "mine"
        handler.before = handler.after = ()


def nested(world: World, name: str, number: int) -> None:
    with suppress(LookupError), world.bus.transaction():
        world.bus.on(name, FUNCTIONS[number])
        world.bus.declare(f"nested_{number}")
        if number % 2:
            raise LookupError


def keep_open(block: Any, world: World) -> None:
    block.__enter__()
    world.open.append(block)


def set_all(target: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(target, name, value)


OPERATIONS: dict[str, Callable[[World, str, int], object]] = {
    "replace": lambda w, e, n: w.bus.update({e: Signal(name=e)}),
    "replace by blinker's": lambda w, e, n: w.bus.update({e: blinker.NamedSignal(e)}),
    "replace by nonsense": lambda w, e, n: w.bus.update({e: n}),
    "replace by another's": lambda w, e, n: w.bus.update({e: w.elsewhere["after_loss"]}),
    "alias": lambda w, e, n: w.bus.update({e: w.bus[EVENTS[n]]}),
    "alias under a new name": lambda w, e, n: w.bus.update({f"alias_{n}": w.bus[e]}),
    "delete": lambda w, e, n: w.bus.pop(e),
    "delete and declare": lambda w, e, n: (w.bus.pop(e), w.bus.declare(e)),
    "to the end": lambda w, e, n: w.bus.update({e: w.bus.pop(e)}),
    "clear": lambda w, e, n: w.bus.clear(),
    "popitem": lambda w, e, n: w.bus.popitem(),
    "declare": lambda w, e, n: w.bus.declare(f"new_{n}"),
    "declare a scope": lambda w, e, n: w.bus.declare_scope(f"scope_{n}", "epoch", is_phase=n > 1),
    "add to the vocabulary": lambda w, e, n: w.bus.vocabulary.add(ScopeSpec(f"spec_{n}", ("fit",))),
    "change a scope": lambda w, e, n: scope_spec(w, ("fit", "batch", "train", "x")[n], n),
    "forget a scope": lambda w, e, n: w.bus.vocabulary.scopes.pop(("fit", "batch", "step", "x")[n]),
    "another vocabulary": lambda w, e, n: set_all(w.bus, vocabulary=Vocabulary([])),
    "on": lambda w, e, n: w.bus.on(e, FUNCTIONS[n], priority=n, name=f"on_{n}"),
    "on for a sender": lambda w, e, n: w.bus.on(e, FUNCTIONS[n], sender=w.sender, every=n + 1),
    "on several": lambda w, e, n: w.bus.on([e, "after_fit"], FUNCTIONS[n], once=True, weak=n > 1),
    "attach": lambda w, e, n: w.bus.attach([Handler(e, FUNCTIONS[n], Options(priority=n))]),
    "attach to the signal": lambda w, e, n: w.bus[e].attach(Handler(e, FUNCTIONS[n], Options())),
    "connect": lambda w, e, n: w.bus[e].connect(FUNCTIONS[n], weak=n > 1),
    "connect for a sender": lambda w, e, n: w.bus[e].connect(FUNCTIONS[n], sender=w.sender),
    "connected_to": lambda w, e, n: keep_open(w.bus[e].connected_to(FUNCTIONS[n]), w),
    "disconnect": lambda w, e, n: w.bus[e].disconnect(FUNCTIONS[n]),
    "disconnect from one": lambda w, e, n: w.bus[e].disconnect(FUNCTIONS[n], sender=w.sender),
    "end a subscription": lambda w, e, n: w.subscriptions[n].disconnect(),
    "clear a signal": lambda w, e, n: w.bus[e]._clear_state(),
    "clear its receivers": lambda w, e, n: w.bus[e].receivers.clear(),
    "other receivers": lambda w, e, n: set_all(w.bus[e], receivers={}),
    "clear who hears whom": lambda w, e, n: w.bus[e]._by_sender.clear(),
    "mute": lambda w, e, n: set_all(w.bus[e], is_muted=n > 0),
    "mute in a block": lambda w, e, n: keep_open(w.bus[e].muted(), w),
    "watch": lambda w, e, n: w.bus[e].receiver_connected.connect(FUNCTIONS[n]),
    "mute those who watch": lambda w, e, n: set_all(w.bus[e].receiver_connected, is_muted=True),
    "rename": lambda w, e, n: set_all(w.bus[e], name="other", __doc__="other"),
    "another event": lambda w, e, n: set_all(w.bus[e], event=Event(e, "", "point", (), "other")),
    "change the handlers": change_handlers,
    "wrap the calls": lambda w, e, n: w.bus[e].wrap_calls(lambda handler, call: noting("wrapped")),
    "profile": lambda w, e, n: keep_open(w.bus.profile(), w),
    "a transaction inside": nested,
    "bind": lambda w, e, n: w.open.append(w.bus.bind(w.other, CancellationToken())),
}
programs = st.lists(
    st.tuples(st.sampled_from(sorted(OPERATIONS)), st.sampled_from(EVENTS), st.integers(0, 3)),
    min_size=1,
    max_size=6,
)


def fail_after(world: World, program: list[tuple[str, str, int]]) -> None:
    with pytest.raises(ZeroDivisionError), world.bus.transaction():
        for name, event, number in program:
            with suppress(Exception):  # refused, or what it would change is gone
                OPERATIONS[name](world, event, number)
        raise ZeroDivisionError


def check(program: list[tuple[str, str, int]]) -> None:
    world, untouched = World(), World()
    before = world.state()
    fail_after(world, program)
    assert world.state() == before
    world.open.clear()  # blocks that were left open end now
    assert world.state() == before
    assert world.calls() == untouched.calls()


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_change_and_a_failure_leave_the_bus_as_it_was(name: str) -> None:
    for event in EVENTS:
        for number in range(4):
            check([(name, event, number)])


def test_a_block_that_is_left_open_by_a_failure_ends_no_connection_but_its_own() -> None:
    check([("clear a signal", "after_loss", 0), ("connected_to", "after_loss", 0)])


@settings(max_examples=200)
@given(programs)
def test_any_changes_and_a_failure_leave_the_bus_as_it_was(
    program: list[tuple[str, str, int]],
) -> None:
    check(program)


def test_a_signal_of_another_bus_keeps_its_handlers() -> None:
    world = World()
    fail_after(world, [("replace by another's", "begin_fit", 0)])
    assert [handler.name for handler in world.elsewhere["after_loss"].handlers] == ["f0"]


def test_a_signal_that_is_gone_changes_nothing_when_it_is_muted_later() -> None:
    check([("delete and declare", "after_loss", 0), ("mute in a block", "after_loss", 0)])


def test_a_profile_that_ends_after_the_failure_leaves_another_one_alone() -> None:
    world = World()
    fail_after(world, [("profile", "begin_fit", 0)])
    with world.bus.profile() as profile:
        world.open.clear()
        world.bus.emit("after_fit", world.sender)
        assert [row["calls"] for row in profile.to_dicts()] == [1]


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"bind"}))
def test_without_a_failure_a_change_stays(name: str) -> None:
    def stays(event: str, number: int) -> bool:
        world = World()
        before = world.state()
        with world.bus.transaction(), suppress(Exception):
            OPERATIONS[name](world, event, number)
        try:
            return bool(world.state() != before or "wrapped" in world.calls())
        except (AttributeError, AssertionError, KeyError, TypeError):  # a bus in pieces
            return True

    assert any(stays(event, number) for event in EVENTS for number in range(4))
