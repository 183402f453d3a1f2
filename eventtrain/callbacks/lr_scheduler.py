"""Learning-rate schedulers of torch and of timm, stepped where they should be."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch.optim import lr_scheduler as torch_schedulers

from ..arguments import takes_one_argument
from .shared.counted_scheduler import CountedScheduler, is_told
from .shared.fit_length import fit_length
from .shared.scheduler_spans import end_of, shadow_of, spans_in, spans_of
from .shared.schedulers import SchedulerCallback, kind_of

if TYPE_CHECKING:
    from ..runner import Runner
    from ..state import RunState


class LRScheduler(SchedulerCallback):
    """Makes a ``torch.optim.lr_scheduler`` when the fit begins, and steps it.

    With ``step="batch"`` it is stepped after every step of the optimizer, and not
    where that was skipped. With ``step="epoch"`` it is stepped at the end of every epoch in which
    the optimizer took a step, unless the whole fit is being cancelled in the middle of it.
    Handlers of lower priority (reports, checkpoints) find the rate of the next step or epoch.

    The rates stay as they are when the fit ends. Each fit makes a new scheduler; where
    the rates are still those that this callback's last fit left, it begins with those
    that the last fit began with, else with those that it finds.

    How long a scheduler is, is what ``make`` says: torch's own are told a number of steps or
    epochs. A checkpoint has the one of the fit that was saved.

    timm's schedulers are told a number: here that of the optimizer's steps in this fit, or of the
    epochs that counted. What they were made for, ``t_in_epochs``, must be what ``step`` says.

    A parameter group that is added during the fit takes part from the next step of the scheduler
    on: the rate that it has is its base rate.

    Args:
        make: A function of the optimizer that returns the scheduler, for example
            ``lambda opt: CosineAnnealingLR(opt, 10)``; one of ``torch.optim.lr_scheduler`` or of
            ``timm.scheduler``.
        step: ``"batch"`` (default) or ``"epoch"``.
        optimizer: Which of several optimizers, ``"g"`` say: with ``step="batch"`` its own steps
            count. Default ``None``, for the one that there is.

    Attributes:
        scheduler: torch's scheduler, of the current or the last fit; ``None`` before. Of timm's,
            what counts for it, and has it as ``scheduler``.

    Raises:
        TypeError: ``make`` cannot be called. In ``begin_fit``: it returned no scheduler, or a
            ``ReduceLROnPlateau``, which has a callback of its own.
        ValueError: ``step`` is something else. In ``begin_fit``: a scheduler of timm's goes by
            epochs and ``step`` by batches, or the reverse. After a step: a group was added, and the
            scheduler has settings for each group.
        CheckpointError: A fit is resumed whose scheduler was of another length, or a
            ``OneCycleLR`` that ends before the fit does.
    """

    def __init__(
        self,
        make: Callable[[Any], Any],
        step: Literal["batch", "epoch"] = "batch",
        *,
        optimizer: str | None = None,
    ) -> None:
        super().__init__(optimizer)
        if isinstance(make, torch_schedulers.LRScheduler) or is_told(make):
            own = type(make).__name__
            raise TypeError(
                f"pass a function that makes the scheduler, for each fit makes a new one: "
                f"LRScheduler(lambda opt: {own}(opt, ...))"
            )
        if not callable(make):
            raise TypeError(f"make must be a function of the optimizer, got {make!r}")
        if isinstance(make, type) and not takes_one_argument(make):
            raise TypeError(
                f"{make.__name__} takes more than the optimizer: "
                f"LRScheduler(lambda opt: {make.__name__}(opt, ...))"
            )
        if step not in ("batch", "epoch"):
            raise ValueError(f"step must be 'batch' or 'epoch', got {step!r}")
        self.make = make
        self.step = step
        self._steps_in_fit: int | None = None

    def make_for(self, run: Runner) -> Any:
        """Return what ``make`` makes of the optimizer."""
        self._steps_in_fit = self._length_of(run)
        return self._made_of(self.opt_of(run))

    def _made_of(self, opt: Any) -> Any:
        scheduler = self.make(opt)
        if is_told(scheduler):
            return CountedScheduler(scheduler, self.step)
        if isinstance(scheduler, torch_schedulers.ReduceLROnPlateau):
            raise TypeError(
                "a ReduceLROnPlateau must be told a metric: use the callback ReduceLROnPlateau"
            )
        if not isinstance(scheduler, torch_schedulers.LRScheduler):
            raise TypeError(
                "make must return a torch.optim.lr_scheduler.LRScheduler, or a scheduler of "
                f"timm's, got {scheduler!r}: one of another kind is stepped by a handler, "
                "run.on('after_step', lambda run: scheduler.step()), say"
            )
        return scheduler

    def after_step(self, run: Runner) -> None:
        """Step the scheduler, if it goes by batches."""
        if self.step == "batch" and self.scheduler is not None and self.is_stepped_in(run):
            self.advance()

    def after_epoch(self, run: Runner) -> None:
        """Step the scheduler, if it goes by epochs and this one counts."""
        if self.step == "epoch" and self.epoch_counts(run):
            with warnings.catch_warnings():
                # The optimizer's steps of this epoch may lie before the checkpoint that the run
                # was resumed from, where torch does not see them.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self.advance()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, the rates that the fit began with, and its length."""
        state = super().state_dict()
        return {**state, "fit": self._steps_in_fit} if state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned.

        Raises:
            ValueError: There is no scheduler yet: it is made in ``begin_fit``.

        Warns:
            RuntimeWarning: The fit is longer than the one that was saved, and the schedule ends
                before it does.
        """
        super().load_state_dict(state)
        now, end = self._steps_in_fit, None if not state else end_of(state["scheduler"])
        if end is not None and now is not None and now > max(state.get("fit") or now, end):
            warnings.warn(
                f"{kind_of(self.scheduler)} ends after {end} steps of its own, and this fit, "
                f"which had {state['fit']} when it was saved, has {now} of them: what it does "
                "from there on is its own rule for the time after the end. For another schedule "
                'begin a new fit with the weights in load_checkpoint(...)["model"]',
                RuntimeWarning,
                stacklevel=2,
            )

    def why_not_load(self, state: Mapping[str, Any], run: RunState) -> str | None:
        """Say where the scheduler is laid out otherwise than the one that was saved."""
        saved, own = state["scheduler"], spans_of(self._made_of(shadow_of(self.opt_of(run))))
        before = spans_in(saved)
        if before != own:
            return (
                f"LRScheduler makes a scheduler with {own}, and that of the fit had {before}, "
                "which would replace it. Make it as it was made there, or begin a new fit with the "
                'weights in load_checkpoint(...)["model"]'
            )
        total, now = saved.get("total_steps"), self._length_of(run)
        if total is None or now is None or now <= total:
            return None
        return (
            f"its OneCycleLR ends after {total} steps, and this fit has {now}, of which torch "
            "refuses the rest. Resume with the same number of epochs or steps, or use the callback "
            "OneCycle"
        )

    def _length_of(self, run: RunState) -> int | None:
        """Return how often the scheduler is stepped in the fit, if that is known."""
        length = fit_length(run)
        return length.steps if self.step == "batch" else length.epochs
