"""Signals: blinker's, with an order and a fast way to call the receivers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..cancellation import CancellationToken
from ..events import Event
from .binding import Binding
from .connections import ANY, ANY_ID, Connections, Namespace
from .dispatch import LiveEmission, Style, make_emission, rebind
from .handlers import Handler
from .receivers import Receiver

__all__ = ["ANY", "Namespace", "Signal"]


class Signal(Connections):
    """A ``blinker.Signal`` whose receivers have an order, with a fast way to call them.

    All of blinker's interface keeps its meaning; ``send`` calls receivers in
    order of priority. Handlers subscribed through ``EventBus.on`` are receivers
    too. Two of blinker's traps are mended: leaving an inner ``muted()`` block
    keeps the outer one muted, and ``connected_to`` leaves a connection that
    stood before it as it was.

    Args:
        doc: Docstring of the signal.
        name: Name of the event; empty for a signal outside of a bus.
    """

    def __init__(self, doc: str | None = None, *, name: str = "") -> None:
        self.event = Event(name, "", "point", (), doc or "")
        self.bindings: weakref.WeakSet[Binding] = weakref.WeakSet()
        self._by_id: dict[int, tuple[object, Callable[..., None]]] = {}
        self._compiled: dict[tuple[object, ...], Callable[..., None]] = {}
        self._live = LiveEmission(self._prepare)
        super().__init__(doc, name=name)
        if not TYPE_CHECKING:
            self.emit = self._live.emit  # in front of the method, which documents it

    def changed(self) -> None:
        """Drop what was compiled: the next emission sees the new state."""
        with self.lock:
            super().changed()
            self._live.reset()
            self._by_id.clear()
            self._compiled.clear()
            for binding in list(self.bindings):
                binding.refresh(self)

    def emit(self, sender: Any, token: CancellationToken | None = None) -> None:
        """Call every handler for ``sender``, in order, with the sender as only argument.

        The function is one for good: one that was kept calls the handlers of now. An emission
        that has begun runs the list that stood then.

        Args:
            sender: The run, or whatever the handlers should be given.
            token: When given, handlers that come after its cancellation are skipped.

        Raises:
            TypeError: A handler returned ``True``, ``False``, a coroutine or a generator.
        """
        raise NotImplementedError("every instance has this function of its own")

    def _prepare(self, sender: Any, token: CancellationToken | None) -> None:
        """Compile what ``emit`` does, and do it."""
        with self.lock:
            if any(key != ANY_ID and bucket for key, bucket in list(self._by_sender.items())):
                self._live.serve_by_sender(self._by_id, self._emission_by)
            else:
                self._live.serve(self.handlers_for(ANY))
        self.emit(sender, token)

    def _emission_by(self, sender: Any) -> tuple[object, Callable[..., None]]:
        """Return what emits for ``sender``; kept by its ``id`` for as long as it lives."""
        key = id(sender)
        with self.lock:
            emission = make_emission("send", self.handlers_for(sender))
            try:
                found = (weakref.ref(sender, lambda _: self._by_id.pop(key, None)), emission)
            except TypeError:
                return None, emission  # a string or a number: told apart by value, not by id
            self._by_id[key] = found
            return found

    def emission(
        self, style: Style, sender: object, token: CancellationToken
    ) -> Callable[[], None] | None:
        """Return the function that calls the handlers for ``sender``; ``None`` without any.

        It is compiled once between two changes of subscriptions: a second fit begins
        with code that has run before.
        """
        with self.lock:
            handlers = self.handlers_for(sender)
            if not handlers:
                return None
            key = (style, *handlers)
            if key not in self._compiled:
                self._compiled[key] = make_emission(style, handlers)
            return rebind(self._compiled[key], sender, token)

    def send(self, sender: Any = None, /, **arguments: Any) -> list[tuple[Receiver, Any]]:
        """Call the receivers in order and return ``(receiver, value)`` pairs, as blinker does."""
        return _with_functions(super().send(sender, **arguments))

    async def send_async(
        self, sender: Any = None, /, **arguments: Any
    ) -> list[tuple[Receiver, Any]]:
        """Await the receivers in order and return ``(receiver, value)`` pairs, as blinker does."""
        return _with_functions(await super().send_async(sender, **arguments))


def _with_functions(results: list[tuple[Receiver, Any]]) -> list[tuple[Receiver, Any]]:
    """Put the user's functions in the place of their handlers."""
    pairs = []
    for receiver, value in results:
        function = receiver.receiver if isinstance(receiver, Handler) else receiver
        pairs.append((receiver if function is None else function, value))
    return pairs
