"""Copies of signals and buses: the same handlers in the same order, which go their own way."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import blinker
import pytest
from blinker import ANY

from eventtrain import EventBus, Signal

Copy = Callable[[Any], Any]
COPIES: dict[str, Copy] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}
SEEN: list[Any] = []


def first(sender: Any) -> str:
    SEEN.append(("first", sender))
    return "first"


def second(sender: Any) -> str:
    SEEN.append(("second", sender))
    return "second"


def never(sender: Any) -> bool:
    return False


class Sender:
    """An object that can be referred to weakly."""


class Receiver:
    """Has a method that receives."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def receive(self, sender: Any) -> None:
        self.seen.append(sender)


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


@pytest.fixture(params=COPIES)
def copied(request: pytest.FixtureRequest) -> Copy:
    return COPIES[request.param]


@pytest.fixture(params=["copy", "deepcopy"])
def copied_here(request: pytest.FixtureRequest) -> Copy:
    return COPIES[request.param]


class TestSignal:
    def test_a_signal_without_receivers_is_copied_as_blinkers_own_is(self, copied: Copy) -> None:
        theirs, ours = copied(blinker.Signal("doc")), copied(Signal("doc", name="ping"))
        assert theirs.__doc__ == ours.__doc__ == "doc"
        assert (ours.name, ours.receivers, ours.is_muted) == ("ping", {}, False)
        assert ours.connect(first) is first
        assert ours.send("x") == [(first, "first")]

    def test_strong_receivers_are_in_the_copy_in_their_order(self, copied: Copy) -> None:
        signal = Signal()
        signal.connect(second, weak=False)
        signal.connect(first, weak=False)
        ours = copied(signal)
        assert ours.send("x") == [(second, "second"), (first, "first")]
        SEEN.clear()
        ours.emit("x")
        assert SEEN == [("second", "x"), ("first", "x")]

    @pytest.mark.parametrize("changed", ["copy", "original"])
    def test_a_change_of_one_leaves_the_other_alone(self, copied: Copy, changed: str) -> None:
        signal = Signal()
        signal.connect(first, weak=False)
        ours = copied(signal)
        one, other = (ours, signal) if changed == "copy" else (signal, ours)
        one.disconnect(first)
        one.connect(second, weak=False)
        one.connect(second, sender=5, weak=False)
        one.is_muted = True
        assert other.send(5) == [(first, "first")]
        other.emit(5)
        assert SEEN == [("first", 5)] * 2

    @pytest.mark.parametrize("sender", ["a string", 7])
    def test_senders_told_apart_by_value_are_those_of_the_copy(
        self, copied: Copy, sender: Any
    ) -> None:
        signal = Signal()
        signal.connect(first, sender=sender, weak=False)
        ours = copied(signal)
        assert ours.send(sender) == [(first, "first")]
        assert ours.send("another") == []

    def test_a_muted_signal_is_muted_in_the_copy_and_one_in_a_block_is_not(
        self, copied: Copy
    ) -> None:
        signal = Signal()
        signal.connect(first, weak=False)
        with signal.muted():
            assert not copied(signal).is_muted
        signal.is_muted = True
        assert copied(signal).is_muted

    def test_weak_receivers_are_held_weakly_by_the_copy(self, copied_here: Copy) -> None:
        signal, receiver = Signal(), Receiver()
        signal.connect(receiver.receive)
        ours = copied_here(signal)
        ours.emit(1)
        assert receiver.seen == [1]
        del receiver
        gc.collect()
        assert not ours.receivers
        assert not signal.receivers

    def test_senders_that_are_objects_are_those_of_the_copy_while_they_live(
        self, copied_here: Copy
    ) -> None:
        signal, sender = Signal(), Sender()
        signal.connect(first, sender=sender, weak=False)
        ours = copied_here(signal)
        assert ours.send(sender) == [(first, "first")]
        assert ours.send(Sender()) == []
        SEEN.clear()
        del sender
        gc.collect()
        assert not any(ours._by_sender.values())

    def test_a_deep_copy_copies_the_objects_whose_methods_are_held(self) -> None:
        receiver = Receiver()
        signal = Signal()
        signal.connect(receiver.receive, weak=False)
        together, ours = copy.deepcopy((receiver, signal))
        ours.emit(1)
        assert (receiver.seen, together.seen) == ([], [1])
        copy.copy(signal).emit(2)
        assert receiver.seen == [2]

    def test_a_weak_receiver_cannot_be_pickled_which_is_said(self) -> None:
        signal = Signal(name="ping")
        signal.connect(first)
        with pytest.raises(TypeError, match=r"holds 'first' weakly.*weak=False"):
            pickle.dumps(signal)

    def test_a_sender_that_is_an_object_cannot_be_pickled_which_is_said(self) -> None:
        signal, sender = Signal(), Sender()
        signal.connect(first, sender=sender, weak=False)
        with pytest.raises(TypeError, match=r"'first' serves one sender alone"):
            pickle.dumps(signal)


class TestBus:
    def test_events_scopes_and_handlers_are_in_the_copy(self, copied: Copy) -> None:
        bus = EventBus()
        bus.declare("after_sample", "a sample was drawn")
        bus.declare_scope("round", inside="epoch", is_phase=True)
        bus.on("after_sample", second, priority=-1, name="low", during=None)
        bus.on("after_sample", first, before="low")
        ours = copied(bus)
        assert list(ours) == list(bus)
        assert list(ours.vocabulary.scopes) == list(bus.vocabulary.scopes)
        assert [str(row) for row in ours.explain()] == [str(row) for row in bus.explain()]
        assert [s.event for s in ours.values()] == [s.event for s in bus.values()]
        ours.emit("after_sample", 1)
        assert SEEN == [("first", 1), ("second", 1)]

    def test_the_copy_counts_for_itself_from_where_the_original_was(self, copied: Copy) -> None:
        bus = EventBus()
        bus.on(["after_loss", "after_pred"], first, every=3)
        bus.on("after_loss", second, once=True)
        bus.emit("after_pred", 0)
        ours = copied(bus)
        for one in (ours, bus):
            SEEN.clear()
            one.emit("after_loss", 1)
            one.emit("after_pred", 2)
            one.emit("after_loss", 3)
            assert SEEN == [("second", 1), ("first", 2)]

    def test_what_is_done_to_the_copy_leaves_the_original_alone(self, copied: Copy) -> None:
        bus = EventBus()
        subscription = bus.on("after_loss", first)
        ours = copied(bus)
        ours.declare("after_sample")
        ours.declare_scope("round")
        ours.on("after_loss", second)
        ours["after_loss"].disconnect(first)
        bus.emit("after_loss", 1)
        assert SEEN == [("first", 1)]
        assert subscription.connected
        assert "after_sample" not in bus
        assert "round" not in bus.vocabulary.scopes
        subscription.disconnect()
        ours.emit("after_loss", 2)
        assert SEEN[1:] == [("second", 2)]

    def test_filters_and_guards_are_in_the_copy(self, copied: Copy) -> None:
        bus = EventBus()
        bus.on("after_loss", first, when=never)
        bus.on("after_loss", int, on_error="warn", name="fails")
        ours = copied(bus)
        with pytest.warns(RuntimeWarning, match=r"'fails'"):
            ours.emit("after_loss", "no number")
        assert SEEN == []

    def test_it_is_bound_and_profiled_like_any_other(self, copied: Copy) -> None:
        bus = EventBus()
        bus.on("after_loss", first)
        ours = copied(bus)
        with ours.profile() as profile:
            ours.emit("after_loss", 1)
        assert "first" in profile.table()
        assert SEEN == [("first", 1)]

    def test_it_holds_handlers_of_one_sender_for_that_sender(self, copied_here: Copy) -> None:
        bus, sender = EventBus(), Sender()
        bus.on("after_loss", first, sender=sender)
        ours = copied_here(bus)
        ours.emit("after_loss", sender)
        ours.emit("after_loss", Sender())
        assert [("first", sender)] == SEEN
        del sender
        SEEN.clear()
        gc.collect()
        assert not list(ours.explain())


class TitledBus(EventBus):
    """Is made with other arguments, and has an attribute more."""

    def __init__(self, titles: list[str]) -> None:
        super().__init__()
        self.titles = titles


def test_a_bus_of_a_subclass_is_copied_with_what_it_has_besides(copied: Copy) -> None:
    bus = TitledBus(["one"])
    bus.on("after_loss", first)
    ours = copied(bus)
    assert (type(ours), ours.titles) == (TitledBus, ["one"])
    assert (ours.titles is bus.titles) == (copied is copy.copy)
    ours.emit("after_loss", "run")
    assert SEEN == [("first", "run")]


def test_a_handler_and_a_subscription_say_what_to_do_instead(copied: Copy) -> None:
    subscription = EventBus().on("after_loss", first)
    with pytest.raises(TypeError, match=r"a Subscription cannot be copied.*bus\.on"):
        copied(subscription)
    with pytest.raises(TypeError, match=r"'first'.* cannot be copied.*bus\.on"):
        copied(subscription.handlers[0])


def test_any_is_one_in_every_copy(copied: Copy) -> None:
    assert copied(ANY) is ANY
