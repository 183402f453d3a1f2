"""The process of one peer: checks that it trains, then times it whenever it is asked.

Started by ``process.py``. It answers on what was its standard output, a line of
JSON each: first what it is, then one answer to every line of its input.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch

from .registry import Peer, load_adapters
from .verify import check_handlers, check_weights, count_steps
from .work import BY_HAND, BY_PEER, Fit, Work, by_hand, make_batches

VERIFIED_BATCHES = 30


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a framework prints must not get among the answers
    name, seed, *counts = sys.argv[1:]

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        found = introduce(load_adapters()[name], int(seed), [int(count) for count in counts])
        answer(found)
        if "skipped" not in found:
            gc.freeze()  # collecting before each fit need not walk through a whole framework
            for line in sys.stdin:
                answer(time_round(load_adapters()[name], int(seed), **json.loads(line)))
    except Exception as error:
        answer({"failed": f"{type(error).__name__}: {error}".splitlines()[0]})
        raise


def introduce(peer: Peer, seed: int, counts: list[int]) -> dict[str, Any]:
    """Return what this peer is after it has trained as it should, or why it cannot."""
    version = peer.version
    if version is None:
        return {"skipped": peer.missing}
    batches = make_batches(VERIFIED_BATCHES, seed)
    exact = True
    for handlers in counts:
        torch.set_num_threads(1)
        expected = Work(batches, seed=seed)
        by_hand(expected)()
        work = Work(batches, seed=seed, handlers=handlers, counting=True)
        with count_steps() as steps:
            peer.prepare(work)()
        steps.check(len(batches))
        exact &= check_weights(work.model, expected.model)
        check_handlers(work, peer.hooks.values())
    return {
        "version": version,
        "torch": torch.__version__,
        "steps": VERIFIED_BATCHES,
        "exact": exact,
    }


def time_round(
    peer: Peer, seed: int, *, handlers: int, lengths: tuple[int, int], passes: int
) -> dict[str, float]:
    """Return the seconds that a batch costs by hand and with the peer.

    Both are the slope between fits of two lengths, so that what a fit costs
    before its first and after its last batch drops out. Every fit is fresh; of
    each kind the fastest of some passes counts.
    """
    short, long = lengths
    batches = make_batches(long, seed)
    ways: dict[str, Callable[[Work], Fit]] = {BY_HAND: by_hand, BY_PEER: peer.prepare}
    best = dict.fromkeys(product(ways, lengths), float("inf"))
    for _ in range(passes):
        for length in lengths:
            models = []
            for name, way in ways.items():
                own = handlers if name == BY_PEER else 0
                work = Work(batches[:length], seed=seed, handlers=own)
                best[name, length] = min(best[name, length], seconds(way(work)))
                models.append(work.model)
            check_weights(models[1], models[0])
    return {name: (best[name, long] - best[name, short]) / (long - short) for name in ways}


def seconds(fit: Fit) -> float:
    """Return how long the fit takes, on one thread and without garbage collection."""
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        fit()
        return time.perf_counter() - start
    finally:
        gc.enable()


if __name__ == "__main__":
    main()
