"""The lock that whoever changes the subscriptions of a bus holds."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable


class SubscriptionLock:
    """A re-entrant lock, with calls that wait until nobody holds it.

    A weakly held function may die at any moment: while its own thread is in the middle of a
    change, or while another thread holds this lock and waits for one that this thread holds.
    Those who note its death must neither change anything then nor wait.
    """

    # What holds: once nobody holds the lock and no call of a method is under way, nothing waits.
    # Whoever fails to get the lock in ``soon`` has put its call there before, and who holds it
    # looks there after the release.
    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._owner: int | None = None
        self.waiting: deque[Callable[[], object]] = deque()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()
        self._depth += 1
        if self.waiting and self._depth == 1:
            self._run_waiting()

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
        self._lock.release()
        if self.waiting:
            self._try()

    def soon(self, call: Callable[[], object]) -> None:
        """Have ``call`` made with the lock held: now, or by who holds it, as the last thing."""
        if sys.is_finalizing():  # much of what it would need is gone
            return
        self.waiting.append(call)
        self._try()

    def _try(self) -> None:
        while self.waiting and self._owner != threading.get_ident():
            if not self._lock.acquire(blocking=False):
                return
            self._owner, self._depth = threading.get_ident(), 1
            try:
                self._run_waiting()
            finally:
                self._owner, self._depth = None, 0
                self._lock.release()

    def _run_waiting(self) -> None:
        while self.waiting:
            self.waiting.popleft()()
