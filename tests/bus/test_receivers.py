from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any
from unittest.mock import Mock

import pytest

from eventtrain import EventBus
from eventtrain.bus.receivers import check_receiver, is_same, name_of, reject_result, source_of

HERE = __name__


def plain(run: Any) -> None: ...


class Plot:
    def draw(self, run: Any) -> None: ...

    def __call__(self, run: Any) -> None: ...


class Forwarding:
    """Answers every attribute with itself, as proxies do."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, run: Any) -> None: ...


def line_of(function: Any) -> int:
    line: int = function.__code__.co_firstlineno
    return line


@pytest.mark.parametrize(
    ("receiver", "name"),
    [
        (plain, "plain"),
        (Plot().draw, "draw"),
        (Plot(), "Plot"),
        (Plot, "Plot"),
        (lambda run: None, "<lambda>"),
        (functools.partial(plain), "plain"),
        (functools.partial(functools.partial(Plot().draw)), "draw"),
        ([].append, "append"),
        (Mock(), "Mock"),
        (Forwarding(), "Forwarding"),
        (5, "int"),
    ],
)
def test_a_handler_goes_by_the_name_of_its_function(receiver: Any, name: str) -> None:
    assert name_of(receiver) == name


@pytest.mark.parametrize(
    ("receiver", "source"),
    [
        (plain, f"{HERE}:{line_of(plain)}"),
        (Plot().draw, f"{HERE}:{line_of(Plot.draw)}"),
        (Plot(), f"{HERE}:{line_of(Plot.__call__)}"),
        (functools.partial(plain), f"{HERE}:{line_of(plain)}"),
        (functools.lru_cache(plain), f"{HERE}:{line_of(plain)}"),
        (Forwarding(), f"{HERE}:{line_of(Forwarding.__call__)}"),
        (print, "builtins"),
        ([].append, "builtins"),
    ],
)
def test_its_source_is_module_and_line_as_far_as_python_knows_them(
    receiver: Any, source: str
) -> None:
    assert source_of(receiver) == source


def test_the_source_of_a_mock_is_its_module() -> None:
    assert source_of(Mock()).startswith("unittest.mock")


def test_a_method_looked_up_twice_is_the_same_receiver() -> None:
    plot, other = Plot(), Plot()
    assert is_same(plot.draw, plot.draw)
    assert not is_same(plot.draw, other.draw)
    assert is_same(plain, plain)


def test_equal_objects_are_two_receivers() -> None:
    one = functools.partial(plain)
    assert is_same(one, one)
    assert not is_same((1, 2), tuple([1, 2]))  # noqa: C409  # a literal would be the same object


@pytest.mark.parametrize("flag", [True, False])
def test_flags_are_rejected_with_the_way_to_cancel(flag: bool) -> None:
    with pytest.raises(TypeError, match=rf"returned {flag}.*run\.token\.cancel"):
        reject_result(flag)


@pytest.mark.parametrize("value", [None, 0, 1, "", 0.0])
def test_values_that_equal_flags_are_no_flags(value: object) -> None:
    reject_result(value)


def test_a_receiver_whose_signature_cannot_be_read_is_trusted() -> None:
    check_receiver(dict, "after_loss")


class Remembering:
    def __init__(self, run: Any) -> None: ...


def test_a_class_whose_instances_nobody_calls_is_trusted() -> None:
    check_receiver(Remembering, "after_loss")


def test_a_mock_is_a_receiver() -> None:
    check_receiver(Mock(), "after_loss")


# Handlers whose body a call does not run


def generator(run: Any) -> Generator[None, None, None]:
    yield


async def async_generator(run: Any) -> AsyncGenerator[None, None]:
    yield


async def coroutine(run: Any) -> None: ...


class Yielding:
    def draw(self, run: Any) -> Generator[None, None, None]:
        yield

    def __call__(self, run: Any) -> Generator[None, None, None]:
        yield

    @classmethod
    def of_class(cls, run: Any) -> Generator[None, None, None]:
        yield

    @staticmethod
    def of_none(run: Any) -> Generator[None, None, None]:
        yield

    def of_two(self, flag: bool, run: Any) -> Generator[None, None, None]:
        yield

    partly = functools.partialmethod(of_two, True)


class AsyncYielding:
    async def __call__(self, run: Any) -> AsyncGenerator[None, None]:
        yield


class MadeWithAnOption:
    def __init__(self, path: Any) -> None: ...

    def __call__(self, run: Any) -> None: ...


class InContext:
    @contextlib.contextmanager
    def draw(self, run: Any) -> Generator[None, None, None]:
        yield


@pytest.mark.parametrize(
    ("receiver", "message"),
    [
        (generator, "'generator' for event 'e' is a generator function.*without yield"),
        (lambda run: (yield), "'<lambda>'.*a generator function"),
        (async_generator, "'async_generator'.*an async generator function.*without async and"),
        (coroutine, "'coroutine'.*a coroutine function.*without async and await"),
        (functools.partial(generator), "'generator'.*a generator function"),
        (functools.partial(functools.partial(async_generator)), "an async generator function"),
        (Yielding(), "'Yielding'.*a generator function"),
        (functools.partial(Yielding()), "'Yielding'.*a generator function"),
        (Yielding().draw, "'draw'.*a generator function"),
        (Yielding().of_class, "'of_class'.*a generator function"),
        (Yielding().of_none, "'of_none'.*a generator function"),
        (Yielding().partly, "'of_two'.*a generator function"),
        (AsyncYielding(), "'AsyncYielding'.*an async generator function"),
        (contextlib.contextmanager(generator), "'generator' .*a context manager.*@contextmanager"),
        (InContext().draw, "'draw'.*is a context manager"),
        (functools.partial(contextlib.contextmanager(generator)), "is a context manager"),
        (contextlib.asynccontextmanager(async_generator), "async context.*@asynccontextmanager"),
        (MadeWithAnOption, r"is a class.*Pass an instance of it: MadeWithAnOption\(\.\.\.\)"),
        (functools.partial(MadeWithAnOption), "is a class"),
    ],
)
def test_a_receiver_whose_body_would_not_run_is_refused(receiver: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        check_receiver(receiver, "e")


def test_a_receiver_that_runs_a_generator_function_it_wraps_is_trusted() -> None:
    @functools.wraps(generator)
    def run_through(run: Any) -> None:
        list(generator(run))

    check_receiver(run_through, "after_loss")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (coroutine, r"returned a coroutine.*asyncio\.run\(.*create_task\("),
        (generator, "returned a generator.*loop over it"),
        (lambda run: (i for i in ()), "returned a generator.*loop over it"),
        (async_generator, r"returned an async generator.*asyncio\.run\("),
        (contextlib.contextmanager(generator), "returned a context manager.*enter it: with"),
        (contextlib.asynccontextmanager(async_generator), "returned an async context manager"),
    ],
)
def test_what_would_have_to_be_run_is_rejected_with_the_way_to_run_it(
    make: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        reject_result(make(None))


def test_a_rejected_coroutine_is_closed_so_that_python_does_not_miss_its_await() -> None:
    result = coroutine(None)
    with pytest.raises(TypeError, match="coroutine"):
        reject_result(result)
    assert inspect.getcoroutinestate(result) == inspect.CORO_CLOSED


def test_a_rejected_coroutine_that_has_begun_is_left_to_who_runs_it() -> None:
    async def begun() -> None:
        await asyncio.sleep(0)

    result = begun()
    result.send(None)
    with pytest.raises(TypeError, match="coroutine"):
        reject_result(result)
    assert inspect.getcoroutinestate(result) == inspect.CORO_SUSPENDED
    result.close()


def test_futures_and_tasks_are_ignored_because_their_work_is_under_way() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(coroutine(None))
        reject_result(task)
        reject_result(loop.run_in_executor(None, list))
        await task

    reject_result(concurrent.futures.Future())
    asyncio.run(main())


@pytest.mark.parametrize("value", [[], iter([]), range(3), map(str, [1]), generator, Yielding()])
def test_values_that_can_be_iterated_over_or_called_are_ignored(value: object) -> None:
    reject_result(value)


@pytest.mark.parametrize("options", [{}, {"every": 1, "once": True}, {"weak": True}])
def test_an_emission_refuses_a_lambda_that_returns_a_coroutine_and_names_it(
    options: dict[str, Any],
) -> None:
    bus = EventBus()
    receiver: Callable[[Any], Coroutine[Any, Any, None]] = lambda run: coroutine(run)  # noqa: E731
    bus.on("after_loss", receiver, name="later", **options)
    with pytest.raises(TypeError, match="returned a coroutine") as caught:
        bus.emit("after_loss", None)
    assert "'later' of event 'after_loss'" in caught.value.__notes__[0]


def test_a_wrapper_that_returns_a_generator_is_refused_at_the_first_call() -> None:
    bus = EventBus()
    bus.on("after_loss", functools.lru_cache(generator))
    with pytest.raises(TypeError, match="returned a generator"):
        bus.emit("after_loss", None)


def test_a_coroutine_returned_counts_as_a_failure_that_only_warns() -> None:
    bus = EventBus()
    bus.on("after_loss", lambda run: coroutine(run), on_error="warn")
    with pytest.warns(RuntimeWarning, match="returned a coroutine"):
        bus.emit("after_loss", None)


def test_send_returns_the_generator_of_a_connected_function_as_blinker_does() -> None:
    signal = EventBus().signal("after_loss")
    signal.connect(generator)
    ((receiver, value),) = signal.send("x")
    assert receiver is generator
    assert inspect.isgenerator(value)


def test_send_async_awaits_a_coroutine_function_as_blinker_does() -> None:
    signal = EventBus().signal("after_loss")
    signal.connect(coroutine)
    assert asyncio.run(signal.send_async("x")) == [(coroutine, None)]
