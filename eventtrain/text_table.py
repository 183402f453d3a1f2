"""Tables as text: columns beside each other, each as wide as its widest cell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

_GAP = "  "


def text_table(
    rows: Sequence[Sequence[str]], *, left: int | None = None, drop_empty: bool = False
) -> str:
    """Return rows of cells as lines, with no space at their ends.

    Args:
        rows: As many cells in each; titles are a row too.
        left: How many of the first columns are text, which stands to the left; the
            others are numbers, which stand to the right. ``None`` (default): all are text.
        drop_empty: Leave out columns that have nothing below their title.
    """
    if drop_empty:
        shown = [any(cells) for cells in zip(*rows[1:], strict=True)]
        rows = [list(compress(row, shown)) for row in rows]
        left = None if left is None else sum(shown[:left])
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(table_line(row, widths, left) for row in rows)


def table_line(cells: Sequence[str], widths: Sequence[int], left: int | None = None) -> str:
    """Return one line, for a table whose rows become known one after the other.

    Args:
        cells: One for each width.
        widths: The least width of each column.
        left: As for ``text_table``.
    """
    last_text = len(cells) if left is None else left
    aligned = [
        cell.ljust(width) if column < last_text else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return _GAP.join(aligned).rstrip()


def short_number(value: object) -> str:
    """Return a number as tables of measurements show it: of a float four decimals."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.1e}"
