"""Progress bars over epochs and batches, on terminals and in notebooks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from ..arguments import flag, real_number
from ..callback import Callback, handler, listify
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE, REPORTS
from .shared.extras import import_extra
from .shared.fit_length import fit_length

if TYPE_CHECKING:
    from ..runner import Runner


class Progress(Callback):
    """Shows a bar over the epochs or steps of a fit, and one over the batches of each phase.

    The bars are tqdm's, redrawn every ``every`` seconds at most; a batch in between
    costs one look at the clock. The bar of a phase is gone when the phase has ended,
    and that of the epochs is out of the way while ``after_epoch`` and ``after_row`` run, so what
    others print there (``AvgStatsCallback`` does) stands on lines of its own. What is printed
    in the middle of a phase goes through ``write``.

    With ``loss=True`` the batch's loss is read each time the bar is drawn, and the host
    waits for the device then; by default nothing is read from it.

    Args:
        loss: Show the loss of the last batch. Default ``False``.
        metrics: Names in ``run.history`` to show beside the bar over the epochs.
            ``None`` (default) shows four at most, losses first.
        every: Least number of seconds between two drawings, 0.1 by default.
        leave: Leave the bar over the epochs on the screen when the fit has ended.
        disable: ``True`` for no bars, ``False`` for bars wherever it runs. ``None``
            (default) for none where ``file`` is no terminal, except in a notebook.
        file: Where to draw; standard error by default.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
        ModuleNotFoundError: tqdm is missing.
    """

    priority = REPORTS
    ranks = "zero"

    def __init__(
        self,
        loss: bool = False,
        metrics: Iterable[str] | None = None,
        every: float = 0.1,
        leave: bool = True,
        disable: bool | None = None,
        file: TextIO | None = None,
    ) -> None:
        if real_number("every", every, "seconds") < 0:
            raise ValueError(f"every must be 0 seconds or more, got {every!r}")
        self.loss_shown = flag("loss", loss)
        self.metrics = None if metrics is None else listify(metrics)
        for name in self.metrics or ():
            if not isinstance(name, str):
                raise TypeError(f"metrics must be names in run.history, got {name!r}")
        if file is not None and not hasattr(file, "write"):
            raise TypeError(f"file must be a stream to write text to, got {file!r}")
        self.every = every
        self.leave = flag("leave", leave)
        if disable is not None:
            flag("disable", disable)
        self._tqdm = import_extra("tqdm.auto", user="Progress").tqdm
        # Drawn when this callback says so: tqdm is to add no clock of its own.
        options = {"mininterval": 0, "miniters": 1, "dynamic_ncols": True}
        self._options: dict[str, Any] = {**options, "disable": disable, "file": file}
        self._epochs: Any = None
        self._batches: Any = None
        self._outer: Any = None  # that of the training, while a validation comes in between
        self._due = 0.0

    def write(self, text: str) -> None:
        """Print a line on standard output without tearing the bars; serves as ``report=``."""
        self._tqdm.write(text)

    def begin_fit(self, run: Runner) -> None:
        """Show the bar over the epochs, or steps where the fit goes by them."""
        length, unit = fit_length(run), "epoch" if run.total_steps is None else "step"
        self._epochs = self._tqdm(
            total=length.epochs if run.total_steps is None else length.steps,
            desc=f"{unit}s",
            unit=unit,
            leave=self.leave,
            **self._options,
        )

    def begin_epoch(self, run: Runner) -> None:
        """Say how many epochs are done; a fit that resumes begins in the middle."""
        bar = self._epochs
        if bar is None or run.epoch is None:
            return
        if bar.n == 0:  # what a fit has resumed from took none of this bar's time
            bar.initial = _done(run)
        bar.n = _done(run)

    @handler(["begin_train", "begin_validate", "begin_predict"])
    def open_batches(self, run: Runner) -> None:
        """Show the bar over the batches of a phase."""
        if self._batches is not None:
            self._outer = self._batches
            self._outer.clear()
        epoch = "" if run.epoch is None else f"epoch {run.epoch} "
        name = "" if run.valid_name is None else f" {run.valid_name}"
        self._batches = self._tqdm(
            total=_batches_of(run),
            desc=f"{epoch}{run.phase}{name}",
            unit="batch",
            leave=False,
            **self._options,
        )
        self._due = time.monotonic() + self.every

    def after_batch(self, run: Runner) -> None:
        """Move the bar, if it is time to."""
        bar = self._batches
        if bar is None or bar.disable or run.batch_index is None:
            return
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self.every
        if run.in_train and run.total_steps is not None and self._epochs is not None:
            self._epochs.update(run.steps - self._epochs.n)
        if self.loss_shown and run.loss is not None:
            bar.set_postfix_str(f"loss={float(run.loss.detach().mean()):.4g}", refresh=False)
        bar.update(run.batch_index + 1 - bar.n)

    @handler(["after_train", "after_validate", "after_predict"], priority=BEFORE_EVERYONE)
    def close_batches(self, run: Runner) -> None:
        """Take the phase's bar away before anybody prints."""
        if self._batches is not None:
            self._batches.close()
            self._batches, self._outer = self._outer, None

    @handler(["after_epoch", "after_row"], priority=BEFORE_EVERYONE)
    def make_room(self, run: Runner) -> None:
        """Take the bars off the screen for what others print."""
        for bar in (self._batches, self._epochs):
            if bar is not None and not bar.disable:
                bar.clear()

    @handler(priority=AFTER_EVERYONE)
    def after_row(self, run: Runner) -> None:
        """Show the bars again, with the metrics of a validation."""
        bar = self._epochs
        if bar is None or bar.disable or run.validate_every is None:
            return
        bar.set_postfix(self._chosen(run.history[-1]), refresh=False)
        bar.n = _done(run)
        bar.refresh()

    @handler(priority=AFTER_EVERYONE)
    def after_epoch(self, run: Runner) -> None:
        """Show the bar again, with the epoch's metrics where a row is of an epoch."""
        bar = self._epochs
        if bar is None or bar.disable or run.epoch is None:
            return
        if run.validate_every is None:
            bar.set_postfix(self._chosen(run.history[-1]), refresh=False)
        bar.n = _done(run) + (run.total_steps is None and run.outcome == "completed")
        bar.refresh()

    def _chosen(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.metrics is not None:
            return {name: row[name] for name in self.metrics if name in row}
        names = [name for name, value in row.items() if isinstance(value, float)]
        names.sort(key=lambda name: not name.endswith("loss"))
        return {name: row[name] for name in names[:4]}

    @handler(priority=BEFORE_EVERYONE)
    def after_fit(self, run: Runner) -> None:
        """Let go of the bar over the epochs."""
        if self._epochs is not None:
            self._epochs.close()
            self._epochs = None


def _done(run: Runner) -> int:
    """Return how many epochs are done, or steps in a fit that goes by them."""
    return run.epoch or 0 if run.total_steps is None else run.steps


def _batches_of(run: Runner) -> int | None:
    """Return the batches of the phase that begins; of training those up to the fit's end."""
    if run.phase != "train" or run.epoch is None:
        return run.iters
    whole = fit_length(run).batches
    return run.iters if run.iters is None or whole is None else min(run.iters, whole - run.n_iter)
