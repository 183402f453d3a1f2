"""Bars on a terminal: one over the epochs or steps of a fit, one over the batches of a phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .bar_texts import Wanted, batches_of, phase_text, units_done
from .extras import import_extra
from .fit_length import fit_length

if TYPE_CHECKING:
    from ...runner import Runner


class TerminalBars:
    """Two bars under each other, of which that of a phase is gone when the phase has ended.

    Args:
        tqdm: The class of the bars.
        wanted: What they show.
        options: What else they are made with.

    Attributes:
        epochs: The bar over the fit, ``None`` outside of one.
        batches: The bar over the phase, ``None`` between phases.
    """

    def __init__(self, tqdm: Any, wanted: Wanted, options: dict[str, Any]) -> None:
        self._tqdm, self._wanted, self._options = tqdm, wanted, options
        self.epochs: Any = None
        self.batches: Any = None
        self._outer: Any = None  # that of the training, while a validation comes in between

    def begin_fit(self, run: Runner) -> None:
        """Show the bar over the epochs, or steps where the fit goes by them."""
        length, unit = fit_length(run), "epoch" if run.total_steps is None else "step"
        total = length.epochs if run.total_steps is None else length.steps
        self.epochs = self._made(total=total, desc=f"{unit}s", unit=unit, leave=self._wanted.leave)

    def begin_epoch(self, run: Runner) -> None:
        """Say how many epochs are done; a fit that resumes begins in the middle."""
        bar = self.epochs
        if bar is None or run.epoch is None:
            return
        if bar.n == 0:  # what a fit has resumed from took none of this bar's time
            bar.initial = units_done(run)
        bar.n = units_done(run)

    def begin_phase(self, run: Runner) -> bool:
        """Show the bar over the batches of a phase; return that it has been drawn."""
        if self.batches is not None:
            self._outer = self.batches
            self._outer.clear()
        self.batches = self._made(
            total=batches_of(run), desc=phase_text(run), unit="batch", leave=False
        )
        return True

    def move(self, run: Runner) -> None:
        """Draw the bars as far as the run has come."""
        bar = self.batches
        if bar is None or bar.disable or run.batch_index is None:
            return
        if run.in_train and run.total_steps is not None and self.epochs is not None:
            self.epochs.update(run.steps - self.epochs.n)
        self._wanted.show_loss(bar, run)
        bar.update(run.batch_index + 1 - bar.n)

    def end_phase(self, run: Runner) -> None:
        """Take the phase's bar away."""
        if self.batches is not None:
            self.batches.close()
            self.batches, self._outer = self._outer, None

    def make_room(self) -> None:
        """Take the bars off the screen for what others print."""
        for bar in (self.batches, self.epochs):
            if bar is not None and not bar.disable:
                bar.clear()

    def show_aside(self, run: Runner) -> None:
        """Do nothing: those who measure print it."""

    def end_row(self, run: Runner) -> None:
        """Show the bars again, with the metrics of a validation."""
        bar = self.epochs
        if bar is None or bar.disable or run.validate_every is None:
            return
        self._show_metrics(bar, run.history[-1])
        bar.n = units_done(run)
        bar.refresh()

    def end_epoch(self, run: Runner) -> None:
        """Show the bar again, with the epoch's metrics where a row is of an epoch."""
        bar = self.epochs
        if bar is None or bar.disable or run.epoch is None:
            return
        if run.validate_every is None:
            self._show_metrics(bar, run.history[-1])
        bar.n = units_done(run) + (run.total_steps is None and run.outcome == "completed")
        bar.refresh()

    def end_fit(self, run: Runner) -> None:
        """Let go of the bar over the epochs."""
        if self.epochs is not None:
            self.epochs.close()
            self.epochs = None

    def _made(self, **options: Any) -> Any:
        bar = self._tqdm(**options, **self._options)
        if not bar.disable:
            bar.sp = _printer(bar)
        return bar

    def _show_metrics(self, bar: Any, row: dict[str, Any]) -> None:
        """Put as many metrics beside the bar as have room: a number cut off is another number."""
        shown = list(self._wanted.metrics_of(row).items())
        while True:
            bar.set_postfix(dict(shown), refresh=False)
            if not shown or _has_room(bar):
                return
            shown.pop()


def _has_room(bar: Any) -> bool:
    facts = bar.format_dict
    width = facts["ncols"]
    # Without a width it is drawn with a bar of ten characters, and not cut.
    return not width or _columns(bar.format_meter(**{**facts, "ncols": None})) <= width


def _printer(bar: Any) -> Callable[[str], None]:
    """Return what draws a line over the one before, and never more than has room.

    tqdm's own blots out a longer line with blanks. Where the window has become narrower since,
    they would run over into lines below.
    """
    before = _columns(str(bar))  # which tqdm has drawn already

    def draw(text: str) -> None:
        nonlocal before
        width = bar.format_dict["ncols"] or before  # measured anew
        columns = _columns(text)
        bar.fp.write("\r" + text + " " * (min(before, width) - columns))
        bar.fp.flush()
        before = columns

    return draw


def _columns(text: str) -> int:
    """Return how many columns a text takes on the screen, where some characters take two."""
    return int(import_extra("tqdm.utils", user="Progress").disp_len(text))
