"""Copies of signals: the same handlers in the same order, which count for themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..copies import why_not_pickled
from .connections import Connections, make_id
from .filters import Tally
from .handlers import Handler, Options
from .receivers import Receiver, reference_to


@dataclass(frozen=True)
class Copied:
    """What makes a handler of another signal.

    Attributes:
        receiver, options, name, source, plugin, calls, tally: Of the handler.
        is_subscribed: Whether it came by ``on``; by ``connect`` otherwise.
        senders: The ids of those whom it serves.
    """

    receiver: Receiver
    options: Options
    name: str
    source: str
    plugin: str | None
    calls: int | None
    tally: Tally
    is_subscribed: bool
    senders: tuple[Any, ...]


def copied_from(signal: Connections, memo: dict[int, Any]) -> list[Copied]:
    """Return what makes the handlers of a copy, in order of subscription.

    Those that count together do so in the copy: with the same ``memo`` across signals too.
    """
    with signal.lock:
        return [
            Copied(
                receiver=receiver,
                options=handler.options,
                name=handler.name,
                source=handler.source,
                plugin=handler.plugin,
                calls=handler.calls,
                tally=copy.deepcopy(handler.tally, memo),
                is_subscribed=signal.receivers[handler.key] is handler,
                senders=tuple(signal._by_receiver[handler.key]),
            )
            for handler in signal.subscribed
            if (receiver := handler.receiver) is not None
        ]


def deeply(copied: Iterable[Copied], memo: dict[int, Any]) -> list[Copied]:
    """Copy what is held strongly too, as ``copy.deepcopy`` would: functions stay what they are."""
    return [
        each if each.options.weak else replace(each, receiver=copy.deepcopy(each.receiver, memo))
        for each in copied
    ]


def require_picklable(signal: Connections, copied: Iterable[Copied]) -> None:
    """See that every handler can be found again by another process.

    Raises:
        TypeError: A function is held weakly or cannot be found by its name, or a handler serves
            an object that is held weakly.
    """
    for each in copied:
        if each.options.weak:
            raise TypeError(
                f"{signal!r} cannot be pickled: it holds {each.name!r} weakly, and nobody would "
                "hold it in the other process; connect it with weak=False"
            )
        if not signal._weak_senders.keys().isdisjoint(each.senders):
            raise TypeError(
                f"{signal!r} cannot be pickled: {each.name!r} serves one sender alone, which is "
                "another object in the other process; subscribe it there, or for any sender"
            )
        cause = why_not_pickled((each.receiver, each.options))
        if cause is not None:
            raise TypeError(f"{signal!r} cannot be pickled: {each.name!r}: {cause}")


def fill(signal: Connections, copied: Iterable[Copied], source: Connections | None = None) -> None:
    """Put copies of the handlers on a new signal.

    Args:
        signal: The new one.
        copied: From ``copied_from``.
        source: Where they are from, if that is at hand: its senders are then watched here too.
    """
    with signal.lock:
        for each in copied:
            handler = Handler(signal.name, each.receiver, each.options, tally=each.tally)
            handler.name, handler.source, handler.plugin = each.name, each.source, each.plugin
            handler.calls = each.calls
            _put_on(signal, handler, each)
            if source is not None:
                for sender_id in each.senders:
                    _watch(signal, source, sender_id)
        signal.changed()


def _put_on(signal: Connections, handler: Handler, copied: Copied) -> None:
    receiver: Any = handler
    if not copied.is_subscribed:
        receiver = copied.receiver
    key = make_id(receiver)
    if not copied.is_subscribed and copied.options.weak:
        receiver = reference_to(receiver, signal._make_cleanup_receiver(key))
    signal.take_in(handler, key)
    signal.receivers[key] = receiver
    for sender_id in copied.senders:
        signal._by_sender[sender_id].add(key)
        signal._by_receiver[key].add(sender_id)


def _watch(signal: Connections, source: Connections, sender_id: Any) -> None:
    reference = source._weak_senders.get(sender_id)
    sender = None if reference is None else reference()
    if sender is not None and sender_id not in signal._weak_senders:
        watched = reference_to(sender, signal._make_cleanup_sender(sender_id))
        signal._weak_senders[sender_id] = watched
