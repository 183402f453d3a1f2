"""Whose code is running, told from the frames: calls need not keep track of it."""

from __future__ import annotations

import sys
from types import FrameType

from .dispatch import emitting_in
from .handlers import Handler
from .sending import send_async_to, send_to

# By id: a code object's own hash goes through all that is in it.
_SENDING = {id(function.__code__) for function in (send_to, send_async_to)}


def running_handler() -> Handler | None:
    """Return the handler that the calling code runs in, or ``None`` outside of handlers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        handler = _called_in(frame)
        if handler is not None:
            return handler
        frame = frame.f_back
    return None


def _called_in(frame: FrameType) -> Handler | None:
    if id(frame.f_code) in _SENDING:
        return frame.f_locals.get("handler")
    return emitting_in(frame)
