"""Restoring: putting back who was connected to a signal, after a change that has failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .connections import ANY_ID, Connections
from .handlers import Handler

_TABLES = ("receivers", "_by_receiver", "_by_sender", "_weak_senders")
_WATCHERS = ("receiver_connected", "receiver_disconnected")


@dataclass(frozen=True)
class Connection:
    """One handler on a signal, as it was at some moment.

    Attributes:
        key: What it goes by.
        receiver: What stands in the signal's ``receivers``.
        senders: The ids of those whom it serves.
        handler, detach, bury, together, is_spent: The handler, and what of it may change.
    """

    key: Any
    receiver: Any
    senders: frozenset[Any]
    handler: Handler
    detach: Callable[[], None]
    bury: Callable[[], object]
    together: list[Any]
    is_spent: bool


def connections_of(signal: Connections) -> list[Connection]:
    """Return all connections, in order of subscription. Call it with the signal's lock held."""
    return [
        Connection(
            key, receiver, frozenset(signal._by_receiver.get(key, ())),
            handler, handler.detach, handler.bury,
            list(handler.tally.handlers), handler.tally.is_spent,
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
            self._senders = dict(signal._weak_senders)
            self._muted_by_hand = signal.muted_by_hand
            self._mutings = list(signal.mutings)
            self._watchers = {
                name: (watched := vars(signal)[name], _copied_tables(watched))
                for name in _WATCHERS
                if name in vars(signal)
            }

    def restore(self) -> None:
        """Put back what its own thread has changed."""
        signal = self._signal
        with signal.lock:
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
            self._restore_muting()
            for name in _WATCHERS:
                vars(signal).pop(name, None)
            for name, (watched, tables) in self._watchers.items():
                vars(watched).update(tables)
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
    handler.key, handler.detach, handler.bury = key, connection.detach, connection.bury
    handler.tally.handlers = connection.together
    signal.receivers[key], signal.by_key[key] = connection.receiver, handler
    for sender in own:
        signal._by_sender[sender].add(key)
        signal._by_receiver[key].add(sender)
        if sender != ANY_ID and sender in senders:
            signal._weak_senders[sender] = senders[sender]
