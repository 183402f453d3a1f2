"""Cancellations, failures and rows as plain data, as an event log and a report tell them."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from ..cancellation import Cancellation
from ..errors import describe

FORMAT = 2
"""Of the lines of an event log. Format 1 has no line that tells of the run, and no rows."""

_LONGEST, _MOST = 2000, 20


def about_cancellation(cancellation: Cancellation) -> dict[str, Any]:
    """Return a request as plain data."""
    names = ("scope", "reason", "by", "event", "epoch", "batch", "time", "rank", "source")
    return {name: getattr(cancellation, name) for name in names}


def about_failure(error: BaseException) -> dict[str, Any]:
    """Return what an exception says of itself, and the lines that it came through."""
    kind = type(error).__name__
    frames = list(traceback.walk_tb(error.__traceback__))[-_MOST:]
    return {
        "type": kind,
        "message": describe(error).removeprefix(f"{kind}: ")[:_LONGEST],
        "notes": _notes_of(error),
        "where": [
            f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}"
            for frame, line in frames
        ],
        "because": [describe(each)[:_LONGEST] for each in _causes_of(error)],
    }


def about_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the history, less what would have to be read from a device."""
    plain = (bool, int, float, str, type(None))
    return {str(key): value for key, value in row.items() if isinstance(value, plain)}


def _notes_of(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", ())
    known = notes if isinstance(notes, (list, tuple)) else ()
    return [note[:_LONGEST] for note in known if isinstance(note, str)]


def _causes_of(error: BaseException) -> Iterable[BaseException]:
    """Yield what an exception was raised from, or during, innermost last."""
    seen = {id(error)}
    while len(seen) <= _MOST:
        hidden = error.__suppress_context__
        cause = error.__cause__ or (None if hidden else error.__context__)
        if cause is None or id(cause) in seen:
            return
        seen.add(id(cause))
        yield cause
        error = cause
