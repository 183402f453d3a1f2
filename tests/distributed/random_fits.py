"""Fits with requests at random, the same plan on all ranks by its seed, and what came of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from threading import Thread
from typing import Any

import torch
from torch import distributed as dist, nn
from torch.nn.functional import mse_loss

from eventtrain import (
    AvgStatsCallback,
    CancellationToken,
    DataBunch,
    Distributed,
    FitResult,
    Learner,
    Runner,
    ScopeNotOpenError,
)
from eventtrain.callbacks import GradientAccumulation

SCOPES = ("fit", "epoch", "train", "validate")
EVENTS = ("begin_fit", "begin_epoch", "begin_train", "begin_batch", "after_pred", "after_backward")
EVENTS += ("begin_step", "after_step", "after_batch", "after_train", "begin_validate", "after_loss")
EVENTS += ("after_validate", "after_epoch")


@dataclass(frozen=True)
class Ask:
    """Who asks for what, from where, and when: at the n-th event, or after some seconds."""

    rank: int
    scope: str
    origin: str
    event: str
    nth: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What all ranks do in one fit."""

    epochs: int
    batches: int
    valid: list[int]
    """Batches of validation, by rank."""
    group: int
    """Batches that share their gradients once; 1: every batch does."""
    pauses: list[float]
    """Seconds that a batch takes longer, by rank."""
    asks: list[Ask]
    held_by: int | None
    """The rank whose token is cancelled before the fit."""
    steps: int | None
    """How many the fit is to take; by epochs where it is ``None``."""
    every: int | None
    """Steps from one validation to the next; each follows an epoch where it is ``None``."""
    asked: int
    """A handler validates after every so many batches of training; 0: after none."""

    @classmethod
    def of(cls, seed: int, size: int) -> Plan:
        dice = Random(seed)
        rank = lambda: dice.randrange(size)  # noqa: E731
        origins = [dice.choice(("handler", "timer", "thread", "signal")) for _ in range(4)]
        asks = [
            Ask(
                rank(),
                "fit" if origin == "signal" else dice.choice(SCOPES),
                origin,
                dice.choice(EVENTS),
                dice.randint(1, 4),
                dice.random() * 0.03,
            )
            for origin in origins[: dice.randint(1, 4)]
        ]
        slow = dice.choice((0.0, 0.002, 0.01))
        return cls(
            epochs=dice.randint(1, 3),
            batches=dice.randint(1, 5),
            valid=[dice.randint(1, 4) for _ in range(size)],
            group=dice.choice((1, 1, 2, 3)),
            pauses=[slow * dice.random() for _ in range(size)],
            asks=asks,
            held_by=rank() if dice.random() < 0.1 else None,
            steps=dice.choice((None, None, dice.randint(1, 8))),
            every=dice.choice((None, None, dice.randint(1, 4))),
            asked=dice.choice((0, 0, dice.randint(1, 3))),
        )


def loader(batches: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's own rows, all of one size."""
    dice = torch.Generator().manual_seed(dist.get_rank())
    return [
        (torch.randn(4, 3, generator=dice), torch.randn(4, 1, generator=dice))
        for _ in range(batches)
    ]


def learner(batches: int = 4, valid: int = 2) -> Learner:
    torch.manual_seed(0)
    data = DataBunch(loader(batches), loader(valid))
    return Learner(nn.Linear(3, 1), lambda p: torch.optim.SGD(p, lr=0.1), mse_loss, data)


def outcome_of(run: Runner, learn: Learner) -> list[Any]:
    """What must be equal on all ranks."""
    result = run.result
    assert isinstance(result, FitResult)
    told = [result.outcome, result.reason, result.steps, result.epochs]
    records = [
        (c.scope, c.reason, c.by, c.event, c.epoch, c.batch, c.rank) for c in result.cancellations
    ]
    parts = [getattr(p, "full_tensor", lambda p=p: p)() for p in learn.model.parameters()]
    weights = [number for part in parts for number in part.detach().flatten().tolist()]
    return [*told, run.n_iter, records, weights]


def fit(seed: int) -> list[Any]:
    """Do what the plan of a seed says; return what must be equal."""
    rank, size = dist.get_rank(), dist.get_world_size()
    plan = Plan.of(seed, size)
    callbacks: list[Any] = [GradientAccumulation(plan.group)] if plan.group > 1 else []
    callbacks = [Distributed(lost_after=20), AvgStatsCallback(report=None), *callbacks]
    run = Runner(callbacks, on_interrupt="return")
    token = CancellationToken()
    begun: list[Any] = []
    if plan.held_by == rank:
        token.cancel("fit", "held")
    run.on("begin_batch", lambda run: time.sleep(plan.pauses[rank]))
    run.on("begin_batch", lambda run: begun.append((run.epoch, run.batch_index)), during="train")
    run.on("begin_epoch", lambda run: begun.append(run.epoch))
    is_signalled = False
    for number, ask in enumerate(plan.asks):
        # A second signal insists, which is another thing.
        if ask.rank == rank and not (ask.origin == "signal" and is_signalled):
            is_signalled |= ask.origin == "signal"
            _prepare(run, token, ask, f"{ask.origin} {number}")
    learn = learner(plan.batches, plan.valid[rank])
    if plan.asked:
        run.on("after_batch", lambda run: run.validate_now(), every=plan.asked, during="train")
    run.on("after_row", lambda run: begun.append((run.steps, dict(run.history[-1]))))
    length: Any = {"epochs": plan.epochs} if plan.steps is None else {"steps": plan.steps}
    run.fit(**length, learn=learn, token=token, validate_every=plan.every)
    for thread in threads:
        thread.join()
    threads.clear()
    return [*outcome_of(run, learn), begun]


threads: list[Thread] = []


def _prepare(run: Runner, token: CancellationToken, ask: Ask, reason: str) -> None:
    def now() -> None:
        with suppress(ScopeNotOpenError):
            token.cancel(ask.scope, reason)

    def later() -> None:
        time.sleep(ask.seconds)
        # As a request for a fit that is over would be one for the next.
        if token.open_scopes:
            now()

    left = ask.nth

    def count(run: Runner) -> None:
        nonlocal left
        left -= 1
        if not left:
            acts[ask.origin]()

    def start() -> None:
        threads.append(Thread(target=later, name="asking"))
        threads[-1].start()

    acts: dict[str, Callable[[], object]] = {
        "handler": now,
        "timer": lambda: token.cancel_after(ask.seconds, ask.scope, reason),
        "thread": start,
        "signal": lambda: os.kill(os.getpid(), signal.SIGTERM),
    }
    run.on(ask.event, count)
