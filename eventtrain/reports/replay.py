"""Draws the run that an ``EventLog`` has written down."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..errors import DataError
from .event_lines import DamagedLine, Record, event_of, lines_of


def replay(path: str | os.PathLike[str]) -> str:
    """Return the picture of the runs in a file that an ``EventLog`` wrote.

    A last line that is cut off, as a killed process may leave it, is left out
    and mentioned.

    Raises:
        DataError: A line is damaged, or the file is no event log.
        OSError: The file cannot be read.
    """
    notes: list[str] = []
    lines = draw(_read(path, notes))
    return "\n".join([*lines, *(f"({note})" for note in notes)])


def draw(records: Iterable[Record]) -> list[str]:
    """Draw ``records``, such as ``EventLog.records``: a line an event, indented by scope.

    Scopes that follow each other and look alike are drawn once, with their
    number. Cancellations stand at the line in which the log told of them.
    """
    picture = _Picture()
    for record in records:
        picture.add(record)
    return picture.lines()


def _read(path: str | os.PathLike[str], notes: list[str]) -> Iterator[Record]:
    """Yield the records of a file, and add to ``notes`` what is to be said about it at the end."""
    number = 0
    for number, line in enumerate(lines_of(path), 1):
        if not isinstance(line, DamagedLine):
            yield line
            continue
        if number > 1 and line.is_cut:
            notes.append(f"line {number}, the last one, is cut off and left out")
            return
        what = "is damaged" if number > 1 else "is none of an event log"
        raise DataError(
            f"{os.fspath(path)}: line {number} {what}: {line.reason}. "
            "EventLog(path) writes files that can be replayed."
        )
    if not number:
        notes.append("the log is empty: no event fired, or none was written yet")


@dataclass
class _Line:
    """A line of the picture, relative to the scope it stands in."""

    depth: int
    text: str
    note: str = ""


@dataclass
class _Block:
    """A scope that is being drawn, and the scopes in it that are drawn already."""

    scope: str
    index: int | None = None
    items: list[_Line | _Folded] = field(default_factory=list)


@dataclass
class _Folded:
    """Scopes that look alike; the epochs or batches they are, first and last."""

    scope: str
    lines: list[_Line]
    first: int | None
    last: int | None
    count: int = 1

    def drawn(self) -> Iterator[_Line]:
        """Yield the lines, the first with the number of repetitions and their place."""
        head, *rest = self.lines
        notes = [head.note] if head.note else []
        if self.count > 1:
            notes.insert(0, f"x {self.count}")
        if self.first is not None and self.scope in ("epoch", "batch"):
            plural = "es" if self.scope == "batch" else "s"
            place = f"{self.scope} {self.first}"
            if self.last != self.first:
                place = f"{self.scope}{plural} {self.first} to {self.last}"
            notes.insert(1 if self.count > 1 else 0, place)
        yield _Line(head.depth, head.text, ", ".join(notes))
        yield from rest


class _Picture:
    """Takes records one by one; what looks alike is folded at once, so that it stays small."""

    def __init__(self) -> None:
        self._blocks = [_Block("")]

    def add(self, record: Record) -> None:
        """Draw the next event."""
        event = event_of(record)
        if event.kind == "opening":
            self._open(event.scope, record)
        elif event.only_after == "failed":
            # It belongs to the scope that is just closing: one further in than the record's.
            self._close_down_to(record["scope"], keep=1)
            self._put(record, 0 if len(self._blocks) > 1 else 1)
        elif event.closes_scope or event.only_after is not None:
            self._close_to(event.scope, record)
            self._put(record, 0)
            if event.only_after is None:
                self._close()
        else:
            self._close_to(record["scope"], record)
            if event.kind == "point" or not self._follow(event.scope, record):
                self._put(record, 1)

    def _open(self, scope: str, record: Record) -> None:
        if scope in self._open_scopes():
            self._close_down_to(scope)
            self._close()
        self._blocks.append(_Block(scope, _place(scope, record)))
        self._put(record, 0)

    def _put(self, record: Record, depth: int) -> None:
        if len(self._blocks) == 1:
            depth = 0
        self._blocks[-1].items.append(_Line(depth, _one_line(record["event"]), _note(record)))

    def _follow(self, scope: str, record: Record) -> bool:
        """Draw an event that comes right after its scope as a part of that, if it does."""
        items = self._blocks[-1].items
        before, last = [None, None, *items][-2:]
        if not isinstance(last, _Folded) or last.scope != scope or last.count > 1:
            return False
        line = _Line(last.lines[0].depth, _one_line(record["event"]), _note(record))
        last.lines.append(line)
        if isinstance(before, _Folded) and (before.scope, before.lines) == (scope, last.lines):
            before.count, before.last = before.count + 1, last.last
            items.pop()
        return True

    def _open_scopes(self) -> list[str]:
        return [block.scope for block in self._blocks]

    def _close_to(self, scope: str | None, record: Record) -> None:
        """Close what stands inside ``scope``, opening it if its opening event did not fire."""
        if scope is None or scope in self._open_scopes():
            self._close_down_to(scope)
        else:
            self._blocks.append(_Block(scope, _place(scope, record)))

    def _close_down_to(self, scope: str | None, keep: int = 0) -> None:
        scopes = self._open_scopes()
        if scope is not None and scope not in scopes:
            return
        at = 0 if scope is None else len(scopes) - 1 - scopes[::-1].index(scope)
        while len(self._blocks) - 1 > at + keep:
            self._close()

    def _close(self) -> None:
        """Fold the innermost scope into the one around it."""
        block = self._blocks.pop()
        around = self._blocks[-1]
        inside = 1 if len(self._blocks) > 1 else 0
        lines = [_Line(line.depth + inside, line.text, line.note) for line in _flat(block.items)]
        last = around.items[-1] if around.items else None
        if isinstance(last, _Folded) and last.scope == block.scope and last.lines == lines:
            last.count, last.last = last.count + 1, block.index
        elif lines:
            around.items.append(_Folded(block.scope, lines, block.index, block.index))

    def lines(self) -> list[str]:
        """Return the picture, notes in a column of their own."""
        unfinished = len(self._blocks) > 1
        where = " > ".join(self._open_scopes()[1:])
        while len(self._blocks) > 1:
            self._close()
        flat = list(_flat(self._blocks[0].items))
        width = max((2 * line.depth + len(line.text) for line in flat), default=0) + 3
        drawn = [f"{'  ' * line.depth + line.text:<{width}}{line.note}".rstrip() for line in flat]
        return [*drawn, f"(the log ends here, inside of {where})"] if unfinished else drawn


def _flat(items: Iterable[_Line | _Folded]) -> Iterator[_Line]:
    for item in items:
        if isinstance(item, _Folded):
            yield from item.drawn()
        else:
            yield item


def _place(scope: str, record: Record) -> int | None:
    place: int | None = record[scope] if scope in ("epoch", "batch") else None
    return place


def _note(record: Record) -> str:
    """Say what is special about an event: outcome, exception, cancellations told of in it."""
    notes = []
    event, outcome = event_of(record), record["outcome"]
    if event.closes_scope and not record["scope"]:
        notes.append(f"{outcome} after {record['t']:.2f} s")
    elif outcome not in (None, "completed"):
        notes.append(_one_line(outcome))
    if record.get("exception"):
        notes.append(_one_line(record["exception"]))
    for asked in record["cancellations"]:
        where = f" in {asked['event']}" if asked["event"] else ""
        reason = f": {asked['reason']}" if asked["reason"] else ""
        told = f"<- {asked['by']}{where} cancelled the {asked['scope']}{reason}"
        notes.append(_one_line(told))
    return ", ".join(notes)


def _one_line(text: object) -> str:
    """Return a text from the file so that it cannot break the picture, or move the cursor."""
    return "".join(c if c.isprintable() else " " for c in str(text))
