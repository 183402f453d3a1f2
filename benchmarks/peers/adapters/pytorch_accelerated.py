"""pytorch-accelerated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ..registry import peer
from ..work import Fit, Work

HOOKS = {"begin_batch": "on_train_step_start", "after_batch": "on_train_step_end"}


class Batches(list[Any]):
    """Ready batches; the trainer sets an attribute of its loader's batch sampler."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__(batches)
        self.batch_sampler = SimpleNamespace()


@peer("pytorch-accelerated", package="pytorch-accelerated", hooks=HOOKS)
def prepare(work: Work) -> Fit:
    """``Trainer`` with no callbacks of its own, no evaluation, no scheduler.

    Its average of the losses is part of its loop and stays.
    """
    from pytorch_accelerated import Trainer
    from pytorch_accelerated.callbacks import TrainerCallback

    class Ready(Trainer):
        def create_train_dataloader(self, *args: Any, **kwargs: Any) -> Any:
            return Batches(work.batches)

    trainer = Ready(
        work.model,
        work.loss_func,
        work.opt,
        callbacks=work.callbacks(TrainerCallback, HOOKS.values()),
    )
    return lambda: trainer.train(work.batches, num_epochs=1)
