"""What each rank does: ``worker FILE WHO SEED QUICK``, under torchrun; rank 0 writes the file."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from .counts import AGREEING, LENGTHS, bytecodes_per_batch, per_batch
from .frameworks import FRAMEWORKS
from .loops import HAND, OURS, WAYS, by_hand, by_runner
from .work import REAL, TINY, Way, everywhere, time_round

US = "eventtrain"


def main() -> None:
    """Measure, with the others, and write what was found."""
    file, who, seed, quick = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        is_quick = quick == "True"
        own = WAYS if who == US else {HAND: by_hand, **FRAMEWORKS[who][1]}
        found: dict[str, Any] = _measure(own, int(seed), quick=is_quick)
        found["torch"] = torch.__version__
        if who == US:
            found |= _measure_ours(int(seed), quick=is_quick)
        if dist.get_rank() == 0:
            _write(Path(file), found)
    finally:
        dist.destroy_process_group()


def _measure(ways: dict[str, Way], seed: int, *, quick: bool) -> dict[str, Any]:
    """Return the counts of every way, and its seconds a batch in every round by case."""
    rank = dist.get_rank()
    tiny = TINY.batches(seed, rank)
    counts = {name: per_batch(way, TINY, tiny, seed) for name, way in ways.items()}
    found: dict[str, Any] = {"counts": counts, "seconds": {}}
    for case in (replace(TINY, count=LENGTHS[1]),) if quick else (TINY, REAL):
        batches = case.batches(seed, rank)
        rounds = [
            time_round(ways, case, batches, seed, passes=1 if quick else 3, turn=number)
            for number in range(1 if quick else 6)
        ]
        times = everywhere(rounds if quick else rounds[1:])  # the first is for nothing
        found["seconds"][case.title] = {
            name: [max(each[name] for each in turn) for turn in zip(*times, strict=True)]
            for name in ways
        }
    return found


def _measure_ours(seed: int, *, quick: bool) -> dict[str, Any]:
    from .leaving import leaving
    from .saving import Large, blocking

    batches = TINY.batches(seed, dist.get_rank())
    width = 16 if quick else 2048
    seconds, notes = blocking(width, seed, rounds=1 if quick else 5)
    return {
        "bytecodes": {
            name: bytecodes_per_batch(way, TINY, batches, seed)
            for name, way in ((HAND, by_hand), (OURS, by_runner))
        },
        "agreeing": bytecodes_per_batch(by_runner, TINY, batches, seed, AGREEING),
        "leaving": leaving(TINY, batches, seed, requests=4 if quick else 100),
        "blocking": {"seconds": seconds, "notes": notes, "megabytes": Large(width, seed).megabytes},
    }


def _write(file: Path, found: dict[str, Any]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as whole:
        json.dump(found, whole)
    os.replace(whole.name, file)


if __name__ == "__main__":
    main()
