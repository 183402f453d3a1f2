"""Parts of the tests of schedulers: the rates that steps are taken with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eventtrain import Learner, Runner
from eventtrain.callbacks import Checkpoint

Make = Callable[..., Learner]
BATCHES = 3  # of the fixture's learner


class WithoutRate(torch.optim.Optimizer):
    """Takes steps of a length that is not called ``lr``."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"pace": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["pace"] * p.grad


class WithoutGroups:
    """Takes steps, and that is all that is known of it."""

    def step(self) -> None: ...
    def zero_grad(self) -> None: ...


def watch(run: Runner, name: str = "lr") -> list[float]:
    """Return the list that gets the value that every step is taken with."""
    seen: list[float] = []
    run.on("begin_step", lambda run: seen.append(run.opt.param_groups[0][name]), priority=-900)
    return seen


def by_hand(learner: Learner, make: Any, epochs: int, step: str) -> list[float]:
    """Train with torch's scheduler, and return the rate of every step."""
    rates, scheduler = [], make(learner.opt)
    for _ in range(epochs):
        for xb, yb in learner.data.train_dl:
            rates.append(learner.opt.param_groups[0]["lr"])
            learner.loss_func(learner.model(xb), yb).backward()
            learner.opt.step()
            learner.opt.zero_grad()
            if step == "batch":
                scheduler.step()
        if step == "epoch":
            scheduler.step()
    return rates


def same_weights(one: Learner, other: Learner) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def interrupted(make: Make, callbacks: Callable[[], list[Any]], folder: Path, after: int) -> Any:
    """Fit 3 epochs, stop after some batches, go on with everything made anew."""
    run = Runner(cbs=[*callbacks(), Checkpoint(folder)])
    stop = {"when": lambda run: run.in_train and run.n_iter == after}
    run.on("after_batch", lambda run: run.token.cancel("fit"), **stop)
    run.fit(3, make())
    learner = make()
    run = Runner(cbs=[*callbacks(), Checkpoint(folder)])
    seen = watch(run)
    run.fit(3, learner, resume=folder)
    return learner, seen
