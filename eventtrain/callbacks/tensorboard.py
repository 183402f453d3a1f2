"""Losses, learning rates and metrics for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..arguments import absolute_path, flag, whole_number
from ..callback import handler
from ..priorities import METRICS, REPORTS
from .shared.extras import import_extra
from .shared.readings import (
    batch_weight,
    detached_mean,
    labelled_hyperparameters,
    last_over_processes,
    numbers_of,
    plain_row,
    to_host,
)
from .shared.row_ends import RowCallback

if TYPE_CHECKING:
    from ..runner import Runner


class TensorBoard(RowCallback):
    """Writes a fit to a folder that TensorBoard shows.

    Every N-th training batch gives ``batch/loss`` and ``batch/lr`` (``batch/lr/0``,
    ``batch/lr/1``, ... where there are several parameter groups). They stay on their
    device until the epoch ends, and are then read in one transfer and written with
    the step numbers they belong to. Every epoch gives the numbers in its row of
    ``run.history``, with the prefix ``epoch/``; in a fit with ``validate_every`` every validation
    does, with the prefix ``row/``.

    On several processes rank 0 alone writes, and losses are those of all of them; ``live`` has them
    exchanged every ``every`` batches.

    Steps count training batches from 0 over all fits of this object; an epoch stands
    at its last batch. A run that resumes marks what lies beyond the checkpoint as
    void, so that TensorBoard does not draw it twice.

    Args:
        logdir: The folder; made if need be.
        every: Training batches from one loss to the next, 50 by default.
        live: Write each loss at once. The host then waits for the device every
            ``every`` batches. Default ``False``.
        hparams: Hyperparameters by name, written with the last epoch's metrics when
            the fit ends. None by default.
        text: Texts by name, written when the fit begins. None by default.
        flush_secs: Seconds after which what was written is on disk, 120 by default.
            All of it is when an epoch ends.

    Attributes:
        writer: The ``torch.utils.tensorboard.SummaryWriter`` during a fit, else
            ``None``; handlers of yours may write with it.
        step: The step of the next training batch.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
        ModuleNotFoundError: tensorboard is missing.
        OSError: When a fit begins: the folder cannot be written to.
    """

    held_in_run = ("writer",)
    priority = REPORTS
    ranks = "zero"

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        every: int = 50,
        live: bool = False,
        hparams: Mapping[str, Any] | None = None,
        text: Mapping[str, str] | None = None,
        flush_secs: int = 120,
    ) -> None:
        self.logdir = absolute_path("logdir", logdir)
        self.every = whole_number("every", every, 1)
        self.live = flag("live", live)
        for name, value in (("hparams", hparams), ("text", text)):
            if value is not None and not isinstance(value, Mapping):
                raise TypeError(f"{name} must be a mapping of names to values, got {value!r}")
        self.hparams = dict(hparams or {})
        self.text = dict(text or {})
        self._flush_secs = whole_number("flush_secs", flush_secs, 1)
        self._writer_class = import_extra(
            "torch.utils.tensorboard", user="TensorBoard"
        ).SummaryWriter
        self.writer: Any = None
        self.step = 0
        # (step, loss, learning rates) of batches, on the device until they are written.
        self._new: list[tuple[int, Any, dict[str, Any]]] = []
        self._weights: list[Any] = []  # of those losses that are yet to be shared

    @handler("begin_fit", priority=METRICS, ranks="all")
    def forget(self, run: Runner) -> None:
        """Drop what an earlier fit has not written."""
        self._new, self._weights = [], []

    def begin_fit(self, run: Runner) -> None:
        """Open the writer."""
        self._open(None)
        for name, text in self.text.items():
            self.writer.add_text(name, text, self.step)

    def _open(self, purge_step: int | None) -> None:
        self._close()
        self.writer = self._writer_class(
            self.logdir, purge_step=purge_step, flush_secs=self._flush_secs
        )

    @handler(during="train", priority=METRICS, ranks="all")
    def after_loss(self, run: Runner) -> None:
        """Keep the loss of every N-th batch, or write it where it is to be live."""
        if self.step % self.every == 0:
            self._new.append(
                (self.step, detached_mean(run.loss), labelled_hyperparameters(run.opt, "lr"))
            )
            self._weights.append(batch_weight(run))
            if self.live:
                self.share(run)
                self._write_batches()

    @handler("after_train", priority=METRICS, ranks="all")
    def share(self, run: Runner) -> None:
        """Have the losses be those of all processes; those that do not write forget them."""
        shared = last_over_processes([loss for _, loss, _ in self._new], self._weights, run)
        first = len(self._new) - len(shared)
        rows = zip(self._new[first:], shared, strict=True)
        self._new[first:] = [(step, loss, rates) for (step, _, rates), loss in rows]
        if not self.runs_here:
            self._new = []

    @handler("after_row", priority=METRICS, ranks="all")
    def share_at_row(self, run: Runner) -> None:
        """Have those losses be of all processes that are written with a validation's row."""
        if run.validate_every is not None:
            self.share(run)

    @handler(during="train", ranks="all")
    def after_batch(self, run: Runner) -> None:
        """Count the batch."""
        self.step += 1

    def end_row(self, run: Runner) -> None:
        """Write the batches so far and the row, and flush."""
        if self.writer is None:
            return
        self._write_batches()
        is_by_steps = run.validate_every is not None
        kind = "row" if is_by_steps else "epoch"
        for name, value in numbers_of(run.history[-1], is_by_steps=is_by_steps).items():
            self.writer.add_scalar(f"{kind}/{name}", value, max(self.step - 1, 0))
        self.writer.flush()

    def _write_batches(self) -> None:
        if self.writer is None:
            return
        for step, loss, rates in to_host(self._new):
            self.writer.add_scalar("batch/loss", loss, step)
            for label, rate in rates.items():
                if rate is not None:
                    self.writer.add_scalar(f"batch/lr/{label}".rstrip("/"), rate, step)
        self._new = []

    def after_fit(self, run: Runner) -> None:
        """Write the hyperparameters, and close the writer whatever has happened."""
        try:
            if self.writer is not None and self.hparams:
                rows, is_by_steps = run.history, run.validate_every is not None
                if is_by_steps:  # the last one may be still to be filled in
                    rows = [row for row in rows if "step" in row]
                row = numbers_of(rows[-1], is_by_steps=is_by_steps) if rows else {}
                metrics = {f"hparam/{name}": value for name, value in row.items()}
                values = plain_row(self.hparams)
                # In this folder, not in one of its own that shows up as another run.
                self.writer.add_hparams(values, metrics, run_name=".")
        finally:
            self._close()

    def _close(self) -> None:
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the step, and what waits to be written."""
        new = [[step, loss, dict(rates)] for step, loss, rates in to_host(self._new)]
        return {"step": self.step, "new": new}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; what the folder holds beyond it counts no more."""
        self.step, self._weights = state["step"], []
        self._new = [(step, loss, _by_label(rates)) for step, loss, rates in state["new"]]
        if self.writer is not None:
            # What waited then may have been written by the run that went on.
            self._open(min([self.step, *(step for step, _, _ in self._new)]))


def _by_label(rates: Any) -> dict[str, Any]:
    """Return rates by their labels; earlier states have a list of them."""
    if isinstance(rates, Mapping):
        return dict(rates)
    return {"" if len(rates) == 1 else str(index): rate for index, rate in enumerate(rates)}
