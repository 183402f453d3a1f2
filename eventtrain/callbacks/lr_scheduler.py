"""torch's own learning-rate schedulers, stepped where they should be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from torch.optim import lr_scheduler as torch_schedulers

from .shared.schedulers import SchedulerCallback

if TYPE_CHECKING:
    from ..runner import Runner


class LRScheduler(SchedulerCallback):
    """Makes a ``torch.optim.lr_scheduler`` when the fit begins, and steps it.

    With ``step="batch"`` it is stepped after every step of the optimizer, and not
    where that was skipped. With ``step="epoch"`` it is stepped at the end of every epoch in which
    the optimizer took a step, unless the whole fit is being cancelled in the middle of it.
    Handlers of lower priority (reports, checkpoints) find the rate of the next step or epoch.

    The rates stay as they are when the fit ends. Each fit makes a new scheduler; where
    the rates are still those that this callback's last fit left, it begins with those
    that the last fit began with, else with those that it finds.

    Args:
        make: A function of the optimizer that returns the scheduler, for example
            ``lambda opt: CosineAnnealingLR(opt, 10)``.
        step: ``"batch"`` (default) or ``"epoch"``.

    Attributes:
        scheduler: torch's scheduler, of the current or the last fit; ``None`` before.

    Raises:
        TypeError: ``make`` cannot be called. In ``begin_fit``: it returned no scheduler, or a
            ``ReduceLROnPlateau``, which has a callback of its own.
        ValueError: ``step`` is something else.
    """

    def __init__(
        self, make: Callable[[Any], Any], step: Literal["batch", "epoch"] = "batch"
    ) -> None:
        super().__init__()
        if isinstance(make, torch_schedulers.LRScheduler):
            own = type(make).__name__
            raise TypeError(
                f"pass a function that makes the scheduler, for each fit makes a new one: "
                f"LRScheduler(lambda opt: {own}(opt, ...))"
            )
        if not callable(make):
            raise TypeError(f"make must be a function of the optimizer, got {make!r}")
        if step not in ("batch", "epoch"):
            raise ValueError(f"step must be 'batch' or 'epoch', got {step!r}")
        self.make = make
        self.step = step

    def make_for(self, run: Runner) -> Any:
        """Return what ``make`` makes of the optimizer."""
        scheduler = self.make(run.opt)
        if isinstance(scheduler, torch_schedulers.ReduceLROnPlateau):
            raise TypeError(
                "a ReduceLROnPlateau must be told a metric: use the callback ReduceLROnPlateau"
            )
        if not isinstance(scheduler, torch_schedulers.LRScheduler):
            raise TypeError(
                f"make must return a torch.optim.lr_scheduler.LRScheduler, got {scheduler!r}"
            )
        return scheduler

    def after_step(self, run: Runner) -> None:
        """Step the scheduler, if it goes by batches."""
        if self.step == "batch" and self.scheduler is not None:
            self.scheduler.step()

    def after_epoch(self, run: Runner) -> None:
        """Step the scheduler, if it goes by epochs and this one counts."""
        if self.step == "epoch" and self.epoch_counts(run):
            with warnings.catch_warnings():
                # The optimizer's steps of this epoch may lie before the checkpoint that the run
                # was resumed from, where torch does not see them.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self.scheduler.step()
