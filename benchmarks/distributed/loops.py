"""The loops that are compared on several processes: those written by hand, and the ``Runner``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .work import Fit, Work

HAND = "hand-written DDP loop"
FLAG = "hand-written DDP loop, a flag reduced and read a batch"
OURS = 'Runner, Distributed("ddp")'


def plain(work: Work) -> Fit:
    """Return the loop of one process, without DDP."""
    return lambda: train(work.model, work)


def by_hand(work: Work) -> Fit:
    """Return the loop that one would write with DDP: the baseline."""
    model = DistributedDataParallel(work.model)
    return lambda: train(model, work)


def train(model: Any, work: Work) -> None:
    """Train for an epoch."""
    loss_func, opt = work.loss_func, work.opt
    for xb, yb in work.batches:
        loss = loss_func(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()


def with_flag(work: Work) -> Fit:
    """Return the loop whose ranks ask each other after every batch whether one wants to stop."""
    model = DistributedDataParallel(work.model)
    return lambda: train_until(model, work, work.batches, lambda: False)


def train_until(
    model: Any, work: Work, batches: Iterable[Any], wants_to_stop: Callable[[], bool]
) -> None:
    """Train until a rank wants to stop, or there are no batches left."""
    loss_func, opt = work.loss_func, work.opt
    for xb, yb in batches:
        loss = loss_func(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()
        flag = torch.tensor(float(wants_to_stop()))
        dist.all_reduce(flag)
        if flag.item():
            break


def by_runner(work: Work) -> Fit:
    """Return the fit of a ``Runner`` on all processes."""
    from eventtrain import Distributed

    return _fit(work, Distributed("ddp"))


def by_runner_alone(work: Work) -> Fit:
    """Return the fit of a ``Runner`` in one process."""
    return _fit(work)


def _fit(work: Work, *callbacks: Any) -> Fit:
    from eventtrain import DataBunch, Learner, Runner

    run = Runner(list(callbacks))
    learn = Learner(work.model, work.opt, work.loss_func, DataBunch(work.batches))
    return lambda: run.fit(1, learn)


WAYS = {HAND: by_hand, FLAG: with_flag, OURS: by_runner}
