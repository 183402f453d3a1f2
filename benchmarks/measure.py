"""Timing variants side by side, and what was found.

Everything is measured in rounds: each round times every variant once, in an
order that shifts from round to round, and a variant is only ever compared with
the baseline of its own round. Whatever slows the machine down for a while then
slows both.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Variant = Callable[[], float]
"""Does the work once and returns the seconds it took, per unit of work."""

UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line.

    Attributes:
        quick: Measure a little of everything; the figures mean nothing.
        seed: Seed of all random numbers.
        device: Where the ``gpu`` suite runs; ``None`` takes CUDA if it is there, else the
            CPU and the ``meta`` device.
    """

    quick: bool = False
    seed: int = 0
    device: str | None = None

    def pick(self, full: int, quick: int) -> int:
        """Return ``quick`` in a quick run, else ``full``."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, with the smallest and the largest."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise ``values``, at least one."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Group:
    """Variants that were timed in the same rounds; the first is the baseline.

    Attributes:
        title: What was measured.
        unit: Unit that people read it in: a key of ``UNITS``.
        rounds: For each variant its seconds, one value a round.
        parameters: For each variant what was varied, as figures need it: ``handlers``
            is how many there are on an event, ``loop`` who calls them, ``device`` where;
            ``version`` is that of a peer.
    """

    title: str
    unit: str
    rounds: dict[str, list[float]]
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """Name of the variant that the others are compared with."""
        return next(iter(self.rounds))

    def time(self, name: str) -> Spread:
        """Return how long a variant took, in ``unit``."""
        return Spread.of([seconds / UNITS[self.unit] for seconds in self.rounds[name]])

    def ratio(self, name: str, to: str | None = None) -> Spread:
        """Return the variant over ``to`` (the baseline), round by round."""
        return Spread.of([a / b for a, b in self._pairs(name, to)])

    def difference(self, name: str, to: str | None = None) -> Spread:
        """Return the variant minus ``to`` (the baseline), round by round, in ``unit``."""
        return Spread.of([(a - b) / UNITS[self.unit] for a, b in self._pairs(name, to)])

    def _pairs(self, name: str, to: str | None) -> Iterator[tuple[float, float]]:
        return zip(self.rounds[name], self.rounds[to or self.baseline], strict=True)


@dataclass(frozen=True)
class Target:
    """A figure that was promised, and the one that was measured."""

    text: str
    value: float
    limit: float
    unit: str = "x"
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the promise holds in this run."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Suite:
    """What a suite found; ``seconds`` is how long that took."""

    groups: list[Group] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def stopwatch(function: Callable[[], object], units: int = 1) -> Variant:
    """Return the variant that calls ``function``, which does ``units`` units of work."""

    def timed() -> float:
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) / units

    return timed


def distinct_functions(count: int) -> list[Callable[[Any], None]]:
    """Make functions of one argument that do nothing, each compiled for itself.

    Copies of one function would let a ``for`` over them run as if it always
    called the same, which no list of real handlers does.
    """
    made: dict[str, Any] = {}
    for index in range(count):
        exec(compile(f"def handler_{index}(run): pass", f"<handler {index}>", "exec"), made)
    return [made[f"handler_{index}"] for index in range(count)]


def compare(
    title: str,
    unit: str,
    variants: Mapping[str, Variant],
    *,
    rounds: int,
    passes: int = 1,
    warmup: int = 1,
    parameters: Mapping[str, dict[str, Any]] | None = None,
) -> Group:
    """Time every variant once a round; the first one is the baseline.

    Args:
        title, unit, parameters: See ``Group``.
        variants: What to time.
        rounds: How many rounds count.
        passes: How often each variant runs in a round, taking turns. The
            fastest counts: what disturbs a short measurement only adds to it.
        warmup: Rounds before those that count.
    """
    readings = {name: _on_one_clock(variant) for name, variant in variants.items()}
    found = compare_clocks(readings, rounds=rounds, passes=passes, warmup=warmup)
    return Group(title, unit, found["wall"], dict(parameters or {}))


def compare_clocks(
    variants: Mapping[str, Callable[[], Mapping[str, float]]],
    *,
    rounds: int,
    passes: int = 1,
    warmup: int = 1,
) -> dict[str, dict[str, list[float]]]:
    """Do what ``compare`` does, for variants that are timed by several clocks at once.

    Returns:
        By clock and variant, the seconds of every round.
    """
    found: dict[str, dict[str, list[float]]] = {}
    names = list(variants)
    for number in range(-warmup, rounds):
        turn = number % len(names)
        order = [*names[turn:], *names[:turn]]
        with without_gc():
            timed = [{name: variants[name]() for name in order} for _ in range(passes)]
        if number >= 0:
            for name in names:
                for clock in timed[0][name]:
                    best = min(each[name][clock] for each in timed)
                    found.setdefault(clock, {}).setdefault(name, []).append(best)
    return found


def _on_one_clock(variant: Variant) -> Callable[[], dict[str, float]]:
    return lambda: {"wall": variant()}


@contextmanager
def without_gc() -> Iterator[None]:
    """Collect garbage, and then none while the block runs."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
