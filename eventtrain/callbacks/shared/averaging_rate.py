"""The learning rate at which weights are averaged: taken over for a while, and put back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim.swa_utils import SWALR

from ...param_groups import set_field

_RATES = ("lr", "initial_lr", "swa_lr")


class AveragingRate:
    """Moves the rates of an optimizer with torch's ``SWALR``, until it is told to release them.

    Args:
        lr: The rate for all parameter groups, or one for each.
        anneal_epochs: Steps until the rate is ``lr``.
        anneal_strategy: ``"cos"`` or ``"linear"``.
    """

    def __init__(
        self,
        lr: float | Sequence[float],
        anneal_epochs: int,
        anneal_strategy: Literal["cos", "linear"],
    ) -> None:
        self.lr = lr
        self._options: Any = {"anneal_epochs": anneal_epochs, "anneal_strategy": anneal_strategy}
        self._scheduler: SWALR | None = None
        self._before: list[dict[str, Any]] = []
        self._added: list[str] = []

    @property
    def has_begun(self) -> bool:
        """Whether the rates are being moved."""
        return self._scheduler is not None

    def take_over(self, opt: Any) -> None:
        """Begin to move the rates, unless that has begun."""
        if self._scheduler is not None:
            return
        known = set(vars(opt))
        self._before = [_rates_of(group) for group in opt.param_groups]
        self._scheduler = SWALR(opt, self.lr, **self._options)  # type: ignore[arg-type]  # or several
        # A scheduler wraps opt.step, to see whether it is called.
        self._added = [name for name in vars(opt) if name not in known]

    def step(self, opt: Any) -> None:
        """Move the rates one step on, those of groups that have been added too.

        Raises:
            ValueError: A group was added for which there is no rate.
        """
        if self._scheduler is None:
            return
        self._take_in(opt.param_groups)
        with warnings.catch_warnings():
            # In a resumed epoch the optimizer may have stepped before the scheduler was made.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self._scheduler.step()

    def _take_in(self, groups: list[dict[str, Any]]) -> None:
        new = groups[len(self._before) :]
        if new and isinstance(self.lr, Sequence):
            raise ValueError(
                f"SWA has {len(self.lr)} rates, and the optimizer has {len(groups)} parameter "
                "groups since one was added: pass one rate for all of them"
            )
        for group in new:
            self._before.append(_rates_of(group))
            group["swa_lr"] = self.lr

    def release(self, opt: Any) -> None:
        """Put the rates back, and all else that the schedule has changed."""
        if self._scheduler is None:
            return
        # A group that was added since the last step has been left alone.
        for group, before in zip(opt.param_groups, self._before, strict=False):
            for key in _RATES:
                if key in before:
                    set_field(group, key, before[key])
                else:
                    group.pop(key, None)
        for name in self._added:
            vars(opt).pop(name, None)
        vars(opt).pop("_opt_called", None)
        self._scheduler = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule, and the rates before it."""
        scheduler = self._scheduler
        state = None if scheduler is None else _without_functions(scheduler.state_dict())
        return {"scheduler": state, "before": self._before}

    def load_state_dict(self, state: dict[str, Any], opt: Any) -> None:
        """Take back what ``state_dict`` returned, for an optimizer that has its rates back."""
        if state["scheduler"] is None:
            return
        rates = [_copied(group["lr"]) for group in opt.param_groups]
        self.take_over(opt)
        assert self._scheduler is not None
        self._scheduler.load_state_dict(state["scheduler"])
        for group, rate in zip(opt.param_groups, rates, strict=True):
            set_field(group, "lr", rate)
        self._before = state["before"]


def _without_functions(state: dict[str, Any]) -> dict[str, Any]:
    # An older torch keeps a method of SWALR in its state; a new scheduler has its own.
    return {key: value for key, value in state.items() if not callable(value)}


def _rates_of(group: dict[str, Any]) -> dict[str, Any]:
    return {key: _copied(group[key]) for key in _RATES if key in group}


def _copied(rate: Any) -> Any:
    """Return a rate that stays as it is when an optimizer's tensor is filled."""
    return rate.clone() if isinstance(rate, Tensor) else rate
