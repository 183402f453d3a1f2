"""A line of Python, timed by running it many times."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any


class Statement:
    """A variant that runs a line of Python many times, everything it names being local.

    Each has code of its own, so that the interpreter specialises it for itself.
    The cost of the empty loop around it is measured beside it and taken off.

    Args:
        text: The statement.
        seconds: About how long one measurement is to take.
        **names: What the statement refers to.
    """

    def __init__(self, text: str, seconds: float, /, **names: Any) -> None:
        self._timed = _timed(text, names)
        self._empty = _timed("pass", {})
        self._empty_least = float("inf")
        self._count = 100
        while (taken := self._least_of_three()) < seconds / 10:
            self._count *= 10 if taken < seconds / 100 else 2
        self._count = max(1, int(self._count * seconds / taken))

    def _least_of_three(self) -> float:
        # A disturbed one would make the statement look slow, and be timed over too few runs.
        return min(self._timed(self._count) for _ in range(3))

    def __call__(self) -> float:
        """Return the seconds that one run of the statement takes."""
        # The least so far: a disturbed one would make the statement look fast.
        self._empty_least = min(self._empty_least, self._empty(self._count))
        return (self._timed(self._count) - self._empty_least) / self._count


def _timed(text: str, names: Mapping[str, Any]) -> Callable[[int], float]:
    body = "\n".join(f"            {line}" for line in text.splitlines())
    source = (
        f"def make(repeat, clock, {', '.join(names)}):\n"
        f"    def timed(count, {', '.join(f'{name}={name}' for name in names)}):\n"
        f"        times = repeat(None, count)\n"
        f"        start = clock()\n"
        f"        for _ in times:\n{body}\n"
        f"        return clock() - start\n"
        f"    return timed\n"
    )
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    timed: Callable[[int], float] = namespace["make"](repeat, time.perf_counter, **names)
    return timed
