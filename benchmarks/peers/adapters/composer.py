"""Composer."""

from __future__ import annotations

from typing import Any

from ..registry import peer
from ..work import Fit, Work

HOOKS = {
    "begin_batch": "batch_start",
    "after_pred": "after_forward",
    "after_loss": "after_loss",
    "after_backward": "after_backward",
    "after_batch": "batch_end",
}


@peer("Composer", package="mosaicml", hooks=HOOKS)
def prepare(work: Work) -> Fit:
    """``Trainer`` without algorithms, loggers, progress bar, checkpoints and evaluation.

    Its count of time, samples and tokens, and ``loss.item()`` once a batch, stay.
    """
    from composer import Callback, ComposerModel, Trainer

    class Model(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.model = work.model

        def forward(self, batch: Any) -> Any:
            return self.model(batch[0])

        def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            return work.loss_func(outputs, batch[1])

    trainer = Trainer(
        model=Model(),
        train_dataloader=work.batches,
        optimizers=work.opt,
        max_duration="1ep",
        device="cpu",
        device_train_microbatch_size=len(work.batches[0][0]),
        progress_bar=False,
        callbacks=work.callbacks(Callback, HOOKS.values()),
    )
    return trainer.fit
