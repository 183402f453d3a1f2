"""One bar over a whole fit in the output of a notebook's cell, and a table of rows under it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .bar_texts import Wanted, phase_text
from .fit_length import fit_length
from .row_ends import RowClock
from .row_table import RowTable

if TYPE_CHECKING:
    from ...runner import Runner


def is_of_notebook(tqdm: Any) -> bool:
    """Whether bars of that class are widgets in the output of a notebook's cell."""
    return any(each.__module__ == "tqdm.notebook" for each in tqdm.__mro__)


class NotebookBar:
    """A bar over the batches or steps of a fit, or over those of a phase that runs alone.

    It does what ``TerminalBars`` does. An output cannot be taken away again, so there is one bar
    for all phases, which says in words what is under way.

    Args:
        tqdm: The class of the bars.
        wanted: What they show.
        options: What else they are made with.
        every: Least number of seconds between two drawings of the table.
        has_table: Whether rows are shown as a table, and not beside the bar.
    """

    def __init__(
        self, tqdm: Any, wanted: Wanted, options: dict[str, Any], every: float, has_table: bool
    ) -> None:
        self._tqdm, self._wanted, self._options = tqdm, wanted, options
        self._every, self._has_table = every, has_table
        self.bar: Any = None
        self._unit = ""
        self._table = RowTable()
        self._table_due = 0.0
        self._clock = RowClock()

    def begin_fit(self, run: Runner) -> None:
        """Show the bar over the fit, by batches where their number is known."""
        length = fit_length(run)
        if run.total_steps is not None:
            self._unit, total = "step", length.steps
        elif length.batches is not None:
            self._unit, total = "batch", length.batches
        else:
            self._unit, total = "epoch", length.epochs
        self.bar = self._tqdm(
            total=total, desc="fit", unit=self._unit, leave=self._wanted.leave, **self._options
        )
        self._table = RowTable(self._wanted.metrics)
        self._clock = RowClock()

    def begin_epoch(self, run: Runner) -> None:
        """Start the clock of the row."""
        self._clock.begin_epoch(run)

    def begin_phase(self, run: Runner) -> bool:
        """Show a bar for a phase that runs alone; return whether something was drawn."""
        if self.bar is not None or run.epoch is not None:
            return False
        self._unit = run.phase
        if run.valid_name is None or run.valid_name == next(iter(run.valid_loaders)):
            self._table = RowTable(self._wanted.metrics)
        self.bar = self._tqdm(
            total=run.iters, desc=phase_text(run), unit="batch", leave=False, **self._options
        )
        return True

    def move(self, run: Runner) -> None:
        """Draw the bar as far as the run has come."""
        bar = self.bar
        if bar is None or run.batch_index is None:
            return
        text = phase_text(run)
        if self._unit == run.phase:
            bar.n = run.batch_index + 1
        elif run.in_train:
            place = self._place(run)
            if bar.n == 0:  # what a fit has resumed from took none of this bar's time
                bar.initial = max(place - 1, 0)
            bar.n = place
        else:
            text += f" {run.batch_index + 1}/{'?' if run.iters is None else run.iters}"
        bar.set_description_str(text, refresh=False)
        self._wanted.show_loss(bar, run)
        bar.refresh()

    def end_phase(self, run: Runner) -> None:
        """Let go of the bar of a phase that ran alone, and show what was measured in it."""
        if self.bar is not None and self._unit == run.phase:
            if run.outcome == "completed" and self.bar.total:
                self.bar.n = self.bar.total
            self._close()

    def make_room(self) -> None:
        """Do nothing: what others print stands under the bar."""

    def end_row(self, run: Runner) -> None:
        """Show a row of the history that is complete."""
        bar = self.bar
        if bar is None or run.outcome == "failed":
            return
        if not self._has_table:
            bar.set_postfix(self._wanted.metrics_of(run.history[-1]), refresh=False)
            return
        self._table.add(run.history[-1], self._clock.lap(run))
        now = time.monotonic()
        if now >= self._table_due:
            self._table_due = now + self._every
            self._table.draw()

    def end_epoch(self, run: Runner) -> None:
        """Do nothing: the next batch moves the bar."""

    def end_fit(self, run: Runner) -> None:
        """Draw bar and table for the last time, and let go of them."""
        bar = self.bar
        if bar is None:
            return
        self._table.draw()
        bar.n = self._place(run)
        if run.outcome == "completed":
            bar.set_description_str("fit", refresh=False)
            bar.n = max(bar.n, bar.total or 0)
        else:
            where = "" if run.epoch is None else f" in epoch {run.epoch}"
            bar.set_description_str(f"{run.outcome}{where}", refresh=False)
        self._close()

    def show_aside(self, run: Runner) -> None:
        """Show what a validation has measured that is no part of a row."""
        is_last = run.valid_name == list(run.valid_loaders)[-1]
        if self._has_table and is_last and run.history and run.outcome != "failed":
            self._table.add(run.history[-1])
            self._table.draw()

    def _close(self) -> None:
        self.bar.close()
        self.bar = None

    def _place(self, run: Runner) -> int:
        """Return how far the fit is, in the bar's unit."""
        if self._unit == "step":
            return run.steps
        if self._unit == "epoch":
            return run.epoch or 0
        # Not n_iter alone: batches that were skipped lie behind too.
        place = (run.epoch or 0) * (run.train_iters or 0) + run.n_iter - run.epoch_began_at
        return place if self.bar.total is None else min(place, int(self.bar.total))
