"""The Trainer of Hugging Face's transformers."""

from __future__ import annotations

import tempfile
from typing import Any

from ..registry import peer
from ..work import Fit, Work

HOOKS = {
    "begin_batch": "on_step_begin",
    "after_backward": "on_pre_optimizer_step",
    "after_step": "on_optimizer_step",
    "after_batch": "on_step_end",
}


@peer("HF Trainer", package="transformers", hooks=HOOKS)
def prepare(work: Work) -> Fit:
    """``Trainer`` without logging, saving, evaluation, clipping and the filter of its loss.

    Its learning rate schedule, here a constant, its sum of the losses and its norm of
    the gradient have no switch and stay.
    """
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Ready(Trainer):
        def get_train_dataloader(self) -> Any:
            return work.batches

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            xb, yb = inputs
            return work.loss_func(model(xb), yb)

    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is written there
        num_train_epochs=1,
        per_device_train_batch_size=4,
        max_grad_norm=0,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
    )
    trainer = Ready(
        work.model,
        arguments,
        callbacks=work.callbacks(TrainerCallback, HOOKS.values()),
        optimizers=(work.opt, LambdaLR(work.opt, lambda _: 1.0)),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer.train
