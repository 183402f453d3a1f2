"""What the callbacks that step torch's learning-rate schedulers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...arguments import optimizer_name
from ...callback import Callback, handler
from ...param_groups import groups_with, optimizer_for, set_field
from ...priorities import AFTER_EVERYONE, BEFORE_EVERYONE, POLICY

if TYPE_CHECKING:
    from ...runner import Runner
    from ...state import RunState


class SchedulerCallback(Callback, ABC):
    """Makes one of torch's schedulers when a fit begins; the class that extends it steps it.

    Each fit makes a new scheduler. Where the rates are still those that this callback's last
    fit left, it begins with those that the last fit began with, else with those that it finds.

    Args:
        optimizer: Which of several optimizers it is for; the callback bears its name behind its
            own. Default ``None``, for the one that there is.

    Attributes:
        optimizer: As given.
        scheduler: torch's scheduler, of the current or the last fit; ``None`` before.
    """

    priority = POLICY

    def __init__(self, optimizer: str | None = None) -> None:
        self.optimizer = optimizer_name(optimizer)
        if optimizer is not None:
            self.name = f"{self.name}_{optimizer}"
        self.scheduler: Any = None
        self._began: list[float] = []
        self._left: list[float] = []
        self._steps = 0
        self._groups = 0

    @handler("begin_fit", priority=BEFORE_EVERYONE)  # before any scheduler has been made
    def start_over(self, run: Runner) -> None:
        """Go back to the rates that the last fit began with, and let them be the base."""
        opt = self.opt_of(run)
        groups = groups_with(opt, "lr", type(self).__name__)
        is_mine = self.scheduler is not None and self.scheduler.optimizer is opt
        if is_mine and self._left == _rates(opt):
            # A group that joined in the middle of that fit has no rate that it began with.
            for group, rate in zip(groups, self._began, strict=False):
                set_field(group, "lr", rate)
        self._began = _rates(opt)
        for group in groups:
            # A scheduler before left it. torch would take it for the base, whatever "lr" is now.
            group.pop("initial_lr", None)

    def begin_fit(self, run: Runner) -> None:
        """Make the scheduler."""
        self.scheduler = self.make_for(run)
        self._steps, self._groups = run.steps, len(self.opt_of(run).param_groups)

    def opt_of(self, run: RunState) -> Any:
        """Return the optimizer whose rates are set.

        Raises:
            TypeError, ValueError: There are several and none was named, or none is called so.
        """
        return optimizer_for(run, self.optimizer, type(self).__name__)

    def is_stepped_in(self, run: RunState) -> bool:
        """Whether it is the optimizer that steps."""
        return self.optimizer is None or run.stepping == self.optimizer

    @abstractmethod
    def make_for(self, run: Runner) -> Any:
        """Return a scheduler for the fit that begins; ``None`` where there is nothing to do."""

    def advance(self, *metrics: float) -> None:
        """Step the scheduler, once it knows the groups that have been added to the optimizer.

        Args:
            *metrics: What its ``step`` is to be given.

        Raises:
            ValueError: A group was added, and the scheduler cannot take it in.
        """
        groups = self.scheduler.optimizer.param_groups
        if len(groups) == self._groups:
            self.scheduler.step(*metrics)
            return
        try:
            self.take_in(groups[self._groups :])
            self.scheduler.step(*metrics)
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{type(self).__name__}: the optimizer has {len(groups)} parameter groups since "
                f"one was added in the fit, and its {kind_of(self.scheduler)} was made for "
                f"{self._groups} with settings of their own ({error}). Make it with one setting "
                "for all groups, or add the groups before the fit and let them in with Freeze"
            ) from error
        self._groups = len(groups)

    def take_in(self, groups: list[dict[str, Any]]) -> None:
        """Have the scheduler count groups in that were added; theirs are the base rates."""
        for group in groups:
            rate = group["lr"]
            group.setdefault("initial_lr", rate.clone() if isinstance(rate, Tensor) else rate)
            _take_in(self.scheduler, group["initial_lr"])

    def begin_epoch(self, run: Runner) -> None:
        """Remember how many steps there have been, by all optimizers."""
        self._steps = run.steps

    def epoch_counts(self, run: Runner) -> bool:
        """Whether the epoch had a step and is over, and will not be resumed in the middle."""
        if run.steps <= self._steps:
            return False
        if run.outcome == "completed":
            return True
        return run.outcome == "cancelled" and run.token.pending is None

    @handler("after_fit", priority=AFTER_EVERYONE)  # others may put rates back
    def remember_rates(self, run: Runner) -> None:
        """Remember the rates that this fit leaves."""
        self._left = _rates(getattr(self.scheduler, "optimizer", None))

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state and the rates that the fit began with."""
        if self.scheduler is None:
            return {}
        state = {"scheduler": _plain(self.scheduler.state_dict()), "steps": self._steps}
        return {**state, "began": list(self._began), "groups": self._groups}

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
        saved = _revived(state["scheduler"], self.scheduler)
        _widen(self.scheduler, saved)
        self.scheduler.load_state_dict(saved)
        self._began, self._steps = list(state["began"]), state["steps"]
        self._groups = state.get("groups", self._groups)  # earlier formats lack it


def _rates(opt: Any) -> list[float]:
    # The optimizer may be one without rates, which has been refused as the fit began.
    groups = getattr(opt, "param_groups", ())
    return [float(group["lr"]) for group in groups if "lr" in group]


def _take_in(scheduler: Any, rate: Any) -> None:
    """Add a base rate to torch's scheduler, and to those that it is made of."""
    for inner in getattr(scheduler, "_schedulers", ()):
        _take_in(inner, rate)
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs.append(rate)
    functions = getattr(scheduler, "lr_lambdas", [])
    if functions and all(function is functions[0] for function in functions):
        functions.append(functions[0])


def _widen(scheduler: Any, saved: dict[str, Any]) -> None:
    """Have torch's scheduler take the functions of groups that had been added when it was saved."""
    inner = getattr(scheduler, "_schedulers", ())
    for each, state in zip(inner, saved.get("_schedulers", ()), strict=False):
        _widen(each, state)
    functions = getattr(scheduler, "lr_lambdas", [])
    functions.extend(functions[:1] * (len(saved.get("lr_lambdas", ())) - len(functions)))


def kind_of(scheduler: Any) -> str:
    """Return what a scheduler is called, or the one that is in it."""
    return type(getattr(scheduler, "scheduler", scheduler)).__name__


def stand_in(*options: Any) -> torch.optim.Optimizer:
    """Return an optimizer to try a scheduler's options on: a group for each value of a list."""
    groups = max([1, *(len(value) for value in options if isinstance(value, (list, tuple)))])
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
