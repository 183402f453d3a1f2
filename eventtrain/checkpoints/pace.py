"""When so many seconds have passed, decided alike on all ranks, which seldom ask each other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Pace:
    """Tells the batch at whose end a number of seconds has passed.

    Where clocks differ one must be believed, and to ask for what it says takes a message. So ranks
    ask at the same batches, seldom: the 1st, the 2nd, the 4th, and so on, or where the time would
    be up if batches took as long as they did, if that is earlier.

    Args:
        seconds: How many; ``change_to`` sets others.
        clock: Seconds that only grow.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self.restart()

    def restart(self) -> None:
        """Begin to count."""
        self._start = self._clock()
        self._batches, self._next = 0, 1

    def change_to(self, seconds: float) -> None:
        """Have so many seconds be the time, also for what is being counted; on all ranks alike."""
        self._seconds, self._next = seconds, self._batches + 1

    def is_due(self, agree: Callable[[float], float] | None = None) -> bool:
        """Whether the time is up, at the end of a batch; called in each.

        Args:
            agree: Given the seconds that have passed here, returns those that all believe in; it is
                called on all ranks in the same batches. ``None`` where there is one process, which
                looks at its clock in every batch.
        """
        self._batches += 1
        if agree is None:
            return self._clock() - self._start >= self._seconds
        if self._batches < self._next:
            return False
        passed = agree(self._clock() - self._start)
        if passed >= self._seconds:
            return True
        doubled = 2 * self._batches
        # Before it is multiplied: the quotient may be far beyond what is counted here.
        left = self._seconds / passed if passed > 0 else math.inf
        expected = doubled if left >= 2 else math.ceil(self._batches * left)
        self._next = max(self._batches + 1, min(doubled, expected))
        return False
