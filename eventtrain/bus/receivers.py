"""Receivers: the functions that handlers call. Their names, sources, identity and form."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable
from typing import Any

Receiver = Callable[..., object]


def reject_flag(result: object) -> None:
    """Refuse a handler's ``True`` or ``False``, which in other frameworks steers the loop.

    Raises:
        TypeError: It is one of the two; the message says how to cancel.
    """
    if result is True or result is False:
        raise TypeError(
            f"a handler returned {result}, which steers nothing here. To cancel, call "
            'run.token.cancel("batch", "why") (or another scope); otherwise return None.'
        )


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


def is_async(receiver: object) -> bool:
    """Whether calling ``receiver``, a function or an object, gives a coroutine."""
    call = _call_of(_without_partial(receiver))
    return inspect.iscoroutinefunction(receiver) or inspect.iscoroutinefunction(call)


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
        TypeError: It is not callable, is a coroutine function, or takes other
            arguments. The message names the handler and the event.
    """
    where = f"handler {name_of(receiver)!r} for event {event!r}"
    if not callable(receiver):
        raise TypeError(f"{where} is not callable: {receiver!r}")
    if is_async(receiver):
        raise TypeError(f"{where} is a coroutine function; handlers run synchronously")
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
