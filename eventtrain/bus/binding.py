"""The bus and a token, bound to one sender: what a loop is written with.

``emit.after_loss()`` fires an event and is a checkpoint; ``with scope.batch:``
opens a scope whose closing event fires when the block is left. Both are made
once for a fit, so that a batch looks nothing up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..cancellation import CancellationToken, Origin, Scope
from ..events import Event
from .dispatch import Style, running_handler


class Source(Protocol):
    """The signal that an emitter fires."""

    name: str
    receivers: Any

    def compile(
        self, style: Style, sender: object, token: CancellationToken
    ) -> Callable[[], None] | None:
        """Return the function that calls the handlers for ``sender``; ``None`` without any."""
        ...


class Scopes:
    """The scopes of one run, outermost first; each is a context manager."""

    __slots__ = ("batch", "epoch", "fit", "predict", "step", "train", "validate")

    def __init__(self, token: CancellationToken) -> None:
        self.fit = Scope(token, "fit")
        self.epoch = Scope(token, "epoch")
        self.train = Scope(token, "train")
        self.validate = Scope(token, "validate")
        self.predict = Scope(token, "predict")
        self.batch = Scope(token, "batch")
        self.step = Scope(token, "step")

    def hook(self, event: Event, call: Callable[[], object] | None) -> None:
        """Have the scopes call ``call`` where ``event``, a closing one, belongs."""
        if event.name == "fit_failed":
            for name in self.__slots__:
                getattr(self, name).failed = call
        elif event.name.startswith("after_cancel_"):
            getattr(self, event.scope).cancelled = call
        else:
            getattr(self, event.scope).closing = call


class Emitter:
    """Fires events for one sender: one attribute an event, called without arguments.

    An event of kind opening or point is a checkpoint: after it, and after each
    of its handlers, a cancellation that was asked for takes effect. Closing
    events are fired by the scopes. Its own names start with an underscore,
    which no event's name does.
    """

    def __init__(self, sender: Any, token: CancellationToken, scopes: Scopes) -> None:
        self._sender = sender
        self._token = token
        self._scopes = scopes

    if TYPE_CHECKING:
        # For the type checker alone: a class with a __getattr__ is slow to read from.
        def __getattr__(self, name: str) -> Callable[[], None]: ...

    def _refresh(self, source: Source, event: Event) -> None:
        """Take up a changed list of handlers, from the next emission on."""
        if not source.receivers:
            self._install(event, None)
            return
        style: Style = "closing" if event.kind == "closing" else "checkpoint"

        def compile_and_emit() -> None:
            emission = source.compile(style, self._sender, self._token)
            self._install(event, emission)
            if emission is not None:
                emission()

        self._install(event, compile_and_emit)

    def _install(self, event: Event, emission: Callable[[], None] | None) -> None:
        if event.kind == "closing":
            self._scopes.hook(event, emission)
        # Without handlers an event is still a checkpoint.
        self.__dict__[event.name] = emission or self._token.check


def origin_of(sender: Any) -> Callable[[], Origin]:
    """Return the function that tells a token who is cancelling, and where the run stands."""

    def origin() -> Origin:
        handler = running_handler()
        epoch, batch = getattr(sender, "epoch", None), getattr(sender, "batch_index", None)
        if handler is None:
            return None, None, epoch, batch
        return handler.name, handler.event, epoch, batch

    return origin
