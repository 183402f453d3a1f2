"""Rows of a fit as one table in the output of a notebook's cell, which grows in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from html import escape
from numbers import Real
from typing import Any

from ...text_table import short_number, text_table
from .extras import import_extra

SHOWN = 30
"""How many rows are drawn at most: the table is sent as a whole each time it grows."""
_PLACE = ("epoch", "step")


class RowTable:
    """A table that is shown with its first row, and drawn again where it stands.

    Numbers and texts of a row have a cell each; what else it holds is left out, as showing a
    tensor would wait for the device. Of many rows the last are shown.

    Args:
        columns: Names to show, beside the place of the row and its seconds; ``None`` for all.
    """

    def __init__(self, columns: Sequence[str] | None = None) -> None:
        self._columns = columns
        self._rows: deque[dict[str, str]] = deque(maxlen=SHOWN)
        self._count = 0
        self._is_drawn = True  # as far as there is something to draw
        self._handle: Any = None  # of the output that is to change

    def add(self, row: dict[str, Any], seconds: float | None = None) -> None:
        """Take in a row; one in which nothing was measured is none.

        Args:
            row: Of ``run.history``.
            seconds: How long it took, for a column of that name if the row has none.
        """
        measured = {name: value for name, value in row.items() if name not in _PLACE}
        if not measured:
            return
        if self._columns is not None:
            measured = {name: measured[name] for name in self._columns if name in measured}
        place = {name: row[name] for name in _PLACE if name in row}
        whole = {**place, **measured}
        if seconds is not None:
            whole.setdefault("seconds", seconds)
        cells = {name: short_number(v) for name, v in whole.items() if isinstance(v, Real | str)}
        self._rows.append(cells)
        self._count += 1
        self._is_drawn = False

    def draw(self) -> None:
        """Show the table, or change it where it is shown already; do nothing if nothing is new."""
        if self._is_drawn:
            return
        self._is_drawn = True
        if self._handle is None:
            display = import_extra("IPython.display", user="Progress", extra="notebook").display
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)

    def _titles(self) -> list[str]:
        found = list(dict.fromkeys(name for row in self._rows for name in row))
        if "seconds" in found:  # also where a later row has a column that those before have not
            found.remove("seconds")
            found.append("seconds")
        return found

    def _folded(self) -> str:
        before = self._count - len(self._rows)
        return f"{before} rows before these are in run.history" if before else ""

    def _repr_html_(self) -> str:
        titles, folded = self._titles(), self._folded()
        lines = [_line("th", titles)]
        if folded:
            lines.append(f'<tr><td colspan="{len(titles)}">{folded}</td></tr>')
        lines += [_line("td", (row.get(title, "") for title in titles)) for row in self._rows]
        return f"<table>{''.join(lines)}</table>"

    def __repr__(self) -> str:
        titles = self._titles()
        cells = [[row.get(title, "") for title in titles] for row in self._rows]
        return "\n".join(filter(None, [self._folded(), text_table([titles, *cells], left=0)]))


def _line(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
