"""What all train here, each rank on its own batches, and how two ranks time it together."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.nn import functional as F

from ..peers.verify import check_weights

Fit = Callable[[], object]
"""Trains for one epoch."""
Batches = list[tuple[Tensor, Tensor]]
WARM_UP = 10
"""Batches at the beginning of a fit that do not count."""


@dataclass(frozen=True)
class Case:
    """A step to train.

    Attributes:
        title: What the tables call it.
        widths: Of the layers, from the input to the output.
        rows: In a batch, on each rank.
        count: Batches in a fit.
    """

    title: str
    widths: tuple[int, ...]
    rows: int
    count: int

    def batches(self, seed: int, rank: int) -> Batches:
        """Return a rank's random batches."""
        dice = torch.Generator().manual_seed(2 * seed + rank)
        shape = self.count, self.rows
        x = torch.randn(*shape, self.widths[0], generator=dice)
        y = torch.randn(*shape, self.widths[-1], generator=dice)
        return list(zip(x, y, strict=True))


TINY = Case("10-1, 4 rows a rank", (10, 1), 4, 300)
REAL = Case("784-256-256-10, 64 rows a rank", (784, 256, 256, 10), 64, 80)


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


class Timed(list[Any]):
    """Batches that note when each is taken."""

    def __init__(self, batches: Batches) -> None:
        super().__init__(batches)
        self.taken: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.taken.append(time.perf_counter())
            yield batch

    @property
    def seconds(self) -> float:
        """What a batch takes: a quarter of them took less.

        Where others want the same CPUs, a rank is kept waiting in many batches, and all wait.
        """
        times = [after - before for before, after in pairwise(self.taken[WARM_UP:])]
        return statistics.quantiles(times, n=4)[0]


def time_round(
    ways: Mapping[str, Way], case: Case, batches: Batches, seed: int, passes: int, turn: int
) -> dict[str, float]:
    """Return the seconds of a batch by each way, which take turns; the fastest of its fits counts.

    Args:
        ways: How; the weights of all must come out as those of the first.
        case, batches, seed: What.
        passes: How many fits each has.
        turn: Who begins.

    Raises:
        NotTrainedError: The weights of one did not.
    """
    names = list(ways)
    order = [*names[turn % len(names) :], *names[: turn % len(names)]]
    best = dict.fromkeys(names, float("inf"))
    for _ in range(passes):
        models = {}
        for name in order:
            timed = Timed(batches)
            work = Work(case, timed, seed)
            together(ways[name](work))
            best[name] = min(best[name], timed.seconds)
            models[name] = work.model
        for model in models.values():
            check_weights(model, models[names[0]])
    return best


def together(fit: Fit) -> None:
    """Train on all ranks, which begin together, without garbage collection."""
    gc.collect()
    gc.disable()
    try:
        if dist.is_initialized():
            dist.barrier()
        fit()
    finally:
        gc.enable()


def everywhere(value: Any) -> list[Any]:
    """Return the value of each rank, by rank."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
