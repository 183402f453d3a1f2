"""One line of JSON an epoch, and one for how the fit ended."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import absolute_path, flag
from ..atomic_file import replace_file
from ..errors import describe
from ..priorities import REPORTS
from .shared.readings import epoch_row
from .shared.row_ends import RowCallback, RowClock

if TYPE_CHECKING:
    from ..runner import Runner


class JSONLLogger(RowCallback):
    """Writes ``run.history`` to a file of JSON lines, each whole as soon as it is known.

    An epoch's line has ``event`` (``"after_epoch"``), ``epoch``, what callbacks wrote
    to ``run.history`` at priorities above REPORTS, ``seconds`` and ``outcome``. In a
    fit with ``validate_every`` there is a line a validation instead, with ``"after_row"`` and the
    ``step``. The last
    line of a fit has ``event`` (``"after_fit"``), ``outcome``, ``reason``, ``epochs``
    (those that completed), ``steps`` and ``seconds``. Numbers that are not finite,
    which JSON does not have, become ``null``.

    The checkpointed state holds all lines. A run that resumes makes the file hold
    these again and goes on, so that no epoch stands there twice.

    Args:
        path: The file; its folder is made if need be.
        append: Keep the lines of an existing file. By default the first fit of
            this object replaces it. Later fits of the object add to it either way.

    Raises:
        TypeError: ``path`` is no path, or ``append`` neither true nor false.
        OSError: When a fit begins: the file cannot be written.
    """

    priority = REPORTS
    ranks = "zero"

    def __init__(self, path: str | os.PathLike[str], append: bool = False) -> None:
        self.path = Path(absolute_path("path", path))
        self.append = flag("append", append)
        self._lines: list[str] = []
        self._is_new = True
        self._is_open = False
        self._epochs = 0
        self._fit_start = 0.0
        self._clock = RowClock()

    def begin_fit(self, run: Runner) -> None:
        """See that the file can be written, and read what it holds where lines are added to it."""
        self._epochs = 0
        self._clock = RowClock()
        self._fit_start = time.perf_counter()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._is_new and not self.append
        with self.path.open("wb" if fresh else "ab"):
            pass
        if self._is_new and self.append:
            text = self.path.read_text(encoding="utf-8")
            whole, _, torn = text.rpartition("\n")
            self._lines = whole.splitlines()
            if torn:  # a process was killed as it wrote a line
                self._rewrite()
        self._is_new = False
        self._is_open = True

    def begin_epoch(self, run: Runner) -> None:
        """Start the epoch's clock."""
        self._clock.begin_epoch(run)

    def after_epoch(self, run: Runner) -> None:
        """Count the epoch, and write its line where a row is of an epoch."""
        self._epochs += run.outcome == "completed"
        super().after_epoch(run)

    def end_row(self, run: Runner) -> None:
        """Write the row's line."""
        event = "after_epoch" if run.validate_every is None else "after_row"
        self._write({"event": event, **epoch_row(run, self._clock.lap(run))})

    def after_fit(self, run: Runner) -> None:
        """Write how the fit ended."""
        if not self._is_open:  # the fit ended before this callback's turn to begin
            return
        self._is_open = False
        reason = None
        if run.exception is not None:
            reason = describe(run.exception)
        elif run.outcome == "cancelled" and run.token.absorbed is not None:
            reason = run.token.absorbed.reason
        self._write(
            {
                "event": "after_fit",
                "outcome": run.outcome,
                "reason": reason,
                "epochs": self._epochs,
                "steps": run.steps,
                "seconds": time.perf_counter() - self._fit_start,
            }
        )

    def _write(self, row: dict[str, Any]) -> None:
        finite = {name: None if _is_strange(value) else value for name, value in row.items()}
        line = json.dumps(finite, allow_nan=False)
        self._lines.append(line)
        with self.path.open("ab") as file:
            file.write(f"{line}\n".encode())

    def _rewrite(self) -> None:
        text = "".join(f"{line}\n" for line in self._lines)
        replace_file(self.path, lambda file: file.write(text.encode()))

    def state_dict(self) -> dict[str, Any]:
        """Return the lines that the file holds."""
        return {"lines": list(self._lines), "epochs": self._epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the file hold the lines of the checkpoint, and none beyond."""
        self._lines = list(state["lines"])
        self._epochs = state["epochs"]
        self._is_new = False
        if self.runs_here:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._rewrite()


def _is_strange(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
