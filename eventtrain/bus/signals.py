"""Signals: blinker's, with an order and a fast way to call the receivers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..cancellation import CancellationToken
from ..events import Event
from .binding import Binding
from .connections import ANY, ANY_ID, Connections, NamedSignal, Namespace, make_id
from .copying import Copied, copied_from, deeply, fill, require_picklable
from .dispatch import LiveEmission, Style, make_emission, rebind
from .sending import AsyncWrap, Call, Result, Wrap, calls_of, send_async_to, send_to

__all__ = ["ANY", "NamedSignal", "Namespace", "Signal"]


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
        self.bindings: weakref.WeakSet[Binding] = weakref.WeakSet()
        self._by_id: dict[int, tuple[object, Callable[..., None]]] = {}
        self._compiled: dict[tuple[object, ...], Callable[..., None]] = {}
        self._calls: dict[Any, list[Call]] = {}
        self._calls_to_any: list[Call] | None = None
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
            self._calls.clear()
            self._calls_to_any = None
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
            if self.has_own_senders:
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

    def send(
        self, sender: Any = None, /, *, _async_wrapper: Wrap | None = None, **arguments: Any
    ) -> list[Result]:
        """Call the receivers in order and return ``(receiver, value)`` pairs, as blinker does."""
        calls = self._calls_to_any
        if calls is None:
            calls = self._calls_to(sender)
        if not calls:
            return []
        return send_to(calls, self.receivers, _async_wrapper, sender, arguments)

    async def send_async(
        self, sender: Any = None, /, *, _sync_wrapper: AsyncWrap | None = None, **arguments: Any
    ) -> list[Result]:
        """Await the receivers in order and return ``(receiver, value)`` pairs, as blinker does."""
        calls = self._calls_to(sender)
        return await send_async_to(calls, self.receivers, _sync_wrapper, sender, arguments)

    def _calls_to(self, sender: Any) -> list[Call]:
        """Return what ``send`` does for ``sender``: worked out once between two changes."""
        calls = self._calls.get(self._sending_key(sender))
        if calls is None:
            with self.lock:
                calls = calls_of(self.handlers_for(sender))
                self._calls[self._sending_key(sender)] = calls
                if not self.has_own_senders:
                    self._calls_to_any = calls
        return calls

    def _sending_key(self, sender: Any) -> Any:
        # Senders that nobody named share one list: a million of them take no room.
        key = make_id(sender)
        return key if key in self._by_sender else ANY_ID

    # Copies

    def __copy__(self) -> Signal:
        """Return a signal outside of any bus, with the same handlers, which counts for itself.

        Those who listen to ``receiver_connected`` and its like are not in the copy.
        """
        return _made(type(self), self.event, self.muted_by_hand, copied_from(self, {}), self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Signal:
        """Return a copy; objects that are held strongly for their methods are copied too."""
        copied = deeply(copied_from(self, memo), memo)
        return _made(type(self), self.event, self.muted_by_hand, copied, self)

    def __reduce__(self) -> tuple[Any, ...]:
        copied = copied_from(self, {})
        require_picklable(self, copied)
        return _made, (type(self), self.event, self.muted_by_hand, copied)


def _made(
    kind: type[Signal],
    event: Event,
    is_muted: bool,
    copied: list[Copied],
    source: Signal | None = None,
) -> Signal:
    signal = kind(event.meaning, name=event.name)
    signal.event = event
    fill(signal, copied, source)
    signal.is_muted = is_muted
    return signal
