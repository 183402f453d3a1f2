"""What is to be sent, in order, by a thread that waits for a server while the loop goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition, Thread
from typing import Any

_LONGEST_PAUSE = 30.0  # seconds between two attempts


class Outbox:
    """Sends items one by one, in the order in which they came, until each has been taken.

    An item that a server refuses would be refused again: it is put aside, and the next one sent.
    One that does not get through is tried again, after pauses that grow up to half a minute.

    Args:
        send: ``send(item)``, called in the thread. It may be called twice for an item.
        is_refusal: Whether an exception of ``send`` is the server's answer to this item.
        name: Of the thread.

    Attributes:
        error: What the last attempt raised, if that did not get through; else ``None``.
        refused: Items that were refused, each with the exception.
    """

    def __init__(
        self,
        send: Callable[[Any], object],
        is_refusal: Callable[[Exception], bool],
        name: str = "eventtrain outbox",
    ) -> None:
        self._send, self._is_refusal = send, is_refusal
        # Guarded by the condition: what waits, the one that is being sent first.
        self._items: list[Any] = []
        self._changed = Condition()
        self._taken = 0
        self._is_ending = self._is_given_up = False
        self.error: Exception | None = None
        self.refused: list[tuple[Any, Exception]] = []
        # A daemon: a send that never returns must not keep the process.
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> list[Any]:
        """What has not been taken yet, oldest first; what is being sent is among it."""
        with self._changed:
            return list(self._items)

    def put(self, item: Any) -> None:
        """Have ``item`` sent after those that wait; returns at once."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until nothing waits, or an attempt has failed.

        Args:
            seconds: At the most.

        Returns:
            Whether everything has been taken or refused.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._items or self.error is not None, seconds)
            return not self._items

    def end(self, patience: float) -> list[Any]:
        """Have all that waits sent, and end the thread.

        Args:
            patience: Seconds after the last item that was taken, before the rest is given up.

        Returns:
            What could not be sent, in order; without what was refused.
        """
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()  # it may be in a pause
            try:
                taken = -1
                while self._items and taken < self._taken:
                    taken = self._taken
                    until = time.monotonic() + patience
                    while self._items and taken == self._taken and time.monotonic() < until:
                        self._changed.wait(max(until - time.monotonic(), 0))
            finally:
                self._is_given_up = True
                self._changed.notify_all()
            return list(self._items)

    # In the thread

    def _work(self) -> None:
        pause = 0.0
        while (item := self._next(pause)) is not None:
            try:
                self._send(item[0])
            except Exception as error:
                pause = self._after(error, pause)
            else:
                self._drop()
                pause = 0.0

    def _next(self, pause: float) -> tuple[Any] | None:
        """Wait for an item, and for the pause to be over; ``None`` ends the thread."""
        with self._changed:
            if pause:
                self._changed.wait_for(lambda: self._is_given_up, self._shortened(pause))
            self._changed.wait_for(lambda: bool(self._items) or self._is_ending)
            return None if self._is_given_up or not self._items else (self._items[0],)

    def _shortened(self, pause: float) -> float:
        # Somebody waits: a server that comes back in time is to be found.
        return min(pause, 0.5) if self._is_ending else pause

    def _after(self, error: Exception, pause: float) -> float:
        if self._is_refusal(error):
            self.refused.append((self._items[0], error))
            self._drop()
            return 0.0
        with self._changed:
            self.error = error
            self._changed.notify_all()
        return min(max(2 * pause, 1.0), _LONGEST_PAUSE)

    def _drop(self) -> None:
        with self._changed:
            del self._items[0]
            self._taken += 1
            self.error = None
            self._changed.notify_all()
