from __future__ import annotations

import functools
import gc
import logging
import traceback
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import blinker
import pytest

from eventtrain import (
    EVENTS,
    CancellationToken,
    EventBus,
    OrderError,
    Runner,
    Signal,
    UnknownEventError,
)
from eventtrain.bus.handlers import Handler, Options
from eventtrain.bus.subscription import Subscription
from eventtrain.events import Event, event_names

FINITE_AND_NOT = [float("inf"), 10**400, 3, 2.5, 0, -1, -2.5, float("-inf")]


class Run:
    """Stands for a runner: something weakly referable that handlers are given."""

    def __init__(self, phase: str | None = None) -> None:
        self.phase = phase


@pytest.fixture
def bus() -> EventBus:
    return EventBus()


@pytest.fixture
def seen() -> list[Any]:
    return []


def note(seen: list[Any], what: Any) -> Callable[[Any], None]:
    """Return a new handler that notes ``what``, and whose name that is."""

    def handler(run: Any) -> None:
        seen.append(what)

    handler.__name__ = str(what)
    return handler


def order(bus: EventBus, event: str = "after_loss") -> list[str]:
    return [row.handler for row in bus.explain(event)]


def notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


class TestNames:
    def test_the_names_of_a_bus_are_those_of_the_table_in_its_order(self, bus: EventBus) -> None:
        assert tuple(bus) == event_names(EVENTS)

    def test_a_bus_is_a_namespace_of_its_own(self, bus: EventBus) -> None:
        assert isinstance(bus, blinker.Namespace)
        assert "after_loss" not in blinker.default_namespace

    def test_every_event_is_a_blinker_signal_that_knows_its_name(self, bus: EventBus) -> None:
        for name in bus:
            assert isinstance(bus[name], blinker.Signal)
            assert isinstance(bus[name], Signal)
            assert bus[name].name == name

    def test_signal_and_index_give_the_same_object(self, bus: EventBus) -> None:
        assert bus.signal("after_loss") is bus["after_loss"]

    def test_two_buses_share_no_signal(self, bus: EventBus) -> None:
        assert bus["after_loss"] is not EventBus()["after_loss"]

    @pytest.mark.parametrize("look_up", [EventBus.signal, EventBus.__getitem__, EventBus.explain])
    def test_an_undeclared_name_is_an_error_with_a_hint(
        self, bus: EventBus, look_up: Callable[[EventBus, str], object]
    ) -> None:
        with pytest.raises(UnknownEventError, match=r"'after_los'.*Did you mean 'after_loss'"):
            look_up(bus, "after_los")

    def test_an_undeclared_name_is_not_added_by_asking_for_it(self, bus: EventBus) -> None:
        with pytest.raises(UnknownEventError):
            bus.signal("nonsense")
        assert tuple(bus) == event_names(EVENTS)

    def test_the_error_for_an_undeclared_name_is_a_key_error(self, bus: EventBus) -> None:
        with pytest.raises(KeyError):
            bus["nonsense"]

    def test_emitting_an_undeclared_name_is_an_error_with_a_hint(self, bus: EventBus) -> None:
        with pytest.raises(UnknownEventError, match="Did you mean 'begin_fit'"):
            bus.emit("begin_fitt", None)

    def test_subscribing_to_an_undeclared_name_names_the_handler(self, bus: EventBus) -> None:
        def plot(run: Any) -> None: ...

        with pytest.raises(UnknownEventError, match=r"'plot'.*'after_los'.*Did you mean"):
            bus.on("after_los", plot)

    def test_a_decorator_for_an_undeclared_name_fails_where_it_is_made(self, bus: EventBus) -> None:
        with pytest.raises(UnknownEventError, match="Did you mean 'after_loss'"):
            bus.on("after_los")

    def test_a_bus_may_have_a_vocabulary_of_its_own(self) -> None:
        bus = EventBus(
            [Event("ping", "", "point", (), "a ping"), Event("pong", "", "point", (), "")]
        )
        assert tuple(bus) == ("ping", "pong")
        assert bus["ping"].__doc__ == "a ping"

    def test_buses_are_equal_to_themselves_only_and_can_be_dictionary_keys(self) -> None:
        one, other = EventBus([]), EventBus([])
        assert one == one
        assert (one == other) is False
        assert (one != other) is True
        assert len({one, other}) == 2

    def test_its_repr_counts_events_and_handlers(self, bus: EventBus) -> None:
        bus.on(["after_loss", "after_fit"], lambda run: None)
        assert repr(bus) == f"<EventBus: {len(EVENTS)} events, 2 handlers>"


class TestDeclare:
    def test_a_declared_event_can_be_subscribed_to_and_emitted(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.declare("after_plot", doc="a plot is drawn")
        bus.on("after_plot", seen.append)
        bus.emit("after_plot", "run")
        assert seen == ["run"]

    def test_a_declared_event_comes_last_and_keeps_its_doc(self, bus: EventBus) -> None:
        signal = bus.declare("after_plot", doc="a plot is drawn")
        assert list(bus)[-1] == "after_plot"
        assert signal.__doc__ == "a plot is drawn"

    def test_a_name_that_is_taken_is_refused(self, bus: EventBus) -> None:
        signal = bus["after_loss"]
        with pytest.raises(ValueError, match="'after_loss' already"):
            bus.declare("after_loss")
        assert bus["after_loss"] is signal

    @pytest.mark.parametrize("name", ["", "two words", "1st", "_private", 5, None])
    def test_a_name_that_is_no_public_identifier_is_refused(self, bus: EventBus, name: Any) -> None:
        with pytest.raises(ValueError, match="identifier"):
            bus.declare(name)
        assert tuple(bus) == event_names(EVENTS)

    def test_an_event_declared_on_one_bus_is_unknown_to_another(self, bus: EventBus) -> None:
        bus.declare("after_plot")
        assert "after_plot" not in EventBus()

    @pytest.mark.parametrize("name", ["refresh", "emit", "hook", "token", "sender"])
    def test_an_event_of_any_name_can_be_emitted_by_a_bound_loop(
        self, bus: EventBus, seen: list[Any], name: str
    ) -> None:
        emit, _ = bus.bind("run", CancellationToken())
        bus.declare(name)
        bus.on(name, seen.append)
        getattr(emit, name)()
        assert seen == ["run"]


class TestOn:
    def test_a_handler_is_called_with_the_sender_alone(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        run = Run()
        bus.on("after_loss", lambda *arguments: seen.append(arguments))
        bus.emit("after_loss", run)
        assert seen == [(run,)]

    def test_called_with_a_function_it_returns_a_subscription(self, bus: EventBus) -> None:
        assert isinstance(bus.on("after_loss", lambda run: None), Subscription)

    def test_as_a_decorator_it_returns_the_function_unchanged(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        def function(run: Any) -> None:
            seen.append(run)

        assert bus.on("after_loss", priority=3)(function) is function
        bus.emit("after_loss", 1)
        assert seen == [1]

    def test_it_takes_several_events(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on(["begin_fit", "after_fit"], seen.append)
        bus.emit("begin_fit", 1)
        bus.emit("after_epoch", 2)
        bus.emit("after_fit", 3)
        assert seen == [1, 3]

    def test_as_a_decorator_it_takes_several_events_from_any_iterable(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on(name for name in ("begin_fit", "after_fit"))(seen.append)
        bus.emit("begin_fit", 1)
        bus.emit("after_fit", 2)
        assert seen == [1, 2]

    def test_the_same_function_subscribed_under_two_names_runs_twice(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on("after_loss", seen.append)
        bus.on("after_loss", seen.append, name="again")
        bus.emit("after_loss", 1)
        assert seen == [1, 1]

    def test_a_signal_without_handlers_emits_in_silence(self, bus: EventBus) -> None:
        assert bus["after_loss"].emit(None) is None

    def test_emitting_returns_nothing_even_if_handlers_do(self, bus: EventBus) -> None:
        bus.on("after_loss", lambda run: 5)
        assert bus.emit("after_loss", None) is None  # type: ignore[func-returns-value]

    def test_a_token_that_a_handler_cancels_skips_the_handlers_after_it(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        token = CancellationToken()
        bus.on("after_loss", note(seen, 1))
        bus.on("after_loss", lambda run: token.cancel())
        bus.on("after_loss", note(seen, 2))
        bus.emit("after_loss", None, token)
        assert seen == [1]

    def test_without_the_token_every_handler_runs(self, bus: EventBus, seen: list[Any]) -> None:
        token = CancellationToken()
        bus.on("after_loss", lambda run: token.cancel())
        bus.on("after_loss", note(seen, 2))
        bus.emit("after_loss", None)
        assert seen == [2]

    def test_a_token_cancelled_before_the_emission_skips_all(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        token = CancellationToken()
        token.cancel()
        bus.on("after_loss", note(seen, 1))
        bus.emit("after_loss", None, token)
        assert seen == []


class TestSubscription:
    def test_disconnecting_ends_it(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on("after_loss", seen.append).disconnect()
        bus.emit("after_loss", 1)
        assert seen == []

    def test_disconnecting_twice_does_nothing_more(self, bus: EventBus, seen: list[Any]) -> None:
        first = bus.on("after_loss", seen.append)
        bus.on("after_loss", seen.append, name="second")
        first.disconnect()
        first.disconnect()
        bus.emit("after_loss", 1)
        assert seen == [1]

    def test_it_ends_for_all_its_events(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on(["begin_fit", "after_fit"], seen.append).disconnect()
        bus.emit("begin_fit", 1)
        bus.emit("after_fit", 1)
        assert seen == []

    def test_as_a_context_manager_it_ends_with_the_block(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        with bus.on("after_loss", seen.append) as subscription:
            assert isinstance(subscription, Subscription)
            bus.emit("after_loss", 1)
        bus.emit("after_loss", 2)
        assert seen == [1]

    def test_a_block_that_fails_ends_it_too_and_passes_the_error_on(self, bus: EventBus) -> None:
        with pytest.raises(ZeroDivisionError), bus.on("after_loss", lambda run: None):
            1 / 0  # noqa: B018
        assert order(bus) == []

    def test_connected_tells_whether_any_handler_is_left(self, bus: EventBus) -> None:
        subscription = bus.on(["begin_fit", "after_fit"], lambda run: None)
        assert subscription.connected
        subscription.handlers[0].detach()
        assert subscription.connected
        subscription.handlers[1].detach()
        assert not subscription.connected

    def test_it_is_not_connected_once_the_signal_is_cleared(self, bus: EventBus) -> None:
        subscription = bus.on("after_loss", lambda run: None)
        bus["after_loss"]._clear_state()
        assert not subscription.connected

    def test_its_repr_says_what_it_is_for_and_whether_it_stands(self, bus: EventBus) -> None:
        subscription = bus.on("after_loss", note([], "plot"))
        assert "'plot' of event 'after_loss'" in repr(subscription)
        assert "disconnected" not in repr(subscription)
        subscription.disconnect()
        assert "disconnected" in repr(subscription)

    def test_what_it_held_is_freed_at_once(self, bus: EventBus) -> None:
        handler = note([], "h")
        reference = weakref.ref(handler)
        gc.disable()
        try:
            bus.on("after_loss", handler).disconnect()
            del handler
            assert reference() is None
        finally:
            gc.enable()


class TestOrder:
    def test_higher_priority_runs_earlier(self, bus: EventBus, seen: list[Any]) -> None:
        for priority in (0, -5, 10):
            bus.on("after_loss", note(seen, priority), priority=priority)
        bus.emit("after_loss", None)
        assert seen == [10, 0, -5]

    def test_ties_run_in_order_of_subscription(self, bus: EventBus, seen: list[Any]) -> None:
        for name in "abcdef":
            bus.on("after_loss", note(seen, name), priority=7)
        bus.emit("after_loss", None)
        assert seen == list("abcdef")

    def test_a_handler_that_leaves_and_comes_back_is_last_among_ties(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        first = bus.on("after_loss", note(seen, "a"))
        bus.on("after_loss", note(seen, "b"))
        first.disconnect()
        bus.on("after_loss", note(seen, "a"))
        bus.emit("after_loss", None)
        assert seen == ["b", "a"]

    def test_any_int_or_float_is_a_priority(self, bus: EventBus) -> None:
        for i, priority in enumerate(reversed(FINITE_AND_NOT)):
            bus.on("after_loss", note([], i), priority=priority)
        assert [row.priority for row in bus.explain("after_loss")] == FINITE_AND_NOT

    @pytest.mark.parametrize("priority", FINITE_AND_NOT)
    def test_any_priority_can_be_printed(self, bus: EventBus, priority: float) -> None:
        def fails(run: Any) -> None:
            raise RuntimeError("no")

        bus.on("after_loss", fails, priority=priority)
        with pytest.raises(RuntimeError) as caught:
            bus.emit("after_loss", None)
        assert f"priority {priority}" in notes(caught.value)[0]
        assert str(priority) in str(bus.explain())

    def test_nan_is_refused(self, bus: EventBus) -> None:
        with pytest.raises(ValueError, match="nan"):
            bus.on("after_loss", note([], "h"), priority=float("nan"))

    def test_before_is_honoured_above_priority(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on("after_loss", note(seen, "clip"), priority=100)
        bus.on("after_loss", note(seen, "scale"), before="clip", priority=-100)
        bus.emit("after_loss", None)
        assert seen == ["scale", "clip"]

    def test_after_is_honoured_above_priority(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on("after_loss", note(seen, "clip"), priority=-100)
        bus.on("after_loss", note(seen, "log"), after=["clip"], priority=100)
        bus.emit("after_loss", None)
        assert seen == ["clip", "log"]

    def test_a_name_given_to_on_is_what_others_refer_to(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on("after_loss", lambda run: seen.append("x"), name="x")
        bus.on("after_loss", lambda run: seen.append("y"), before="x")
        bus.emit("after_loss", None)
        assert seen == ["y", "x"]

    def test_a_name_refers_to_every_handler_that_bears_it(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on("after_loss", note(seen, "a"), priority=5)
        bus.on("after_loss", note(seen, "a"), priority=-5)
        bus.on("after_loss", note(seen, "last"), after="a", priority=9)
        bus.emit("after_loss", None)
        assert seen == ["a", "a", "last"]

    def test_a_cycle_is_an_error_that_prints_the_names(self, bus: EventBus) -> None:
        bus.on("after_loss", note([], "a"))
        bus.on("after_loss", note([], "b"), before="a")
        with pytest.raises(OrderError, match=r"'after_loss'.*'b' before 'a' before 'c' before 'b'"):
            bus.on("after_loss", note([], "c"), before="b", after="a")

    def test_a_cycle_leaves_the_bus_as_it_was(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on("after_loss", note(seen, "a"))
        bus.on("after_loss", note(seen, "b"), before="a")
        with pytest.raises(OrderError):
            bus.on("after_loss", note(seen, "c"), before="b", after="a")
        bus.emit("after_loss", None)
        assert seen == ["b", "a"]

    def test_an_unknown_name_is_an_error_that_prints_the_known_ones(self, bus: EventBus) -> None:
        bus.on("after_loss", note([], "clip"))
        bus.on("after_loss", note([], "scale"))
        with pytest.raises(OrderError, match=r"'h'.*'clap'.*'clip', 'scale'.*mean 'clip'"):
            bus.on("after_loss", note([], "h"), before="clap")
        assert order(bus) == ["clip", "scale"]

    def test_the_own_name_is_unknown_unless_another_bears_it(self, bus: EventBus) -> None:
        with pytest.raises(OrderError, match="there are: none"):
            bus.on("after_loss", note([], "h"), after="h")

    def test_a_name_on_another_event_is_unknown(self, bus: EventBus) -> None:
        bus.on("after_pred", note([], "clip"))
        with pytest.raises(OrderError, match="'clip'"):
            bus.on("after_loss", note([], "h"), before="clip")

    def test_when_a_named_handler_leaves_the_constraint_rests(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        named = bus.on("after_loss", note(seen, "clip"))
        bus.on("after_loss", note(seen, "other"), priority=-1)
        bus.on("after_loss", note(seen, "h"), after="clip", priority=-2)
        named.disconnect()
        bus.emit("after_loss", None)
        assert seen == ["other", "h"]

    def test_a_constraint_takes_effect_again_when_the_name_comes_back(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        named = bus.on("after_loss", note(seen, "clip"))
        bus.on("after_loss", note(seen, "h"), after="clip", priority=5)
        named.disconnect()
        bus.on("after_loss", note(seen, "clip"))
        bus.emit("after_loss", None)
        assert seen == ["clip", "h"]

    def test_handlers_for_one_sender_keep_their_place_among_the_others(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        run = Run()
        bus.on("after_loss", note(seen, "a"), priority=2)
        bus.on("after_loss", note(seen, "b"), priority=1, sender=run)
        bus.on("after_loss", note(seen, "c"), priority=0)
        bus.emit("after_loss", run)
        assert seen == ["a", "b", "c"]

    def test_the_order_is_not_computed_again_from_one_emission_to_the_next(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bus.on("after_loss", note([], "a"))
        bus.emit("after_loss", None)
        monkeypatch.setattr(
            "eventtrain.bus.connections.in_order", lambda *_: pytest.fail("sorted again")
        )
        bus.emit("after_loss", None)


class TestFilters:
    def emit(self, bus: EventBus, times: int, phase: str | None = None) -> None:
        for batch in range(times):
            bus.emit("after_loss", SimpleNamespace(batch=batch, phase=phase))

    def test_every_runs_on_each_nth_call(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on("after_loss", lambda run: seen.append(run.batch), every=3)
        self.emit(bus, 10)
        assert seen == [2, 5, 8]

    def test_once_runs_once_and_leaves(self, bus: EventBus, seen: list[Any]) -> None:
        subscription = bus.on("after_loss", lambda run: seen.append(run.batch), once=True)
        self.emit(bus, 3)
        assert seen == [0]
        assert not subscription.connected

    def test_once_has_left_even_if_the_handler_fails(self, bus: EventBus) -> None:
        def fails(run: Any) -> None:
            raise RuntimeError("no")

        bus.on("after_loss", fails, once=True)
        with pytest.raises(RuntimeError):
            bus.emit("after_loss", None)
        bus.emit("after_loss", None)

    def test_once_runs_once_if_the_event_is_emitted_inside_itself(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        @bus.on("after_loss", once=True)
        def emit_again(run: Any) -> None:
            bus.emit("after_loss", run)

        bus.on("after_loss", note(seen, "once"), once=True)
        bus.emit("after_loss", None)
        assert seen == ["once"]

    def test_when_runs_where_the_predicate_is_true_of_the_run(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on("after_loss", lambda run: seen.append(run.batch), when=lambda run: run.batch % 2)
        self.emit(bus, 6)
        assert seen == [1, 3, 5]

    @pytest.mark.parametrize("phase", ["train", "validate", "predict"])
    def test_during_runs_in_that_phase_only(
        self, bus: EventBus, seen: list[Any], phase: str
    ) -> None:
        bus.on("after_loss", lambda run: seen.append(run.phase), during=phase)
        for each in ("train", "validate", "predict", None):
            self.emit(bus, 1, each)
        assert seen == [phase]

    def test_every_counts_the_calls_that_during_and_when_let_through(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on(
            "after_loss",
            lambda run: seen.append((run.phase, run.batch)),
            every=2, during="train", when=lambda run: run.batch != 1,
        )  # fmt: skip
        self.emit(bus, 4, "train")
        self.emit(bus, 4, "validate")
        self.emit(bus, 4, "train")
        assert seen == [("train", 2), ("train", 0), ("train", 3)]

    def test_when_is_not_asked_outside_of_the_phase(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on("after_loss", lambda run: None, during="train", when=seen.append)
        self.emit(bus, 2, "validate")
        assert seen == []

    def test_once_with_every_runs_on_the_nth_call_and_leaves(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on("after_loss", lambda run: seen.append(run.batch), every=3, once=True)
        self.emit(bus, 10)
        assert seen == [2]

    def test_once_over_several_events_runs_once_in_all(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        subscription = bus.on(["after_loss", "after_step"], seen.append, once=True)
        bus.emit("after_step", "first")
        bus.emit("after_loss", "second")
        bus.emit("after_step", "third")
        assert seen == ["first"]
        assert not subscription.connected

    def test_every_over_several_events_counts_them_together(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on(["after_loss", "after_step"], seen.append, every=2)
        for number in range(3):
            bus.emit("after_loss", f"loss {number}")
            bus.emit("after_step", f"step {number}")
        assert seen == ["step 0", "step 1", "step 2"]

    def test_two_subscriptions_of_one_function_count_apart(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        for name in ("first", "second"):
            bus.on("after_loss", seen.append, every=2, name=name)
        bus.emit("after_loss", 1)
        bus.emit("after_loss", 2)
        assert seen == [2, 2]

    def test_once_waits_for_the_call_that_the_others_let_through(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on(
            "after_loss", lambda run: seen.append(run.batch), once=True,
            when=lambda run: run.batch >= 4,
        )  # fmt: skip
        self.emit(bus, 10)
        assert seen == [4]

    def test_each_subscription_counts_for_itself(self, bus: EventBus, seen: list[Any]) -> None:
        def handler(run: Any) -> None:
            seen.append(run.batch)

        bus.on("after_loss", handler, every=2)
        self.emit(bus, 1)
        bus.on("after_loss", handler, every=2, name="second")
        self.emit(bus, 2)
        assert seen == [0, 1]

    def test_the_count_survives_changes_to_the_list(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on("after_loss", lambda run: seen.append(run.batch), every=3)
        self.emit(bus, 2)
        bus.on("after_loss", lambda run: None)
        self.emit(bus, 1)
        assert seen == [0]

    def test_calls_are_counted_for_filtered_handlers_and_shown(self, bus: EventBus) -> None:
        bus.on("after_loss", note([], "a"), every=2)
        bus.on("after_loss", note([], "b"))
        self.emit(bus, 5)
        assert [(row.handler, row.calls) for row in bus.explain("after_loss")] == [
            ("a", 2),
            ("b", None),
        ]

    def test_an_unfiltered_handler_is_called_without_any_detour(self, bus: EventBus) -> None:
        def handler(run: Any) -> None: ...

        subscription = bus.on("after_loss", handler)
        assert subscription.handlers[0].callee() is handler

    @pytest.mark.parametrize("event", ["begin_fit", "begin_epoch", "after_epoch", "fit_failed"])
    def test_during_on_an_event_outside_of_the_phases_is_refused(
        self, bus: EventBus, event: str
    ) -> None:
        with pytest.raises(ValueError, match=f"'h' of event '{event}'.*during='train'"):
            bus.on(event, note([], "h"), during="train")
        assert order(bus, event) == []


class TestReferences:
    def test_a_lambda_lives_until_it_is_disconnected(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on("after_loss", lambda run: seen.append(run))
        gc.collect()
        bus.emit("after_loss", 1)
        assert seen == [1]

    def test_a_bound_method_of_a_dropped_object_lives_on(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        class Plot:
            def draw(self, run: Any) -> None:
                seen.append(run)

        bus.on("after_loss", Plot().draw)
        gc.collect()
        bus.emit("after_loss", 1)
        assert seen == [1]

    def test_weak_lets_a_function_go(self, bus: EventBus, seen: list[Any]) -> None:
        handler = note(seen, 1)
        subscription = bus.on("after_loss", handler, weak=True)
        bus.emit("after_loss", None)
        del handler
        gc.collect()
        bus.emit("after_loss", None)
        assert seen == [1]
        assert not subscription.connected
        assert not bus["after_loss"].receivers

    def test_weak_holds_a_bound_method_as_long_as_its_object(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        class Plot:
            def draw(self, run: Any) -> None:
                seen.append(run)

        plot = Plot()
        bus.on("after_loss", plot.draw, weak=True)
        gc.collect()
        bus.emit("after_loss", 1)
        del plot
        gc.collect()
        bus.emit("after_loss", 2)
        assert seen == [1]

    def test_weak_goes_with_filters_and_on_error(self, bus: EventBus, seen: list[Any]) -> None:
        handler = note(seen, 1)
        bus.on("after_loss", handler, weak=True, every=2, on_error="disable")
        bus.emit("after_loss", None)
        bus.emit("after_loss", None)
        assert seen == [1]

    def test_a_weak_handler_that_dies_during_the_emission_is_skipped(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        held = [note(seen, "weak")]
        bus.on("after_loss", lambda run: held.clear())
        bus.on("after_loss", held[0], weak=True)
        bus.on("after_loss", note(seen, "last"))
        bus.emit("after_loss", None)
        assert seen == ["last"]


class TestSenders:
    def test_a_handler_for_one_sender_runs_for_it_alone(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        mine, other = Run(), Run()
        bus.on("after_loss", seen.append, sender=mine)
        bus.emit("after_loss", mine)
        bus.emit("after_loss", other)
        assert seen == [mine]

    def test_a_handler_for_any_sender_runs_for_all(self, bus: EventBus, seen: list[Any]) -> None:
        one, other = Run(), Run()
        bus.on("after_loss", seen.append)
        bus.on("after_loss", lambda run: None, sender=one)
        bus.emit("after_loss", one)
        bus.emit("after_loss", other)
        assert seen == [one, other]

    def test_runs_on_a_shared_bus_hear_their_own_handlers_and_the_common_ones(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        one, other = Run(), Run()
        bus.on("after_loss", note(seen, "one"), sender=one)
        bus.on("after_loss", note(seen, "both"))
        bus.on("after_loss", note(seen, "other"), sender=other)
        for run in (one, other, one):
            bus.emit("after_loss", run)
        assert seen == ["one", "both", "both", "other", "one", "both"]

    @pytest.mark.parametrize("sender", ["a name", 123456789])
    def test_strings_and_numbers_are_senders_by_value(
        self, bus: EventBus, seen: list[Any], sender: Any
    ) -> None:
        bus.on("after_loss", seen.append, sender=sender)
        bus.emit("after_loss", type(sender)(str(sender)))
        bus.emit("after_loss", "another")
        assert seen == [sender]

    def test_a_dead_sender_takes_its_handlers_along(self, bus: EventBus) -> None:
        run = Run()
        subscription = bus.on("after_loss", note([], "h"), sender=run)
        bus.on("after_loss", note([], "stays"))
        del run
        gc.collect()
        assert order(bus) == ["stays"]
        assert not subscription.connected

    def test_a_new_sender_does_not_inherit_from_a_dead_one(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        for _ in range(50):  # sooner or later one gets the address of an earlier one
            run = Run()
            bus.on("after_loss", note(seen, "h"), sender=run)
            bus.emit("after_loss", run)
            bus["after_loss"].emit(run)
            del run
        assert len(seen) == 100

    def test_a_subscription_to_a_sender_does_not_keep_it_alive(self, bus: EventBus) -> None:
        run = Run()
        reference = weakref.ref(run)
        bus.on("after_loss", lambda run: None, sender=run)
        bus.emit("after_loss", run)
        del run
        gc.collect()
        assert reference() is None


class TestChangeDuringDispatch:
    def test_a_handler_subscribed_during_an_emission_runs_from_the_next(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on("after_loss", lambda run: bus.on("after_loss", note(seen, run)))
        bus.emit("after_loss", 1)
        assert seen == []
        bus.emit("after_loss", 2)
        assert seen == [1]

    def test_a_handler_disconnected_during_an_emission_still_runs_in_it(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on("after_loss", lambda run: later.disconnect())
        later = bus.on("after_loss", note(seen, "later"))
        bus.emit("after_loss", None)
        bus.emit("after_loss", None)
        assert seen == ["later"]

    def test_a_handler_may_disconnect_itself(self, bus: EventBus, seen: list[Any]) -> None:
        def handler(run: Any) -> None:
            seen.append(run)
            subscription.disconnect()

        subscription = bus.on("after_loss", handler)
        bus.on("after_loss", note(seen, "next"))
        bus.emit("after_loss", 1)
        bus.emit("after_loss", 2)
        assert seen == [1, "next", "next"]

    def test_muting_during_an_emission_counts_from_the_next(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        signal = bus["after_loss"]
        bus.on("after_loss", lambda run: setattr(signal, "is_muted", True))
        bus.on("after_loss", note(seen, "later"))
        bus.emit("after_loss", None)
        bus.emit("after_loss", None)
        assert seen == ["later"]

    def test_an_emission_inside_an_emission_sees_the_change(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        @bus.on("after_loss", when=lambda run: run == "outer")
        def again(run: Any) -> None:
            bus.on("after_loss", seen.append)
            bus.emit("after_loss", "inner")

        bus.emit("after_loss", "outer")
        assert seen == ["inner"]

    @pytest.mark.parametrize("bound", [False, True])
    def test_it_holds_for_senders_of_a_shared_bus_and_for_bound_loops(
        self, bus: EventBus, seen: list[Any], bound: bool
    ) -> None:
        run = Run()
        emit, _ = bus.bind(run, CancellationToken())
        fire = (lambda: emit.after_loss()) if bound else (lambda: bus.emit("after_loss", run))
        later = bus.on("after_loss", note(seen, "later"), sender=run)

        @bus.on("after_loss", sender=run, priority=1, once=True)
        def change(run: Any) -> None:
            later.disconnect()
            bus.on("after_loss", note(seen, "new"), sender=run)

        fire()
        fire()
        assert seen == ["later", "new"]


class TestReturnValues:
    @pytest.mark.parametrize("flag", [True, False])
    def test_true_and_false_are_errors_that_say_how_to_cancel(
        self, bus: EventBus, flag: bool
    ) -> None:
        bus.on("after_loss", lambda run: flag)
        with pytest.raises(TypeError, match=rf"returned {flag}.*run\.token\.cancel\("):
            bus.emit("after_loss", None)

    def test_the_note_names_the_handler(self, bus: EventBus) -> None:
        def stop(run: Any) -> bool:
            return True

        bus.on("after_loss", note([], "first"))
        bus.on("after_loss", stop)
        with pytest.raises(TypeError) as caught:
            bus.emit("after_loss", None)
        assert len(notes(caught.value)) == 1
        assert "'stop' of event 'after_loss'" in notes(caught.value)[0]

    @pytest.mark.parametrize("value", [0, 1, "", "stop", [], object(), 1.0])
    def test_any_other_value_is_ignored(
        self, bus: EventBus, seen: list[Any], value: object
    ) -> None:
        bus.on("after_loss", lambda run: value)
        bus.on("after_loss", seen.append)
        bus.emit("after_loss", "run")
        assert seen == ["run"]

    @pytest.mark.parametrize("options", [{"every": 1, "once": True}, {"weak": True}])
    def test_filters_and_weak_references_let_no_flag_through(
        self, bus: EventBus, options: dict[str, Any]
    ) -> None:
        def stop(run: Any) -> bool:
            return True

        bus.on("after_loss", stop, **options)
        with pytest.raises(TypeError, match="token"):
            bus.emit("after_loss", None)


class TestErrors:
    def test_an_exception_comes_out_as_the_same_object(self, bus: EventBus) -> None:
        error = ZeroDivisionError("mine")

        def fails(run: Any) -> None:
            raise error

        bus.on("after_loss", fails)
        with pytest.raises(ZeroDivisionError) as caught:
            bus.emit("after_loss", None)
        assert caught.value is error
        assert caught.value.args == ("mine",)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None

    def test_its_traceback_ends_in_the_line_of_the_handler_that_failed(self, bus: EventBus) -> None:
        def fails(run: Any) -> None:
            raise ZeroDivisionError

        bus.on("after_loss", fails)
        with pytest.raises(ZeroDivisionError) as caught:
            bus.emit("after_loss", None)
        frame = traceback.extract_tb(caught.value.__traceback__)[-1]
        assert (frame.name, frame.line) == ("fails", "raise ZeroDivisionError")

    def test_one_note_names_event_handler_priority_epoch_and_batch(self, bus: EventBus) -> None:
        def fails(run: Any) -> None:
            raise ZeroDivisionError

        bus.on("after_loss", note([], "fine"))
        bus.on("after_loss", fails, priority=-3)
        with pytest.raises(ZeroDivisionError) as caught:
            bus.emit("after_loss", SimpleNamespace(epoch=2, batch_index=17))
        (text,) = notes(caught.value)
        for part in ("'after_loss'", "'fails'", "priority -3", "epoch 2", "batch 17", __name__):
            assert part in text

    def test_the_note_names_the_plugin_of_the_handler(self, bus: EventBus) -> None:
        def fails(run: Any) -> None:
            raise ZeroDivisionError

        bus.attach([Handler("after_loss", fails, Options(), plugin="plots (plots-pkg 1.2)")])
        with pytest.raises(ZeroDivisionError) as caught:
            bus.emit("after_loss", None)
        assert "plugin plots (plots-pkg 1.2)" in notes(caught.value)[0]

    def test_the_note_leaves_out_what_the_sender_does_not_know(self, bus: EventBus) -> None:
        def fails(run: Any) -> None:
            raise ZeroDivisionError

        bus.on("begin_fit", fails)
        with pytest.raises(ZeroDivisionError) as caught:
            bus.emit("begin_fit", SimpleNamespace(epoch=None))
        assert "epoch" not in notes(caught.value)[0]
        assert "batch" not in notes(caught.value)[0]

    def test_through_nested_emissions_it_gets_one_note_about_the_innermost(
        self, bus: EventBus
    ) -> None:
        def fails(run: Any) -> None:
            raise ZeroDivisionError

        bus.on("after_loss", fails)
        bus.on("after_pred", lambda run: bus.emit("after_loss", run))
        bus.on("begin_batch", lambda run: bus.emit("after_pred", run))
        with pytest.raises(ZeroDivisionError) as caught:
            bus.emit("begin_batch", None)
        (text,) = notes(caught.value)
        assert "'after_loss'" in text

    def test_notes_that_an_exception_has_already_are_kept(self, bus: EventBus) -> None:
        def fails(run: Any) -> None:
            error = ZeroDivisionError()
            error.add_note("mine")
            raise error

        bus.on("after_loss", fails)
        with pytest.raises(ZeroDivisionError) as caught:
            bus.emit("after_loss", None)
        assert notes(caught.value)[0] == "mine"
        assert len(notes(caught.value)) == 2

    def test_the_handlers_after_it_do_not_run(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on("after_loss", lambda run: 1 / 0)
        bus.on("after_loss", note(seen, "later"))
        with pytest.raises(ZeroDivisionError):
            bus.emit("after_loss", None)
        assert seen == []

    def test_an_error_in_a_predicate_is_the_error_of_its_handler(self, bus: EventBus) -> None:
        bus.on("after_loss", note([], "h"), when=lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError) as caught:
            bus.emit("after_loss", None)
        assert "'h'" in notes(caught.value)[0]

    def test_a_stray_stop_iteration_is_an_error_like_any_other(self, bus: EventBus) -> None:
        bus.on("after_loss", lambda run: next(iter(())))
        with pytest.raises(StopIteration):
            bus.emit("after_loss", None)

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    @pytest.mark.parametrize("on_error", ["raise", "warn", "disable"])
    def test_interrupts_and_exits_are_never_swallowed(
        self, bus: EventBus, kind: type[BaseException], on_error: Any
    ) -> None:
        def fails(run: Any) -> None:
            raise kind

        bus.on("after_loss", fails, on_error=on_error)
        with pytest.raises(kind):
            bus.emit("after_loss", None)


class TestOnError:
    def fails(self, run: Any) -> None:
        raise ZeroDivisionError("boom")

    def test_disable_goes_on_with_the_next_handler(
        self, bus: EventBus, seen: list[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        bus.on("after_loss", self.fails, on_error="disable")
        bus.on("after_loss", note(seen, "next"))
        bus.emit("after_loss", None)
        assert seen == ["next"]

    def test_disable_logs_the_traceback_once_and_disconnects(
        self, bus: EventBus, caplog: pytest.LogCaptureFixture
    ) -> None:
        subscription = bus.on("after_loss", self.fails, on_error="disable")
        for batch in range(3):
            bus.emit("after_loss", SimpleNamespace(epoch=0, batch_index=batch))
        (record,) = caplog.records
        assert record.name == "eventtrain"
        assert record.levelno == logging.ERROR
        for part in ("'fails' of event 'after_loss'", "epoch 0, batch 0"):
            assert part in record.getMessage()
        assert 'raise ZeroDivisionError("boom")' in caplog.text
        assert not subscription.connected

    def test_disable_leaves_the_other_events_of_the_subscription(
        self, bus: EventBus, caplog: pytest.LogCaptureFixture
    ) -> None:
        subscription = bus.on(["after_loss", "after_pred"], self.fails, on_error="disable")
        bus.emit("after_loss", None)
        assert order(bus, "after_loss") == []
        assert order(bus, "after_pred") == ["fails"]
        assert subscription.connected

    def test_warn_warns_each_time_and_goes_on(self, bus: EventBus, seen: list[Any]) -> None:
        bus.on("after_loss", self.fails, on_error="warn")
        bus.on("after_loss", note(seen, "next"))
        for batch in range(2):
            where = rf"'fails' of event 'after_loss'.*batch {batch} failed: ZeroDivisionError: boom"
            with pytest.warns(RuntimeWarning, match=where):
                bus.emit("after_loss", SimpleNamespace(batch_index=batch))
        assert seen == ["next", "next"]

    @pytest.mark.filterwarnings("default")
    def test_warnings_of_different_batches_differ_so_that_python_shows_each(
        self, bus: EventBus, recwarn: pytest.WarningsRecorder
    ) -> None:
        bus.on("after_loss", self.fails, on_error="warn")
        for batch in range(3):
            bus.emit("after_loss", SimpleNamespace(batch_index=batch))
        assert len({str(warning.message) for warning in recwarn}) == 3

    @pytest.mark.parametrize("flag", [True, False])
    def test_a_flag_returned_counts_as_a_failure(self, bus: EventBus, flag: bool) -> None:
        bus.on("after_loss", lambda run: flag, on_error="warn")
        with pytest.warns(RuntimeWarning, match=f"returned {flag}"):
            bus.emit("after_loss", None)

    def test_a_failing_predicate_counts_as_a_failure(
        self, bus: EventBus, caplog: pytest.LogCaptureFixture
    ) -> None:
        bus.on("after_loss", note([], "h"), when=lambda run: 1 / 0, on_error="disable")
        bus.emit("after_loss", None)
        assert order(bus) == []
        assert len(caplog.records) == 1


class CallableObject:
    def __call__(self, run: Any, extra: int) -> None: ...


class AsyncCallable:
    async def __call__(self, run: Any) -> None: ...


async def coroutine(run: Any) -> None: ...


BAD_HANDLERS = [
    (5, TypeError, "'int'.*not callable"),
    ("after_loss", TypeError, "'str'.*not callable"),
    (lambda: None, TypeError, r"'<lambda>'.*takes \(\)"),
    (lambda run, other: None, TypeError, r"'<lambda>'.*takes \(run, other\)"),
    (lambda *, run: None, TypeError, "'<lambda>'"),
    (CallableObject(), TypeError, "'CallableObject'.*extra"),
    (coroutine, TypeError, "'coroutine'.*coroutine function"),
    (functools.partial(coroutine), TypeError, "'coroutine'.*coroutine function"),
    (AsyncCallable(), TypeError, "'AsyncCallable'.*coroutine function"),
]
BAD_OPTIONS = [
    ({"every": 0}, ValueError, "every"),
    ({"every": -1}, ValueError, "every"),
    ({"every": 1.5}, TypeError, "every"),
    ({"every": True}, TypeError, "every"),
    ({"every": None}, TypeError, "every"),
    ({"priority": "high"}, TypeError, "priority"),
    ({"priority": None}, TypeError, "priority"),
    ({"priority": True}, TypeError, "priority"),
    ({"priority": float("nan")}, ValueError, "priority"),
    ({"during": "training"}, ValueError, "during.*train, validate, predict"),
    ({"during": "fit"}, ValueError, "during"),
    ({"when": "always"}, TypeError, "when"),
    ({"on_error": "ignore"}, ValueError, "on_error.*raise, warn or disable"),
    ({"before": "nobody"}, OrderError, "nobody"),
    ({"after": ["nobody"]}, OrderError, "nobody"),
    ({"before": 5}, TypeError, "int"),
]


class TestErrorsAtSubscription:
    def assert_untouched(self, bus: EventBus) -> None:
        assert len(bus.explain()) == 0
        assert not any(bus[name].receivers for name in bus)

    @pytest.mark.parametrize(("handler", "kind", "message"), BAD_HANDLERS)
    def test_a_function_that_cannot_be_a_handler_is_refused_by_name(
        self, bus: EventBus, handler: Any, kind: type[Exception], message: str
    ) -> None:
        with pytest.raises(kind, match=message) as caught:
            bus.on(["begin_fit", "after_loss"], handler)
        assert "'begin_fit'" in str(caught.value)
        self.assert_untouched(bus)

    @pytest.mark.parametrize(("options", "kind", "message"), BAD_OPTIONS)
    @pytest.mark.parametrize("decorating", [False, True])
    def test_a_bad_option_is_refused_by_the_name_of_the_handler(
        self,
        bus: EventBus,
        options: dict[str, Any],
        kind: type[Exception],
        message: str,
        decorating: bool,
    ) -> None:
        handler = note([], "plot")
        with pytest.raises(kind, match=message) as caught:
            if decorating:
                bus.on("after_loss", **options)(handler)
            else:
                bus.on("after_loss", handler, **options)
        assert "handler 'plot'" in str(caught.value)
        assert "'after_loss'" in str(caught.value)
        self.assert_untouched(bus)

    def test_an_option_that_does_not_exist_is_refused(self, bus: EventBus) -> None:
        with pytest.raises(TypeError, match="prio"):
            bus.on("after_loss", lambda run: None, prio=3)
        self.assert_untouched(bus)

    @pytest.mark.parametrize(
        "events", [["begin_fit", "nonsense"], ["nonsense", "begin_fit"], ["begin_fit", "after_los"]]
    )
    def test_one_unknown_event_among_several_subscribes_to_none(
        self, bus: EventBus, events: list[str]
    ) -> None:
        with pytest.raises(UnknownEventError):
            bus.on(events, lambda run: None)
        self.assert_untouched(bus)

    def test_one_event_outside_of_the_phases_among_several_subscribes_to_none(
        self, bus: EventBus
    ) -> None:
        with pytest.raises(ValueError, match="during"):
            bus.on(["after_loss", "after_fit"], lambda run: None, during="train")
        self.assert_untouched(bus)

    def test_a_function_that_cannot_be_held_weakly_is_refused(self, bus: EventBus) -> None:
        class Slotted:
            __slots__ = ()

            def __call__(self, run: Any) -> None: ...

        with pytest.raises(TypeError, match="weak"):
            bus.on("after_loss", Slotted(), weak=True)
        self.assert_untouched(bus)

    @pytest.mark.parametrize(
        "handler",
        [
            print,
            functools.partial(lambda extra, run: None, 1),
            lambda run, extra=1: None,
            lambda *arguments: None,
            dict,
            [].append,
        ],
    )
    def test_whatever_takes_one_argument_is_accepted(
        self, bus: EventBus, handler: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bus.on("after_loss", handler)
        bus.emit("after_loss", ())
        assert len(bus.explain("after_loss")) == 1


class TestAttach:
    def test_it_subscribes_prepared_handlers(self, bus: EventBus, seen: list[Any]) -> None:
        handler = Handler("after_loss", seen.append, Options(priority=3))
        bus.attach([handler], sender="me")
        bus.emit("after_loss", "me")
        bus.emit("after_loss", "you")
        assert seen == ["me"]

    def test_handlers_of_one_call_may_name_each_other(self, bus: EventBus) -> None:
        bus.attach(
            [
                Handler("after_loss", note([], "a"), Options(after=("b",))),
                Handler("after_loss", note([], "b"), Options()),
            ]
        )
        assert order(bus) == ["b", "a"]

    @pytest.mark.parametrize(
        ("bad", "kind"),
        [
            (Handler("nonsense", print, Options()), UnknownEventError),
            (Handler("after_loss", print, Options(before=("nobody",))), OrderError),
            (Handler("after_loss", print, Options(before=("x",), after=("x",))), OrderError),
            (Handler("after_fit", print, Options(during="train")), ValueError),
        ],
    )
    def test_one_in_error_keeps_out_all(
        self, bus: EventBus, bad: Handler, kind: type[Exception]
    ) -> None:
        bus.on("after_loss", note([], "x"))
        good = Handler("after_pred", note([], "good"), Options())
        for handlers in ([good, bad], [bad, good]):
            with pytest.raises(kind):
                bus.attach(handlers)
        assert [row.handler for row in bus.explain()] == ["x"]
        assert good.key is None

    @pytest.mark.parametrize("kind", [TypeError, RuntimeError, KeyboardInterrupt])
    def test_a_listener_that_fails_keeps_out_all(
        self, bus: EventBus, seen: list[Any], kind: type[BaseException]
    ) -> None:
        def refuse(signal: Signal, **arguments: Any) -> None:
            raise kind("refused")

        bus["after_pred"].receiver_connected.connect(refuse)
        with pytest.raises(kind, match="refused"):
            bus.on(["after_loss", "after_pred"], seen.append)
        for name in ("after_loss", "after_pred"):
            bus.emit(name, None)
        assert seen == []
        assert len(bus.explain()) == 0


class TestBind:
    def test_an_unknown_event_of_a_bound_loop_is_an_attribute_error_that_names_it(
        self, bus: EventBus
    ) -> None:
        emit, _ = bus.bind(None, CancellationToken())
        with pytest.raises(AttributeError, match="after_los"):
            emit.after_los()

    def test_opening_events_and_points_are_checkpoints_without_handlers_too(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        token = CancellationToken()
        emit, scope = bus.bind(None, token)
        with scope.batch:
            token.cancel("batch")
            emit.after_loss()
            seen.append("not reached")
        assert seen == []
        assert scope.batch.outcome == "cancelled"

    def test_a_handler_of_a_bound_loop_that_cancels_ends_the_scope(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        token = CancellationToken()
        emit, scope = bus.bind(Run(), token)
        bus.on("after_loss", lambda run: token.cancel("batch", "enough"), name="stopper")
        bus.on("after_loss", note(seen, "skipped"))
        bus.on("after_batch", note(seen, "after_batch"))
        bus.on("after_cancel_batch", note(seen, "after_cancel_batch"))
        with scope.batch:
            emit.after_loss()
        assert seen == ["after_cancel_batch", "after_batch"]
        assert (token.history[0].by, token.history[0].event) == ("stopper", "after_loss")

    def test_what_was_compiled_serves_until_subscriptions_change(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        def code_after_emission(sender: Any) -> Any:
            emit, _ = bus.bind(sender, CancellationToken())
            emit.after_loss()
            return emit.after_loss.__code__  # type: ignore[attr-defined]

        bus.on("after_loss", seen.append)
        first, second = code_after_emission("a"), code_after_emission("b")
        bus.on("after_loss", lambda sender: None)
        third = code_after_emission("c")
        assert seen == ["a", "b", "c"]
        assert first is second is not third

    def test_a_sender_with_a_handler_of_its_own_runs_code_of_its_own(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        one, other = Run(), Run()
        bus.on("after_loss", note(seen, "all"))
        bus.on("after_loss", note(seen, "one"), sender=one)
        for sender in (one, other, one, other):
            bus.bind(sender, CancellationToken())[0].after_loss()
        assert seen == ["all", "one", "all"] * 2

    def test_only_the_token_of_its_own_binding_cancels(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        other, token = CancellationToken(), CancellationToken()
        bus.on("after_loss", seen.append)
        bus.bind("other", other)[0].after_loss()
        emit, scope = bus.bind("this", token)
        with scope.batch:
            other.cancel()
            emit.after_loss()
            token.cancel("batch")
            emit.after_loss()
        assert seen == ["other", "this"]

    def test_muting_an_event_silences_a_bound_loop(self, bus: EventBus, seen: list[Any]) -> None:
        emit, scope = bus.bind(None, CancellationToken())
        bus.on(["after_loss", "after_batch"], seen.append)
        with bus["after_loss"].muted(), bus["after_batch"].muted(), scope.batch:
            emit.after_loss()
        assert seen == []
        with scope.batch:
            emit.after_loss()
        assert seen == [None, None]

    def test_every_closing_handler_runs_though_one_fails_and_one_cancels(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        token = CancellationToken()
        _, scope = bus.bind(None, token)
        bus.on("after_batch", lambda run: 1 / 0)
        bus.on("after_batch", lambda run: token.cancel("epoch"))
        bus.on("after_batch", note(seen, "last"))
        with pytest.raises(ZeroDivisionError), scope.epoch, scope.batch:
            pass
        assert seen == ["last"]


class TestExplain:
    def test_it_lists_the_handlers_in_their_true_order(
        self, bus: EventBus, seen: list[Any]
    ) -> None:
        bus.on("after_loss", note(seen, "a"), priority=-1)
        bus.on("after_loss", note(seen, "b"), priority=5)
        bus.on("after_loss", note(seen, "c"), priority=-9, before="b")
        bus.emit("after_loss", None)
        assert order(bus) == seen == ["c", "b", "a"]
        assert [row.position for row in bus.explain("after_loss")] == [1, 2, 3]

    def test_without_an_event_it_lists_all_in_table_order(self, bus: EventBus) -> None:
        for event in ("after_fit", "begin_fit", "after_loss"):
            bus.on(event, note([], event))
        assert [row.event for row in bus.explain()] == ["begin_fit", "after_loss", "after_fit"]

    def test_a_row_says_everything_about_a_handler(self, bus: EventBus) -> None:
        run = Run()
        bus.on("after_loss", note([], "x"))

        def plot(run: Any) -> None: ...

        bus.on(
            "after_loss", plot, priority=2.5, before="x", after=(), every=3, during="train",
            on_error="warn", sender=run,
        )  # fmt: skip
        row = bus.explain("after_loss")[0]
        line = plot.__code__.co_firstlineno
        assert (row.handler, row.priority, row.constraints) == ("plot", 2.5, "before x")
        assert (row.filter, row.on_error) == ("every=3 during=train", "warn")
        assert (row.source, row.sender, row.calls) == (f"{__name__}:{line}", "Run", 0)

    def test_a_sender_that_is_a_value_is_said_to_be_one(self, bus: EventBus) -> None:
        bus.on("after_loss", note([], "h"), sender="me")
        assert bus.explain("after_loss")[0].sender == "by value"

    def test_the_plugin_stands_beside_the_source(self, bus: EventBus) -> None:
        bus.attach([Handler("after_loss", note([], "h"), Options(), plugin="plots (pkg 1.2)")])
        assert bus.explain("after_loss")[0].source.endswith("(plots (pkg 1.2))")

    def test_receivers_connected_the_way_of_blinker_are_listed_too(self, bus: EventBus) -> None:
        handler = note([], "connected")
        bus["after_loss"].connect(handler)
        assert order(bus) == ["connected"]

    def test_a_receiver_whose_only_sender_is_gone_is_not_listed(self, bus: EventBus) -> None:
        run, handler = Run(), note([], "connected")
        bus["after_loss"].connect(handler, sender=run)
        del run
        gc.collect()
        assert order(bus) == []


class TestTheSameFunctionTwice:
    """A function that is subscribed again replaces itself, and says so."""

    def test_it_runs_once_and_as_the_second_subscription_says(self, bus: EventBus) -> None:
        seen: list[object] = []
        bus.on("after_loss", seen.append, priority=1)
        with pytest.warns(RuntimeWarning, match="'append' of event 'after_loss'.* is replaced"):
            bus.on("after_loss", seen.append, priority=2)
        bus.emit("after_loss", "run")
        assert seen == ["run"]
        assert [row.priority for row in bus.explain()] == [2]

    def test_a_warning_that_is_an_error_changes_nothing(self, bus: EventBus) -> None:
        bus.on("after_loss", print, priority=1)
        with pytest.raises(RuntimeWarning, match="is replaced"):
            bus.on("after_loss", print, priority=2)
        assert [row.priority for row in bus.explain()] == [1]

    def test_a_subscription_that_fails_leaves_the_first(self, bus: EventBus) -> None:
        bus.on("after_loss", print)
        with pytest.raises(OrderError), pytest.warns(RuntimeWarning):
            bus.on("after_loss", print, before="nobody")
        assert len(bus.explain()) == 1

    def test_another_name_event_or_sender_is_another_handler(self, bus: EventBus) -> None:
        first, second = SimpleNamespace(), SimpleNamespace()
        bus.on("after_loss", print)
        bus.on("after_loss", print, name="other")
        bus.on("after_pred", print)
        bus.on("after_loss", print, sender=first)
        bus.on("after_loss", print, sender=second)
        assert len(bus.explain()) == 5
        with pytest.warns(RuntimeWarning):
            bus.on("after_loss", print, sender=first)
        assert len(bus.explain()) == 5

    def test_methods_of_two_objects_are_two_functions(self, bus: EventBus) -> None:
        first: list[object] = []
        second: list[object] = []
        bus.on("after_loss", first.append)
        bus.on("after_loss", second.append)
        bus.emit("after_loss", "run")
        assert first == second == ["run"]

    def test_one_of_several_events_is_replaced_alone(self, bus: EventBus) -> None:
        bus.on(["after_loss", "after_pred"], print)
        with pytest.warns(RuntimeWarning):
            bus.on("after_loss", print, priority=4)
        rows = {row.event: row.priority for row in bus.explain()}
        assert rows == {"after_loss": 4, "after_pred": 0}

    def test_what_was_disconnected_is_subscribed_anew_without_a_word(self, bus: EventBus) -> None:
        bus.on("after_loss", print).disconnect()
        bus.on("after_loss", print)
        assert len(bus.explain()) == 1

    @pytest.mark.parametrize("how", ["call", "decorator", "run.on", "run.on as a decorator"])
    def test_the_warning_names_the_line_that_subscribes(self, bus: EventBus, how: str) -> None:
        run = Runner(bus=bus)
        ways: dict[str, Callable[[], object]] = {
            "call": lambda: bus.on("after_loss", print),
            "decorator": lambda: bus.on("after_loss")(print),
            "run.on": lambda: run.on("after_loss", print),
            "run.on as a decorator": lambda: run.on("after_loss")(print),
        }
        ways[how]()
        with pytest.warns(RuntimeWarning, match="is replaced") as caught:
            ways[how]()
        line = ways[how].__code__.co_firstlineno
        assert (caught[0].filename, caught[0].lineno) == (__file__, line)

    def test_an_event_that_is_named_twice_is_one(self, bus: EventBus) -> None:
        seen: list[object] = []
        bus.on(["after_loss", "after_pred", "after_loss"], seen.append)
        bus.emit("after_loss", "run")
        assert seen == ["run"]


class TestWhatIsNoHandler:
    """What would subscribe nothing, and say nothing."""

    @pytest.mark.parametrize("subscribes", [EventBus(), Runner()], ids=["bus", "run"])
    def test_none_in_the_place_of_a_handler_is_an_error(self, subscribes: Any) -> None:
        with pytest.raises(TypeError, match=r"on\('after_loss', ...\) got None.*function itself"):
            subscribes.on("after_loss", None)

    @pytest.mark.parametrize("event", [None, 3, 2.5])
    def test_what_names_no_event_is_an_error(self, bus: EventBus, event: Any) -> None:
        with pytest.raises(TypeError, match=f"the name of an event, or several, got {event}"):
            bus.on(event, print)


def test_a_handler_may_subscribe_to_a_signal_in_the_place_of_its_name() -> None:
    bus, heard = EventBus(), []
    sample = bus.declare("after_sample", "images have been drawn")
    bus.on([sample, "after_fit"], heard.append)
    bus.emit("after_sample", 1)
    bus.emit("after_fit", 2)
    assert heard == [1, 2]
