"""Signals: blinker's, with an order and a fast way to call the receivers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import blinker
from blinker import Namespace
from blinker._utilities import make_id
from blinker.base import ANY, ANY_ID

from ..cancellation import CancellationToken
from ..events import Event
from .binding import Binding
from .dispatch import LiveEmission, Style, make_emission, rebind
from .handlers import Around, Handler, Options
from .ordering import in_order, require_no_cycle
from .receivers import Receiver, is_same

__all__ = ["ANY", "Namespace", "Signal"]

F = TypeVar("F", bound=Receiver)

CHECKED_AGAINST = "1.9.0"
"""The version of blinker in which the names below are what this module takes them for."""
PRIVATE_NAMES = {
    "blinker._utilities": ["make_id"],
    "blinker.base": ["ANY_ID"],
    "blinker.Signal": [
        *("_by_receiver", "_by_sender", "_weak_senders"),
        *("_clear_state", "_disconnect", "_make_cleanup_sender"),
    ],
}
"""What of blinker is used here that it does not document."""


class Signal(blinker.NamedSignal):
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
        # Held by whoever changes subscriptions, or compiles what follows from them: of two
        # threads, the one that changes last is the one whose change counts.
        self.lock = threading.RLock()
        self.bindings: weakref.WeakSet[Binding] = weakref.WeakSet()
        self._handlers: dict[Any, Handler] = {}
        self._in_order: list[Handler] | None = None
        self._around: Around | None = None
        self._is_muted = False
        self._mute_depth = 0
        self._by_id: dict[int, tuple[object, Callable[..., None]]] = {}
        self._compiled: dict[tuple[object, ...], Callable[..., None]] = {}
        self._live = LiveEmission(self._prepare)
        super().__init__(name, doc)
        if not TYPE_CHECKING:
            self.emit = self._live.emit  # in front of the method, which documents it

    # Order

    @property
    def handlers(self) -> list[Handler]:
        """Every handler on this signal, for whatever sender, in order of dispatch."""
        in_order = self._in_order
        return list(self._put_in_order() if in_order is None else in_order)

    def _put_in_order(self) -> list[Handler]:
        with self.lock:
            subscribed = self.subscribed
            for handler in subscribed:
                handler.around = self._around
            self._in_order = in_order(subscribed, self.name)
            return self._in_order

    @property
    def subscribed(self) -> list[Handler]:
        """The same handlers in order of subscription, which costs no sorting."""
        with self.lock:
            # blinker keeps a receiver of its own that has no sender left.
            return [
                self._handlers[key] for key in list(self.receivers) if self._by_receiver.get(key)
            ]

    def handlers_for(self, sender: object) -> list[Handler]:
        """Return the handlers that an emission by ``sender`` runs, in order."""
        if self.is_muted:
            return []
        keys = self._keys_for(sender)
        return [handler for handler in self.handlers if handler.key in keys]

    def _keys_for(self, sender: object) -> set[Any]:
        own = () if sender is ANY else self._by_sender.get(make_id(sender), ())
        return {*self._by_sender.get(ANY_ID, ()), *own}

    def changed(self) -> None:
        """Drop what was compiled: the next emission sees the new state."""
        with self.lock:
            self._in_order = None
            self._live.reset()
            self._by_id.clear()
            self._compiled.clear()
            for binding in list(self.bindings):
                binding.refresh(self)

    def wrap_calls(self, around: Around | None) -> None:
        """Have ``around`` wrap every handler's call from the next emission on; ``None`` ends it."""
        self._around = around
        self.changed()

    # Emission

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

    # Subscription

    def attach(self, handler: Handler, sender: Any = ANY) -> None:
        """Put a handler on this signal for ``sender``, or for any; see ``EventBus.attach``."""
        with self.lock:
            handler.key = make_id(handler)
            handler.detach = lambda: self._disconnect(make_id(handler), ANY_ID)
            self._handlers[handler.key] = handler
            super().connect(handler, sender, weak=False)
            self.changed()

    def confine(self, handler: Handler, sender: Any) -> None:
        """Have a handler that serves any sender serve ``sender`` alone, in the place it has."""
        with self.lock:
            receiver = handler if self.receivers.get(handler.key) is handler else handler.receiver
            if receiver is not None and ANY_ID in self._by_receiver.get(handler.key, ()):
                self._by_sender[ANY_ID].discard(handler.key)
                self._by_receiver[handler.key].discard(ANY_ID)
                weak = receiver is not handler and handler.options.weak
                super().connect(receiver, sender, weak=weak)
            self.changed()

    def snapshot(self) -> Callable[[], None]:
        """Return a function that puts all receivers back as they stand now."""
        tables: list[dict[Any, Any]] = [
            self.receivers,
            self._handlers,
            self._weak_senders,
            self._by_receiver,
            self._by_sender,
        ]
        copies = [
            {key: value.copy() if isinstance(value, set) else value for key, value in table.items()}
            for table in tables
        ]
        standing = [(h, h.key, h.detach, list(h.tally.handlers)) for h in self._handlers.values()]
        muting = self._is_muted, self._mute_depth

        def restore() -> None:
            for handler in self._handlers.values():
                handler.leave()
            for table, copy in zip(tables, copies, strict=True):
                table.clear()
                table.update(copy)
            for handler, key, detach, together in standing:
                handler.key, handler.detach = key, detach
                handler.tally.handlers = together
            self._is_muted, self._mute_depth = muting
            self.changed()

        return restore

    def connect(self, receiver: F, sender: Any = ANY, weak: bool = True) -> F:
        """Connect as ``blinker`` does: weakly by default, at priority 0."""
        key = make_id(receiver)
        handler = Handler(self.name, receiver, Options(weak=weak))
        with self.lock:
            others = [known for known in self.subscribed if known.key != key]
            require_no_cycle([handler], others, self.name)  # which its name may close
            handler.key = key
            handler.detach = lambda: self._disconnect(key, ANY_ID)
            self._handlers[key] = handler
            try:
                return super().connect(receiver, sender, weak)
            finally:
                self.changed()

    @contextmanager
    def connected_to(self, receiver: Receiver, sender: Any = ANY) -> Generator[None, None, None]:
        """Connect ``receiver`` while the block runs; what was connected before stays so."""
        key = make_id(receiver)
        sender_id = ANY_ID if sender is ANY else make_id(sender)
        stood = self.receivers.get(key)
        handler = self._handlers.get(key)
        had_sender = sender_id in self._by_receiver.get(key, ())
        self.connect(receiver, sender=sender, weak=False)
        try:
            yield
        finally:
            if stood is None or handler is None:
                super().disconnect(receiver)
            elif key in self.receivers:
                self.receivers[key], self._handlers[key] = stood, handler
                if not had_sender:
                    self._by_sender[sender_id].discard(key)
                    self._by_receiver[key].discard(sender_id)
                self.changed()

    def disconnect(self, receiver: Receiver, sender: Any = ANY) -> None:
        """Disconnect a receiver, however it was connected, from one sender or from all."""
        sender_id = ANY_ID if sender is ANY else make_id(sender)
        with self.lock:
            for handler in list(self._handlers.values()):
                if is_same(handler.receiver, receiver):
                    self._disconnect(handler.key, sender_id)
                    self._drop_if_orphaned(handler.key)
            super().disconnect(receiver, sender)

    def _disconnect(self, receiver_id: Any, sender_id: Any) -> None:
        with self.lock:
            super()._disconnect(receiver_id, sender_id)
            if receiver_id not in self.receivers:
                handler = self._handlers.pop(receiver_id, None)
                if handler is not None:
                    handler.leave()
            self.changed()

    def _drop_if_orphaned(self, key: Any) -> None:
        """Forget a handler from ``attach`` once no sender is left that it could serve."""
        if isinstance(self.receivers.get(key), Handler) and not self._by_receiver[key]:
            self._disconnect(key, ANY_ID)

    def _make_cleanup_sender(self, sender_id: Any) -> Callable[[weakref.ref[Any]], None]:
        cleanup = super()._make_cleanup_sender(sender_id)

        def forget(reference: weakref.ref[Any]) -> None:
            with self.lock:
                keys = list(self._by_sender.get(sender_id, ()))
                cleanup(reference)
                for key in keys:
                    self._drop_if_orphaned(key)
                self.changed()

        return forget

    # The rest of blinker's interface

    @property
    def is_muted(self) -> bool:
        """Whether emissions call nobody."""
        return self._is_muted or self._mute_depth > 0

    @is_muted.setter
    def is_muted(self, value: bool) -> None:
        self._is_muted = value
        self.changed()

    @contextmanager
    def muted(self) -> Generator[None, None, None]:
        """Call nobody while the block runs; blocks may nest."""
        self._mute_depth += 1
        self.changed()
        try:
            yield
        finally:
            self._mute_depth -= 1
            self.changed()

    def receivers_for(self, sender: Any) -> Generator[Receiver, None, None]:
        """Yield the receivers to be called for ``sender``, in order."""
        keys = self._keys_for(sender)
        for handler in self.handlers:
            if handler.key in keys and handler.key in self.receivers:
                connected = self.receivers[handler.key]
                receiver = handler if connected is handler else handler.receiver
                if receiver is not None:
                    yield receiver

    def send(self, sender: Any = None, /, **arguments: Any) -> list[tuple[Receiver, Any]]:
        """Call the receivers in order and return ``(receiver, value)`` pairs, as blinker does."""
        return _with_functions(super().send(sender, **arguments))

    async def send_async(
        self, sender: Any = None, /, **arguments: Any
    ) -> list[tuple[Receiver, Any]]:
        """Await the receivers in order and return ``(receiver, value)`` pairs, as blinker does."""
        return _with_functions(await super().send_async(sender, **arguments))

    def senders_of(self, handler: Handler) -> str:
        """Say whom a handler serves, for people; empty when it serves any sender."""
        ids = self._by_receiver.get(handler.key, set())
        if ANY_ID in ids:
            return ""
        alive = [reference() for key, reference in self._weak_senders.items() if key in ids]
        return ", ".join(type(s).__name__ for s in alive if s is not None) or "by value"

    def _clear_state(self) -> None:
        with self.lock:
            super()._clear_state()
            for handler in self._handlers.values():
                handler.leave()
            self._handlers.clear()
            self.changed()


def _with_functions(results: list[tuple[Receiver, Any]]) -> list[tuple[Receiver, Any]]:
    """Put the user's functions in the place of their handlers."""
    pairs = []
    for receiver, value in results:
        function = receiver.receiver if isinstance(receiver, Handler) else receiver
        pairs.append((receiver if function is None else function, value))
    return pairs
