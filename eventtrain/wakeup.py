"""Signals that are heard at once, whatever the main thread is doing.

Python runs signal handlers in the main thread, between two instructions: not while that thread is
in a collective, which may last for as long as another process takes. But the byte that Python
writes for every signal (``signal.set_wakeup_fd``) is there at once, and a thread can read it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from .around import around

_END = b"\0"
"""No signal has the number 0."""

_own: set[int] = set()
"""The descriptors of the wake-ups of this process: one inside of another hands nothing on."""


class WakeUp:
    """Reads what Python writes for each signal, in a thread, until ``stop``.

    Whoever had asked to be woken before gets all bytes, too, as an event loop of ``asyncio`` needs
    them, and stands in its place again after ``stop``. Made and stopped in the main thread.

    Args:
        hear: Called in that thread with the number of each signal for which Python has a handler,
            before that runs, or after.
    """

    def __init__(self, hear: Callable[[int], object]) -> None:
        self._hear = hear
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)  # a signal handler must not wait
        self._own = self._writer.fileno()
        self._stand()
        _own.add(self._own)
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="eventtrain-signals", daemon=True)
        self._thread.start()

    def _stand(self) -> None:
        """Be who is woken, and know who was before."""
        self._before = signal.set_wakeup_fd(self._own, warn_on_full_buffer=False)
        self._next = self._before if self._before >= 0 and self._before not in _own else None

    @around
    def aside(self) -> Iterator[None]:
        """Hear of no signal for a while, in which who was woken before is so again."""
        self._put_back()
        try:
            yield
        finally:
            self._stand()

    def _run(self) -> None:
        with self._reader, self._writer:
            while True:
                for number in self._reader.recv(64):
                    if number == _END[0]:
                        return
                    if self._next is not None:
                        with suppress(OSError):
                            os.write(self._next, bytes([number]))
                    self._hear(number)

    def stop(self) -> None:
        """Put back who was woken before; does not wait for the thread to end.

        In a process that was forked meanwhile that is all: the thread is not there.
        """
        self._put_back()
        _own.discard(self._own)
        if os.getpid() == self._process:
            with suppress(OSError):  # full of signals: the thread has enough to read
                self._writer.send(_END)

    def _put_back(self) -> None:
        found = signal.set_wakeup_fd(self._before, warn_on_full_buffer=False)
        if found != self._own:  # somebody has come after, and is still there
            signal.set_wakeup_fd(found, warn_on_full_buffer=False)

    def join(self, timeout: float) -> None:
        """Wait for the thread to end, after ``stop``, for ``timeout`` seconds at most."""
        self._thread.join(timeout)
