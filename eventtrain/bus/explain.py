"""The order of handlers, as a table for people and as plain data for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..text_table import text_table
from .handlers import Handler, number


@dataclass(frozen=True, slots=True)
class Row:
    """One handler: where it stands, why, where it comes from, and what it took (host time)."""

    event: str
    position: int
    handler: str
    priority: float
    constraints: str
    filter: str
    on_error: str
    source: str
    sender: str
    calls: int | None
    total_ms: float | None = None


class Explanation(Sequence[Row]):
    """Every handler in its true order. ``print`` it, iterate over it, or take ``to_dicts()``."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._rows[index]

    def to_dicts(self) -> list[dict[str, object]]:
        """Return one dictionary a handler, with the fields of ``Row``."""
        return [asdict(row) for row in self._rows]

    def __str__(self) -> str:
        if not self._rows:
            return "no handlers"
        titles = [field.name for field in fields(Row)]
        cells = [[_text(getattr(row, title), title) for title in titles] for row in self._rows]
        return text_table([titles, *cells], drop_empty=True)

    __repr__ = __str__


def row_of(handler: Handler, position: int, sender: str) -> Row:
    """Describe ``handler``, the ``position``-th to run, counted from 1."""
    constraints = [f"before {name}" for name in handler.before]
    constraints += [f"after {name}" for name in handler.after]
    source = f"{handler.source} ({handler.plugin})" if handler.plugin else handler.source
    return Row(
        event=handler.event,
        position=position,
        handler=handler.name,
        priority=handler.priority,
        constraints=", ".join(constraints),
        filter=handler.describe_filter(),
        on_error="" if handler.options.on_error == "raise" else handler.options.on_error,
        source=source,
        sender=sender,
        calls=handler.calls,
    )


def _text(value: Any, title: str) -> str:
    if value is None:
        return ""
    if title == "total_ms":
        return f"{value:.3f}"
    return number(value) if title == "priority" else str(value)
