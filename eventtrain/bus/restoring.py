"""Restoring: putting back what a bus declared and who was connected, after a change that failed."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from ..events import Vocabulary
from .binding import Binding
from .connections import ANY_ID, Connections, Namespace
from .handlers import Handler

_TABLES = ("receivers", "_by_receiver", "_by_sender", "_weak_senders")
_OWN = ("name", "__doc__", "event", "lock", "home", "bindings", "made_in", "emit")
_WATCHERS = ("receiver_connected", "receiver_disconnected")


@dataclass(frozen=True)
class Connection:
    """One handler on a signal, as it was at some moment.

    Attributes:
        key: What it goes by.
        receiver: What stands in the signal's ``receivers``.
        senders: The ids of those whom it serves.
        handler, state, together, is_spent: The handler, and what of it may change.
    """

    key: Any
    receiver: Any
    senders: frozenset[Any]
    handler: Handler
    state: dict[str, Any]
    together: list[Any]
    is_spent: bool


def connections_of(signal: Connections) -> list[Connection]:
    """Return all connections, in order of subscription. Call it with the signal's lock held."""
    return [
        Connection(
            key, receiver, frozenset(signal._by_receiver.get(key, ())),
            handler, handler.snapshot(), list(handler.tally.handlers), handler.tally.is_spent,
        )
        for key, receiver in list(signal.receivers.items())
        if (handler := signal.by_key.get(key)) is not None
    ]  # fmt: skip


class Snapshot:
    """The connections of a signal at the moment when this was made.

    ``restore`` undoes what the thread that made it has changed since. What other threads have
    subscribed and disconnected meanwhile is theirs and stays so, as do calls that were made: a
    ``once`` handler that has had its call does not get another.
    """

    def __init__(self, signal: Connections) -> None:
        self._signal = signal
        self._thread = threading.get_ident()
        with signal.lock:
            self._connections = connections_of(signal)
            self._own = {name: vars(signal)[name] for name in _OWN if name in vars(signal)}
            self._senders = dict(signal._weak_senders)
            self._muted_by_hand = signal.muted_by_hand
            self._mutings = list(signal.mutings)
            self._watchers = {
                name: (watched := vars(signal)[name], {**vars(watched), **_copied_tables(watched)})
                for name in _WATCHERS
                if name in vars(signal)
            }

    def restore(self) -> None:
        """Put back what its own thread has changed."""
        signal = self._signal
        with signal.lock:
            for name in _OWN:
                vars(signal).pop(name, None)
            vars(signal).update(self._own)
            now = connections_of(signal)
            stood = {connection.handler for connection in self._connections}
            wanted = [c for c in self._connections if self._is_to_stay(c)]
            wanted += [c for c in now if c.handler not in stood and self._is_foreign(c.handler)]
            senders = {**self._senders, **signal._weak_senders}
            for connection in now:
                connection.handler.leave()
            for name in _TABLES:
                getattr(signal, name).clear()
            signal.by_key.clear()
            for connection in wanted:
                _put_in(signal, connection, senders)
            signal.restorations += 1
            self._restore_muting()
            for name in _WATCHERS:
                vars(signal).pop(name, None)
            for name, (watched, values) in self._watchers.items():
                vars(watched).update(values)
                vars(signal)[name] = watched
            signal.changed()

    def _is_foreign(self, handler: Handler) -> bool:
        return handler.changed_in != self._thread

    def _is_to_stay(self, connection: Connection) -> bool:
        handler = connection.handler
        has_left = handler.key is None and self._is_foreign(handler)
        was_called = handler.tally.is_spent and not connection.is_spent
        return not (has_left or was_called or handler.receiver is None)

    def _restore_muting(self) -> None:
        signal = self._signal
        signal.muted_by_hand = self._muted_by_hand
        signal.mutings = [
            muting
            for muting in signal.mutings
            if muting in self._mutings or muting[0] != self._thread
        ]


class Declarations:
    """The events and scopes that a bus declared when this was made.

    ``restore`` undoes what the thread that made it has changed since; events and scopes that
    other threads have added meanwhile stay.
    """

    def __init__(self, bus: Namespace, vocabulary: Vocabulary, bindings: Iterable[Binding]) -> None:
        self._bus = bus
        self._bound = WeakKeyDictionary((binding, binding.names) for binding in list(bindings))
        self._thread = threading.get_ident()
        self._events = dict(bus)
        self._vocabulary, self._scopes = vocabulary, dict(vocabulary.scopes)

    def restore(self, home: object, now: Vocabulary, bindings: Iterable[Binding]) -> Vocabulary:
        """Put back what its own thread has changed.

        Args:
            home: Of the signals that the bus has made itself.
            now: The vocabulary that it has now.
            bindings: Those of now, which are to forget what was declared in vain.

        Returns:
            The vocabulary that it is to have.
        """
        bus = self._bus
        stood = set(self._events.values())
        events = dict(self._events)
        for name, signal in bus.items():
            if name not in events and self._is_foreign(signal):
                events[name] = signal
        # Not those from elsewhere, which are not the bus's to clear.
        own = [s for s in bus.values() if isinstance(s, Connections) and s.home is home]
        for signal in own:
            if signal not in stood and not self._is_foreign(signal):
                signal._clear_state()
                # It is gone: what is done with it later is no business of the runs under way.
                vars(signal)["bindings"] = WeakSet()
        if list(bus.items()) != list(events.items()):
            for name in list(bus):
                if name not in events:
                    del bus[name]
            for name, signal in events.items():
                bus.pop(name, None)
                bus[name] = signal
        specs, self._vocabulary.scopes = now.scopes, dict(self._scopes)
        for name in specs.keys() - self._scopes.keys():
            if f"begin_{name}" in bus:  # another thread's
                self._vocabulary.add(specs[name])
        for binding in list(bindings):
            known = self._bound.get(binding, frozenset())
            binding.keep(known | events.keys() | self._vocabulary.scopes.keys())
        return self._vocabulary

    def _is_foreign(self, signal: object) -> bool:
        return isinstance(signal, Connections) and signal.made_in != self._thread


def _copied_tables(signal: Any) -> dict[str, Any]:
    tables = {name: getattr(signal, name).copy() for name in _TABLES}
    for name in ("_by_receiver", "_by_sender"):
        tables[name].update((key, bucket.copy()) for key, bucket in tables[name].items())
    return tables


def _put_in(signal: Connections, connection: Connection, senders: dict[Any, Any]) -> None:
    gone = {key for key in connection.senders if key in senders and senders[key]() is None}
    own = connection.senders - gone
    if gone and not own and connection.receiver is connection.handler:
        return  # nobody is left whom it could serve
    key, handler = connection.key, connection.handler
    for name, value in connection.state.items():
        setattr(handler, name, value)
    handler.tally.handlers = connection.together
    signal.receivers[key], signal.by_key[key] = connection.receiver, handler
    for sender in own:
        signal._by_sender[sender].add(key)
        signal._by_receiver[key].add(sender)
        if sender != ANY_ID and sender in senders:
            signal._weak_senders[sender] = senders[sender]
