"""What a batch asks of others and of the device, counted: no load of the machine changes that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed as dist
from torch.profiler import ProfilerActivity, profile

from .work import Batches, Case, Way, Work

AGREEING = tuple(
    f"/distributed/{name}.py"
    for name in ("agreed_scopes", "participation", "agreement", "boundary", "paths")
)
"""Where the code is that a loop runs to agree with others."""
READS = ("aten::_local_scalar_dense", "aten::equal")
COLLECTIVES, READINGS, STORE = "collectives", "device reads", "store calls"
LENGTHS = 20, 60
"""Batches in the two fits, of which the difference is told: what a fit costs once drops out."""


class _Watched(list[Any]):
    """Batches that note how many calls there were when one is taken."""

    def __init__(self, batches: Batches, calls: list[str]) -> None:
        super().__init__(batches)
        self.calls = calls
        self.seen: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.seen.append(len(self.calls))
            yield batch


def per_batch(way: Way, case: Case, batches: Batches, seed: int) -> dict[str, float]:
    """Return by kind how many a batch takes, on this rank, all its threads included.

    Collectives and readings are the difference between two fits, so what a fit costs once drops
    out. Of the store it is what was called between two batches of one fit: who waits for another
    rank at the end of a phase looks there as often as it takes.
    """
    way(Work(case, batches[: LENGTHS[0]], seed))()  # what only the first fit asks for
    short, long = (_count(way, case, batches[:length], seed) for length in LENGTHS)
    difference = LENGTHS[1] - LENGTHS[0]
    found = {kind: (long[kind] - short[kind]) / difference for kind in (COLLECTIVES, READINGS)}
    return {**found, STORE: long[STORE] / difference}


def _count(way: Way, case: Case, batches: Batches, seed: int) -> Counter[str]:
    # Torch's profiler sees what DDP itself does below Python, in whatever thread.
    with counted_store() as calls:
        watched = _Watched(batches, calls)
        fit = way(Work(case, watched, seed))
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            fit()
    names = Counter(event.name for event in seen.events() or ())
    found = Counter({READINGS: sum(names[name] for name in READS)})
    found[COLLECTIVES] = sum(n for name, n in names.items() if name.startswith("c10d::"))
    found[STORE] = watched.seen[-1] - watched.seen[LENGTHS[0] - 1]
    return found


@contextmanager
def counted_store() -> Iterator[list[str]]:
    """Note the name of every method of a store that Python calls, in any thread."""
    calls: list[str] = []
    methods = {
        name: method
        for name, method in vars(dist.Store).items()
        if not name.startswith("_") and callable(method)
    }

    def counted(name: str, method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return method(*arguments, **options)

        return call

    for name, method in methods.items():
        setattr(dist.Store, name, counted(name, method))
    try:
        yield calls
    finally:
        for name, method in methods.items():
            setattr(dist.Store, name, method)


def bytecodes_per_batch(
    way: Way, case: Case, batches: Batches, seed: int, files: tuple[str, ...] = ("",)
) -> float:
    """Return the bytecode instructions of a batch, in the loop's thread; see ``bytecodes``."""
    from ..counting import bytecodes
    from ..measure import without_gc

    way(Work(case, batches[: LENGTHS[0]], seed))()  # compiles what is compiled on first use
    fits = [way(Work(case, batches[:length], seed)) for length in LENGTHS]
    with without_gc():
        short, long = (bytecodes(fit, files) for fit in fits)
    return (long - short) / (LENGTHS[1] - LENGTHS[0])
