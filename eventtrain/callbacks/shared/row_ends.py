"""Acting on a row of the history when it is complete, whatever it is of."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ...callback import Callback

if TYPE_CHECKING:
    from ...state import RunState


class RowCallback(Callback):
    """Calls ``end_row`` once for each row of the history.

    That is in ``after_epoch`` where rows are of epochs, among the handlers of others there, and in
    ``after_row`` in a fit with ``validate_every``.
    """

    def after_epoch(self, run: Any) -> None:
        """Act on the epoch's row, where a row is of an epoch."""
        if run.validate_every is None:
            self.end_row(run)

    def after_row(self, run: Any) -> None:
        """Act on the row of a validation, in a fit with ``validate_every``."""
        if run.validate_every is not None:
            self.end_row(run)

    def end_row(self, run: Any) -> None:
        """Do what is to be done with ``run.history[-1]``; ``run.outcome`` is how it ended."""
        raise NotImplementedError


class RowClock:
    """Tells how long a row took: its epoch, or the time since the row before."""

    def __init__(self) -> None:
        self._start: float | None = None

    def begin_epoch(self, run: RunState) -> None:
        """Start, unless the row goes on from the last epoch."""
        if run.validate_every is None or self._start is None:
            self._start = time.perf_counter()

    def lap(self, run: RunState) -> float | None:
        """Return the seconds of the row that ends; ``None`` where it has not been begun."""
        now, start = time.perf_counter(), self._start
        if run.validate_every is not None:
            self._start = now
        return None if start is None else now - start
