"""Callbacks: which methods become handlers, how they are named, what they read and write."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import AsyncGenerator, Generator
from functools import partial
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
        after_loss = partial(lambda run, loss: None)

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
            self.loss = "mine"
            self.apart = self.run.loss != "mine"

    reader = Reader()
    Runner(cbs=reader).fit(1, learner)
    assert (reader.same, reader.apart, reader.loss) == (True, True, "mine")


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
    (row,) = run.bus.explain("after_fit")
    assert row.handler == "late"
    assert row.source.startswith("test_callback:") or ".test_callback:" in row.source
