"""Why a run stopped, as text for a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..text_table import text_table
from .attempts import number
from .run_facts import RunFacts
from .why import moment, place_of, span, who_asked, why


def why_text(facts: RunFacts) -> str:
    """Return what ``why`` returns as text."""
    return "\n".join(_printable(line) for line in _lines(why(facts)))


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    yield f"{told['run']}: {told['sentence']}"
    known = [(name, told[name]) for name in ("who", "why", "where", "when") if told[name]]
    if known:
        yield ""
        yield from _indented(text_table([(name, str(value)) for name, value in known]))
    for failure in told["failures"]:
        yield from _failure_lines(failure)
    if told["cancellations"]:
        yield ""
        yield f"requests to end something, {told['asked']} in all; the last kind is the latest"
        yield from _indented(text_table([_request(each) for each in told["cancellations"]]))
    yield ""
    yield "last rows" if told["rows"] else "no rows of the history"
    yield from _indented(_row_table(told["rows"]))
    if len(told["attempts"]) > 1:
        yield ""
        yield "attempts, oldest first"
        yield from _indented(text_table([_attempt(each) for each in told["attempts"]]))
    for rank, each in told["ranks"].items():
        parts = (*_attempt(each), *each["failures"])
        yield f"rank {rank}: {', '.join(filter(None, parts))}"
    yield ""
    yield _checkpoint_line(told["checkpoint"])
    yield from (f"note: {note}" for note in told["notes"])
    yield from (f"missing: {what}" for what in told["missing"])


def _failure_lines(failure: Mapping[str, Any]) -> Iterator[str]:
    lines = [str(each) for each in failure.get("where", ())]
    if lines:
        yield ""
        yield f"{failure['exception']}".partition("\n")[0] + ", raised through (innermost last)"
        yield from (f"  {line}" for line in lines[-6:])
    yield from (f"  because of {each}" for each in failure.get("because", ()))


def _request(group: Mapping[str, Any]) -> tuple[str, ...]:
    asked, times = group["last"], group["times"]
    count = "" if times == 1 else f"x {times}"
    reason, source = str(asked.get("reason") or ""), str(asked.get("source") or "")
    return str(asked.get("scope")), who_asked(asked), count, span(group), reason, source


def _attempt(told: Mapping[str, Any]) -> tuple[str, ...]:
    from_where = told["resumed"]
    began = f"began {told['began_at']}" if told["began_at"] else ""
    went_on = ""
    if from_where is not None:
        went_on = f"from epoch {from_where.get('epoch')}, step {from_where.get('steps')}"
    ended = f"{told['outcome']} after {told['seconds']:.1f} s"
    last = told["last_line"]
    return told["kind"], began, went_on, ended, f"last line {last['event']} {place_of(last) or ''}"


def _row_table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if not name.startswith("seconds_")]
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    return text_table([names, *cells], left=0) if rows else ""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _checkpoint_line(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "no checkpoint to go on from"
    written = moment(number(record.get("written_at")))
    when = f", written {written}" if written else ""
    place = f"epoch {record['epoch']}, batch {record['batch']}, {record['steps']} steps"
    folder = os.path.dirname(record["path"])
    return f"newest checkpoint: {record['path']} ({place}{when}); to go on: resume={folder!r}"


def _indented(text: str) -> Iterator[str]:
    yield from (f"  {line}" for line in text.splitlines())


def _printable(text: str) -> str:
    """Return a line that cannot move the cursor, whatever the file said."""
    return "".join(c if c.isprintable() else " " for c in text)
