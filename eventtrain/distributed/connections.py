"""The connections between ranks, ended where nobody else would end a collective on them.

A collective waits for all ranks. One that has failed does not come any more; the wait ends when
that process does, and its connections with it. A process that lives on, or is stopped, keeps them.
gloo has no way to abort what waits (``abort``, ``shutdown`` and ``destroy_process_group`` of
PyTorch 2.13 leave it waiting), but it takes the end of a connection for that of its peer. So a rank
that has heard of a failure can free its own loop by ending its own connections to other ranks.

Which those are is known by their two ends: each rank tells the others where its ends are, and a
connection is one between ranks if both of its ends were told of.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")


def own_ends() -> list[str]:
    """Return the names (address and port) of this process's ends of its TCP connections.

    None where the system does not list them, as Linux does.
    """
    names = []
    for connection in _connections():
        with connection, suppress(OSError):
            names.append(_name(connection.getsockname()))
    return names


def cut(other_ends: Collection[str], ports: Collection[int] = ()) -> int:
    """End this process's connections to ``other_ends``; what waits for them fails.

    Sockets that belong to Python code are left alone.

    Args:
        other_ends: What the other ranks have told of ``own_ends``.
        ports: Those of stores, whose connections stay.

    Returns:
        How many there were.
    """
    ended = 0
    of_python = _sockets_of_python()
    # Held first, all of them: gloo closes the others when the first one ends.
    held = list(_connections(leave_out=of_python))
    for connection in held:
        with connection, suppress(OSError):
            here, there = connection.getsockname(), connection.getpeername()
            if _name(there) in other_ends and not {here[1], there[1]}.intersection(ports):
                connection.shutdown(socket.SHUT_RDWR)
                ended += 1
    return ended


def _connections(leave_out: Collection[int] = ()) -> Iterator[socket.socket]:
    """Yield a handle of each TCP connection of this process, to be closed."""
    if not _DESCRIPTORS.is_dir():
        return
    for number in map(int, os.listdir(_DESCRIPTORS)):
        if number in leave_out:
            continue
        try:
            copy = os.dup(number)
        except OSError:  # closed by now
            continue
        try:
            found = socket.socket(fileno=copy)
        except OSError:  # no socket
            os.close(copy)
            continue
        is_internet = found.family in (socket.AF_INET, socket.AF_INET6)
        with suppress(OSError):
            if is_internet and found.type == socket.SOCK_STREAM and found.getpeername():
                yield found
                continue
        found.close()


def _sockets_of_python() -> set[int]:
    kinds = (socket.socket,)
    return {each.fileno() for each in gc.get_objects() if issubclass(type(each), kinds)}


def _name(address: tuple[str, int]) -> str:
    return f"{address[0].removeprefix('::ffff:')}:{address[1]}"
