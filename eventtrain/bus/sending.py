"""Sending: calling the receivers as ``blinker.Signal.send`` does, and returning what they did."""

from __future__ import annotations

from collections.abc import Callable, Container, Coroutine, Iterable, Sequence
from inspect import iscoroutinefunction
from typing import Any

from .handlers import Handler
from .receivers import Receiver

Call = tuple[Any, Handler, Callable[[], Receiver | None] | None, Any, Any, bool]
"""Key, handler, weak reference or ``None``, the user's function, what to call (either is ``None``
where the reference gives it), and whether it is a coroutine function. A plain tuple, which is
unpacked fastest."""
Result = tuple[Receiver, Any]
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
AsyncWrap = Callable[[Callable[..., Any]], Callable[..., Coroutine[Any, Any, Any]]]


def calls_of(handlers: Iterable[Handler]) -> list[Call]:
    """Work out once what the handlers' calls need, to send any number of times."""
    calls: list[Call] = []
    for handler in handlers:
        receiver = handler.receiver
        if receiver is not None:
            held = None if handler.options.weak else receiver
            is_async = iscoroutinefunction(receiver)
            call = held if handler.is_bare or is_async else _filtered(handler)
            calls.append((handler.key, handler, handler.reference, held, call, is_async))
    return calls


def send_to(
    calls: Sequence[Call],
    connected: Container[Any],
    wrap: Wrap | None,
    sender: Any,
    arguments: dict[str, Any],
) -> list[Result]:
    """Call each that is still among the connected keys, and return functions and values.

    Args:
        calls: From ``calls_of``.
        connected: The keys of those who have not left; a call may make others leave.
        wrap: Makes a coroutine function one that can be called here.
        sender: The first argument.
        arguments: The other ones.

    Raises:
        RuntimeError: There is a coroutine function, and no ``wrap``.
    """
    results = []
    for key, handler, reference, receiver, call, is_async in calls:  # running.py reads it
        if key not in connected:
            continue
        if reference is not None:
            receiver = reference()
            if receiver is None:
                continue
            if call is None:
                call = receiver
        if is_async:
            call = _called_here(handler, call, wrap)
        results.append((receiver, call(sender, **arguments)))
    return results


async def send_async_to(
    calls: Sequence[Call],
    connected: Container[Any],
    wrap: AsyncWrap | None,
    sender: Any,
    arguments: dict[str, Any],
) -> list[Result]:
    """Await each, as ``send_to`` calls them; ``wrap`` makes a function one to be awaited.

    Raises:
        RuntimeError: There is a function that is none to be awaited, and no ``wrap``.
    """
    results = []
    for key, handler, reference, receiver, call, is_async in calls:  # running.py reads it
        if key not in connected:
            continue
        if reference is not None:
            receiver = reference()
            if receiver is None:
                continue
            if call is None:
                call = receiver
        if not is_async:
            if wrap is None:
                raise RuntimeError("Cannot send to a non-coroutine function.")
            call = wrap(call)
        try:
            value = await call(sender, **arguments)
        except Exception as error:
            if not handler.forgives(error, sender):
                raise
            value = None
        results.append((receiver, value))
    return results


def _called_here(
    handler: Handler, function: Callable[..., Any], wrap: Wrap | None
) -> Callable[..., Any]:
    """Return what ``send`` calls for a coroutine function."""

    def call(sender: object, **arguments: object) -> object:
        try:
            if wrap is None:
                raise RuntimeError("Cannot send to a coroutine function.")
            return wrap(function)(sender, **arguments)
        except Exception as error:
            if not handler.forgives(error, sender):
                raise
            return None

    return call


def _filtered(handler: Handler) -> Callable[..., object]:
    without_arguments = handler.filtered(handler.unfiltered())

    def call(sender: object, **arguments: object) -> object:
        return handler(sender, **arguments) if arguments else without_arguments(sender)

    return call
