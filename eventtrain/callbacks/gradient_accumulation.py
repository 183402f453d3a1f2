"""Adds up the gradients of several batches before each optimizer step."""

from __future__ import annotations

import weakref
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import whole_number
from ..callback import Callback, handler
from ..data.lengths import has_exact_length
from ..param_groups import gradients, refuse_closure, refuse_several, trained_parameters
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE, MOVE_DATA

if TYPE_CHECKING:
    from ..runner import Runner

_SEVERAL = (
    "it weights run.loss, and each of them may have a loss of its own. In one_batch, divide each "
    "loss by n, and call self.optimizer_step(name) where (self.n_iter + 1) % n == 0"
)
_CLOSURE = (
    "it would see the last batch of the group alone in all but the first. Give it batches that are "
    "n times as large"
)


class GradientAccumulation(Callback):
    """Takes one optimizer step for every ``n`` training batches.

    The step's gradient is that of the mean over all samples of the group: four
    batches of 16 give what one batch of 64 gives, to rounding. That holds for
    short groups and for batches of different sizes too, provided that the loss
    is a mean over its batch. What it is a mean of is ``run.weight``: samples, or what
    ``Learner(..., weight=)`` counts. (Batch normalization still sees small batches.)

    For the backward pass each loss is multiplied by its batch's share of the
    group, which is taken to be ``n`` batches as large as its first. Where the
    group turns out otherwise, its gradients are corrected at the step.
    Everybody else sees the loss as it is. In all other batches the ``step``
    scope is cancelled, with the reason ``"accumulating"``, in ``begin_step`` at
    ``MOVE_DATA``.

    The last group of an epoch is stepped at its end, however short it is: in the last
    batch where the number of batches is certain (``TensorLoader``, a list, a ``DataLoader``
    with torch's samplers), else, as a length may be an estimate, in ``after_train``.
    If the training batches were cancelled, the group goes on in the next epoch.
    A batch that was cancelled before its backward pass does not count.

    On several processes a batch is the one over all of them, and so is the mean. Where the number
    of batches is certain, gradients are shared in the last batch of a group alone.

    Args:
        n: Batches in a group, at least 1.

    Raises:
        TypeError, ValueError: ``n`` is no whole number, or below 1.
        TypeError: In ``begin_fit``: there are several optimizers, or one with a closure.
    """

    counts_within_batch = True

    def __init__(self, n: int) -> None:
        self.n = whole_number("n", n, 1, "batches")
        self._true_loss: Tensor | None = None
        self._has_passed = False  # a backward pass, through the loss that was weighted
        self._awaits_step = False
        self._is_flushing = False
        self._knows_end = False
        self._are_to_be_shared = self._are_shared = True  # gradients, with other processes
        self._opt: weakref.ref[Any] | None = None
        self._start_group()

    def _start_group(self) -> None:
        self._batches = 0
        # Numbers, or tensors where the learner's weight is one.
        self._samples: Any = 0
        # The number of samples that the gradients so far have been divided by.
        self._divisor: Any = 0

    @property
    def batches_per_step(self) -> int:
        """``n``, by which schedules that span the fit count its steps."""
        return self.n

    def begin_fit(self, run: Runner) -> None:
        """Drop what an earlier fit left of a group."""
        refuse_several(run, "GradientAccumulation", _SEVERAL)
        refuse_closure(run, "GradientAccumulation", _CLOSURE)
        earlier = None if self._opt is None else self._opt()
        if self._batches and earlier is not None:
            earlier.zero_grad()
        self._opt = weakref.ref(run.opt)
        self._awaits_step = False
        self._start_group()

    @handler(priority=BEFORE_EVERYONE)
    def begin_train(self, run: Runner) -> None:
        """See whether the last batch will be known, before anybody wraps the loader."""
        self._knows_end = has_exact_length(run.data.train_dl)
        run.world.weigh_every_batch()

    @handler(during="train", priority=AFTER_EVERYONE)
    def begin_batch(self, run: Runner) -> None:
        """Share the gradients of this batch with other processes if a step will follow."""
        will_step = self._batches + 1 >= self.n or not self._knows_end or self._is_last(run)
        self._are_to_be_shared = will_step
        run.world.gradient_sync.set(will_step)

    def _is_last(self, run: Runner) -> bool:
        index = -1 if run.batch_index is None else run.batch_index
        return self._knows_end and index + 1 == run.iters

    @handler(during="train", priority=AFTER_EVERYONE)
    def after_loss(self, run: Runner) -> None:
        """Weight the loss for the backward pass."""
        if self._batches and self._have_been_dropped(run):
            self._start_group()
        if not isinstance(run.loss, Tensor) or not run.loss.requires_grad:
            return  # backward will say what is wrong with it
        weight = run.world.whole_weight_of(run)
        if not self._batches:
            self._divisor = self.n * _or_one(weight)
        self._true_loss = run.loss
        run.loss = weighted = _scaled(run.loss, weight / self._divisor)
        self._has_passed = False
        weighted.register_hook(self._note_pass)

    def _note_pass(self, gradient: Tensor) -> None:
        self._has_passed = True

    def _have_been_dropped(self, run: Runner) -> bool:
        """Whether somebody has zeroed the gradients of the group, as far as that can be seen."""
        is_elsewhere = not self._are_shared and run.world.gradient_sync.keeps_apart()
        return not is_elsewhere and next(gradients(run), None) is None

    @handler(priority=BEFORE_EVERYONE)
    def after_backward(self, run: Runner) -> None:
        """Count the batch, and show the loss as it was.

        Raises:
            RuntimeError: The backward pass was that of another loss.
        """
        if self._true_loss is not None:
            if not self._has_passed:
                raise RuntimeError(
                    "GradientAccumulation has weighted run.loss for the backward pass, which was "
                    "made of another loss: in one_batch, read it anew behind after_loss, "
                    "self.loss.backward()"
                )
            self._awaits_step = True
            self._batches += 1
            self._are_shared = self._are_to_be_shared
            # A tensor may be the user's own.
            self._samples = self._samples + run.world.whole_weight_of(run)
        self.put_loss_back(run)

    @handler(priority=BEFORE_EVERYONE)
    def after_batch(self, run: Runner) -> None:
        """Show the loss as it was, after a batch that had no backward pass too.

        Raises:
            RuntimeError: Nobody asked whether it is time to step.
        """
        self.put_loss_back(run)
        awaits_step, self._awaits_step = self._awaits_step, False
        if awaits_step and run.outcome == "completed":
            raise RuntimeError(
                "GradientAccumulation decides in begin_step whether it is time to step, and the "
                "batch went without: have one_batch call self.optimizer_step() after each backward "
                "pass, and never opt.step()"
            )

    def put_loss_back(self, run: Runner) -> None:
        """Show the loss as it was."""
        if self._true_loss is not None:
            run.loss, self._true_loss = self._true_loss, None

    @handler(priority=MOVE_DATA)
    def begin_step(self, run: Runner) -> None:
        """Step at the end of a group only, with gradients of its mean."""
        self._awaits_step = False
        if self._batches < self.n and not (self._is_flushing or self._is_last(run)):
            run.token.cancel("step", "accumulating")
        else:
            self._correct(run)

    def _correct(self, run: Runner) -> None:
        """Have the gradients divided by what the group has turned out to hold."""
        samples = self._samples
        # Two tensors are not compared: the host would wait for the answer.
        if not isinstance(samples, Tensor) and samples in (0, self._divisor):
            return
        samples = _or_one(samples)
        by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
        for gradient in gradients(run):
            by_device[gradient.device].append(gradient)
        factor = self._divisor / samples
        for device, found in by_device.items():
            here = factor.to(device, non_blocking=True) if isinstance(factor, Tensor) else factor
            torch._foreach_mul_(found, here)
        # If somebody cancels this step, the group goes on from here.
        self._divisor = samples

    @handler(priority=BEFORE_EVERYONE)
    def after_step(self, run: Runner) -> None:
        """Start the next group."""
        self._start_group()

    def after_cancel_step(self, run: Runner) -> None:
        """Start a new group after an overflow, whose gradients a scaler drops."""
        self._awaits_step = False  # somebody else was asked first
        # Where an optimizer fills gradients with zeros, nothing else tells.
        if run.token.absorbed is not None and run.token.absorbed.reason == "overflow":
            self._start_group()

    @handler(priority=MOVE_DATA)
    def after_train(self, run: Runner) -> None:
        """Step the last group, if it is waiting still."""
        if run.outcome != "completed" or not self._batches or self._have_been_dropped(run):
            return
        self._is_flushing = True
        try:
            if not self._are_shared:
                run.world.gradient_sync.share(trained_parameters(run))
            run.optimizer_step()
        finally:
            self._is_flushing = False

    @handler(priority=BEFORE_EVERYONE)
    def after_fit(self, run: Runner) -> None:
        """Have whoever comes next share the gradients of every batch."""
        run.world.gradient_sync.set(True)

    def state_dict(self) -> dict[str, Any]:
        """Return where in its group the run stands; the gradients are the checkpoint's to keep."""
        counted = {"batches": self._batches, "samples": self._samples, "divisor": self._divisor}
        return {**counted, "shared": self._are_shared}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the middle of a group."""
        self._batches = state["batches"]
        self._samples = state["samples"]
        self._divisor = state["divisor"]
        self._are_shared = state.get("shared", True)  # earlier formats lack it


def _or_one(count: Any) -> Any:
    """Return a count to divide by; 1 for 0, where there is nothing to be divided."""
    if isinstance(count, Tensor):
        return torch.where(count == 0, 1.0, count)
    return count or 1


def _scaled(loss: Tensor, share: Any) -> Any:
    if isinstance(share, Tensor):
        # A float64 scalar would make a float64 loss of a float32 one.
        share = share.to(loss.device, torch.promote_types(loss.dtype, torch.float32), True)
    return loss * share
