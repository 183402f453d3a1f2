"""Ends a fit whose loss has become infinite or NaN."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import whole_number
from ..callback import Callback, handler
from ..priorities import BEFORE_EVERYONE, METRICS

if TYPE_CHECKING:
    from ..runner import Runner


class TerminateOnNaN(Callback):
    """Cancels the fit when a training loss was not finite.

    Whether each loss was finite is noted on the device. The note is read, which
    makes the host wait once, every ``every`` training batches and when the
    training batches of an epoch have ended. At a batch where it is read, a bad
    loss ends the fit before its backward pass. On several processes a bad loss in one of them ends
    the fit in all, at the same batch, and the reason names its rank.

    Args:
        every: Training batches between two looks, at least 1. With 1 the host
            waits in every batch, and no bad loss reaches the weights.

    Raises:
        TypeError, ValueError: ``every`` is no whole number, or below 1.
    """

    priority = METRICS

    def __init__(self, every: int = 50) -> None:
        self.every = whole_number("every", every, 1, "batches")
        self._start_over()

    @cached_property
    def name(self) -> str:
        """``"terminate_on_nan"``."""
        return "terminate_on_nan"

    def _start_over(self) -> None:
        self._bad: Tensor | None = None  # in how many batches since the last look
        self._first = 0
        self._last = 0
        self._seen = 0

    def begin_fit(self, run: Runner) -> None:
        """Start over."""
        self._start_over()

    @handler(during="train")
    def after_loss(self, run: Runner) -> None:
        """Note whether the loss is finite, and look at the notes when it is time."""
        if not isinstance(run.loss, torch.Tensor):
            return  # backward will say what is wrong with it
        bad = torch.isfinite(run.loss.detach()).all().logical_not().int()
        self._bad = bad if self._bad is None else bad + self._bad.to(bad.device)
        self._last = run.batch_index or 0
        if self._seen == 0:
            self._first = self._last
        self._seen += 1
        if self._seen >= self.every:
            self._look(run)

    @handler(priority=BEFORE_EVERYONE)
    def after_train(self, run: Runner) -> None:
        """Look at the notes of the last batches."""
        if run.outcome != "failed":
            self._look(run)

    def _look(self, run: Runner) -> None:
        bad, first, last = self._bad, self._first, self._last
        self._start_over()
        if bad is None:
            return
        counts = [count for (count,) in run.world.gather([float(bad)])]
        if not any(counts):
            return
        where = f"batch {last}" if first == last else f"one of the batches {first} to {last}"
        reason = f"the loss was not finite in {where} of epoch {run.epoch}"
        if run.world.size > 1:
            # Weights that have become NaN by one's gradients make the later losses of all so.
            first_ones = [rank for rank, count in enumerate(counts) if count == max(counts)]
            reason += f" on rank{'s' if len(first_ones) > 1 else ''} {str(first_ones)[1:-1]}"
        run.token.cancel("fit", reason, everywhere=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what was noted since the last look."""
        return {
            "is_bad": self._bad is not None and bool(self._bad),
            "first": self._first,
            "last": self._last,
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self._first, self._last, self._seen = state["first"], state["last"], state["seen"]
        self._bad = torch.tensor(int(state["is_bad"])) if self._seen else None
