"""Other frameworks that train on several processes, each as it comes, and as it agrees to stop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ..peers.registry import Peer
from .work import Fit, Way, Work


def accelerate(work: Work) -> Fit:
    """``Accelerator`` around a loop of one's own."""
    return _accelerate(work, asks=False)


def accelerate_asking(work: Work) -> Fit:
    """The same, asking after every batch whether a rank has pulled the trigger."""
    return _accelerate(work, asks=True)


def _accelerate(work: Work, *, asks: bool) -> Fit:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, opt = accelerator.prepare(work.model, work.opt)

    def fit() -> None:
        for xb, yb in work.batches:
            loss = work.loss_func(model(xb), yb)
            accelerator.backward(loss)
            opt.step()
            opt.zero_grad()
            if asks and accelerator.check_trigger():
                break

    return fit


class Batches:
    """Ready batches; Lightning takes a plain list for one of many loaders."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def lightning(work: Work) -> Fit:
    """``Trainer`` without logger, checkpoints, progress bar and summary."""
    return _lightning(work)


def lightning_asking(work: Work) -> Fit:
    """The same with a ``Timer``, by which all stop when time is up on rank 0."""
    from lightning.pytorch.callbacks import Timer

    return _lightning(work, Timer("00:01:00:00", verbose=False))


def _lightning(work: Work, *callbacks: Any) -> Fit:
    from lightning.pytorch import LightningModule, Trainer

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
        strategy="ddp",
        devices=int(os.environ["WORLD_SIZE"]),
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module()
    return lambda: trainer.fit(module, Batches(work.batches))


def composer(work: Work) -> Fit:
    """``Trainer`` without algorithms, loggers, progress bar, checkpoints and evaluation."""
    os.environ.setdefault("NODE_RANK", "0")  # torchrun calls it otherwise
    from composer import ComposerModel, Trainer

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
    )
    return trainer.fit


def _peer(name: str, package: str) -> Peer:
    return Peer(name, package, {}, lambda work: lambda: None)


FRAMEWORKS: dict[str, tuple[Peer, dict[str, Way]]] = {
    "accelerate": (
        _peer("Accelerate", "accelerate"),
        {"Accelerate": accelerate, "Accelerate, check_trigger a batch": accelerate_asking},
    ),
    "composer": (_peer("Composer", "mosaicml"), {"Composer": composer}),
    "lightning": (
        _peer("Lightning", "lightning"),
        {"Lightning": lightning, "Lightning, Timer": lightning_asking},
    ),
}
"""By module: what it is, and its ways to train."""
