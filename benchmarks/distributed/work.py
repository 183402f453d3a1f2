"""What all train here, each rank on its own batches, and how two ranks time it together."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.nn import functional as F

from ..peers.verify import check_weights

Fit = Callable[[], object]
"""Trains for one epoch."""
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """A step to train.

    Attributes:
        title: What the tables call it.
        widths: Of the layers, from the input to the output.
        rows: In a batch, on each rank.
        lengths: Batches in a short and in a long fit.
    """

    title: str
    widths: tuple[int, ...]
    rows: int
    lengths: tuple[int, int]

    def batches(self, seed: int, rank: int) -> Batches:
        """Return a rank's random batches, as many as a long fit has."""
        dice = torch.Generator().manual_seed(2 * seed + rank)
        shape = self.lengths[1], self.rows
        x = torch.randn(*shape, self.widths[0], generator=dice)
        y = torch.randn(*shape, self.widths[-1], generator=dice)
        return list(zip(x, y, strict=True))


TINY = Case("10-1, 4 rows a rank", (10, 1), 4, (50, 250))
REAL = Case("784-256-256-10, 64 rows a rank", (784, 256, 256, 10), 64, (10, 50))


class Work:
    """A model, its optimizer and batches, fresh for one fit; the same model on every rank.

    Attributes:
        model: Linear layers, with ReLU between them.
        opt: ``torch.optim.SGD`` over its parameters.
        loss_func: Mean squared error.
        batches: A list of ``(xb, yb)``.
    """

    def __init__(self, case: Case, batches: Batches, seed: int) -> None:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for pair in pairwise(case.widths):
            layers += [nn.Linear(*pair), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        self.opt = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.loss_func = F.mse_loss
        self.batches = batches


Way = Callable[[Work], Fit]
"""Makes everything ready for a fit, which is called once."""


def time_round(
    ways: Mapping[str, Way], case: Case, batches: Batches, seed: int, passes: int, turn: int
) -> dict[str, float]:
    """Return the seconds of a batch by each way, which take turns.

    That is the slope between fits of two lengths, so what a fit costs once drops out. Every fit is
    fresh; of each kind the fastest of some passes counts.

    Args:
        ways: How; the weights of all must come out as those of the first.
        case, batches, seed: What.
        passes: How many.
        turn: Who begins.

    Raises:
        NotTrainedError: The weights of one did not.
    """
    names = list(ways)
    order = [*names[turn % len(names) :], *names[: turn % len(names)]]
    best = dict.fromkeys(product(names, case.lengths), float("inf"))
    for _, length in product(range(passes), case.lengths):
        models = {}
        for name in order:
            work = Work(case, batches[:length], seed)
            best[name, length] = min(best[name, length], seconds(ways[name](work)))
            models[name] = work.model
        for model in models.values():
            check_weights(model, models[names[0]])
    short, long = case.lengths
    return {name: (best[name, long] - best[name, short]) / (long - short) for name in names}


def seconds(fit: Fit) -> float:
    """Return how long a fit takes that all ranks begin together, without garbage collection."""
    gc.collect()
    gc.disable()
    try:
        if dist.is_initialized():
            dist.barrier()
        start = time.perf_counter()
        fit()
        return time.perf_counter() - start
    finally:
        gc.enable()


def everywhere(value: Any) -> list[Any]:
    """Return the value of each rank, by rank."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
