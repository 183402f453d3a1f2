"""One row an epoch, or a validation, in a CSV file."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import absolute_path, flag
from ..atomic_file import replace_file
from ..priorities import REPORTS
from .shared.readings import epoch_row
from .shared.row_ends import RowCallback, RowClock

if TYPE_CHECKING:
    from ..runner import Runner

_END = "end"


class CSVLogger(RowCallback):
    """Writes ``run.history`` to a CSV file, one row an epoch, each whole as soon as it ends.

    The columns are ``epoch``, what callbacks wrote to ``run.history`` at
    priorities above REPORTS, ``seconds`` (wall time of the epoch) and ``outcome``.
    In a fit with ``validate_every`` a row is of a validation and what was trained before it, and
    ``step`` is the second column. When a later row brings a new column, the file is replaced in
    one step by one with the wider header; rows without a value have an empty cell. Numbers that
    are not finite are written ``nan``, ``inf`` and ``-inf``.

    The checkpointed state holds all rows. A run that resumes makes the file hold
    these again and goes on, so that no epoch stands there twice.

    Args:
        path: The file; its folder is made if need be.
        append: Keep the rows of an existing file, less a last one that is torn
            (no newline ends it). By default the first fit of this object replaces
            it. Later fits of the object add to it either way.

    Raises:
        TypeError: ``path`` is no path, or ``append`` neither true nor false.
        OSError: When a fit begins: the file cannot be written.
        ValueError: When a fit begins: the file to append to has no column ``epoch``.
    """

    priority = REPORTS
    ranks = "zero"

    def __init__(self, path: str | os.PathLike[str], append: bool = False) -> None:
        self.path = Path(absolute_path("path", path))
        self.append = flag("append", append)
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._is_new = True
        self._clock = RowClock()

    def begin_fit(self, run: Runner) -> None:
        """See that the file can be written, and read what it holds where rows are added to it."""
        self._clock = RowClock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._is_new and not self.append
        if not self._is_new and not self.path.exists():
            self._rewrite()
        with self.path.open("wb" if fresh else "ab"):
            pass
        if self._is_new and self.append:
            self._read_file()
        self._is_new = False

    def _read_file(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        is_torn = not text.endswith("\n")
        if "\n" not in text:
            text += "\n"  # a header alone: it is written in one step, and never torn
        # A row of its own after whole rows, else the end of the one that a process was
        # killed in: the last row is dropped either way.
        reader = csv.DictReader(io.StringIO(text + _END, newline=""), restval="")
        self._columns = list(reader.fieldnames or [])
        if self._columns and "epoch" not in self._columns:
            raise ValueError(
                f"{self.path} is no file of CSVLogger's to append to: it has the columns "
                f"{', '.join(self._columns)}, and 'epoch' is not among them"
            )
        if not self._columns:
            return
        *rows, last = reader
        self._rows = [{name: row[name] for name in self._columns} for row in rows]
        if is_torn or last[self._columns[0]] != _END:
            self._rewrite()

    def begin_epoch(self, run: Runner) -> None:
        """Start the epoch's clock."""
        self._clock.begin_epoch(run)

    def end_row(self, run: Runner) -> None:
        """Write the row."""
        row = epoch_row(run, self._clock.lap(run))
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        self._columns += new
        if new or not self.path.exists():
            self._rewrite()
            return
        with self.path.open("ab") as file:
            file.write(self._lines([row]).encode())

    def _lines(self, rows: list[dict[str, Any]], header: bool = False) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _rewrite(self) -> None:
        text = self._lines(self._rows, header=True) if self._columns else ""
        replace_file(self.path, lambda file: file.write(text.encode()))

    def state_dict(self) -> dict[str, Any]:
        """Return the rows that the file holds."""
        return {"columns": list(self._columns), "rows": [dict(row) for row in self._rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the file hold the rows of the checkpoint, and none beyond."""
        self._columns = list(state["columns"])
        self._rows = [dict(row) for row in state["rows"]]
        self._is_new = False
        if self.runs_here:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._rewrite()
