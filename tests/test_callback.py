"""Callbacks: which methods become handlers, how they are named, what they read and write."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import AsyncGenerator, Generator
from functools import cached_property, partial, partialmethod
from typing import Any

import pytest

from eventtrain import (
    Callback,
    CallbackError,
    EventBus,
    Learner,
    Runner,
    TrainEvalCallback,
    camel2snake,
    handler,
    listify,
)


class Named(Callback):
    """A callback that pickle can find."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TrainEvalCallback", "train_eval_callback"),
        ("AvgStats", "avg_stats"),
        ("EMA", "ema"),
        ("HTTPServer2Go", "http_server2_go"),
        ("plain", "plain"),
    ],
)
def test_camel_case_becomes_snake_case(name: str, expected: str) -> None:
    assert camel2snake(name) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        ("abc", ["abc"]),
        ([1, 2], [1, 2]),
        ((1, 2), [1, 2]),
        (3, [3]),
        (range(2), [0, 1]),
    ],
)
def test_listify_makes_a_list_of_anything(value: Any, expected: list[Any]) -> None:
    assert listify(value) == expected


def test_listify_gives_a_list_of_its_own() -> None:
    value = [1]
    assert listify(value) is not value


def test_the_name_is_the_class_name_without_callback() -> None:
    assert TrainEvalCallback().name == "train_eval"


def test_the_base_class_alone_is_called_callback() -> None:
    assert Callback().name == "callback"


def test_a_callback_can_be_given_another_name() -> None:
    first, second = Named(), Named()
    second.name = "other"
    run = Runner(cbs=[first, second])
    assert run.named is first
    assert run.other is second


def test_methods_are_called_with_or_without_the_run(learner: Learner) -> None:
    class Both(Callback):
        def begin_fit(self) -> None:
            self.without = self.run

        def after_fit(self, run: Runner) -> None:
            self.given = run

    both = Both()
    run = Runner(cbs=both)
    run.fit(1, learner)
    assert both.without is run
    assert both.given is run


def test_a_method_that_takes_more_is_refused() -> None:
    class Wrong(Callback):
        def after_loss(self, run: Runner, loss: float) -> None: ...

    with pytest.raises(CallbackError, match=r"Wrong\.after_loss\(run"):
        Runner(cbs=Wrong())


def test_an_attribute_without_a_name_of_its_own_that_takes_more_is_refused() -> None:
    class Wrong(Callback):
        # Static: later versions of Python make methods of these too.
        after_loss = staticmethod(partial(lambda run, loss: None))

    with pytest.raises(CallbackError, match=r"Wrong\.after_loss\(run, loss\)"):
        Runner(cbs=Wrong())


class Generators(Callback):
    def after_loss(self, run: Runner) -> Generator[None, None, None]:
        yield


class GeneratorsOfNothing(Callback):
    def after_loss(self) -> Generator[None, None, None]:
        yield


class AsyncGenerators(Callback):
    async def after_loss(self) -> AsyncGenerator[None, None]:
        yield


class Coroutines(Callback):
    async def after_loss(self) -> None: ...


class Decorated(Callback):
    @handler(event="after_epoch")
    def after_loss(self) -> Generator[None, None, None]:
        yield


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Generators, "a generator function.*without yield"),
        (GeneratorsOfNothing, "a generator function.*without yield"),
        (AsyncGenerators, "an async generator function.*without async and yield"),
        (Coroutines, "a coroutine function.*without async and await"),
        (Decorated, "a generator function.*without yield"),
    ],
)
def test_a_method_whose_body_would_not_run_is_refused(cls: type[Callback], message: str) -> None:
    with pytest.raises(CallbackError, match=rf"{cls.__name__}\.after_loss is {message}"):
        Runner(cbs=cls())


def test_a_method_of_no_argument_that_returns_a_coroutine_fails_when_it_is_called(
    learner: Learner,
) -> None:
    async def later() -> None: ...

    class Later(Callback):
        def after_loss(self) -> object:
            return later()

    with pytest.raises(TypeError, match="returned a coroutine"):
        Runner(cbs=Later()).fit(1, learner)


def test_a_method_that_looks_like_an_event_and_is_none_is_an_error() -> None:
    with pytest.raises(CallbackError, match="Did you mean 'after_batch'"):

        class Typo(Callback):
            def after_bach(self) -> None: ...


def test_an_attribute_that_looks_like_an_event_is_none_of_the_checks_business() -> None:
    class Fine(Callback):
        begin_lr = 0.1

    assert Fine().handlers() == []


def test_a_mixin_brings_handlers_too() -> None:
    class Mixin:
        def after_loss(self) -> None: ...

    class Mixed(Mixin, Callback):
        pass

    assert [handler.event for handler in Mixed().handlers()] == ["after_loss"]


def test_all_handlers_have_the_priority_of_the_class() -> None:
    class Late(Callback):
        priority = -80

        def after_epoch(self) -> None: ...

    assert [handler.priority for handler in Late().handlers()] == [-80]


def test_a_method_can_have_a_priority_and_a_filter_of_its_own() -> None:
    class Mixed(Callback):
        priority = 5

        @handler(priority=7, every=3)
        def after_loss(self) -> None: ...

        def after_epoch(self) -> None: ...

    options = {h.event: (h.priority, h.options.every) for h in Mixed().handlers()}
    assert options == {"after_loss": (7, 3), "after_epoch": (5, 1)}


def test_a_method_of_any_name_can_serve_several_events(learner: Learner) -> None:
    class Counter(Callback):
        count = 0

        @handler(event=["after_step", "after_epoch"])
        def add(self) -> None:
            self.count += 1

    counter = Counter()
    Runner(cbs=counter).fit(1, learner)
    assert counter.count == 3 + 1


def test_a_callback_can_serve_an_event_of_the_users_own() -> None:
    class Sampler(Callback):
        seen = 0

        @handler(event="after_sample")
        def after_sample(self) -> None:
            self.seen += 1

    bus = EventBus()
    bus.declare("after_sample")
    sampler = Sampler()
    run = Runner(cbs=sampler, bus=bus)
    bus.emit("after_sample", run)
    assert sampler.seen == 1


def test_the_handler_decorator_without_parentheses_is_refused() -> None:
    with pytest.raises(TypeError, match="with parentheses"):

        class Wrong(Callback):
            @handler  # type: ignore[arg-type]
            def after_loss(self) -> None: ...


def test_the_handler_decorator_refuses_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="every must be at least 1"):
        handler(every=0)


def test_constraints_name_callbacks_given_in_any_order(learner: Learner) -> None:
    order: list[str] = []

    class Second(Callback):
        @handler(after="first")
        def after_epoch(self) -> None:
            order.append("second")

    class First(Callback):
        priority = -1

        def after_epoch(self) -> None:
            order.append("first")

    Runner(cbs=[Second(), First()]).fit(1, learner)
    assert order == ["first", "second"]


def test_a_callback_in_error_leaves_a_shared_bus_as_it_was() -> None:
    class Good(Callback):
        def after_loss(self) -> None: ...

    class Bad(Callback):
        @handler(after="nobody")
        def after_loss(self) -> None: ...

    bus = EventBus()
    with pytest.raises(ValueError, match="'nobody'"):
        Runner(cbs=[Good(), Bad()], bus=bus)
    assert not list(bus.explain())


def test_reading_falls_through_to_the_run_and_writing_does_not(learner: Learner) -> None:
    class Reader(Callback):
        @handler(once=True)
        def after_loss(self) -> None:
            self.same = self.loss is self.run.loss
            self.steps = "mine"
            self.apart = self.run.steps != "mine"

    reader = Reader()
    Runner(cbs=reader).fit(1, learner)
    assert (reader.same, reader.apart, reader.steps) == (True, True, "mine")


def test_a_callback_reads_other_callbacks_by_name() -> None:
    class Reader(Callback):
        pass

    reader, named = Reader(), Named()
    run = Runner(cbs=[named, reader])
    assert reader.named is named
    assert run is reader.run


def test_what_neither_has_is_an_error_that_names_both() -> None:
    named = Named()
    run = Runner(cbs=named)
    with pytest.raises(AttributeError, match=r"neither the callback 'Named' nor its runner") as e:
        _ = named.nonsense
    assert "nonsense" in str(e.value)
    del run


def test_a_callback_without_a_runner_says_so() -> None:
    with pytest.raises(AttributeError, match="not attached to a runner"):
        _ = Named().loss


def test_a_callback_does_not_keep_its_runner_alive() -> None:
    named = Named()
    run = Runner(cbs=named)
    del run
    gc.collect()
    assert named.run is None


def test_a_callback_serves_the_runner_that_fits(learner: Learner) -> None:
    class Witness(Callback):
        def after_fit(self) -> None:
            self.served = self.run

    witness = Witness()
    first, second = Runner(cbs=witness), Runner(cbs=witness)
    first.fit(1, learner)
    assert witness.served is first
    second.fit(1, learner)
    assert witness.served is second


def test_a_callback_can_be_copied_and_pickled() -> None:
    named = Named()
    named.value = [1]
    run = Runner(cbs=named)
    assert copy.deepcopy(named).value == [1]
    assert pickle.loads(pickle.dumps(named)).value == [1]
    del run


def test_a_callback_keeps_no_state_unless_it_says_so() -> None:
    assert Named().state_dict() == {}
    Named().load_state_dict({})
    with pytest.raises(ValueError, match="keeps no state"):
        Named().load_state_dict({"best": 1})


def test_explain_shows_a_callbacks_method_under_its_name() -> None:
    run = Runner(cbs=Named())

    class Late(Callback):
        def after_fit(self) -> None: ...

    run = Runner(cbs=Late())
    _, row = run.bus.explain("after_fit")  # the first is TrainEvalCallback's
    assert row.handler == "late"
    assert row.source.startswith("test_callback:") or ".test_callback:" in row.source


# What an overriding method inherits.


def filters_of(callback: Callback) -> dict[str, tuple[float, str, str]]:
    run = Runner(cbs=callback)  # kept: a bus forgets the handlers of a run that is gone
    return {
        row.event: (row.priority, row.filter, row.constraints)
        for row in run.bus.explain()
        if row.handler == callback.name
    }


class Base(Callback):
    priority = 3

    @handler(during="train", priority=40, every=2)
    def begin_batch(self, run: Runner) -> None: ...

    @handler(["begin_train", "begin_validate"], priority=7)
    def phase_begins(self, run: Runner) -> None: ...

    def after_loss(self, run: Runner) -> None: ...


OVERRIDDEN = {
    "begin_batch": (40, "every=2 during=train", ""),
    "after_loss": (3, "", ""),
} | dict.fromkeys(("begin_train", "begin_validate"), (7, "", ""))


class Plain(Base):
    def begin_batch(self, run: Runner) -> None:
        super().begin_batch(run)

    def phase_begins(self, run: Runner) -> None:
        super().phase_begins(run)


def test_an_overriding_method_keeps_events_and_options() -> None:
    class Twice(Plain):
        def begin_batch(self) -> None: ...

        def phase_begins(self) -> None: ...

    assert filters_of(Plain()) == OVERRIDDEN
    assert filters_of(Twice()) == OVERRIDDEN


def test_what_is_given_anew_replaces_that_and_keeps_the_rest() -> None:
    class Partly(Base):
        @handler(priority=5)
        def begin_batch(self) -> None: ...

        @handler("after_train")
        def phase_begins(self) -> None: ...

        @handler(every=3)
        def after_loss(self) -> None: ...

    class Further(Partly):
        @handler(during=None)
        def begin_batch(self) -> None: ...

    assert filters_of(Partly()) == {
        "begin_batch": (5, "every=2 during=train", ""),
        "after_train": (7, "", ""),
        "after_loss": (3, "every=3", ""),
    }
    assert filters_of(Further())["begin_batch"] == (5, "every=2", "")


def test_options_follow_the_order_of_method_resolution() -> None:
    class Early(Base):
        @handler(priority=1, once=True)
        def begin_batch(self) -> None: ...

    class Late(Base):
        @handler(priority=2, during="validate")
        def begin_batch(self) -> None: ...

    class Diamond(Early, Late):
        def begin_batch(self) -> None: ...

    assert filters_of(Diamond())["begin_batch"] == (1, "every=2 once during=validate", "")


def test_a_mixin_that_is_no_callback_keeps_the_options_of_what_it_overrides() -> None:
    class Mixin:
        def begin_batch(self, run: Runner) -> None:
            super().begin_batch(run)  # type: ignore[misc]

    class Mixed(Mixin, Base):
        pass

    assert filters_of(Mixed()) == OVERRIDDEN


def test_a_name_set_to_none_takes_the_handler_and_its_options_away() -> None:
    class Without(Base):
        begin_batch = None  # type: ignore[assignment]
        phase_begins = None  # type: ignore[assignment]

    class Again(Without):
        def begin_batch(self) -> None: ...  # type: ignore[override]

    assert filters_of(Without()) == {"after_loss": (3, "", "")}
    assert filters_of(Again()) == {"after_loss": (3, "", ""), "begin_batch": (3, "", "")}


def test_an_event_of_ones_own_can_be_overridden_without_a_decorator() -> None:
    class Own(Callback):
        @handler("begin_round")
        def begin_round(self) -> None: ...

    class Mine(Own):
        def begin_round(self) -> None: ...

    assert [each.event for each in Mine().handlers()] == ["begin_round"]


def test_static_and_class_methods_are_handlers_that_keep_their_options() -> None:
    class Kinds(Base):
        @staticmethod
        def begin_batch(run: Runner) -> None: ...  # type: ignore[override]

        @classmethod
        def after_loss(cls, run: Runner) -> None: ...

        @classmethod
        @handler(priority=11)
        def after_epoch(cls) -> None: ...

        @handler(priority=12)
        @staticmethod
        def after_fit() -> None: ...

        after_batch = partialmethod(Base.after_loss)

    assert filters_of(Kinds()) == OVERRIDDEN | {
        "after_epoch": (11, "", ""),
        "after_fit": (12, "", ""),
        "after_batch": (3, "", ""),
    }


def test_options_in_two_decorators_are_all_kept() -> None:
    class Stacked(Callback):
        @handler(priority=5)
        @handler("after_loss", during="train", priority=4)
        def note(self) -> None: ...

    assert filters_of(Stacked()) == {"after_loss": (5, "during=train", "")}


@pytest.mark.parametrize("make", [property, cached_property, lambda _: 3, lambda _: [print]])
@pytest.mark.parametrize("name", ["begin_batch", "phase_begins"])
def test_what_cannot_be_called_is_no_handler(name: str, make: Any) -> None:
    with pytest.raises(CallbackError, match=f"Bad.{name} has the place of a handler"):
        type("Bad", (Base,), {name: make(lambda self: None)})


@pytest.mark.parametrize(
    "value", [3, property(lambda self: None), Base], ids=["number", "property", "class"]
)
def test_options_on_what_is_no_method_are_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match="decorates a method, got a"):
        handler(priority=5)(value)


def test_a_handler_put_on_the_instance_is_an_error() -> None:
    callback = Base()
    callback.after_epoch = lambda run: None  # type: ignore[attr-defined]
    with pytest.raises(CallbackError, match=r"after_epoch, which nothing calls: .*run\.on"):
        Runner(callback)


# Names that do nothing.

OF_THE_RUN = ("loss", "pred", "xb", "yb", "batch")


@pytest.mark.parametrize("name", OF_THE_RUN)
def test_writing_on_the_callback_what_the_loop_reads_from_the_run_is_an_error(
    name: str, learner: Learner
) -> None:
    class Writing(Callback):
        def after_loss(self) -> None:
            setattr(self, name, getattr(self, name))

    with pytest.raises(CallbackError, match=rf"Writing.{name} .*write run\.{name} = \.\.\.") as e:
        Runner(Writing()).fit(1, learner)
    assert "epoch 0, batch 0" in e.value.__notes__[0]


@pytest.mark.parametrize("name", OF_THE_RUN)
def test_such_a_name_is_an_error_in_init_and_in_the_class_too(name: str) -> None:
    class Late(Callback):
        def __init__(self) -> None:
            setattr(self, name, 3)

    with pytest.raises(CallbackError, match=f"Late.{name} "):
        Late()
    with pytest.raises(CallbackError, match=f"Early.{name} "):
        type("Early", (Callback,), {name: None})


@pytest.mark.parametrize("name", OF_THE_RUN)
def test_such_a_name_reads_from_the_run(name: str, learner: Learner) -> None:
    class Reading(Callback):
        seen: Any = None

        def after_loss(self, run: Runner) -> None:
            self.seen = getattr(self, name) is getattr(run, name)

    reading = Reading()
    with pytest.raises(AttributeError, match="not attached to a runner"):
        getattr(reading, name)
    assert not hasattr(reading, name)
    Runner(reading).fit(1, learner)
    assert reading.seen
    assert getattr(copy.copy(reading), "seen") is True  # noqa: B009


def test_such_a_name_may_be_a_method_or_a_property() -> None:
    class Computing(Callback):
        @property
        def batch(self) -> int:  # type: ignore[override]
            return 3

        def loss(self) -> int:  # type: ignore[override]
            return 4

    assert (Computing().batch, Computing().loss()) == (3, 4)
