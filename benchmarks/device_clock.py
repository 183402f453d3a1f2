"""Clocks for work that a device does: what they read depends on the device.

Nothing is measured from outside of a fit, which costs something by itself: the
loader starts the clocks after its first batches, in which a fit does what it
does once, and stops them after its last, so that hand-written loop and
``Runner`` are timed over the same span.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from eventtrain import Learner

from .loops import Way

BURST = 8
"""Batches after which the host is timed: few enough for a GPU's queue not to be full yet,
or the host would be waiting for the device, and its time would be the device's."""

UNTIMED = 2
"""Batches before the clocks start."""

Batches = Sequence[tuple[Any, Any]]


class TimedBatches:
    """Batches to train on, which time how long all but the first few of them take.

    Args:
        batches: What is yielded, in turn.
        count: How many are timed; there are ``UNTIMED`` more.
        clock: What times them.
    """

    def __init__(self, batches: Batches, count: int, clock: HostClock) -> None:
        times, rest = divmod(count + UNTIMED, len(batches))
        self.batches = [*list(batches) * times, *batches[:rest]]
        self.clock = clock

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield from self.batches[:UNTIMED]
        self.clock.start()
        yield from self.batches[UNTIMED:]
        self.clock.stop()


class HostClock:
    """Wall clock, for devices that have no queue: the work is done when the call returns."""

    readings: dict[str, float]

    def start(self) -> None:
        """Begin."""
        self._start = time.perf_counter()

    def stop(self) -> None:
        """End; ``readings`` has the seconds that have passed."""
        self.readings = {"wall": time.perf_counter() - self._start}


class CudaClock(HostClock):
    """Wall clock after a synchronize, CUDA events, and the host until all was queued."""

    def start(self) -> None:
        """Begin, with nothing queued."""
        self._first, self._last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self._first.record()
        self._start = time.perf_counter()

    def stop(self) -> None:
        """End, when the device has done all that was queued."""
        queued = time.perf_counter()
        self._last.record()
        torch.cuda.synchronize()
        self.readings = {
            "wall": time.perf_counter() - self._start,
            "events": self._first.elapsed_time(self._last) / 1000,
            "host": queued - self._start,
        }


def clock_for(device: torch.device) -> HostClock:
    """Return the clock for a device."""
    return CudaClock() if device.type == "cuda" else HostClock()


def timed(
    way: Way, learn: Learner, batches: Batches, count: int, device: torch.device
) -> Callable[[], dict[str, float]]:
    """Return the variant that trains on ``count`` batches and reads the clocks, per batch.

    Where ``count`` is more than a ``BURST``, the host is timed in a fit of its own.
    """
    long, short = (TimedBatches(batches, n, clock_for(device)) for n in (count, BURST))

    def variant() -> dict[str, float]:
        learn.data.train_dl = long
        way(learn)
        found = {name: seconds / count for name, seconds in long.clock.readings.items()}
        if "host" in found and count > BURST:
            learn.data.train_dl = short
            way(learn)
            found["host"] = short.clock.readings["host"] / BURST
        return found

    return variant


def seconds_a_batch(way: Way, learn: Learner, batches: Batches, device: torch.device) -> float:
    """Return about how many seconds a batch takes, from a few of them."""
    reading = timed(way, learn, batches, BURST, device)
    reading()  # what is done on first use
    return min(reading()["wall"] for _ in range(3))
