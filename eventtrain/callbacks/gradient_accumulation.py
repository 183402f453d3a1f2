"""Adds up the gradients of several batches before each optimizer step."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import whole_number
from ..callback import Callback, handler
from ..data.batch import batch_size
from ..param_groups import gradients
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE, MOVE_DATA

if TYPE_CHECKING:
    from ..runner import Runner


class GradientAccumulation(Callback):
    """Takes one optimizer step for every ``n`` training batches.

    The step's gradient is that of the mean over all samples of the group: four
    batches of 16 give what one batch of 64 gives, to rounding. That holds for
    short groups and for batches of different sizes too, provided that the loss
    is a mean over its batch. (Batch normalization still sees small batches.)

    For the backward pass each loss is multiplied by its batch's share of the
    group, which is taken to be ``n`` batches as large as its first. Where the
    group turns out otherwise, its gradients are corrected at the step.
    Everybody else sees the loss as it is. In all other batches the ``step``
    scope is cancelled, with the reason ``"accumulating"``, in ``begin_step`` at
    ``MOVE_DATA``.

    The last group of an epoch is stepped at its end, however short it is: in
    the last batch where the number of batches is known, else in ``after_train``.
    If the training batches were cancelled, the group goes on in the next epoch.
    A batch that was cancelled before its backward pass does not count.

    Args:
        n: Batches in a group, at least 1.

    Raises:
        TypeError, ValueError: ``n`` is no whole number, or below 1.
    """

    counts_within_batch = True

    def __init__(self, n: int) -> None:
        self.n = whole_number("n", n, 1, "batches")
        self._true_loss: Tensor | None = None
        self._is_flushing = False
        self._opt: weakref.ref[Any] | None = None
        self._start_group()

    def _start_group(self) -> None:
        self._batches = 0
        self._samples = 0
        # The number of samples that the gradients so far have been divided by.
        self._divisor = 0

    @property
    def batches_per_step(self) -> int:
        """``n``, by which schedules that span the fit count its steps."""
        return self.n

    def begin_fit(self, run: Runner) -> None:
        """Drop what an earlier fit left of a group."""
        earlier = None if self._opt is None else self._opt()
        if self._batches and earlier is not None:
            earlier.zero_grad()
        self._opt = weakref.ref(run.opt)
        self._start_group()

    @handler(during="train", priority=AFTER_EVERYONE)
    def after_loss(self, run: Runner) -> None:
        """Weight the loss for the backward pass."""
        if self._batches and next(gradients(run), None) is None:
            self._start_group()  # somebody dropped them
        size = batch_size(run.batch)
        if not self._batches:
            self._divisor = self.n * size
        self._true_loss = run.loss
        run.loss = run.loss * (size / self._divisor)

    @handler(priority=BEFORE_EVERYONE)
    def after_backward(self, run: Runner) -> None:
        """Count the batch, and show the loss as it was."""
        if self._true_loss is not None:
            self._batches += 1
            self._samples += batch_size(run.batch)
        self.put_loss_back(run)

    @handler(event="after_batch", priority=BEFORE_EVERYONE)
    def put_loss_back(self, run: Runner) -> None:
        """Show the loss as it was, after a batch that had no backward pass too."""
        if self._true_loss is not None:
            run.loss, self._true_loss = self._true_loss, None

    @handler(priority=MOVE_DATA)
    def begin_step(self, run: Runner) -> None:
        """Step at the end of a group only, with gradients of its mean."""
        index = -1 if run.batch_index is None else run.batch_index
        is_last = self._is_flushing or index + 1 == run.iters
        if self._batches < self.n and not is_last:
            run.token.cancel("step", "accumulating")
        elif self._samples not in (0, self._divisor):
            if found := list(gradients(run)):
                torch._foreach_mul_(found, self._divisor / self._samples)
            # If somebody cancels this step, the group goes on from here.
            self._divisor = self._samples

    @handler(priority=BEFORE_EVERYONE)
    def after_step(self, run: Runner) -> None:
        """Start the next group."""
        self._start_group()

    def after_cancel_step(self, run: Runner) -> None:
        """Start a new group after an overflow, whose gradients a scaler drops."""
        # Where an optimizer fills gradients with zeros, nothing else tells.
        if run.token.absorbed is not None and run.token.absorbed.reason == "overflow":
            self._start_group()

    @handler(priority=MOVE_DATA)
    def after_train(self, run: Runner) -> None:
        """Step the last group, if it is waiting still."""
        if run.outcome != "completed" or not self._batches or next(gradients(run), None) is None:
            return
        self._is_flushing = True
        try:
            run.optimizer_step()
        finally:
            self._is_flushing = False

    def state_dict(self) -> dict[str, Any]:
        """Return where in its group the run stands; the gradients are the checkpoint's to keep."""
        return {"batches": self._batches, "samples": self._samples, "divisor": self._divisor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the middle of a group."""
        self._batches = state["batches"]
        self._samples = state["samples"]
        self._divisor = state["divisor"]
