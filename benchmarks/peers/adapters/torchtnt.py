"""TorchTNT."""

from __future__ import annotations

from typing import Any

from ..registry import peer
from ..work import Fit, Work

HOOKS = {"begin_batch": "on_train_step_start", "after_batch": "on_train_step_end"}


@peer("TorchTNT", package="torchtnt", hooks=HOOKS)
def prepare(work: Work) -> Fit:
    """``train`` with a ``TrainUnit`` whose step is one's own, without timer."""
    from torchtnt.framework.callback import Callback
    from torchtnt.framework.train import train
    from torchtnt.framework.unit import TrainUnit

    class Unit(TrainUnit):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.opt = work.model, work.opt

        def train_step(self, state: Any, data: Any) -> None:
            xb, yb = data
            loss = work.loss_func(self.model(xb), yb)
            loss.backward()
            self.opt.step()
            self.opt.zero_grad()

    unit = Unit()
    callbacks = work.callbacks(Callback, HOOKS.values())
    return lambda: train(unit, work.batches, max_epochs=1, callbacks=callbacks)
