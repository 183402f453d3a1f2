"""torch's own learning-rate schedulers, stepped where they should be."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim import lr_scheduler as torch_schedulers

from ..arguments import whole_number
from ..batch import loader_length
from ..callback import Callback, handler
from ..param_groups import set_field
from ..priorities import BEFORE_EVERYONE, POLICY

if TYPE_CHECKING:
    from ..runner import Runner


class LRScheduler(Callback):
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

    priority = POLICY

    def __init__(
        self, make: Callable[[Any], Any], step: Literal["batch", "epoch"] = "batch"
    ) -> None:
        if not callable(make):
            raise TypeError(f"make must be a function of the optimizer, got {make!r}")
        if step not in ("batch", "epoch"):
            raise ValueError(f"step must be 'batch' or 'epoch', got {step!r}")
        self.make = make
        self.step = step
        self.scheduler: Any = None
        self._began: list[float] = []
        self._left: list[float] = []
        self._steps = 0

    @handler("begin_fit", priority=BEFORE_EVERYONE)  # before any scheduler has been made
    def start_over(self, run: Runner) -> None:
        """Go back to the rates that the last fit began with, and make them the base."""
        groups = run.opt.param_groups
        is_mine = self.scheduler is not None and self.scheduler.optimizer is run.opt
        if is_mine and self._left == _rates(run.opt):
            for group, rate in zip(groups, self._began, strict=True):
                set_field(group, "lr", rate)
        self._began = _rates(run.opt)
        for group, rate in zip(groups, self._began, strict=True):
            # torch takes it for the base, and would not notice that "lr" has been set since.
            if "initial_lr" in group:
                set_field(group, "initial_lr", rate)

    def begin_fit(self, run: Runner) -> None:
        """Make the scheduler."""
        self.scheduler = self._make_for(run)
        self._steps = run.steps

    def _make_for(self, run: Runner) -> Any:
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

    def begin_epoch(self, run: Runner) -> None:
        """Remember how many steps there have been."""
        self._steps = run.steps

    def after_step(self, run: Runner) -> None:
        """Step the scheduler, if it goes by batches."""
        if self.step == "batch" and self.scheduler is not None:
            self.scheduler.step()

    def after_epoch(self, run: Runner) -> None:
        """Step the scheduler, if it goes by epochs and this one counts."""
        if self.step == "epoch" and run.steps > self._steps and _has_ended(run):
            with warnings.catch_warnings():
                # The optimizer's steps of this epoch may lie before the checkpoint that the run
                # was resumed from, where torch does not see them.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self.scheduler.step()

    def after_fit(self, run: Runner) -> None:
        """Remember the rates that this fit leaves."""
        self._left = _rates(run.opt)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state and the rates that the fit began with."""
        if self.scheduler is None:
            return {}
        state = {"scheduler": _plain(self.scheduler.state_dict()), "steps": self._steps}
        return {**state, "began": list(self._began)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned.

        Raises:
            ValueError: There is no scheduler yet: it is made in ``begin_fit``.
        """
        if not state:
            return
        if self.scheduler is None:
            raise ValueError(
                f"{type(self).__name__} makes its scheduler in begin_fit: load its state after that"
            )
        self.scheduler.load_state_dict(_revived(state["scheduler"], self.scheduler))
        self._began, self._steps = list(state["began"]), state["steps"]


class OneCycle(LRScheduler):
    """One cycle of ``torch.optim.lr_scheduler.OneCycleLR`` over the whole fit.

    The rate rises to ``max_lr`` and falls far below where it began; momentum (or the
    first of ``betas``) goes the other way, also in an SGD that was made without momentum, unless
    ``cycle_momentum=False``. When more steps come than were counted on, the last rate is kept;
    when steps are skipped, the cycle ends early.

    Args:
        max_lr: The highest rate, or one for each parameter group.
        total_steps: Steps of the optimizer in the whole fit. By default the number of
            training batches times that of epochs, where the loader knows its length.
        accumulate: How many batches there are to a step; what is left over at the end of
            an epoch counts as a step. Default 1.
        **options: Those of ``OneCycleLR``: ``pct_start``, ``anneal_strategy``,
            ``cycle_momentum``, ``base_momentum``, ``max_momentum``, ``div_factor``,
            ``final_div_factor``, ``three_phase``.

    Raises:
        TypeError, ValueError: An option is unknown or out of range. In ``begin_fit``:
            the loader's length is unknown and ``total_steps`` was not given, or the
            optimizer has no momentum to cycle.

    Source: Smith and Topin 2018, Super-Convergence (arXiv:1708.07120).
    """

    def __init__(
        self,
        max_lr: float | Sequence[float],
        *,
        total_steps: int | None = None,
        accumulate: int = 1,
        **options: Any,
    ) -> None:
        for name, value in (("total_steps", total_steps), ("accumulate", accumulate)):
            if value is not None:
                whole_number(name, value, 1)
        rates = [max_lr] if isinstance(max_lr, (int, float)) else list(max_lr)
        if not rates or not all(rate > 0 for rate in rates):
            raise ValueError(f"max_lr must be positive, got {max_lr!r}")
        if total_steps is not None and accumulate != 1:
            raise ValueError("total_steps counts the optimizer's steps already: leave accumulate")
        for name in ("epochs", "steps_per_epoch", "last_epoch"):
            if name in options:
                raise TypeError(f"OneCycle works {name!r} out itself; to override, use total_steps")
        self.max_lr = rates[0] if isinstance(max_lr, (int, float)) else rates
        self.total_steps, self.accumulate, self.options = total_steps, accumulate, options
        # torch knows best which options it takes.
        torch_schedulers.OneCycleLR(_dummy(len(rates)), self.max_lr, total_steps=10, **options)
        super().__init__(lambda opt: None, step="batch")

    def _make_for(self, run: Runner) -> Any:
        steps = self._steps_of(run)
        if not steps:
            return None
        return torch_schedulers.OneCycleLR(run.opt, self.max_lr, total_steps=steps, **self.options)

    def _steps_of(self, run: Runner) -> int:
        if self.total_steps is not None:
            return self.total_steps
        batches = loader_length(run.data.train_dl)
        if batches is None:
            raise ValueError(
                "OneCycle cannot count the steps of this fit: the training loader does not know "
                "its length. Pass OneCycle(..., total_steps=)"
            )
        assert run.epochs is not None
        return run.epochs * math.ceil(batches / self.accumulate)

    def after_step(self, run: Runner) -> None:
        """Step the scheduler, unless the cycle has ended."""
        scheduler = self.scheduler
        if scheduler is not None and scheduler.last_epoch < scheduler.total_steps - 1:
            scheduler.step()


class ReduceLROnPlateau(LRScheduler):
    """Tells ``torch.optim.lr_scheduler.ReduceLROnPlateau`` a metric after every epoch.

    An epoch that was cut short and left no such metric is passed over.

    Args:
        monitor: A key of ``run.history``'s rows, which ``AvgStatsCallback`` and others
            fill in. Default ``"valid_loss"``.
        **options: torch's: ``mode``, ``factor``, ``patience``, ``threshold``,
            ``threshold_mode``, ``cooldown``, ``min_lr``, ``eps``.

    Raises:
        TypeError, ValueError: An option is unknown or out of range.
        ValueError: After an epoch: its row has no such key.
    """

    def __init__(self, monitor: str = "valid_loss", **options: Any) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be a key of run.history's rows, got {monitor!r}")
        groups = options.get("min_lr", 0)
        groups = len(groups) if isinstance(groups, (list, tuple)) else 1
        # torch knows best which options it takes.
        torch_schedulers.ReduceLROnPlateau(_dummy(groups), **options)
        super().__init__(lambda opt: None, step="epoch")
        self.monitor, self.options = monitor, options
        self._is_cut_short = False

    def _make_for(self, run: Runner) -> Any:
        return torch_schedulers.ReduceLROnPlateau(run.opt, **self.options)

    def begin_epoch(self, run: Runner) -> None:
        """Start over with what the epoch is known to lack."""
        super().begin_epoch(run)
        self._is_cut_short = False

    @handler(["after_cancel_train", "after_cancel_validate"])
    def note_cancellation(self, run: Runner) -> None:
        """Expect no metric of this epoch."""
        self._is_cut_short = True

    def after_epoch(self, run: Runner) -> None:
        """Step the scheduler with the metric."""
        row = run.history[-1]
        if not _has_ended(run):
            return
        if self.monitor in row:
            self.scheduler.step(row[self.monitor])
        elif run.outcome == "completed" and not self._is_cut_short:
            keys = ", ".join(key for key in row if key != "epoch") or "none"
            raise ValueError(
                f"ReduceLROnPlateau(monitor={self.monitor!r}): the epoch's row in run.history has "
                f"no such key (there are: {keys}). AvgStatsCallback fills in the losses"
            )


def _rates(opt: Any) -> list[float]:
    return [float(group["lr"]) for group in opt.param_groups]


def _has_ended(run: Runner) -> bool:
    """Whether the epoch that closes is over, and will not be resumed in the middle."""
    if run.outcome == "completed":
        return True
    return run.outcome == "cancelled" and run.token.pending is None


def _dummy(groups: int) -> torch.optim.Optimizer:
    """Return an optimizer to try a scheduler's options on."""
    params = [{"params": [torch.zeros(())]} for _ in range(groups)]
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def _plain(value: Any) -> Any:
    """Turn what a scheduler keeps into what ``torch.load(weights_only=True)`` takes."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _revived(state: dict[str, Any], scheduler: Any) -> dict[str, Any]:
    """Undo ``_plain`` where ``scheduler`` depends on it."""
    revived = dict(state)
    for key, value in state.items():
        if isinstance(getattr(scheduler, key, None), Counter):  # the milestones of MultiStepLR
            revived[key] = Counter(value)
        elif key == "_schedulers":  # of SequentialLR and ChainedScheduler
            pairs = zip(value, scheduler._schedulers, strict=True)
            revived[key] = [_revived(each, inner) for each, inner in pairs]
    return revived
