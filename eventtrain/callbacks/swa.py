"""Averages the weights of the last epochs into the final model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from ..arguments import flag, real_number, whole_number
from ..callback import Callback, handler
from ..param_groups import set_field
from ..priorities import POLICY
from ..submodules import copy_into, tensors_of

if TYPE_CHECKING:
    from ..state import RunState

_RATES = ("lr", "initial_lr", "swa_lr")


class SWA(Callback):
    """Stochastic weight averaging, with torch's ``AveragedModel`` and ``SWALR``.

    From epoch ``start`` on the weights at the end of every epoch go into an
    average, each with the same share, and the learning rate moves to ``lr`` and
    stays there. When the fit has completed, the model gets the average, and the
    statistics of its batch normalization are measured anew by one pass over the
    training loader, but for those that the last epoch left alone, as ``Freeze`` has
    it. A fit that was cancelled or failed keeps its weights; what
    was averaged is in ``averaged_model``.

    Epochs that were cancelled, or took no optimizer step, are left out.

    Args:
        start: The first epoch to average: an ``int`` counts from 0, a ``float`` in
            [0, 1) is a share of the epochs of the fit. Default 0.75.
        lr: The rate to average at, one for all parameter groups or one for each;
            ``None`` (default) leaves rates to others. No other schedule should
            change them from ``start`` on. After the fit they are what they were.
        anneal_epochs: Epochs until the rate is ``lr``.
        anneal_strategy: ``"cos"`` (default) or ``"linear"``.
        load: Give the model the average in the end. Default ``True``.
        update_bn: Measure the statistics of batch normalization for it. Default ``True``.

    Attributes:
        averaged_model: The ``AveragedModel``, or ``None`` before ``start``; it
            holds parameters and is not to be called.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
    Generalization", 2018.
    """

    priority = POLICY

    def __init__(
        self,
        start: float = 0.75,
        lr: float | list[float] | None = None,
        anneal_epochs: int = 5,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        load: bool = True,
        update_bn: bool = True,
    ) -> None:
        if real_number("start", start) < 0 or (isinstance(start, float) and not start < 1):
            raise ValueError(f"start must be an epoch from 0 or a share in [0, 1), got {start!r}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}")
        self.start = start
        self.lr = lr
        self.anneal_epochs = whole_number("anneal_epochs", anneal_epochs, 0)
        self.anneal_strategy: Literal["cos", "linear"] = anneal_strategy
        self.load = flag("load", load)
        self.update_bn = flag("update_bn", update_bn)
        self._start_over()

    def _start_over(self) -> None:
        self.averaged_model: AveragedModel | None = None
        self._scheduler: SWALR | None = None
        self._before: list[dict[str, Any]] = []
        self._steps_before = 0
        self._added: list[str] = []
        self._still: list[str] = []

    def begin_fit(self, run: RunState) -> None:
        """Start over."""
        self._start_over()

    def begin_epoch(self, run: RunState) -> None:
        """Take the learning rate over in the first epoch that counts."""
        self._steps_before = run.steps
        if (run.epoch or 0) >= self._first(run) and self._scheduler is None:
            self._take_over(run)

    def _take_over(self, run: RunState) -> None:
        if self.lr is None:
            return
        known = set(vars(run.opt))
        self._before = [
            {key: _copied(group[key]) for key in _RATES if key in group}
            for group in run.opt.param_groups
        ]
        self._scheduler = SWALR(
            run.opt,
            self.lr,  # type: ignore[arg-type]  # a list is fine too
            anneal_epochs=self.anneal_epochs,
            anneal_strategy=self.anneal_strategy,
        )
        # A scheduler wraps opt.step, to see whether it is called.
        self._added = [name for name in vars(run.opt) if name not in known]

    def begin_train(self, run: RunState) -> None:
        """Remember which batch normalization trains without new statistics."""
        self._still = [
            name
            for name, module in run.model.named_modules()
            if isinstance(module, _BatchNorm) and not module.training
        ]

    def after_epoch(self, run: RunState) -> None:
        """Take the epoch's weights into the average."""
        has_stepped = run.steps > self._steps_before
        is_early = (run.epoch or 0) < self._first(run)
        if run.outcome != "completed" or is_early or not has_stepped:
            return
        if self.averaged_model is None:
            self.averaged_model = AveragedModel(run.model)
        self.averaged_model.update_parameters(run.model)
        if self._scheduler is not None:
            with warnings.catch_warnings():
                # In a resumed epoch the optimizer may have stepped before the scheduler was made.
                warnings.filterwarnings(
                    "ignore", "Detected call of `lr_scheduler.step", UserWarning
                )
                self._scheduler.step()

    # After EarlyStopping has put its best weights back: the average has the last word.
    @handler(priority=POLICY - 1)
    def after_fit(self, run: RunState) -> None:
        """Put the learning rates back, and give the model the average."""
        self._release(run)
        if self.averaged_model is None or not self.load or run.outcome != "completed":
            return
        self.copy_to(run.model)
        if self.update_bn:
            self._measure(run)

    def _measure(self, run: RunState) -> None:
        first = next(run.model.parameters(), None)
        still = [run.model.get_submodule(name) for name in self._still]
        modes = [norm.training for norm in still]
        model = _WithStillNorms(run.model, still)
        update_bn(run.data.train_dl, model, None if first is None else first.device)
        for norm, mode in zip(still, modes, strict=True):
            norm.train(mode)

    def _first(self, run: RunState) -> int:
        if isinstance(self.start, int):
            return self.start
        return math.ceil(self.start * (run.epochs or 0))

    def _release(self, run: RunState) -> None:
        if self._scheduler is None:
            return
        for group, before in zip(run.opt.param_groups, self._before, strict=True):
            for key in _RATES:
                if key in before:
                    set_field(group, key, before[key])
                else:
                    group.pop(key, None)
        for name in self._added:
            vars(run.opt).pop(name, None)
        vars(run.opt).pop("_opt_called", None)
        self._scheduler = None

    def copy_to(self, model: nn.Module) -> None:
        """Copy the averaged parameters and the last buffers into ``model``.

        Raises:
            RuntimeError: There is no average yet.
            KeyError: ``model`` has other parameters than those that were averaged.
        """
        if self.averaged_model is None:
            raise RuntimeError("there is no average yet: no epoch from `start` on has ended")
        means = tensors_of(self.averaged_model.module)
        missing = [name for name, _ in model.named_parameters() if name not in means]
        if missing:
            raise KeyError(f"there is no average of {', '.join(missing)}")
        copy_into(means, tensors_of(model))

    def state_dict(self) -> dict[str, Any]:
        """Return the average, the state of the schedule and the learning rates before it."""
        averaged, scheduler = self.averaged_model, self._scheduler
        return {
            "averaged": None if averaged is None else averaged.state_dict(),
            "scheduler": None if scheduler is None else _without_functions(scheduler.state_dict()),
            "before": self._before,
            "steps_before": self._steps_before,
            "still": self._still,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned.

        Raises:
            RuntimeError: There is an average to load and no run to load it for.
        """
        run = self.run
        if run is None or run.learn is None:
            raise RuntimeError("the state of SWA can be loaded only while a run goes on")
        self._steps_before, self._still = state["steps_before"], state["still"]
        if state["averaged"] is not None:
            self.averaged_model = AveragedModel(run.model)
            self.averaged_model.load_state_dict(state["averaged"])
        if state["scheduler"] is not None:
            rates = [_copied(group["lr"]) for group in run.opt.param_groups]
            if self._scheduler is None:
                self._take_over(run)
            if self._scheduler is not None:
                self._scheduler.load_state_dict(state["scheduler"])
            for group, rate in zip(run.opt.param_groups, rates, strict=True):
                set_field(group, "lr", rate)
            self._before = state["before"]


class _WithStillNorms(nn.Module):
    """A model as ``update_bn`` is to see it: some normalization keeps its statistics."""

    def __init__(self, model: nn.Module, still: list[nn.Module]) -> None:
        super().__init__()
        self.training = model.training
        self.model = model
        self._still = still

    def modules(self, *args: Any, **kwargs: Any) -> Iterator[nn.Module]:
        every = self.model.modules(*args, **kwargs)
        return (module for module in every if module not in self._still)

    def train(self, mode: bool = True) -> _WithStillNorms:
        super().train(mode)
        for norm in self._still:
            norm.eval()
        return self

    def forward(self, batch: Any) -> Any:
        return self.model(batch)


def _copied(rate: Any) -> Any:
    """Return a rate that stays as it is when an optimizer's tensor is filled."""
    return rate.clone() if isinstance(rate, torch.Tensor) else rate


def _without_functions(state: dict[str, Any]) -> dict[str, Any]:
    # An older torch keeps a method of SWALR in its state; a new scheduler has its own.
    return {key: value for key, value in state.items() if not callable(value)}
