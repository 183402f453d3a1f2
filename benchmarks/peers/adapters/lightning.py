"""Lightning, as it comes and in its barebones mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..registry import peer
from ..work import Fit, Work

HOOKS = {
    "begin_batch": "on_train_batch_start",
    "after_loss": "on_before_backward",
    "after_backward": "on_after_backward",
    "after_batch": "on_train_batch_end",
}


class Batches:
    """Ready batches; Lightning takes a plain list for one of many loaders."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@peer("Lightning", package="lightning", hooks=HOOKS)
def prepare(work: Work) -> Fit:
    """Automatic optimization, without logger, checkpoints, progress bar and summary."""
    return _fit(
        work,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@peer("Lightning barebones", package="lightning", hooks=HOOKS)
def prepare_barebones(work: Work) -> Fit:
    """``Trainer(barebones=True)``, which switches off what can cost speed."""
    return _fit(work, barebones=True)


def _fit(work: Work, **options: Any) -> Fit:
    from lightning.pytorch import Callback, LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = work.model

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            xb, yb = batch
            return work.loss_func(self.model(xb), yb)

        def configure_optimizers(self) -> Any:
            return work.opt

    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        callbacks=work.callbacks(Callback, HOOKS.values()),
        **options,
    )
    module = Module()
    return lambda: trainer.fit(module, Batches(work.batches))
