"""Receivers: the functions that handlers call. Their names, sources, identity and form."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import weakref
from collections.abc import Callable
from typing import Any

Receiver = Callable[..., object]

# What contextlib makes of a function is of a type, and has code, that it does not publish.
_NOTHING: Any = lambda: None  # noqa: E731
_IN_CONTEXT = contextlib.contextmanager(_NOTHING)
_IN_ASYNC_CONTEXT = contextlib.asynccontextmanager(_NOTHING)

_LAZY_FUNCTIONS: tuple[tuple[Callable[[Any], bool], str, str], ...] = (
    (inspect.iscoroutinefunction, "a coroutine function", "async and await"),
    (inspect.isgeneratorfunction, "a generator function", "yield"),
    (inspect.isasyncgenfunction, "an async generator function", "async and yield"),
    (lambda f: _code_of(f) is _code_of(_IN_CONTEXT), "a context manager", "@contextmanager"),
    (
        lambda f: _code_of(f) is _code_of(_IN_ASYNC_CONTEXT),
        "an async context manager",
        "@asynccontextmanager",
    ),
)
"""How to tell functions whose body a call does not run, their kind, what makes them so."""

# Not every awaitable is here: behind a future or a task the work is under way already.
_LAZY_RESULTS: dict[type, tuple[str, str]] = {
    types.CoroutineType: (
        "a coroutine",
        "Run it in the handler, for example with asyncio.run(...), or give it to an event loop "
        "with loop.create_task(...)",
    ),
    types.GeneratorType: ("a generator", "In the handler, loop over it"),
    types.AsyncGeneratorType: (
        "an async generator",
        "Loop over it in a coroutine, and run that in the handler, for example with "
        "asyncio.run(...)",
    ),
    type(_IN_CONTEXT()): ("a context manager", "In the handler, enter it: with ...:"),
    type(_IN_ASYNC_CONTEXT()): (
        "an async context manager",
        "Enter it in a coroutine, and run that in the handler, for example with asyncio.run(...)",
    ),
}
"""What those return, and how to have it run."""


def reject_result(result: object) -> None:
    """Refuse what a handler cannot have meant to return.

    That is ``True`` or ``False``, which in other frameworks steers the loop, and what a
    function returns whose body has not run.

    Raises:
        TypeError: It is one of these; the message says what to do instead.
    """
    if result is True or result is False:
        raise TypeError(
            f"a handler returned {result}, which steers nothing here. To cancel, call "
            'run.token.cancel("batch", "why") (or another scope); otherwise return None.'
        )
    kind = why_nothing_ran(result)
    if kind is not None:
        raise TypeError(
            f"a handler returned {kind}, which nobody runs: handlers run synchronously. "
            f"{_LAZY_RESULTS[type(result)][1]}; then return None."
        )


def why_nothing_ran(result: object) -> str | None:
    """Return what somebody's function has returned, if its body is yet to run; else ``None``."""
    if type(result) not in _LAZY_RESULTS:
        return None
    if inspect.iscoroutine(result) and inspect.getcoroutinestate(result) == inspect.CORO_CREATED:
        result.close()  # or Python would warn as well that nobody awaits it
    return _LAZY_RESULTS[type(result)][0]


def reference_to(receiver: Receiver, callback: Callable[[Any], None]) -> Any:
    """Return a weak reference to a function or a bound method.

    Raises:
        TypeError: The receiver cannot be referred to weakly.
    """
    if inspect.ismethod(receiver):
        return weakref.WeakMethod(receiver, callback)
    return weakref.ref(receiver, callback)


def is_same(receiver: object, other: object) -> bool:
    """Whether two receivers are one: the same object, or the same method of the same object."""
    # A bound method is a new object each time it is looked up. Equality serves
    # only there: two callable objects may be equal and yet be two.
    bound = (types.MethodType, types.BuiltinMethodType)
    return receiver is other or (isinstance(receiver, bound) and receiver == other)


def name_of(receiver: object) -> str:
    """Return the name a handler goes by unless it is given one."""
    receiver = _without_partial(receiver)
    return getattr(receiver, "__name__", None) or type(receiver).__name__


def _without_partial(receiver: object) -> object:
    while isinstance(receiver, functools.partial):
        receiver = receiver.func
    return receiver


def _call_of(instance: object) -> object:
    """Return what its class runs when ``instance`` is called."""
    return getattr(type(instance), "__call__", None)  # noqa: B004


def _code_of(function: object) -> object:
    return getattr(function, "__code__", function)


def is_async(receiver: object) -> bool:
    """Whether calling ``receiver``, a function or an object, gives a coroutine."""
    call = _call_of(_without_partial(receiver))
    return inspect.iscoroutinefunction(receiver) or inspect.iscoroutinefunction(call)


def why_not_run(receiver: object) -> str | None:
    """Say why calling ``receiver`` would not run its body; ``None`` when it would.

    A function that wraps another is judged by itself: it may well run what the other returns.
    """
    function = _without_partial(receiver)
    if isinstance(function, type) and any("__call__" in vars(each) for each in function.__mro__):
        return (
            f"is a class, and calling it would make an object and not call that. Pass an instance "
            f"of it: {function.__name__}(...)"
        )
    for is_lazy, kind, cause in _LAZY_FUNCTIONS:
        if is_lazy(function) or is_lazy(_call_of(function)):
            return (
                f"is {kind}; handlers run synchronously, and calling it would not run its body. "
                f"Write it without {cause}."
            )
    return None


def source_of(receiver: object) -> str:
    """Return ``module:line`` of a function, method or callable object."""
    receiver = _without_partial(receiver)
    function = inspect.unwrap(receiver) if callable(receiver) else receiver
    if not hasattr(function, "__code__") and not inspect.ismethod(function):
        function = _call_of(receiver)
    code = getattr(function, "__code__", None)
    module = getattr(receiver, "__module__", None) or type(receiver).__module__
    return f"{module}:{code.co_firstlineno}" if code else str(module)


def check_receiver(receiver: object, event: str) -> None:
    """Check that ``receiver`` can be called with one argument, the sender.

    Raises:
        TypeError: It is not callable, a call would not run its body, or it takes other
            arguments. The message names the handler and the event.
    """
    where = f"handler {name_of(receiver)!r} for event {event!r}"
    if not callable(receiver):
        raise TypeError(f"{where} is not callable: {receiver!r}")
    refusal = why_not_run(receiver)
    if refusal is not None:
        raise TypeError(f"{where} {refusal}")
    try:
        signature = inspect.signature(receiver)
    except (TypeError, ValueError):  # a builtin that does not tell
        return
    try:
        signature.bind(object())
    except TypeError:
        name = name_of(receiver)
        form = "lambda run: ..." if name == "<lambda>" else f"def {name}(run)"
        raise TypeError(
            f"{where} takes {signature}, but a handler is called with one argument, the run: {form}"
        ) from None
