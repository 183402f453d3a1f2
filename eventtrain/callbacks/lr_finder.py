"""A range test: one short fit with a rising learning rate, which leaves no trace."""

from __future__ import annotations

import math
import os
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from ..arguments import optimizer_name, real_number, whole_number
from ..callback import Callback, handler
from ..checkpoints.restore_point import RestorePoint
from ..distributed.reductions import ONE_PROCESS, OneProcess
from ..optimizers import named_optimizers
from ..param_groups import groups_with, optimizer_for, set_field
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE, METRICS, POLICY
from .shared.fit_length import fit_length
from .shared.plots import FAINT, MAIN, SECOND, THIRD, saved_figure, shown_figure, tidy
from .shared.readings import batch_weight, detached_mean, means_over_processes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..runner import Runner


class SuggestedRates(NamedTuple):
    """Two rules of thumb for reading a range test.

    Attributes:
        steepest: The rate at which the smoothed loss falls fastest per factor of rate.
        tenth_of_minimum: A tenth of the rate at which the smoothed loss is lowest.
    """

    steepest: float
    tenth_of_minimum: float


class LRFinder(Callback):
    """Turns a fit into a learning-rate range test.

    Before each training batch the rate of all parameter groups is set, from ``min_lr`` up to
    ``max_lr`` by equal factors. The fit is cancelled when all steps are done or
    the loss has blown up; there is no validation. Then the model (its buffers and modes too), the
    gradients, the optimizer and the random number generators are put back, bit for bit, so that
    the fit that follows is the one that there would have been. While the
    test runs, the device holds a second copy of model and optimizer state.

    The losses stay on the device; it is waited for once in ``check_every`` batches,
    to see whether the loss has blown up.

    Use a runner of its own for it: other callbacks (checkpoints, logs) would take the
    test for training.

    Args:
        min_lr: The first rate. Default 1e-7.
        max_lr: The last one. Default 10.
        steps: How many training batches to use, at least 2. Default 100.
        stop_factor: The loss has blown up when its smoothed value is above this many times
            the lowest so far, or not finite. Default 4.
        smooth: Weight of the past in the smoothed loss, an exponential average with
            correction for the beginning; 0 for none. Default 0.9.
        check_every: How many batches to go between two looks at the losses. Default 10. The
            result does not depend on it.
        optimizer: Whose rates are tried, of several optimizers; the others keep theirs. Default
            ``None``, for the one that there is.

    Attributes:
        lrs: The rates that were tried, list of floats.
        losses: The loss of each batch, taken before the step with its rate (as fastai does);
            list of floats. Both end with the batch that had blown up.
        suggestion: ``SuggestedRates(steepest, tenth_of_minimum)``, ``None`` when
            fewer than three batches were good.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of range. In
            ``begin_fit``: the epochs hold fewer batches than ``steps``, or the optimizer has no
            ``lr``.

    Warns:
        RuntimeWarning: The epochs of a loader that does not know its length, or from which
            batches were cancelled, held fewer batches than ``steps``.

    Source: Smith 2017, Cyclical Learning Rates (arXiv:1506.01186); stopping,
    smoothing and suggestions follow fastai's ``lr_find``.
    """

    def __init__(
        self,
        min_lr: float = 1e-7,
        max_lr: float = 10.0,
        steps: int = 100,
        stop_factor: float = 4.0,
        smooth: float = 0.9,
        check_every: int = 10,
        *,
        optimizer: str | None = None,
    ) -> None:
        self.optimizer = optimizer_name(optimizer)
        for name, number, least in (("steps", steps, 2), ("check_every", check_every, 1)):
            whole_number(name, number, least)
        for name, rate in (("min_lr", min_lr), ("max_lr", max_lr)):
            real_number(name, rate)
        if not 0 < min_lr < max_lr < math.inf:
            raise ValueError(f"min_lr must be positive and less than max_lr: {min_lr}, {max_lr}")
        if not real_number("stop_factor", stop_factor) > 1:
            raise ValueError(f"stop_factor must be more than 1, got {stop_factor!r}")
        if not 0 <= real_number("smooth", smooth) < 1:
            raise ValueError(f"smooth must be at least 0 and less than 1, got {smooth!r}")
        self.min_lr, self.max_lr, self.steps = min_lr, max_lr, steps
        self.stop_factor, self.smooth, self.check_every = stop_factor, smooth, check_every
        self._restore_point: RestorePoint | None = None
        self._modes: list[tuple[nn.Module, bool]] = []
        self._reset()

    def _reset(self) -> None:
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self._unread: list[Any] = []
        self._has_blown_up = False

    # Before anybody changes a mode: an optimizer may hold other weights in another one.
    @handler(before="train_eval")
    def begin_fit(self, run: Runner) -> None:
        """Copy what the test is going to change."""
        modules = run.model.modules() if isinstance(run.model, nn.Module) else ()
        self._modes = [(module, module.training) for module in modules]
        groups_with(optimizer_for(run, self.optimizer, "LRFinder"), "lr", "LRFinder")
        for _, opt in named_optimizers(run.opt):
            if not hasattr(opt, "state"):
                raise TypeError(f"LRFinder needs a torch.optim optimizer, got {opt!r}")
        self._reset()
        batches = fit_length(run).batches
        if batches and run.total_steps and batches < self.steps:
            raise ValueError(
                f"LRFinder needs {self.steps} training batches, and this fit of {run.total_steps} "
                f"steps has {batches}: call fit with steps={self.steps}, or lower LRFinder's steps"
            )
        if batches and run.epochs and batches < self.steps:
            epochs = math.ceil(self.steps * run.epochs / batches)
            raise ValueError(
                f"LRFinder needs {self.steps} training batches, and this fit of {run.epochs} "
                f"epochs has {batches}: call fit with {epochs} epochs, or lower steps"
            )
        self._restore_point = RestorePoint(run)

    # Last: no other schedule is to have its way.
    @handler(priority=AFTER_EVERYONE, during="train")
    def begin_batch(self, run: Runner) -> None:
        """Set the rate for this batch."""
        if self._restore_point is None:
            return
        done = (len(self.losses) + len(self._unread)) / (self.steps - 1)
        self.lrs.append(self.min_lr * (self.max_lr / self.min_lr) ** done)
        for group in optimizer_for(run, self.optimizer, "LRFinder").param_groups:
            set_field(group, "lr", self.lrs[-1])

    @handler(priority=METRICS, during="train")
    def after_loss(self, run: Runner) -> None:
        """Keep the loss, and look at the losses now and then."""
        if self._restore_point is None:
            return
        self._unread.append((detached_mean(run.loss), batch_weight(run)))
        done = len(self.losses) + len(self._unread)
        if len(self._unread) >= self.check_every:
            self._read(run.world)
        if self._has_blown_up:
            reason = f"the loss has blown up at a rate of {self.lrs[-1]:.2g}"
            run.token.cancel("fit", reason, everywhere=True)
        elif done >= self.steps:
            run.token.cancel("fit", "the range test is complete", everywhere=True)

    @handler(priority=POLICY, during="train")
    def after_batch(self, run: Runner) -> None:
        """Forget the rate of a batch that was cancelled before it had a loss."""
        del self.lrs[len(self.losses) + len(self._unread) :]

    @handler(priority=BEFORE_EVERYONE)
    def begin_validate(self, run: Runner) -> None:
        """Skip the validation."""
        if self._restore_point is not None:
            run.token.cancel("validate", "a range test does not validate")

    @handler(priority=AFTER_EVERYONE)
    def after_fit(self, run: Runner) -> None:
        """Put everything back."""
        for module, is_training in self._modes:
            module.training = is_training
        self._modes = []
        point, self._restore_point = self._restore_point, None
        if point is None:
            return
        try:
            self._read(ONE_PROCESS if run.outcome == "failed" else run.world)
        finally:
            point.restore(run)
        if (
            run.outcome == "completed"
            and (run.epochs or run.total_steps)
            and not self._has_blown_up
        ):
            warnings.warn(
                f"the range test ended after {len(self.losses)} of {self.steps} batches, before "
                f"max_lr: the fit held no more. Call fit with more epochs or steps, or lower steps",
                RuntimeWarning,
                stacklevel=2,
            )

    def _read(self, world: OneProcess) -> None:
        """Move the losses to the host and smooth them, up to the first that has blown up."""
        unread, self._unread = self._unread, []
        for loss in means_over_processes(unread, world):
            if self._has_blown_up:
                break
            past = self._average() * self.smooth
            count = len(self.losses) + 1
            self.losses.append(loss)
            self.smoothed.append((past + (1 - self.smooth) * loss) / (1 - self.smooth**count))
            lowest = min(self.smoothed)
            limit = lowest + (self.stop_factor - 1) * abs(lowest)
            self._has_blown_up = not self.smoothed[-1] <= limit
        if self._has_blown_up:
            del self.lrs[len(self.losses) :]

    def _average(self) -> float:
        """Return the exponential average before correction."""
        count = len(self.smoothed)
        return self.smoothed[-1] * (1 - self.smooth**count) if count else 0.0

    @property
    def suggestion(self) -> SuggestedRates | None:
        """Rates to try, ``None`` where the test was too short to tell."""
        end = len(self.smoothed) - self._has_blown_up
        if end < 3:
            return None
        losses = self.smoothed[:end]
        lowest = min(range(end), key=losses.__getitem__)
        # The rates are evenly spaced on the logarithmic axis, so differences will do.
        slopes = {i: losses[i + 1] - losses[i - 1] for i in range(1, end - 1) if i <= lowest}
        steepest = min(slopes, key=slopes.__getitem__) if slopes else lowest
        return SuggestedRates(self.lrs[steepest], self.lrs[lowest] / 10)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw loss over rate, and mark the rate to use: the steepest, with its number.

        Args:
            ax: Where to; by default new axes of a new pyplot figure.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: There has been no test.
        """
        if not self.losses:
            raise ValueError("there is nothing to draw: run a fit with this callback first")
        if ax is None:
            ax = shown_figure("LRFinder.plot", (6.4, 4)).add_subplot()
        _draw(self, ax)
        return ax

    def save_plot(self, path: str | os.PathLike[str]) -> None:
        """Write the drawing to an image file, whose ending tells the format.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: There has been no test.
        """
        figure = saved_figure("LRFinder.save_plot", (6.4, 4), dpi=150)
        self.plot(figure.add_subplot())
        figure.savefig(path)


def _draw(finder: LRFinder, ax: Axes) -> None:
    ax.plot(finder.lrs, finder.losses, color=FAINT, linewidth=1, label="loss of the batch")
    ax.plot(finder.lrs, finder.smoothed, color=MAIN, linewidth=1.8, label="smoothed")
    if finder.suggestion is not None:
        _mark(finder, finder.suggestion, ax)
    finite = [loss for loss in finder.smoothed if math.isfinite(loss)]
    if finite:  # the last losses of a test dwarf all others
        margin = 0.1 * (max(finite) - min(finite)) or 1.0
        ax.set_ylim(min(finite) - margin, max(finite) + margin)
    ax.set_xscale("log")
    ax.set(xlabel="learning rate", ylabel="loss", title="Learning-rate range test")
    tidy(ax).legend(frameon=False, loc="best")


def _mark(finder: LRFinder, suggestion: SuggestedRates, ax: Axes) -> None:
    """Mark the rate to use on the curve, and the other rule's, which it is held against."""
    use, other = suggestion
    ax.axvline(use, color=SECOND, linewidth=1.6, label=f"use {use:.3g}: the loss falls fastest")
    ax.axvline(other, color=THIRD, linestyle=":", linewidth=1.2, label=f"minimum / 10: {other:.3g}")
    loss = finder.smoothed[finder.lrs.index(use)]
    ax.scatter([use], [loss], color=SECOND, s=45, zorder=3)
