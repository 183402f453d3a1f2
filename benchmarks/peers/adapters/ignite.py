"""PyTorch-Ignite."""

from __future__ import annotations

from typing import Any

from ..registry import peer
from ..work import Fit, Work

HOOKS = {"begin_batch": "ITERATION_STARTED", "after_batch": "ITERATION_COMPLETED"}


@peer("Ignite", package="pytorch-ignite", hooks=HOOKS)
def prepare(work: Work) -> Fit:
    """A bare ``Engine`` around a step of one's own, without metrics or handlers."""
    from ignite.engine import Engine, Events

    model, loss_func, opt = work.model, work.loss_func, work.opt

    def step(engine: Any, batch: Any) -> None:
        xb, yb = batch
        loss = loss_func(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()

    engine = Engine(step)
    for hook in HOOKS.values():
        for function in work.functions(hook, "engine"):
            engine.add_event_handler(Events[hook], function)
    return lambda: engine.run(work.batches, max_epochs=1)
