"""The lines of an event log: each is checked when it is read, whoever wrote the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..events import EVENTS, Event

Record = Mapping[str, Any]
"""One line of a log; see ``EventLog``."""

_KNOWN = {event.name: event for event in EVENTS}
_KINDS = ("opening", "point", "closing")
_OPTIONAL_INT = (int, type(None))
_OPTIONAL_STR = (str, type(None))
_FIELDS: dict[str, tuple[type, ...]] = {
    "event": (str,),
    "scope": _OPTIONAL_STR,
    "epoch": _OPTIONAL_INT,
    "batch": _OPTIONAL_INT,
    "outcome": _OPTIONAL_STR,
    "handlers": (list,),
    "cancellations": (list,),
    "t": (int, float),
}
_BLOCK = 65536


@dataclass(frozen=True, slots=True)
class DamagedLine:
    """A line that is none of an event log's.

    Attributes:
        number: Which one, from 1.
        reason: What is wrong with it.
        is_cut: Whether the file ends within it, as after a kill.
    """

    number: int
    reason: str
    is_cut: bool


def lines_of(path: str | os.PathLike[str]) -> Iterator[Record | DamagedLine]:
    """Yield what each line of a file tells, or that it is damaged.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield event_record(line)
            except ValueError as error:
                yield DamagedLine(number, str(error), not line.endswith(b"\n"))


def event_record(line: bytes) -> Record:
    """Parse a line.

    Raises:
        ValueError: It is not one that an ``EventLog`` writes.
    """
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("it is not text") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    for name, types in _FIELDS.items():
        if name not in record:
            raise ValueError(f"it has no field {name!r}")
        if not isinstance(record[name], types):
            raise ValueError(f"its field {name!r} is {record[name]!r}")
    declared = record.get("declared")
    if declared is not None and not (
        isinstance(declared, dict)
        and isinstance(declared.get("scope"), str)
        and declared.get("kind") in _KINDS
        and declared.get("only_after") in (None, "cancelled", "failed")
    ):
        raise ValueError(f"its field 'declared' is {declared!r}")
    for each in record["cancellations"]:
        if not isinstance(each, dict) or not {"scope", "reason", "by", "event"} <= each.keys():
            raise ValueError(f"its field 'cancellations' holds {each!r}")
    return record


def event_of(record: Record) -> Event:
    """Return the event that a record tells of; it says itself what one of a scope of its own is."""
    name = record["event"]
    if name in _KNOWN:
        return _KNOWN[name]
    own = record.get("declared") or {}
    return Event(
        name, own.get("scope", ""), own.get("kind", "point"), (), "", own.get("only_after")
    )


def cut_torn_line(path: str | os.PathLike[str]) -> None:
    """Have a file end with a whole line, so that another can follow; make it where it is not there.

    Raises:
        OSError: It cannot be written.
    """
    with open(path, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
