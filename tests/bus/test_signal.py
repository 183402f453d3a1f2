"""``Signal`` as a ``blinker.Signal``: what blinker promises holds, and order is added."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import blinker
import pytest
from blinker import ANY

from benchmarks.counting import bytecodes
from eventtrain import CancellationToken, EventBus, OrderError, Signal
from eventtrain.bus.running import running_handler


class Thing:
    """A sender that can be referred to weakly."""


@pytest.fixture
def signal() -> Signal:
    return Signal()


@pytest.fixture
def bus() -> EventBus:
    return EventBus()


@pytest.fixture
def seen() -> list[Any]:
    return []


def listener(seen: list[Any], name: str = "listener") -> Callable[..., None]:
    """Return a new receiver that notes its name, its sender and its arguments."""

    def receive(sender: Any, /, **arguments: Any) -> None:
        seen.append((name, sender, arguments))

    receive.__name__ = name
    return receive


def sizes(mapping: dict[Any, set[Any]]) -> list[int]:
    return sorted(len(bucket) for bucket in mapping.values())


SENDERS = [ANY, "a string", 7]


class TestMetaSignals:
    @pytest.mark.parametrize("sender", SENDERS)
    @pytest.mark.parametrize("weak", [True, False])
    def test_connecting_tells_who_was_connected_to_what_and_how(
        self, signal: Signal, seen: list[Any], sender: Any, weak: bool
    ) -> None:
        watcher, receiver = listener(seen, "watcher"), listener([])
        signal.receiver_connected.connect(watcher)
        signal.connect(receiver, sender=sender, weak=weak)
        expected = {"receiver": receiver, "sender": sender, "weak": weak}
        assert seen == [("watcher", signal, expected)]

    @pytest.mark.parametrize("sender", SENDERS)
    def test_disconnecting_from_a_sender_tells_so(
        self, signal: Signal, seen: list[Any], sender: Any
    ) -> None:
        watcher, receiver = listener(seen, "watcher"), listener([])
        signal.receiver_disconnected.connect(watcher)
        signal.connect(receiver, sender=sender)
        signal.disconnect(receiver, sender=sender)
        assert seen == [("watcher", signal, {"receiver": receiver, "sender": sender})]

    @pytest.mark.parametrize("sender", SENDERS)
    def test_disconnecting_from_everything_tells_that_the_sender_was_any(
        self, signal: Signal, seen: list[Any], sender: Any
    ) -> None:
        watcher, receiver = listener(seen, "watcher"), listener([])
        signal.receiver_disconnected.connect(watcher)
        signal.connect(receiver, sender=sender, weak=False)
        signal.disconnect(receiver)
        assert seen == [("watcher", signal, {"receiver": receiver, "sender": ANY})]

    def test_a_sender_that_is_an_object_is_told_like_any_other(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        thing, watcher, receiver = Thing(), listener(seen), listener([])
        signal.receiver_connected.connect(watcher)
        signal.receiver_disconnected.connect(watcher)
        signal.connect(receiver, sender=thing)
        signal.disconnect(receiver, sender=thing)
        assert [arguments["sender"] for _, _, arguments in seen] == [thing, thing]

    def test_asking_for_them_connects_nobody(self, signal: Signal) -> None:
        assert not signal.receiver_connected.receivers
        assert not signal.receiver_disconnected.receivers

    def test_they_are_made_once(self, signal: Signal) -> None:
        assert signal.receiver_connected is signal.receiver_connected
        assert signal.receiver_disconnected is not signal.receiver_connected

    def test_a_receiver_that_dies_is_not_announced(self, signal: Signal, seen: list[Any]) -> None:
        watcher, receiver = listener(seen), listener([])
        signal.receiver_disconnected.connect(watcher)
        signal.connect(receiver)
        del receiver
        gc.collect()
        assert seen == []
        assert not signal.receivers

    def test_a_sender_that_dies_is_not_announced(self, signal: Signal, seen: list[Any]) -> None:
        watcher, thing = listener(seen), Thing()
        signal.receiver_disconnected.connect(watcher)
        signal.connect(listener([]), sender=thing, weak=False)
        del thing
        gc.collect()
        assert seen == []

    def test_a_watcher_that_raises_a_type_error_undoes_the_connection(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        def refuse(signal: Any, /, **arguments: Any) -> None:
            raise TypeError("refused")

        receiver = listener(seen)
        signal.receiver_connected.connect(refuse)
        with pytest.raises(TypeError, match="refused"):
            signal.connect(receiver)
        signal.send("x")
        signal.emit("x")
        assert seen == []


class TestReferences:
    def test_connect_is_weak_by_default(self, signal: Signal, seen: list[Any]) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        del receiver
        gc.collect()
        signal.send("x")
        assert seen == []
        assert not signal.receivers

    def test_a_dead_receiver_leaves_no_entry_in_the_buckets(self, signal: Signal) -> None:
        receiver = listener([])
        signal.connect(receiver)
        signal.connect(receiver, sender=5)
        del receiver
        gc.collect()
        assert not any(sizes(signal._by_sender))
        assert not any(sizes(signal._by_receiver))

    def test_a_strong_receiver_stays(self, signal: Signal, seen: list[Any]) -> None:
        receiver = listener(seen)
        reference = weakref.ref(receiver)
        signal.connect(receiver, weak=False)
        del receiver
        gc.collect()
        signal.send("x")
        assert [sender for _, sender, _ in seen] == ["x"]
        assert list(signal.receivers.values()) == [reference()]

    def test_a_bound_method_lives_as_long_as_its_object(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        class Collector:
            def receive(self, sender: Any) -> None:
                seen.append(sender)

        collector = Collector()
        signal.connect(collector.receive)
        signal.send(1)
        del collector
        gc.collect()
        signal.send(2)
        signal.emit(3)
        assert seen == [1]

    def test_a_bound_method_can_be_disconnected_by_another_look_at_it(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        class Collector:
            def receive(self, sender: Any) -> None:
                seen.append(sender)

        collector, other = Collector(), Collector()
        signal.connect(collector.receive)
        signal.connect(other.receive)
        signal.disconnect(collector.receive)
        signal.send(1)
        assert seen == [1]

    def test_a_dead_sender_leaves_the_receiver_but_no_pair(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        thing, receiver = Thing(), listener(seen)
        signal.connect(receiver, sender=thing)
        signal.send(thing)
        assert len(seen) == 1
        seen.clear()
        del thing
        gc.collect()
        assert signal.receivers
        assert not any(sizes(signal._by_sender))
        assert not any(sizes(signal._by_receiver))

    def test_after_its_sender_died_a_receiver_hears_nothing(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        thing, receiver = Thing(), listener(seen)
        signal.connect(receiver, sender=thing)
        del thing
        gc.collect()
        signal.send("x")
        signal.emit("x")
        assert seen == []

    def test_a_strong_connection_after_a_weak_one_holds(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        signal.connect(receiver, weak=False)
        del receiver
        gc.collect()
        signal.emit("x")
        assert len(seen) == 1


class TestSenders:
    def test_a_receiver_for_one_sender_hears_that_one_alone(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver, sender="one")
        for sender in (None, "one", "other"):
            signal.send(sender)
        assert [sender for _, sender, _ in seen] == ["one"]

    def test_send_without_a_sender_sends_none(self, signal: Signal, seen: list[Any]) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        signal.send()
        assert seen == [("listener", None, {})]

    def test_arguments_are_passed_on(self, signal: Signal, seen: list[Any]) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        signal.send("x", colour="red", size=3)
        assert seen == [("listener", "x", {"colour": "red", "size": 3})]

    def test_a_receiver_can_leave_one_sender_and_come_back(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver, sender=5)
        signal.disconnect(receiver, sender=5)
        signal.send(5)
        assert seen == []
        signal.connect(receiver, sender=5)
        signal.send(5)
        assert len(seen) == 1

    def test_leaving_without_a_sender_leaves_all_of_them(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver, sender=5)
        signal.connect(receiver, sender=6)
        signal.disconnect(receiver)
        for sender in (5, 6, None):
            signal.send(sender)
        assert seen == []
        assert not signal.receivers

    def test_a_receiver_for_a_sender_and_for_any_is_called_once(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver, sender=5)
        signal.connect(receiver)
        for call in (signal.send, signal.emit):
            call(5)
            call(None)
        assert [sender for _, sender, _ in seen] == [5, None, 5, None]

    def test_connecting_twice_is_connecting_once(self, signal: Signal, seen: list[Any]) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        signal.connect(receiver)
        signal.send(1)
        signal.emit(2)
        assert [sender for _, sender, _ in seen] == [1, 2]

    @pytest.mark.parametrize("text", ["123456789", "-5"])
    def test_equal_numbers_are_one_sender(self, signal: Signal, seen: list[Any], text: str) -> None:
        receiver = listener(seen)
        signal.connect(receiver, sender=int(text))
        signal.send(int(text))
        signal.emit(int(text))
        assert len(seen) == 2

    def test_equal_strings_are_one_sender(self, signal: Signal, seen: list[Any]) -> None:
        receiver = listener(seen)
        signal.connect(receiver, sender="".join(["a", "bc"]))
        signal.send("".join(["ab", "c"]))
        signal.emit("".join(["ab", "c"]))
        assert len(seen) == 2

    def test_equal_objects_are_two_senders(self, signal: Signal, seen: list[Any]) -> None:
        one, other = frozenset({1, 2}), frozenset({2, 1})
        receiver = listener(seen)
        signal.connect(receiver, sender=one)
        signal.send(other)
        signal.emit(other)
        assert seen == []

    def test_disconnecting_a_stranger_does_nothing(self, signal: Signal, seen: list[Any]) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        signal.disconnect(listener([]))
        signal.send(1)
        assert len(seen) == 1


class TestLookingIn:
    def test_nobody_has_receivers_on_a_new_signal(self, signal: Signal) -> None:
        assert not signal.has_receivers_for(None)
        assert not signal.has_receivers_for(ANY)

    def test_a_receiver_for_one_sender_is_one_for_that_sender_only(self, signal: Signal) -> None:
        receiver = listener([])
        signal.connect(receiver, sender="one")
        assert signal.has_receivers_for("one")
        assert not signal.has_receivers_for(None)
        assert not signal.has_receivers_for(ANY)

    def test_a_receiver_for_an_object_is_one_for_that_object(self, signal: Signal) -> None:
        thing, receiver = Thing(), listener([])
        signal.connect(receiver, sender=thing)
        assert signal.has_receivers_for(thing)
        assert not signal.has_receivers_for(Thing())

    def test_a_receiver_for_any_is_one_for_everybody(self, signal: Signal) -> None:
        receiver = listener([])
        signal.connect(receiver)
        assert all(signal.has_receivers_for(sender) for sender in ("one", Thing(), None, ANY))

    def test_once_the_receiver_died_there_is_none(self, signal: Signal) -> None:
        thing, receiver = Thing(), listener([])
        signal.connect(receiver, sender="one")
        signal.connect(receiver, sender=thing)
        del receiver
        gc.collect()
        assert not signal.has_receivers_for("one")
        assert list(signal.receivers_for("one")) == []
        assert list(signal.receivers_for(thing)) == []

    def test_receivers_for_gives_the_functions_in_order(self, signal: Signal) -> None:
        first, second, other = listener([]), listener([]), listener([])
        signal.connect(first)
        signal.connect(other, sender="other")
        signal.connect(second, sender="one")
        assert list(signal.receivers_for("one")) == [first, second]
        assert list(signal.receivers_for(ANY)) == [first]

    def test_receivers_is_true_while_somebody_is_connected(self, signal: Signal) -> None:
        receiver = listener([])
        assert not signal.receivers
        signal.connect(receiver)
        assert signal.receivers
        signal.disconnect(receiver)
        assert not signal.receivers

    def test_buckets_follow_what_is_connected(self, signal: Signal) -> None:
        thing, one, other = Thing(), listener([]), listener([])
        signal.connect(one, sender=thing)
        signal.connect(other, sender=thing)
        assert (sizes(signal._by_sender), sizes(signal._by_receiver)) == ([2], [1, 1])
        signal.disconnect(one, sender=thing)
        assert (sizes(signal._by_sender), sizes(signal._by_receiver)) == ([1], [0, 1])
        signal.disconnect(other, sender=thing)
        assert (sizes(signal._by_sender), sizes(signal._by_receiver)) == ([0], [0, 0])

    def test_empty_buckets_can_be_swept_out(self, signal: Signal) -> None:
        thing, receiver = Thing(), listener([])
        signal.connect(receiver, sender=thing)
        signal.disconnect(receiver, sender=thing)
        signal._cleanup_bookkeeping()
        assert (len(signal._by_sender), len(signal._by_receiver)) == (0, 0)

    def test_clearing_the_state_disconnects_everybody(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        one, other = listener(seen), listener(seen)
        signal.connect(one)
        signal.connect(other, sender=5)
        signal._clear_state()
        signal.send(5)
        signal.emit(5)
        assert seen == []


class TestDecoratorsAndBlocks:
    def test_connect_via_connects_the_function_below_it(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        thing = Thing()

        @signal.connect_via(thing)
        def receive(sender: Any, /, **arguments: Any) -> None:
            seen.append(sender)

        for sender in (None, 1, thing):
            signal.send(sender)
        assert seen == [thing]
        assert callable(receive)

    def test_connect_via_holds_the_function_strongly(self, signal: Signal, seen: list[Any]) -> None:
        thing = Thing()
        signal.connect_via(thing)(listener(seen))
        gc.collect()
        signal.send(thing)
        assert len(seen) == 1

    def test_connect_via_can_hold_it_weakly(self, signal: Signal) -> None:
        thing = Thing()
        signal.connect_via(thing, weak=True)(listener([]))
        gc.collect()
        assert not signal.receivers

    def test_connect_returns_the_receiver(self, signal: Signal) -> None:
        receiver = listener([])
        assert signal.connect(receiver) is receiver

    def test_connected_to_connects_while_the_block_runs(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        signal.send(1)
        with signal.connected_to(listener(seen)):
            signal.send(2)
        signal.send(3)
        assert [sender for _, sender, _ in seen] == [2]
        assert not signal.receivers

    def test_connected_to_takes_a_sender(self, signal: Signal, seen: list[Any]) -> None:
        with signal.connected_to(listener(seen), sender=2):
            signal.send(1)
            signal.send(2)
        signal.send(2)
        assert [sender for _, sender, _ in seen] == [2]
        assert not signal.receivers

    @pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
    def test_connected_to_ends_with_a_block_that_fails(
        self, signal: Signal, seen: list[Any], kind: type[BaseException]
    ) -> None:
        with pytest.raises(kind), signal.connected_to(listener(seen)):
            signal.send(1)
            raise kind
        signal.send(2)
        assert [sender for _, sender, _ in seen] == [1]
        assert not signal.receivers

    def test_connected_to_announces_both_ends(self, signal: Signal, seen: list[Any]) -> None:
        watcher, receiver = listener(seen, "watcher"), listener([])
        signal.receiver_connected.connect(watcher)
        signal.receiver_disconnected.connect(watcher)
        with signal.connected_to(receiver, sender=3):
            pass
        assert [arguments["sender"] for _, _, arguments in seen] == [3, ANY]

    def test_a_muted_signal_sends_nothing(self, signal: Signal, seen: list[Any]) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        with signal.muted():
            assert signal.send(1) == []
            signal.emit(1)
        signal.send(2)
        signal.emit(3)
        assert [sender for _, sender, _ in seen] == [2, 3]

    def test_is_muted_tells_and_can_be_set(self, signal: Signal, seen: list[Any]) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        assert signal.is_muted is False
        signal.is_muted = True
        assert signal.is_muted is True
        signal.send(1)
        signal.emit(1)
        signal.is_muted = False
        signal.emit(2)
        assert [sender for _, sender, _ in seen] == [2]

    def test_a_block_that_fails_unmutes(self, signal: Signal) -> None:
        with pytest.raises(ValueError, match="no"), signal.muted():
            raise ValueError("no")
        assert not signal.is_muted


class TestMendedTraps:
    def test_leaving_an_inner_muted_block_keeps_the_outer_one_muted(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        with signal.muted():
            with signal.muted():
                pass
            assert signal.is_muted
            signal.send(1)
            signal.emit(1)
        signal.send(2)
        assert [sender for _, sender, _ in seen] == [2]

    def test_a_muted_block_leaves_a_signal_muted_that_was(self, signal: Signal) -> None:
        signal.is_muted = True
        with signal.muted():
            pass
        assert signal.is_muted

    def test_connected_to_leaves_a_connection_that_stood(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        with signal.connected_to(receiver):
            signal.send(1)
        signal.send(2)
        signal.emit(3)
        assert [sender for _, sender, _ in seen] == [1, 2, 3]

    def test_a_weak_connection_is_weak_again_after_the_block(self, signal: Signal) -> None:
        receiver = listener([])
        signal.connect(receiver)
        with signal.connected_to(receiver):
            pass
        del receiver
        gc.collect()
        assert not signal.receivers

    def test_a_weak_connection_is_held_while_the_block_runs(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        with signal.connected_to(receiver):
            del receiver
            gc.collect()
            signal.emit(1)
        gc.collect()
        signal.emit(2)
        assert [sender for _, sender, _ in seen] == [1]

    def test_a_connection_to_another_sender_stands_after_the_block(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver, sender=1)
        with signal.connected_to(receiver, sender=2):
            signal.send(2)
        signal.send(1)
        signal.send(2)
        signal.emit(1)
        signal.emit(2)
        assert [sender for _, sender, _ in seen] == [2, 1, 1]

    def test_a_connection_to_any_stands_after_a_block_for_a_sender(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        with signal.connected_to(receiver, sender=2):
            pass
        signal.emit(1)
        signal.emit(2)
        assert [sender for _, sender, _ in seen] == [1, 2]

    def test_blocks_for_one_receiver_nest(self, signal: Signal, seen: list[Any]) -> None:
        receiver = listener(seen)
        with signal.connected_to(receiver):
            with signal.connected_to(receiver):
                signal.emit(1)
            signal.emit(2)
        signal.emit(3)
        assert [sender for _, sender, _ in seen] == [1, 2]

    def test_a_receiver_disconnected_inside_the_block_stays_so(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        with signal.connected_to(receiver):
            signal.disconnect(receiver)
        signal.emit(1)
        assert seen == []

    def test_a_subscription_of_the_same_function_stands_after_the_block(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        subscription = bus.on("after_loss", receiver)
        with bus["after_loss"].connected_to(receiver):
            pass
        assert subscription.connected
        bus.emit("after_loss", 1)
        assert len(seen) == 1


class TestAsync:
    def test_send_async_awaits_coroutines_and_wraps_functions(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        async def later(sender: Any) -> str:
            seen.append(("later", sender))
            return "awaited"

        def now(sender: Any) -> str:
            seen.append(("now", sender))
            return "called"

        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            async def call(*arguments: Any, **named: Any) -> Any:
                return function(*arguments, **named)

            return call

        signal.connect(now)
        signal.connect(later)
        pairs = asyncio.run(signal.send_async("x", _sync_wrapper=wrap))
        assert seen == [("now", "x"), ("later", "x")]
        assert pairs == [(now, "called"), (later, "awaited")]

    def test_send_refuses_a_coroutine_function(self, signal: Signal) -> None:
        async def later(sender: Any) -> None: ...

        signal.connect(later)
        with pytest.raises(RuntimeError, match="coroutine"):
            signal.send()

    def test_send_can_be_told_how_to_run_one(self, signal: Signal) -> None:
        async def later(sender: Any) -> int:
            return 5

        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *arguments: asyncio.run(function(*arguments))

        signal.connect(later)
        assert signal.send("x", _async_wrapper=wrap) == [(later, 5)]

    def test_send_async_refuses_a_function_without_a_wrapper(self, signal: Signal) -> None:
        receiver = listener([])
        signal.connect(receiver)
        with pytest.raises(RuntimeError, match="non-coroutine"):
            asyncio.run(signal.send_async())

    def test_send_async_on_a_muted_signal_calls_nobody(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        signal.connect(receiver)
        with signal.muted():
            assert asyncio.run(signal.send_async()) == []
        assert seen == []

    def test_send_async_names_the_functions_of_subscribed_handlers(self, bus: EventBus) -> None:
        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            async def call(sender: Any) -> Any:
                return function(sender)

            return call

        def five(run: Any) -> int:
            return 5

        bus.on("after_loss", five)
        assert asyncio.run(bus["after_loss"].send_async(_sync_wrapper=wrap)) == [(five, 5)]

    def test_emit_refuses_a_coroutine_function_by_name(self, signal: Signal) -> None:
        async def later(sender: Any) -> None: ...

        signal.connect(later)
        with pytest.raises(TypeError, match=r"'later'.*coroutine function"):
            signal.emit(None)


class TestTexts:
    @pytest.mark.parametrize("make", [lambda: Signal("a doc"), lambda: Signal(doc="a doc")])
    def test_a_signal_has_the_docstring_it_is_given(self, make: Callable[[], Signal]) -> None:
        assert make().__doc__ == "a doc"

    def test_a_named_signal_has_its_name_in_its_repr(self) -> None:
        assert "'ping'" in repr(Signal(name="ping"))

    def test_any_is_blinkers_and_stays_itself_through_pickle(self) -> None:
        assert Signal.ANY is ANY
        assert pickle.loads(pickle.dumps(Signal.ANY)) is ANY
        assert repr(Signal.ANY) == "ANY"

    def test_a_namespace_gives_the_same_signal_for_the_same_name(self, bus: EventBus) -> None:
        first = bus.signal("after_loss")
        reference = weakref.ref(first)
        del first
        gc.collect()
        assert bus.signal("after_loss") is reference()
        assert bus.signal("after_loss") is not bus.signal("after_pred")

    def test_a_namespace_without_events_is_false(self) -> None:
        assert not EventBus([])

    def test_it_is_a_blinker_signal_and_a_named_one(self, signal: Signal) -> None:
        assert isinstance(signal, blinker.Signal)
        assert isinstance(signal, blinker.NamedSignal)


class TestSend:
    def test_it_returns_pairs_of_the_users_function_and_its_value_in_order(
        self, bus: EventBus
    ) -> None:
        def low(run: Any) -> str:
            return f"low {run}"

        def high(run: Any) -> str:
            return f"high {run}"

        bus.on("after_loss", low, priority=-1)
        bus.on("after_loss", high, priority=1)
        assert bus["after_loss"].send("x") == [(high, "high x"), (low, "low x")]

    def test_a_function_that_is_false_is_still_the_users_function(self, bus: EventBus) -> None:
        class Empty(list[Any]):
            def __call__(self, run: Any) -> int:
                return 5

        receiver = Empty()
        bus.on("after_loss", receiver)
        ((function, value),) = bus["after_loss"].send("x")
        assert function is receiver
        assert value == 5

    def test_it_returns_flags_as_blinker_does(self, bus: EventBus) -> None:
        def flag(run: Any) -> bool:
            return True

        bus.on("after_loss", flag)
        assert bus["after_loss"].send("x") == [(flag, True)]

    def test_it_passes_arguments_to_subscribed_handlers(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        bus.on("after_loss", receiver)
        bus["after_loss"].send("x", size=3)
        assert seen == [("listener", "x", {"size": 3})]

    @pytest.mark.parametrize("arguments", [{}, {"size": 3}])
    def test_it_honours_filters_with_and_without_arguments(
        self, bus: EventBus, seen: list[Any], arguments: dict[str, Any]
    ) -> None:
        bus.on("after_loss", listener(seen), every=2)
        for i in range(4):
            bus["after_loss"].send(i, **arguments)
        assert [sender for _, sender, _ in seen] == [1, 3]

    @pytest.mark.parametrize("arguments", [{}, {"size": 3}])
    def test_it_honours_on_error_with_and_without_arguments(
        self, bus: EventBus, arguments: dict[str, Any]
    ) -> None:
        def fails(run: Any, **arguments: Any) -> None:
            raise ZeroDivisionError

        bus.on("after_loss", fails, on_error="warn")
        with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
            bus["after_loss"].send("x", **arguments)

    def test_its_counts_and_those_of_emit_are_one(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on("after_loss", listener(seen), every=2)
        bus["after_loss"].send(0)
        bus.emit("after_loss", 1)
        assert [sender for _, sender, _ in seen] == [1]

    def test_it_passes_over_a_receiver_that_left_meanwhile(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        second = listener(seen, "second")

        def first(sender: Any) -> None:
            signal.disconnect(second)

        signal.connect(first)
        signal.connect(second)
        signal.send(1)
        assert seen == []

    @pytest.mark.parametrize("sender", [None, "a", 7])
    def test_it_calls_a_receiver_that_was_connected_after_an_earlier_send(
        self, signal: Signal, seen: list[Any], sender: Any
    ) -> None:
        first, second, own = listener(seen, "1"), listener(seen, "2"), listener(seen, "3")
        signal.connect(first)
        signal.send(sender)
        signal.connect(second)
        signal.send(sender)
        signal.connect(own, sender="a")
        signal.send(sender)
        names = [name for name, _, _ in seen]
        assert names == ["1", "1", "2", "1", "2"] + ["3"] * (sender == "a")

    def test_a_sender_whom_nobody_named_gets_what_any_sender_gets(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        common, own = listener(seen, "common"), listener(seen, "own")
        signal.connect(common)
        signal.connect(own, sender="named")
        for sender in ("stranger", "named", Thing()):
            signal.send(sender)
        assert [name for name, _, _ in seen] == ["common", "common", "own", "common"]

    def test_a_receiver_that_died_during_it_is_passed_over(
        self, signal: Signal, seen: list[Any]
    ) -> None:
        held = [listener(seen)]

        def first(sender: Any) -> None:
            held.clear()
            gc.collect()

        signal.connect(first)
        signal.connect(held[0])
        signal.send(1)
        assert seen == []

    def test_a_handler_that_it_calls_is_the_running_one(self, bus: EventBus) -> None:
        seen: list[str] = []

        def ask(run: Any) -> None:
            handler = running_handler()
            assert handler is not None
            seen.append(handler.name)

        bus.on("after_loss", ask, name="subscribed")
        bus["after_loss"].connect(ask)
        bus["after_loss"].send(None)
        assert seen == ["subscribed", "ask"]

    def test_a_coroutine_that_is_awaited_is_the_running_handler(self, signal: Signal) -> None:
        seen: list[str] = []

        async def ask(sender: Any) -> None:
            await asyncio.sleep(0)
            handler = running_handler()
            assert handler is not None
            seen.append(handler.name)

        signal.connect(ask)
        asyncio.run(signal.send_async())
        assert seen == ["ask"]

    def test_a_sender_that_nobody_named_takes_no_room(self, signal: Signal) -> None:
        receiver = listener([])
        signal.connect(receiver, sender=5)
        signal.send("warm up")
        before = sum(1 for _ in gc.get_objects())
        for i in range(1000):
            signal.send(f"sender {i}")
        assert sum(1 for _ in gc.get_objects()) < before + 100

    @pytest.mark.parametrize("count", [0, 1, 10, 100])
    @pytest.mark.parametrize("way", ["on", "weak", "strong", "sender"])
    def test_it_takes_no_more_steps_than_blinkers_own(self, way: str, count: int) -> None:
        bus, theirs, sender = EventBus(), blinker.Signal(), Thing()
        ours = bus["after_loss"]
        receivers = [listener([], f"h{i}") for i in range(count)]
        for receiver in receivers:
            if way == "on":
                bus.on("after_loss", receiver)
                theirs.connect(receiver)
            else:
                arguments = {"sender": sender} if way == "sender" else {"weak": way == "weak"}
                ours.connect(receiver, **arguments)
                theirs.connect(receiver, **arguments)
        ours.send(sender)
        assert bytecodes(lambda: ours.send(sender)) <= bytecodes(lambda: theirs.send(sender))


class TestTogether:
    def test_connected_receivers_stand_at_priority_zero_among_handlers(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        connected = listener(seen, "connected")
        bus.on("after_loss", listener(seen, "low"), priority=-1)
        bus["after_loss"].connect(connected)
        bus.on("after_loss", listener(seen, "tie"))
        bus.on("after_loss", listener(seen, "high"), priority=1)
        bus["after_loss"].send(None)
        bus.emit("after_loss", None)
        names = ["high", "connected", "tie", "low"]
        assert [name for name, _, _ in seen] == names * 2

    def test_a_handler_may_name_a_connected_receiver(self, bus: EventBus, seen: list[Any]) -> None:
        connected = listener(seen, "connected")
        bus["after_loss"].connect(connected)
        bus.on("after_loss", listener(seen, "h"), before="connected", priority=-5)
        bus.emit("after_loss", None)
        assert [name for name, _, _ in seen] == ["h", "connected"]

    def test_a_receiver_whose_name_would_close_a_cycle_is_refused(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        x = bus.on("after_loss", listener(seen, "x"))
        bus.on("after_loss", listener(seen, "p"), after="x")
        bus.on("after_loss", listener(seen, "q"), before="x")
        x.disconnect()
        bus.on("after_loss", listener(seen, "s"), after="p", before="q")
        connected = listener(seen, "x")
        with pytest.raises(OrderError, match="'x'"):
            bus["after_loss"].connect(connected)
        bus.emit("after_loss", None)
        assert [name for name, _, _ in seen] == ["p", "s", "q"]

    def test_emit_calls_connected_receivers_for_their_sender(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        one, other = Thing(), Thing()
        receiver, common = listener(seen, "mine"), listener(seen, "common")
        bus["after_loss"].connect(receiver, sender=one)
        bus["after_loss"].connect(common)
        bus.emit("after_loss", one)
        bus.emit("after_loss", other)
        assert seen == [("mine", one, {}), ("common", one, {}), ("common", other, {})]

    def test_a_bound_loop_calls_connected_receivers(self, bus: EventBus, seen: list[Any]) -> None:
        run, receiver = Thing(), listener(seen)
        bus["after_loss"].connect(receiver, sender=run)
        emit, _ = bus.bind(run, CancellationToken())
        emit.after_loss()
        del receiver
        gc.collect()
        emit.after_loss()
        assert len(seen) == 1

    def test_an_error_in_a_connected_receiver_gets_its_note(self, bus: EventBus) -> None:
        def fails(sender: Any) -> None:
            raise ZeroDivisionError

        bus["after_loss"].connect(fails)
        with pytest.raises(ZeroDivisionError) as caught:
            bus.emit("after_loss", None)
        assert "'fails' of event 'after_loss'" in caught.value.__notes__[0]

    def test_disconnect_ends_what_on_subscribed(self, bus: EventBus, seen: list[Any]) -> None:
        receiver = listener(seen)
        subscription = bus.on("after_loss", receiver)
        bus["after_loss"].disconnect(receiver)
        bus.emit("after_loss", 1)
        assert seen == []
        assert not subscription.connected

    def test_disconnect_knows_a_method_again(self, bus: EventBus, seen: list[Any]) -> None:
        class Plot:
            def draw(self, run: Any) -> None:
                seen.append("drawn")

        plot = Plot()
        bus.on("after_loss", plot.draw)
        bus.on("after_loss", seen.append)
        bus["after_loss"].disconnect(plot.draw)
        bus["after_loss"].disconnect(seen.append)
        bus.emit("after_loss", 1)
        assert seen == []

    def test_disconnect_takes_no_equal_object_for_the_receiver(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        class Same:
            def __eq__(self, other: object) -> bool:
                return True

            def __call__(self, run: Any) -> None:
                seen.append(self)

        one, other = Same(), Same()
        bus.on("after_loss", one)
        bus.on("after_loss", other)
        bus["after_loss"].disconnect(one)
        bus.emit("after_loss", None)
        assert len(seen) == 1
        assert seen[0] is other

    def test_disconnect_from_one_sender_ends_a_subscription_to_it_alone(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        receiver = listener(seen)
        mine = bus.on("after_loss", receiver, sender="mine")
        common = bus.on("after_loss", receiver)
        bus["after_loss"].disconnect(receiver, sender="mine")
        assert not mine.connected
        assert common.connected

    def test_a_listener_hears_of_connections_in_both_ways(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        watcher, receiver = listener(seen), listener([])
        bus["after_loss"].receiver_connected.connect(watcher)
        bus["after_loss"].connect(receiver)
        bus.on("after_loss", receiver)
        assert len(seen) == 2


def test_an_emit_that_was_kept_from_before_the_first_emission_compiles_once() -> None:
    bus, seen = EventBus(), []
    signal = bus.signal("after_fit")
    bus.on("after_fit", seen.append)
    kept = signal.emit
    kept(1)
    compiled = signal.emit
    kept(2)
    assert signal.emit is compiled
    bus.on("after_fit", lambda sender: seen.append(-sender))
    kept(3)
    assert seen == [1, 2, 3, -3]
