"""Progress bars over epochs and batches, on terminals and in notebooks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from ..arguments import flag, real_number
from ..callback import Callback, handler, listify
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE, REPORTS
from .shared.bar_texts import Wanted
from .shared.extras import import_extra
from .shared.notebook_bar import NotebookBar, is_of_notebook
from .shared.terminal_bars import TerminalBars

if TYPE_CHECKING:
    from ..runner import Runner


class Progress(Callback):
    """Shows a bar over the epochs or steps of a fit, and one over the batches of each phase.

    The bars are tqdm's, redrawn every ``every`` seconds at most; a batch in between
    costs one look at the clock. The bar of a phase is gone when the phase has ended,
    and that of the epochs is out of the way while ``after_epoch`` and ``after_row`` run, so what
    others print there (``AvgStatsCallback`` does) stands on lines of its own. What is printed
    in the middle of a phase goes through ``write``.

    In a notebook there is one bar, over the whole fit, which says which phase is under way, and
    under it a table with a line for each row of ``run.history``. What ``AvgStatsCallback`` would
    print stands there.

    With ``loss=True`` the batch's loss is read each time the bar is drawn, and the host
    waits for the device then; by default nothing is read from it.

    Args:
        loss: Show the loss of the last batch. Default ``False``.
        metrics: Names in ``run.history`` to show beside the bar over the epochs, or in the table
            of a notebook. ``None`` (default) shows four at most beside the bar, losses first, and
            all in the table.
        every: Least number of seconds between two drawings, 0.1 by default.
        leave: Leave the bar over the fit on the screen when it has ended.
        disable: ``True`` for no bars, ``False`` for bars wherever it runs. ``None``
            (default) for none where ``file`` is no terminal, except in a notebook.
        file: Where to draw; standard error by default. With a file, bars are of text in a notebook
            too.
        table: In a notebook, show rows as a table. With ``False`` they stand beside the bar, and
            ``AvgStatsCallback`` prints them. Default ``True``.

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
        table: bool = True,
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
        flag("table", table)
        self._tqdm = import_extra("tqdm.auto" if file is None else "tqdm.std", user="Progress").tqdm
        wanted = Wanted(self.loss_shown, self.metrics, self.leave)
        # Drawn when this callback says so: tqdm is to add no clock of its own.
        clock = {"mininterval": 0, "miniters": 1}
        options = {**clock, "dynamic_ncols": True, "disable": disable, "file": file}
        is_widget = not disable and is_of_notebook(self._tqdm)
        self._view: NotebookBar | TerminalBars = (
            NotebookBar(self._tqdm, wanted, options, every, has_table=table)
            if is_widget
            else TerminalBars(self._tqdm, wanted, options)
        )
        self._has_table = is_widget and table
        self._due = 0.0

    @property
    def shows_rows(self) -> bool:
        """Whether rows of the history stand in a table of its own, as in a notebook."""
        return self._has_table

    def write(self, text: str) -> None:
        """Print a line on standard output without tearing the bars; serves as ``report=``."""
        self._tqdm.write(text)

    def begin_fit(self, run: Runner) -> None:
        """Show the bar over the fit."""
        self._view.begin_fit(run)

    def begin_epoch(self, run: Runner) -> None:
        """Say how far the fit is; one that resumes begins in the middle."""
        self._view.begin_epoch(run)

    @handler(["begin_train", "begin_validate", "begin_predict"])
    def open_batches(self, run: Runner) -> None:
        """Show the bar over the batches of a phase."""
        if self._view.begin_phase(run):
            self._due = time.monotonic() + self.every

    def after_batch(self, run: Runner) -> None:
        """Move the bar, if it is time to."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self.every
        self._view.move(run)

    @handler(["after_train", "after_validate", "after_predict"], priority=BEFORE_EVERYONE)
    def close_batches(self, run: Runner) -> None:
        """Take the phase's bar away before anybody prints."""
        self._view.end_phase(run)

    @handler("after_validate", priority=AFTER_EVERYONE)
    def show_aside(self, run: Runner) -> None:
        """Show what a validation has measured that completes no row."""
        is_aside = run.in_interlude and run.validate_every is None
        if run.token.scope is None or is_aside:
            self._view.show_aside(run)

    @handler(["after_epoch", "after_row"], priority=BEFORE_EVERYONE)
    def make_room(self, run: Runner) -> None:
        """Take the bars off the screen for what others print."""
        self._view.make_room()

    @handler(priority=AFTER_EVERYONE)
    def after_row(self, run: Runner) -> None:
        """Show the row, or its metrics beside the bar."""
        self._view.end_row(run)

    @handler(priority=AFTER_EVERYONE)
    def after_epoch(self, run: Runner) -> None:
        """Show the bar again."""
        self._view.end_epoch(run)

    @handler(priority=BEFORE_EVERYONE)
    def after_fit(self, run: Runner) -> None:
        """Let go of the bar over the fit."""
        self._view.end_fit(run)
