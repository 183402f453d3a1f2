"""Connections: who is subscribed to a signal, for whom, and in which order."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from blinker import NamedSignal, Namespace
from blinker._utilities import make_id
from blinker.base import ANY, ANY_ID

from ..around import around
from ..events import Event
from .handlers import Around, Handler, Options
from .locking import SubscriptionLock
from .ordering import in_order, require_no_cycle
from .receivers import Receiver, check_receiver, is_same
from .running import Home, running_provider

__all__ = ["ANY", "ANY_ID", "Connections", "NamedSignal", "Namespace", "make_id"]

F = TypeVar("F", bound=Receiver)

CHECKED_AGAINST = "1.9.0"
"""The version of blinker in which the names below are what this module takes them for."""
PRIVATE_NAMES = {
    "blinker._utilities": ["make_id"],
    "blinker.base": ["ANY_ID"],
    "blinker.Signal": [
        *("_by_receiver", "_by_sender", "_weak_senders"),
        *("_clear_state", "_disconnect"),
        *("_make_cleanup_receiver", "_make_cleanup_sender"),
    ],
}
"""What of blinker is used here that it does not document."""


class Connections(NamedSignal):
    """A ``blinker.Signal`` whose receivers have an order; ``Signal`` adds how they are called.

    Args:
        doc: Docstring of the signal.
        name: Name of the event; empty for a signal outside of a bus.

    Attributes:
        event: The row of the vocabulary; one in no scope for a signal outside of a bus.
        made_in: The thread that made it.
        lock: Held by whoever changes subscriptions, or compiles what follows from them: of two
            threads, the one that changes last is the one whose change counts.
        home: What the signals of one bus have in common.
        muted_by_hand: What ``is_muted`` was set to.
        by_key: The handlers by the keys of ``receivers``.
        mutings: A thread and a mark for each ``muted`` block that is under way.
        restorations: How often a transaction that failed has put it back.
    """

    def __init__(self, doc: str | None = None, *, name: str = "") -> None:
        self.event = Event(name, "", "point", (), doc or "")
        self.made_in = threading.get_ident()
        self.lock = SubscriptionLock()
        self.home = Home()
        self.by_key: dict[Any, Handler] = {}
        self._in_order: list[Handler] | None = None
        self._around: Around | None = None
        self.muted_by_hand = False
        self.mutings: list[tuple[int, object]] = []
        self.restorations = 0
        super().__init__(name, doc)

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
            keys = [key for key in list(self.receivers) if self._by_receiver.get(key)]
            return [self.by_key[key] for key in keys]

    def handlers_for(self, sender: object) -> list[Handler]:
        """Return the handlers that an emission by ``sender`` runs in this process, in order."""
        if self.is_muted:
            return []
        return [handler for handler in self.heard_by(sender) if handler.runs_for(sender)]

    def heard_by(self, sender: object) -> list[Handler]:
        """Return the handlers that are subscribed for ``sender``, in order, for whatever rank."""
        keys = self._keys_for(sender)
        return [handler for handler in self.handlers if handler.key in keys]

    @property
    def has_own_senders(self) -> bool:
        """Whether anybody is subscribed for one sender alone, or for the place that it is in."""
        return any(
            key != ANY_ID and bucket for key, bucket in list(self._by_sender.items())
        ) or any(handler.options.ranks != "all" for handler in self.subscribed)

    def _keys_for(self, sender: object) -> set[Any]:
        own = () if sender is ANY else self._by_sender.get(make_id(sender), ())
        return {*self._by_sender.get(ANY_ID, ()), *own}

    def changed(self) -> None:
        """Drop what followed from the subscriptions as they were; called after every change."""
        with self.lock:
            self._in_order = None

    def wrap_calls(self, around: Around | None) -> None:
        """Have ``around`` wrap every handler's call from the next emission on; ``None`` ends it."""
        self._around = around
        self.changed()

    # Subscription

    def attach(self, handler: Handler, sender: Any = ANY) -> None:
        """Put a handler on this signal for ``sender``, or for any; see ``EventBus.attach``."""
        provider = running_provider(self.home, sender)
        if provider is not None:
            provider.take(handler)
            sender = provider.sender if sender is ANY else sender
        self.put_on(handler, sender)

    def put_on(self, handler: Handler, sender: Any) -> None:
        """Do what ``attach`` does with a handler of which it is known whose it is."""
        with self.lock:
            self.take_in(handler, make_id(handler))
            super().connect(handler, sender, weak=False)
            self.changed()

    def take_in(self, handler: Handler, key: Any) -> None:
        """Have a handler be the one that goes by ``key``, which is then put on this signal."""

        def detach() -> None:
            self._disconnect(key, ANY_ID)

        handler.key, handler.home, handler.detach = key, self.home, detach
        handler.bury = lambda: self.lock.soon(lambda: self._bury(key))
        handler.changed_in = threading.get_ident()
        self.by_key[key] = handler

    def connect(self, receiver: F, sender: Any = ANY, weak: bool = True) -> F:
        """Connect as ``blinker`` does: weakly by default, at priority 0.

        Raises:
            TypeError: A plugin connects what a loop cannot call, to an event that loops fire.
        """
        key = make_id(receiver)
        handler = Handler(self.name, receiver, Options(weak=weak))
        provider = running_provider(self.home, sender)
        if provider is not None:
            if self.event.scope:  # others may be sent, and awaited, by the plugin itself
                check_receiver(receiver, self.name)
            provider.take(handler)
            sender = provider.sender if sender is ANY else sender
        with self.lock:
            others = [known for known in self.subscribed if known.key != key]
            require_no_cycle([handler], others, self.name)  # which its name may close
            self.take_in(handler, key)
            try:
                return super().connect(receiver, sender, weak)
            finally:
                self.changed()

    @around
    def connected_to(self, receiver: Receiver, sender: Any = ANY) -> Generator[None, None, None]:  # type: ignore[override]  # blinker promises its library's class
        """Connect ``receiver`` while the block runs; what was connected before stays so."""
        provider = running_provider(self.home, sender)
        if provider is not None and sender is ANY:
            sender = provider.sender
        key = make_id(receiver)
        sender_id = ANY_ID if sender is ANY else make_id(sender)
        stood = self.receivers.get(key)
        handler = self.by_key.get(key)
        had_sender = sender_id in self._by_receiver.get(key, ())
        self.connect(receiver, sender=sender, weak=False)
        own, restorations = self.by_key.get(key), self.restorations
        try:
            yield
        finally:
            if self.restorations > restorations and self.by_key.get(key) is not own:
                pass  # a transaction has failed, and what stood before it is there again
            elif stood is None or handler is None:
                super().disconnect(receiver)
            elif key in self.receivers:
                self.receivers[key], self.by_key[key] = stood, handler
                if not had_sender:
                    self._by_sender[sender_id].discard(key)
                    self._by_receiver[key].discard(sender_id)
                self.changed()

    def disconnect(self, receiver: Receiver, sender: Any = ANY) -> None:
        """Disconnect a receiver, however it was connected, from one sender or from all."""
        sender_id = ANY_ID if sender is ANY else make_id(sender)
        with self.lock:
            for handler in list(self.by_key.values()):
                if is_same(handler.receiver, receiver):
                    self._disconnect(handler.key, sender_id)
                    self._drop_if_orphaned(handler.key)
            super().disconnect(receiver, sender)

    def _disconnect(self, receiver_id: Any, sender_id: Any) -> None:
        with self.lock:
            super()._disconnect(receiver_id, sender_id)
            if receiver_id not in self.receivers:
                handler = self.by_key.pop(receiver_id, None)
                if handler is not None:
                    handler.leave()
                    handler.changed_in = threading.get_ident()
            self.changed()

    def _bury(self, key: Any) -> None:
        """Take off whoever goes by ``key``, unless it is somebody else by now."""
        handler = self.by_key.get(key)
        if handler is not None and handler.receiver is None:
            self._disconnect(key, ANY_ID)

    def _drop_if_orphaned(self, key: Any) -> None:
        """Forget a handler from ``attach`` once no sender is left that it could serve."""
        if isinstance(self.receivers.get(key), Handler) and not self._by_receiver[key]:
            self._disconnect(key, ANY_ID)

    def _make_cleanup_receiver(self, receiver_id: Any) -> Callable[[weakref.ref[Any]], None]:
        # Its handler holds it weakly too, and has it buried.
        return lambda reference: None

    def _make_cleanup_sender(self, sender_id: Any) -> Callable[[weakref.ref[Any]], None]:
        cleanup = super()._make_cleanup_sender(sender_id)

        def forget(reference: weakref.ref[Any]) -> None:
            if self._weak_senders.get(sender_id) is not reference:  # somebody else by now
                return
            keys = list(self._by_sender.get(sender_id, ()))
            cleanup(reference)
            for key in keys:
                self._drop_if_orphaned(key)
            self.changed()

        return lambda reference: self.lock.soon(lambda: forget(reference))

    # The rest of blinker's interface

    @property
    def is_muted(self) -> bool:
        """Whether emissions call nobody."""
        return self.muted_by_hand or bool(self.mutings)

    @is_muted.setter
    def is_muted(self, value: bool) -> None:
        self.muted_by_hand = value
        self.changed()

    @around
    def muted(self) -> Generator[None, None, None]:  # type: ignore[override]  # blinker promises its library's class
        """Call nobody while the block runs; blocks may nest."""
        muting = threading.get_ident(), object()
        self.mutings.append(muting)
        self.changed()
        try:
            yield
        finally:
            if muting in self.mutings:  # unless a transaction has taken it back
                self.mutings.remove(muting)
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
            for handler in self.by_key.values():
                handler.leave()
            self.by_key.clear()
            self.changed()
