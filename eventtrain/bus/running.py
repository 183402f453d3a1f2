"""Whose code is running, told from the frames: calls need not keep track of it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any, TypeVar

from .dispatch import emitting_in
from .handlers import Handler, OnError, Owner
from .sending import send_async_to, send_to

T = TypeVar("T")
# By id: a code object's own hash goes through all that is in it.
_SENDING = {id(function.__code__) for function in (send_to, send_async_to)}


class Provider:
    """A plugin that was loaded onto a bus.

    What it subscribes there is its own: while it is loaded and, later, while a handler of its own
    runs, however deep in it the call is. A thread, a timer or a task that it starts is out of
    reach: what runs there has no frame of the plugin's below it.

    Args:
        label: What people should call it.
        home: The ``home`` of the signals of that bus.
        sender: Whom its handlers hear where they name nobody; held weakly where that is possible.
        on_error: What happens when one of them fails, in place of what they say themselves;
            ``None`` leaves it to them.
    """

    def __init__(self, label: str, home: object, sender: Any, on_error: OnError | None) -> None:
        self.label = label
        self.home = home
        self.on_error = on_error
        try:
            self._sender: Callable[[], Any] = weakref.ref(sender)
        except TypeError:
            self._sender = lambda: sender

    @property
    def sender(self) -> Any:
        """Whom its handlers hear; once that is gone, itself, which emits nothing."""
        sender = self._sender()
        return self if sender is None else sender

    def take(self, handler: Handler) -> None:
        """Have a handler be its own."""
        handler.plugin, handler.provider = self.label, self
        if self.on_error is not None:
            handler.options = replace(handler.options, on_error=self.on_error)

    def run(self, function: Callable[[], T]) -> T:
        """Call a function; what that subscribes is its own."""
        return function()


_PROVIDING = id(Provider.run.__code__)


def running_handler() -> Handler | None:
    """Return the handler that the calling code runs in, or ``None`` outside of handlers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        handler = _called_in(frame)
        if handler is not None:
            return handler
        frame = frame.f_back
    return None


def running_provider(home: object) -> Owner | None:
    """Return whose plugin's code is subscribing on the bus of that ``home``.

    Of the handlers of that bus which are running, and the plugins which are being loaded onto
    it, the innermost decides: a user's handler that a plugin's event calls is the user's.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if id(frame.f_code) == _PROVIDING:
            provider: Provider = frame.f_locals["self"]
            if provider.home is home:
                return provider
        else:
            handler = _called_in(frame)
            if handler is not None and handler.home is home:
                return handler.provider
        frame = frame.f_back
    return None


def _called_in(frame: FrameType) -> Handler | None:
    if id(frame.f_code) in _SENDING:
        return frame.f_locals.get("handler")
    return emitting_in(frame)
