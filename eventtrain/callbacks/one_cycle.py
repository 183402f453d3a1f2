"""One cycle of the learning rate over the whole fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import OneCycleLR

from ..arguments import real_number, whole_number
from .shared.fit_length import fit_length, other_length
from .shared.schedulers import SchedulerCallback, stand_in

if TYPE_CHECKING:
    from ..runner import Runner
    from ..state import RunState

_OF_A_GROUP = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
"""What torch's ``OneCycleLR`` keeps in a parameter group."""


class OneCycle(SchedulerCallback):
    """One cycle of ``torch.optim.lr_scheduler.OneCycleLR`` over the whole fit.

    The rate rises to ``max_lr`` and falls far below where it began; momentum (or the
    first of ``betas``) goes the other way, also in an SGD that was made without momentum, unless
    ``cycle_momentum=False``. When more steps come than were counted on, the last rate is kept;
    when steps are skipped, the cycle ends early.

    Args:
        max_lr: The highest rate, or one for each parameter group.
        total_steps: Steps of the optimizer in the whole fit. By default those that it has:
            as many as the loader's length and ``GradientAccumulation`` make in its epochs, or
            up to where ``MaxSteps`` ends it.
        accumulate: How many batches there are to a step, where something else than a callback
            accumulates; what is left over at the end of an epoch counts as a step.
        optimizer: Which of several optimizers, ``"g"`` say; ``total_steps`` are its own then, by
            default one a batch. Default ``None``, for the one that there is.
        **options: Those of ``OneCycleLR``: ``pct_start``, ``anneal_strategy``,
            ``cycle_momentum``, ``base_momentum``, ``max_momentum``, ``div_factor``,
            ``final_div_factor``, ``three_phase``.

    Raises:
        TypeError, ValueError: An option is unknown or out of range. In ``begin_fit``:
            it is not known where the fit ends and ``total_steps`` was not given, the
            optimizer has no momentum to cycle, or ``pct_start`` of the steps is a single one.
        ValueError: After a step: a parameter group was added, and the others have values of their
            own. (One value for all is that of groups that are added, too.)
        CheckpointError: A fit is resumed that had another number of steps, without
            ``total_steps``.

    Source: Smith and Topin 2018, Super-Convergence (arXiv:1708.07120).
    """

    def __init__(
        self,
        max_lr: float | Sequence[float],
        *,
        total_steps: int | None = None,
        accumulate: int | None = None,
        optimizer: str | None = None,
        **options: Any,
    ) -> None:
        if total_steps is not None:
            total_steps = whole_number("total_steps", total_steps, 1)
        if accumulate is not None:
            accumulate = whole_number("accumulate", accumulate, 1)
        if total_steps is not None and accumulate not in (None, 1):
            raise ValueError("total_steps counts the optimizer's steps already: leave accumulate")
        for name in ("epochs", "steps_per_epoch", "last_epoch"):
            if name in options:
                raise TypeError(f"OneCycle works {name!r} out itself; to override, use total_steps")
        for name in ("pct_start", "div_factor", "final_div_factor"):
            if name in options:
                options[name] = float(real_number(name, options[name]))
        self.max_lr = _positive(max_lr)
        self.total_steps, self.accumulate, self.options = total_steps, accumulate, options
        # torch knows best which options it takes. No share of a large prime is a single step.
        self._cycle(stand_in(self.max_lr, *options.values()), total_steps or 1_000_003)
        super().__init__(optimizer)

    def make_for(self, run: Runner) -> Any:
        """Return a cycle over the steps of the fit; ``None`` where there are none."""
        steps = self._steps_of(run)
        return self._cycle(self.opt_of(run), steps) if steps else None

    def _cycle(self, opt: Any, steps: int) -> Any:
        pct_start = self.options.get("pct_start", 0.0)
        if pct_start * steps == 1:
            raise ValueError(
                f"torch's OneCycleLR cannot rise in a single step: pct_start={pct_start} of "
                f"{steps} steps is one. Choose another pct_start"
            )
        return OneCycleLR(opt, self.max_lr, total_steps=steps, **self.options)

    def _steps_of(self, run: RunState) -> int:
        if self.total_steps is not None:
            return self.total_steps
        length = fit_length(run, batches_per_step=self._batches_per_step(run))
        if self.optimizer is not None and length.limit is not None:
            raise ValueError(
                f"OneCycle(optimizer={self.optimizer!r}) cannot count the steps of this optimizer: "
                f"the fit ends after {length.limit} steps of all of them. Pass "
                "OneCycle(..., total_steps=), how many are its own"
            )
        steps = length.steps
        if steps is None:
            raise ValueError(
                "OneCycle cannot count the steps of this fit: the training loader does not know "
                "its length. Pass OneCycle(..., total_steps=), or have MaxSteps end the fit"
            )
        return steps

    def _batches_per_step(self, run: RunState) -> int | None:
        told = self.accumulate
        others = [cb for cb in run.cbs if cb.batches_per_step != 1]
        if told is not None and others and told != others[0].batches_per_step:
            raise ValueError(
                f"OneCycle(accumulate={told}) counts {told} batches to a step, and "
                f"{others[0].name} makes one of {others[0].batches_per_step}: leave accumulate out"
            )
        return told

    def after_step(self, run: Runner) -> None:
        """Step the scheduler, unless the cycle has ended."""
        scheduler = self.scheduler
        if scheduler is None or not self.is_stepped_in(run):
            return
        if scheduler.last_epoch < scheduler.total_steps - 1:
            self.advance()

    def take_in(self, groups: list[dict[str, Any]]) -> None:
        """Have groups that were added run through the same cycle as the others."""
        told = [self.max_lr, *self.options.values()]
        if any(isinstance(value, (list, tuple)) for value in told):
            raise ValueError("there is a value for each of the first groups")
        first = self.scheduler.optimizer.param_groups[0]
        for group in groups:
            group.update({key: first[key] for key in _OF_A_GROUP if key in first})

    def why_not_load(self, state: Mapping[str, Any], run: RunState) -> str | None:
        """Say whether the fit has another length than the one that was saved."""
        if self.total_steps is not None:
            return None
        saved = state["scheduler"]["total_steps"]
        return other_length("OneCycle", saved, self._steps_of(run))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned.

        Where ``total_steps`` is another than that of the cycle that was saved, the cycle goes on at
        the same step of the new one.

        Raises:
            ValueError: There is no scheduler yet: it is made in ``begin_fit``.

        Warns:
            RuntimeWarning: The cycle ends before the fit does.
        """
        own = {} if self.scheduler is None else self.scheduler.state_dict()
        is_another = bool(state) and own.get("total_steps") != state["scheduler"]["total_steps"]
        if is_another and own:
            laid_out = {key: own[key] for key in ("total_steps", "_schedule_phases")}
            state = {**state, "scheduler": {**state["scheduler"], **laid_out}}
        super().load_state_dict(state)
        if is_another and self.run is not None:
            _set_rates(self.scheduler, self.run.steps)
        self._warn_of_rest()

    def _warn_of_rest(self) -> None:
        run, scheduler = self.run, self.scheduler
        if run is None or run.learn is None or scheduler is None:
            return
        steps, total = fit_length(run, batches_per_step=self.accumulate).steps, self.total_steps
        if total is not None and steps is not None and steps > total:
            warnings.warn(
                f"OneCycle(total_steps={total}) ends before this fit of {steps} steps: from there "
                f"on the last rate is kept. Pass total_steps={steps} to have it span the fit",
                RuntimeWarning,
                stacklevel=2,
            )


def _set_rates(scheduler: Any, steps: int) -> None:
    """Set rates and momenta to what they are after so many steps of the cycle."""
    scheduler.last_epoch = min(steps, scheduler.total_steps - 1) - 1
    with warnings.catch_warnings():
        # The optimizer's steps lie before the checkpoint, where torch does not see them.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        scheduler.step()


def _positive(max_lr: Any) -> float | list[float]:
    """Return the rate or the rates as plain floats."""
    # Also a NumPy array, but no tensor or array of a single number.
    is_one = isinstance(max_lr, str) or not isinstance(max_lr, Iterable)
    is_one = is_one or getattr(max_lr, "ndim", 1) == 0
    rates = [real_number("max_lr", rate) for rate in ([max_lr] if is_one else max_lr)]
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"max_lr must be positive and finite, got {max_lr!r}")
    return float(rates[0]) if is_one else [float(rate) for rate in rates]
