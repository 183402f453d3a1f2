"""An ``emit`` that somebody has kept: the same function, the handlers of now."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from contextlib import suppress
from typing import Any

import pytest

from benchmarks.counting import bytecodes
from eventtrain import EventBus


@pytest.fixture
def bus() -> EventBus:
    return EventBus()


def test_a_kept_emit_sees_what_is_subscribed_later(bus: EventBus) -> None:
    seen: list[str] = []
    emit = bus.signal("after_loss").emit
    emit(None)
    bus.on("after_loss", lambda run: seen.append("first"))
    emit(None)
    bus.on("after_loss", lambda run: seen.append("second"))
    emit(None)
    assert seen == ["first", "first", "second"]


def test_a_kept_emit_sees_what_is_disconnected(bus: EventBus) -> None:
    seen: list[object] = []
    subscription = bus.on("after_loss", seen.append)
    emit = bus.signal("after_loss").emit
    emit(1)
    subscription.disconnect()
    emit(2)
    assert seen == [1]


def test_a_kept_emit_sees_handlers_of_one_sender(bus: EventBus) -> None:
    class Sender: ...

    mine, other, seen = Sender(), Sender(), []
    emit = bus.signal("after_loss").emit
    emit(mine)
    bus.on("after_loss", seen.append, sender=mine)
    emit(mine)
    emit(other)
    assert seen == [mine]


def test_a_kept_emit_is_the_function_of_the_signal_for_good(bus: EventBus) -> None:
    signal = bus.signal("after_loss")
    emit = signal.emit
    bus.on("after_loss", lambda run: None)
    emit(None)
    assert signal.emit is emit


@pytest.mark.parametrize("by_sender", [False, True])
@pytest.mark.parametrize("count", [1, 3, 200])
def test_an_emission_under_way_runs_the_list_with_which_it_began(
    bus: EventBus, by_sender: bool, count: int
) -> None:
    class Sender: ...

    sender, seen = Sender(), []
    options: dict[str, Any] = {"sender": sender} if by_sender else {}
    subscriptions = []

    def change(run: Any) -> None:
        for subscription in subscriptions:
            subscription.disconnect()
        bus.on("after_loss", lambda run: seen.append("new"), **options)
        bus.signal("after_loss").emit(run)
        seen.append("changed")

    bus.on("after_loss", change, once=True, **options)
    for index in range(count):
        note = lambda run, index=index: seen.append(index)  # noqa: E731
        subscriptions.append(bus.on("after_loss", note, **options))
    emit = bus.signal("after_loss").emit
    emit(sender)
    assert seen == ["new", "changed", *range(count)]
    seen.clear()
    emit(sender)
    assert seen == ["new"]


def test_a_handler_that_left_is_not_kept_alive_by_a_kept_emit(bus: EventBus) -> None:
    class Handler:
        def __call__(self, run: object) -> None: ...

    handler = Handler()
    reference = weakref.ref(handler)
    subscription = bus.on("after_loss", handler)
    emit = bus.signal("after_loss").emit
    emit(None)
    subscription.disconnect()
    del handler, subscription
    gc.collect()
    assert reference() is None
    emit(None)


def test_a_kept_emit_costs_what_it_cost_before_it_was_kept(bus: EventBus) -> None:
    for index in range(3):
        bus.on("after_loss", lambda run: None, name=f"h{index}")
    fresh = EventBus()
    kept = fresh.signal("after_loss").emit
    kept(None)
    for index in range(3):
        fresh.on("after_loss", lambda run: None, name=f"h{index}")
    emit = bus.signal("after_loss").emit
    emit(None), kept(None)
    assert bytecodes(lambda: kept(None)) == bytecodes(lambda: emit(None))


def test_subscribing_while_another_thread_emits_loses_no_handler_and_keeps_none() -> None:
    bus, stop = EventBus(), threading.Event()
    signal = bus.signal("after_loss")
    errors: list[BaseException] = []

    def emit() -> None:
        try:
            while not stop.is_set():
                signal.emit(None)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=emit) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(500):
            calls: list[int] = []
            note = calls.append
            subscription = bus.on("after_loss", lambda run, note=note: note(1))
            before = len(calls)
            signal.emit(None)
            assert len(calls) > before
            subscription.disconnect()
            signal.emit(None)
            own = [handler.name for handler in signal.handlers]
            assert own == []
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert errors == []


def test_after_subscribing_in_threads_every_emission_has_the_handlers_that_stand() -> None:
    for _ in range(100):
        bus, seen = EventBus(), []
        barrier = threading.Barrier(3)

        def subscribe(name: str, bus=bus, seen=seen, barrier=barrier) -> None:
            barrier.wait(10)
            bus.on("after_loss", lambda run: seen.append(name), name=name)
            bus.emit("after_loss", None)

        threads = [threading.Thread(target=subscribe, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        seen.clear()
        bus.emit("after_loss", None)
        assert sorted(seen) == ["a", "b", "c"]


def test_a_bus_can_be_looked_at_while_another_thread_declares_events_and_takes_them_back() -> None:
    bus = EventBus()
    switching = sys.getswitchinterval()

    def declare_in_vain() -> None:
        for number in range(1500):
            with suppress(ValueError), bus.transaction():
                bus.declare(f"first_{number}")
                bus.declare(f"second_{number}")
                raise ValueError

    thread = threading.Thread(target=declare_in_vain)
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        while thread.is_alive():
            assert repr(bus).endswith("0 handlers>")
            assert list(bus.explain()) == []
            with bus.profile():
                pass
    finally:
        sys.setswitchinterval(switching)
        thread.join(10)
