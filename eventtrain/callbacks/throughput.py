"""Samples and batches a second, and the share of the time spent waiting for data."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import whole_number
from ..callback import Callback, handler
from ..data.batch import model_device
from ..distributed.reductions import ONE_PROCESS
from ..errors import UncountableError
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE, METRICS

if TYPE_CHECKING:
    from ..runner import Runner


_CLOCK = (
    *("_seen", "_start", "_wait_start", "_waited", "_batches", "_samples", "_end"),
    *("_together", "_together_start"),
)


class Throughput(Callback):
    """Writes to ``run.history`` how fast an epoch went, training and validation apart.

    The keys are ``train_samples_per_second``, ``train_batches_per_second`` and
    ``train_data_share``, and the same with ``valid_``. The data's share is the part of
    the time that the loop waited for its next batch, in [0, 1]. Time stands for all
    that the loop and its handlers did between the first batch's loading and the last
    batch's end. On a CUDA device the host waits for it twice a phase, so that only
    finished work counts, and at no batch in between.

    Samples are what ``run.weight`` says: with ``Learner(..., weight=)`` they are what that
    counts, tokens for example. A phase of which no batch is left after ``skip`` writes
    nothing, and a batch that has nothing to count by leaves the samples out.

    On several processes samples are those of all, and the time is that of the one that took
    longest; all of it comes from one gather a phase. As they wait for each other in the backward
    pass, they take about as long. So ``train_slowest_rank`` is who has used most time outside of
    it, to load, to compute the loss, in handlers and steps; ``train_spread`` tells by how much of
    that the fastest was faster, in [0, 1]. With FSDP2 ranks wait in the forward pass too, and on
    a CUDA device the host alone is timed there: both show who is late with data, and hardly
    who computes slowly.

    Args:
        skip: Batches at the beginning of every phase that do not count (start of
            workers, compilation). Default 0.
    """

    priority = METRICS

    def __init__(self, skip: int = 0) -> None:
        self.skip = whole_number("skip", skip, 0)
        self._is_on = False
        self._phase: str | None = None
        self._paused: dict[str, Any] | None = None
        self._reset()

    def _reset(self) -> None:
        self._seen = 0
        self._start = self._wait_start = self._waited = 0.0
        self._batches = 0
        self._samples: Any = 0
        self._end = 0.0
        self._together = self._together_start = 0.0

    @handler(["begin_train", "begin_validate"], priority=AFTER_EVERYONE)
    def phase_starts(self, run: Runner) -> None:
        """Start the clock."""
        if run.in_interlude and self._is_on:
            now = time.perf_counter()
            self._paused = {"_paused_at": now, **{name: getattr(self, name) for name in _CLOCK}}
        self._reset()
        self._is_on, self._phase = True, run.phase
        _wait_for(model_device(run.model))
        self._start = self._wait_start = time.perf_counter()

    @handler("begin_batch", priority=BEFORE_EVERYONE)
    def data_ends(self, run: Runner) -> None:
        """Add up the wait for this batch, and its samples."""
        if not self._is_on:
            return
        self._waited += time.perf_counter() - self._wait_start
        self._batches += 1
        if self._samples is not None:
            try:
                self._samples = self._samples + run.weight  # a tensor may be the user's own
            except UncountableError:
                self._samples = None

    # Around those handlers of Distributed's in which a rank may wait for others.

    @handler("after_loss", during="train", priority=AFTER_EVERYONE + 2)
    def work_together_starts(self, run: Runner) -> None:
        """Note when this rank may have to wait for others."""
        if run.world.size > 1:
            self._together_start = time.perf_counter()

    @handler("after_backward", during="train", priority=BEFORE_EVERYONE)
    def work_together_ends(self, run: Runner) -> None:
        """Add up for how long it may have waited."""
        if run.world.size > 1:
            self._together += time.perf_counter() - self._together_start

    @handler("after_batch", priority=AFTER_EVERYONE)
    def data_starts(self, run: Runner) -> None:
        """Wait for the next batch; after the last one to skip, start over."""
        if not self._is_on:
            return
        self._seen += 1
        if self._seen == self.skip:
            seen = self._seen
            self._reset()
            self._seen = seen
            _wait_for(model_device(run.model))
            self._start = time.perf_counter()
        self._end = self._wait_start = time.perf_counter()

    @handler(["after_train", "after_validate"], priority=METRICS)
    def phase_ends(self, run: Runner) -> None:
        """Write the phase's rates to the epoch's row."""
        if not self._is_on or self._phase != run.phase:
            return
        self._is_on = False
        self._write(run)
        paused = self._paused
        if paused is not None and run.in_interlude:
            self._go_on(paused)

    def _go_on(self, paused: dict[str, Any]) -> None:
        """Let the clock of the training go on, which a validation between batches has stopped."""
        self._paused, self._is_on, self._phase = None, True, "train"
        lost = time.perf_counter() - paused.pop("_paused_at")
        for name, value in paused.items():
            setattr(self, name, value)
        for name in ("_start", "_wait_start", "_end", "_together_start"):
            setattr(self, name, getattr(self, name) + lost)

    def _write(self, run: Runner) -> None:
        if self._seen <= self.skip:
            return
        before = time.perf_counter()
        _wait_for(model_device(run.model))
        # Whatever the device still had to do belongs to the batches.
        seconds = max(self._end - self._start + time.perf_counter() - before, 1e-9)
        prefix = run.prefix
        row = run.history[-1]
        own = math.nan if self._samples is None else float(self._samples)
        world = ONE_PROCESS if run.outcome == "failed" else run.world  # others may not be here
        share, alone = min(self._waited / seconds, 1.0), max(seconds - self._together, 1e-9)
        samples, times, shares, alones = zip(
            *world.gather([own, seconds, share, alone]), strict=True
        )
        slowest = max(times)
        if not math.isnan(sum(samples)):
            row[f"{prefix}_samples_per_second"] = sum(samples) / slowest
        row[f"{prefix}_batches_per_second"] = self._batches / slowest
        row[f"{prefix}_data_share"] = max(shares)
        if world.size > 1:
            row[f"{prefix}_slowest_rank"] = alones.index(max(alones))
            row[f"{prefix}_spread"] = 1 - min(alones) / max(alones)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
