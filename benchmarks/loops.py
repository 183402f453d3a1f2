"""The two loops that are compared: one written by hand, and the ``Runner``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from eventtrain import DataBunch, Learner, Runner

from .measure import Options, distinct_functions

EVENTS = (
    "begin_batch", "after_pred", "after_loss", "after_backward",
    "begin_step", "after_step", "after_batch",
)  # fmt: skip
"""Every event that fires once a training batch, unless something is cancelled."""

Handlers = dict[str, list[Callable[[Any], None]]]
Way = Callable[[Learner], object]
"""Trains a learner for one epoch."""


class Null:
    """Model, loss function, loss and optimizer in one: every call does nothing."""

    def __call__(self, *_: Any) -> Null:
        return self

    def train(self, mode: bool = True) -> None:
        """Do nothing."""

    def backward(self) -> None:
        """Do nothing."""

    def step(self) -> None:
        """Do nothing."""

    def zero_grad(self) -> None:
        """Do nothing."""


def null_learner(batches: int, options: Options | None = None) -> Learner:
    """Return a learner whose parts do nothing, over ``batches`` ready pairs."""
    null = Null()
    return Learner(null, null, null, DataBunch([(None, None)] * batches))


def tiny_learner(batches: int, options: Options) -> Learner:
    """Return a learner that trains a ``Linear(10, 1)`` on batches of four."""
    generator = torch.Generator().manual_seed(options.seed)
    x = torch.randn(batches, 4, 10, generator=generator)
    y = torch.randn(batches, 4, 1, generator=generator)
    torch.manual_seed(options.seed)
    model = nn.Linear(10, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    return Learner(model, opt, F.mse_loss, DataBunch(list(zip(x, y, strict=True))))


def idle_handlers(count: int) -> Handlers:
    """Return ``count`` functions that do nothing for every event of a batch."""
    return {event: distinct_functions(count) for event in EVENTS}


def subscribed(handlers: Handlers, run: Runner | None = None) -> Runner:
    """Subscribe the handlers to a run, by default a new one, and return it."""
    run = run or Runner()
    for event, functions in handlers.items():
        for function in functions:
            run.on(event, function)
    return run


def runner_loop(handlers: Handlers) -> Way:
    """Return the fit of one epoch by a ``Runner`` with these handlers."""
    return fit(subscribed(handlers))


def fit(run: Runner) -> Way:
    """Return the fit of one epoch by ``run``."""
    return lambda learn: run.fit(1, learn)


def written_loop(handlers: Handlers, *, in_a_for: bool = False) -> Way:
    """Write the loop of one epoch by hand, the handlers' calls inline or in ``for`` loops.

    Without handlers it is what a tutorial shows. With them it must be generated,
    as nobody writes seventy calls; everything it uses is a local variable.
    """

    def calls(event: str) -> list[str]:
        if in_a_for:
            return [f"for handler in {event}: handler(run)"]
        return [f"{event}_{i}(run)" for i, _ in enumerate(handlers[event])]

    names = list(handlers) if in_a_for else [
        f"{event}_{i}" for event in handlers for i, _ in enumerate(handlers[event])
    ]  # fmt: skip
    body = [
        *calls("begin_batch"), "pred = model(xb)",
        *calls("after_pred"), "loss = loss_func(pred, yb)",
        *calls("after_loss"), "loss.backward()",
        *calls("after_backward"), *calls("begin_step"), "opt.step()",
        *calls("after_step"), "opt.zero_grad()",
        *calls("after_batch"),
    ]  # fmt: skip
    values: Sequence[Any] = list(handlers.values())
    if not in_a_for:
        values = [function for functions in handlers.values() for function in functions]
    written = _compiled(
        ["    for xb, yb in train_dl:", *(f"        {line}" for line in body)], names
    )

    def way(learn: Learner) -> object:
        return written(learn.model, learn.loss_func, learn.opt, learn.data.train_dl, None, *values)

    return way


def _compiled(lines: list[str], names: Sequence[str]) -> Callable[..., object]:
    head = f"def fit(model, loss_func, opt, train_dl, run, {', '.join(names)}):"
    namespace: dict[str, Any] = {}
    exec("\n".join([head, *lines]), namespace)
    fit: Callable[..., object] = namespace["fit"]
    return fit
