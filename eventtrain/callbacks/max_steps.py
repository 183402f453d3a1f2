"""Ends a fit after a number of optimizer steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..arguments import whole_number
from ..callback import Callback, handler
from ..param_groups import stepped_optimizer
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE

if TYPE_CHECKING:
    from ..runner import Runner


class MaxSteps(Callback):
    """Cancels the fit when the optimizer has stepped ``n`` times.

    Steps that were cancelled (gradient accumulation, overflow) do not count. It
    asks last of all in ``after_step``, so that everybody else has seen the last
    step, and clears the gradients, which the loop does not get to. Of several optimizers, the steps
    of all count.

    Args:
        n: Steps, at least 1. They are counted over the whole fit, in a resumed
            one from its first beginning.

    Attributes:
        done: Steps taken in this fit.

    Raises:
        TypeError, ValueError: ``n`` is no whole number, or below 1.
    """

    def __init__(self, n: int) -> None:
        self.n = whole_number("n", n, 1, "steps")
        self.done = 0

    @property
    def fit_ends_after_steps(self) -> int:
        """``n``, by which schedules that span the fit end too."""
        return self.n

    def begin_fit(self, run: Runner) -> None:
        """Start counting."""
        self.done = 0

    @handler(during="train", priority=BEFORE_EVERYONE)
    def begin_batch(self, run: Runner) -> None:
        """End a fit that was resumed after its last step."""
        if self.done >= self.n:
            self._end(run)

    @handler(priority=AFTER_EVERYONE)
    def after_step(self, run: Runner) -> None:
        """Count the step, and end the fit after the last one."""
        self.done += 1
        if self.done >= self.n:
            stepped_optimizer(run).zero_grad()
            self._end(run)

    def _end(self, run: Runner) -> None:
        run.token.cancel("fit", f"{self.n} optimizer steps were asked for")

    def state_dict(self) -> dict[str, Any]:
        """Return the steps taken."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.done = state["done"]
