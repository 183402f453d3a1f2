"""Which files of a folder are a run's: what each is, is told by what stands in it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from .event_lines import event_record

Kind = Literal[
    "event log", "rows", "table", "history", "profile", "settings", "checkpoints", "empty"
]
Found = dict[Kind, list[Path]]

_RANK = re.compile(r"(.*)\.rank(\d+)(\.[^.]*)?")
_LONGEST_LINE, _LONGEST_FILE = 2**24, 2**26  # bytes
_TEXTS = (".jsonl", ".csv", ".json", ".log", ".txt", "")
_ROWS = ("after_epoch", "after_row", "after_fit")


def found_files(folder: Path) -> Found:
    """Return the files of a run by what they are; those of the folder itself go first.

    Args:
        folder: They are in it, or in folders right inside of it.

    Raises:
        DataError: There is nothing of a run, or of several.
        OSError: The folder cannot be read.
    """
    found: Found = {}
    for place in (folder, *folders_in(folder)):
        for file in _files(place):
            kind = kind_of(file)
            if kind is not None:
                found.setdefault(kind, []).append(file)
        if holds_checkpoints(place):
            found.setdefault("checkpoints", []).append(place)
    _check(folder, found)
    return found


def logs_of(log: Path) -> list[Path]:
    """Return the logs of all ranks of the run that one of them is of."""
    stem, _ = stem_and_rank(log)
    own = [file for file in _files(log.parent) if stem_and_rank(file)[0] == stem]
    return [file for file in own if kind_of(file) == "event log"]


def folders_in(folder: Path) -> Iterator[Path]:
    """Yield the folders right inside of one, less the hidden ones, by name."""
    with suppress(PermissionError):
        yield from sorted(
            each for each in folder.iterdir() if each.is_dir() and each.name[0] != "."
        )


def holds_checkpoints(folder: Path) -> bool:
    """Whether there are checkpoints in a folder."""
    with suppress(OSError):
        return any(folder.glob("checkpoint-*.pt"))
    return False


def stem_and_rank(log: Path) -> tuple[Path, int]:
    """Return the path of a log without its ending and the number of its rank, and that number."""
    match = _RANK.fullmatch(log.name)
    if match is None:
        return log.with_suffix(""), 0
    return log.with_name(match[1]), int(match[2])


def kind_of(file: Path) -> Kind | None:
    """Say what a file is; ``None`` where it is nothing of a run."""
    if file.name == "config.toml":
        return "settings"
    ending = "" if file.suffix.startswith(".rank") else file.suffix
    if ending not in _TEXTS or file.name.startswith("checkpoint-"):
        return None
    with suppress(OSError, ValueError, RecursionError, csv.Error, StopIteration):
        if file.stat().st_size == 0:
            return "empty" if file.suffix in (".jsonl", ".csv") else None
        if file.suffix == ".json":
            return _kind_of_json(file)
        with file.open("rb") as opened:
            line = opened.readline(_LONGEST_LINE)
        if file.suffix == ".csv":
            return "table" if "epoch" in next(csv.reader([line.decode()])) else None
        return _kind_of_line(line)
    return None


def json_of(file: Path) -> Any:
    """Return what stands in a file of JSON.

    Raises:
        OSError, ValueError, RecursionError: It cannot be read.
    """
    return json.loads(file.read_text(encoding="utf-8"))


def _kind_of_json(file: Path) -> Kind | None:
    content = json_of(file) if file.stat().st_size <= _LONGEST_FILE else None
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("history"), list) and "outcome" in content:
        return "history"
    return "profile" if isinstance(content.get("handlers"), list) else None


def _kind_of_line(line: bytes) -> Kind | None:
    with suppress(ValueError):
        event_record(line)
        return "event log"
    if not line.endswith(b"\n") and line.startswith(b'{"event": '):
        return "event log"  # killed as it wrote its first line
    content = json.loads(line)
    is_row = isinstance(content, dict) and content.get("event") in _ROWS
    return "rows" if is_row else None


def _files(folder: Path) -> list[Path]:
    with suppress(PermissionError):
        return sorted(each for each in folder.iterdir() if each.is_file())
    return []


def _check(folder: Path, found: Found) -> None:
    """See that there is one run.

    Raises:
        DataError: There is none, or there are several.
    """
    if not found.keys() - {"empty", "settings"}:
        empty = ", ".join(each.name for each in found.get("empty", []))
        what = f"nothing but empty files ({empty})" if empty else "nothing of a run"
        raise DataError(
            f"{folder} holds {what}: no event log, no rows, no checkpoints, neither in it nor in "
            "folders right inside of it. A run leaves them with Runner([EventLog('RUN/events.jsonl"
            "'), JSONLLogger('RUN/rows.jsonl'), Checkpoint('RUN/checkpoints')]), or with "
            "`eventtrain train --log --out RUN`"
        )
    kinds: tuple[Kind, ...] = ("event log", "rows", "table", "history", "profile")
    for kind in kinds:
        runs = sorted({stem_and_rank(file)[0].relative_to(folder) for file in found.get(kind, [])})
        if len(runs) > 1:
            shown = ", ".join(str(each) for each in runs[:6]) + (", ..." if len(runs) > 6 else "")
            raise DataError(
                f"{folder} holds more than one {kind} ({shown}), and nothing says that they are of "
                "one run: name a folder with the files of one, or its event log"
            )
