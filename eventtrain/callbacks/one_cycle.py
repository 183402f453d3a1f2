"""One cycle of the learning rate over the whole fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import OneCycleLR

from ..arguments import real_number, whole_number
from ..data.batch import loader_length
from .shared.schedulers import SchedulerCallback, stand_in

if TYPE_CHECKING:
    from ..runner import Runner


class OneCycle(SchedulerCallback):
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
            the loader's length is unknown and ``total_steps`` was not given, the
            optimizer has no momentum to cycle, or ``pct_start`` of the steps is a single one.

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
        if total_steps is not None:
            total_steps = whole_number("total_steps", total_steps, 1)
        accumulate = whole_number("accumulate", accumulate, 1)
        if total_steps is not None and accumulate != 1:
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
        super().__init__()

    def make_for(self, run: Runner) -> Any:
        """Return a cycle over the steps of the fit; ``None`` where there are none."""
        steps = self._steps_of(run)
        return self._cycle(run.opt, steps) if steps else None

    def _cycle(self, opt: Any, steps: int) -> Any:
        pct_start = self.options.get("pct_start", 0.0)
        if pct_start * steps == 1:
            raise ValueError(
                f"torch's OneCycleLR cannot rise in a single step: pct_start={pct_start} of "
                f"{steps} steps is one. Choose another pct_start"
            )
        return OneCycleLR(opt, self.max_lr, total_steps=steps, **self.options)

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


def _positive(max_lr: Any) -> float | list[float]:
    """Return the rate or the rates as plain floats."""
    # Also a NumPy array, but no tensor or array of a single number.
    is_one = isinstance(max_lr, str) or not isinstance(max_lr, Iterable)
    is_one = is_one or getattr(max_lr, "ndim", 1) == 0
    rates = [real_number("max_lr", rate) for rate in ([max_lr] if is_one else max_lr)]
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"max_lr must be positive and finite, got {max_lr!r}")
    return float(rates[0]) if is_one else [float(rate) for rate in rates]
