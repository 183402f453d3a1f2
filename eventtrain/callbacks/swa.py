"""Averages the weights of the last epochs into the final model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn, get_swa_multi_avg_fn

from ..arguments import flag, real_number, whole_number
from ..callback import Callback, handler
from ..loop import Loop
from ..param_groups import groups_with, refuse_several
from ..priorities import AFTER_EVERYONE, POLICY
from .shared.averaging_rate import AveragingRate
from .shared.fit_length import fit_length
from .shared.norm_statistics import measure_norms, norms_of
from .shared.weight_average import WeightAverage, copy_of_model

if TYPE_CHECKING:
    from ..runner import Runner
    from ..state import RunState

_SEVERAL = (
    "it has one rate to move to. Leave lr out, and give each optimizer a rate with "
    "ParamScheduler(..., optimizer=)"
)


class SWA(Callback):
    """Stochastic weight averaging, as torch's ``AveragedModel`` does it, with its ``SWALR``.

    From epoch ``start`` on the weights at the end of every epoch go into an
    average, each with the same share, and the learning rate moves to ``lr`` and
    stays there. When the fit has completed, the model gets the average, and the
    statistics of its batch normalization are measured anew by one pass over the
    training loader, of as many batches as the last epoch had. Batches take the way that they
    take in training, transforms and precision included; normalization that the last epoch left
    alone, as ``Freeze`` has it, keeps its statistics, and so does all of it where the pass does
    not get to its end. A fit that was cancelled or failed keeps its weights; what
    was averaged is in ``averaged_model``.

    Epochs that were cancelled, or took no optimizer step, are left out.

    Args:
        start: The first epoch to average: an ``int`` counts from 0, a ``float`` in
            [0, 1) is a share of the epochs of the fit, the next whole epoch where it falls
            within one. The last epoch counts in any case, however short the fit is. Default 0.75.
        lr: The rate to average at, one for all parameter groups or one for each;
            ``None`` (default) leaves rates to others. No other schedule should
            change them from ``start`` on. After the fit they are what they were. A group that is
            added in the meantime takes part from the end of its epoch on, unless there is a
            rate for each.
        anneal_epochs: Epochs until the rate is ``lr``.
        anneal_strategy: ``"cos"`` (default) or ``"linear"``.
        load: Give the model the average in the end. Default ``True``.
        update_bn: Measure the statistics of batch normalization for it. Default ``True``.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range. When a fit
            begins: the model is no ``nn.Module``; the fit ends before ``start``, or ``start`` is a
            share of a fit whose epochs are not known; the optimizer has no rates, or another
            number of groups; statistics cannot be measured, as the loader can be read only
            once or the runner has a ``one_batch`` of its own.
        ValueError: After an epoch: a group was added for which there is no rate.

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
        for rate in lr if isinstance(lr, (list, tuple)) else [lr]:
            if not (rate is None or isinstance(rate, Tensor)) and real_number("lr", rate) < 0:
                raise ValueError(f"lr must be at least 0, got {rate!r}")
        self.start = start
        self.lr = lr
        self.anneal_epochs = whole_number("anneal_epochs", anneal_epochs, 0)
        self.anneal_strategy: Literal["cos", "linear"] = anneal_strategy
        self.load = flag("load", load)
        self.update_bn = flag("update_bn", update_bn)
        self._start_over()

    def _start_over(self) -> None:
        self._average = WeightAverage(_mean)
        self._model: nn.Module | None = None
        self._first = 0
        self._rate: AveragingRate | None = None
        if self.lr is not None:
            self._rate = AveragingRate(self.lr, self.anneal_epochs, self.anneal_strategy)
        self._steps_before = 0
        self._still: list[str] = []

    @property
    def averaged_model(self) -> AveragedModel | None:
        """A copy of the model with the averages, ``None`` before there are any.

        It is made anew each time that it is read.

        Raises:
            RuntimeError: FSDP2 has divided the model.
        """
        if self._model is None or not self._average.updates:
            return None
        if any(hasattr(module, "reshard") for module in self._model.modules()):
            raise RuntimeError(
                "a model that FSDP2 has divided cannot be copied: call swa.copy_to(model) on all "
                "ranks, in after_fit or behind the fit, with the model itself or one divided alike"
            )
        averaged = AveragedModel(nn.Module())
        averaged.module = copy_of_model(self._model)
        self._average.copy_to(averaged.module)
        averaged.n_averaged.fill_(self._average.updates)
        return averaged

    def begin_fit(self, run: Runner) -> None:
        """Start over, and refuse what could not be done in the end."""
        self._start_over()
        if not isinstance(run.model, nn.Module):
            raise TypeError(f"SWA needs an nn.Module, got {type(run.model).__name__}")
        self._first = self._first_of(run)
        self._check_rates(run)
        has_epochs = run.epochs != 0 and run.total_steps != 0
        if self.load and self.update_bn and has_epochs and norms_of(run.model):
            _check_measurable(run)
        self._model = run.model

    def _first_of(self, run: RunState) -> int:
        epochs = fit_length(run).epochs
        if isinstance(self.start, int):
            if epochs and self.start >= epochs:
                raise ValueError(
                    f"SWA(start={self.start}) begins with epoch {self.start}, counted from 0, and "
                    f"this fit has {epochs}: pass an earlier one, or a share of the fit as a float"
                )
            return self.start
        if epochs is None:
            raise ValueError(
                f"SWA(start={self.start}) is a share of the epochs of the fit, of which it is not "
                "known how many there are: the training loader does not know its length. "
                "Pass start as an int, the epoch to begin with"
            )
        # 0.1 * 30 is a little more than 3, which is not to be the fourth epoch.
        return min(math.ceil(self.start * epochs - 1e-9), max(epochs - 1, 0))

    def _check_rates(self, run: RunState) -> None:
        if self.lr is None:
            return
        refuse_several(run, f"SWA(lr={self.lr!r})", _SEVERAL)
        groups = groups_with(run.opt, "lr", "SWA")
        if isinstance(self.lr, (list, tuple)) and len(self.lr) != len(groups):
            raise ValueError(
                f"SWA got {len(self.lr)} rates for {len(groups)} parameter groups: pass one for "
                "all of them, or one for each"
            )

    def begin_epoch(self, run: RunState) -> None:
        """Take the learning rate over in the first epoch that counts."""
        self._steps_before = run.steps
        if self._rate is not None and (run.epoch or 0) >= self._first:
            self._rate.take_over(run.opt)

    @handler(priority=AFTER_EVERYONE)
    def begin_train(self, run: RunState) -> None:
        """Remember which modules stay in evaluation mode, normalization that is frozen say."""
        self._still = [name for name, m in run.model.named_modules() if not m.training]

    def after_epoch(self, run: RunState) -> None:
        """Take the epoch's weights into the average."""
        has_stepped = run.steps > self._steps_before
        is_early = (run.epoch or 0) < self._first
        if run.outcome != "completed" or is_early or not has_stepped:
            return
        self._average.update(run.model)
        if self._rate is not None:
            self._rate.step(run.opt)

    # After EarlyStopping has put its best weights back: the average has the last word.
    @handler(priority=POLICY - 1)
    def after_fit(self, run: Runner) -> None:
        """Put the learning rates back, and give the model the average."""
        if self._rate is not None and self._rate.has_begun:
            self._rate.release(run.opt)
        if not self._average.updates or not self.load or run.outcome != "completed":
            return
        self.copy_to(run.model)
        if self.update_bn:
            measure_norms(run, run.n_iter - run.epoch_began_at, self._still)

    def copy_to(self, model: nn.Module) -> None:
        """Copy the averaged parameters and the last buffers into ``model``.

        Raises:
            RuntimeError: There is no average yet.
            KeyError: ``model`` has other parameters than those that were averaged.
            ValueError: They have other shapes.
        """
        if not self._average.updates:
            raise RuntimeError("there is no average yet: no epoch from `start` on has ended")
        self._average.copy_to(model)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, the state of the schedule and the learning rates before it."""
        return {
            "averaged": self._average.state_dict() if self._average.updates else None,
            "rate": None if self._rate is None else self._rate.state_dict(),
            "steps_before": self._steps_before,
            "still": self._still,
            "first": self._first,
        }

    def why_not_load(self, state: Mapping[str, Any], run: RunState) -> str | None:
        """Say where the fit is so much longer, or shorter, that the average began elsewhere."""
        rate = state["rate"]
        has_begun = bool(state["averaged"]) or bool(rate and rate["scheduler"])
        first, own = state["first"], self._first_of(run)
        length = f"{run.epochs} epochs" if run.total_steps is None else f"{run.total_steps} steps"
        if not has_begun or first == own:
            return None
        return (
            f"SWA has averaged from epoch {first} on, and in a fit of {length} "
            f"start={self.start} is epoch {own}. Resume with the length of that fit, or with "
            f"SWA(start={first}) to go on with that average"
        )

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
            self._average.load_state_dict(state["averaged"], run.model)
        if state["rate"] is not None and self._rate is not None:
            self._rate.load_state_dict(state["rate"], run.opt)


def _mean(averages: list[Tensor], weights: list[Tensor], count: int) -> None:
    # As AveragedModel does it, to the bit.
    averaged = torch.tensor(count, device=averages[0].device)
    if averages[0].device.type == "cuda":
        at_once: Any = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
        at_once(averages, weights, averaged)
        return
    mean: Any = get_swa_avg_fn()  # type: ignore[no-untyped-call]
    for own, weight in zip(averages, weights, strict=True):
        own.copy_(mean(own, weight, averaged))


def _check_measurable(run: Runner) -> None:
    loader = run.data.train_dl
    if hasattr(loader, "__next__"):
        raise ValueError(
            f"SWA reads the training loader once more after the fit, to measure batch "
            f"normalization, and this {type(loader).__name__} can be read only once: pass "
            "something that can be iterated over again, or SWA(update_bn=False)"
        )
    if type(run).one_batch is not Loop.one_batch:
        raise ValueError(
            f"SWA measures batch normalization by calling the model with run.xb, and "
            f"{type(run).__name__} has a one_batch of its own, which may call it otherwise: pass "
            "SWA(update_bn=False), and measure the averaged model after the fit"
        )
