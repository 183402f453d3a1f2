"""Gradients of the mean over the whole batch, whatever the shares of the processes weigh."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .reductions import ONE_PROCESS, OneProcess


class GlobalMean:
    """Multiplies the loss for the backward pass, such that averaged gradients are of the mean.

    Engines average gradients over processes: that is the mean over all samples only where all
    shares weigh the same. Where they do not (a short last batch, a batch size that the processes
    do not divide, a weight of the user's own), each loss is multiplied by its share of the whole.

    A run calls ``begin_batch`` before the forward pass, ``weight_loss`` when everybody has seen the
    loss and before anybody else changes it, and ``put_loss_back`` after all others have.

    Args:
        world: The processes; by default this one alone, whose loss is left as it is.
    """

    def __init__(self, world: OneProcess = ONE_PROCESS) -> None:
        self._world = world
        self._true_loss: Tensor | None = None

    def begin_batch(self, run: Any) -> None:
        """Ask for the whole weight, if it is needed."""
        self._true_loss = None
        self._world.begin_batch(run)

    def weight_loss(self, run: Any) -> None:
        """Weight the loss of a training batch; all others see it as it is."""
        if not (run.in_train and isinstance(run.loss, Tensor) and run.loss.requires_grad):
            return
        share = self._world.share_of_mean(run)
        if not isinstance(share, Tensor) and share == 1:
            return
        self._true_loss = loss = run.loss
        if isinstance(share, Tensor):
            # A float64 scalar would make a float64 loss of a float32 one.
            kind = torch.promote_types(loss.dtype, torch.float32)
            share = share.to(loss.device, kind, non_blocking=True)
            # A mean over nothing is NaN, as are its gradients, and counts for nothing.
            is_empty = share == 0
            run.loss = torch.where(is_empty, 0.0, loss) * share
            for pred in _tensors(run.pred):
                if pred.requires_grad:
                    pred.register_hook(_zero_where(is_empty))  # type: ignore[no-untyped-call]
        else:
            run.loss = loss * share

    def put_loss_back(self, run: Any) -> None:
        """Show the loss as it was."""
        if self._true_loss is not None:
            run.loss, self._true_loss = self._true_loss, None


def _tensors(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, (Mapping, list, tuple)):
        for inner in part.values() if isinstance(part, Mapping) else part:
            yield from _tensors(inner)


def _zero_where(is_empty: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: torch.where(is_empty.to(gradient.device), 0.0, gradient)
