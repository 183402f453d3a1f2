"""What a run has left in a folder, read as far as it can be."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints.files import list_checkpoints
from ..checkpoints.records import Record
from ..errors import CheckpointError, DataError
from .about_run import without_secrets
from .attempts import Attempt, attempts_of
from .event_lines import lines_of
from .found_files import (
    Found,
    folders_in,
    found_files,
    holds_checkpoints,
    json_of,
    kind_of,
    logs_of,
    stem_and_rank,
)
from .row_files import Row, csv_rows, jsonl_rows

_MINUTE = 60.0


@dataclass
class RunFolder:
    """The files of one run.

    Attributes:
        path: The folder, or the event log that was named.
        attempts: What the event log tells, of each rank.
        rows: Rows of the history that other files tell of, by who wrote them.
        ends: How fits ended, as ``JSONLLogger`` and ``eventtrain train`` tell.
        handlers: What ``Profile.to_json`` has written of the time of handlers.
        checkpoints: Oldest first, less damaged ones.
        settings: What ``eventtrain train`` was told, of ``config.toml``.
        sources: The files that were read.
        notes: What was damaged, empty, or left out.
    """

    path: Path
    attempts: dict[int, list[Attempt]] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    ends: list[Row] = field(default_factory=list)
    handlers: list[Row] = field(default_factory=list)
    checkpoints: list[Record] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_run_folder(path: Path) -> RunFolder:
    """Read what a run has left.

    Args:
        path: The folder, or an event log in it.

    Raises:
        DataError: There is nothing of a run, or of several: the message says what to name instead.
    """
    run = RunFolder(path)
    try:
        if path.is_file():
            _read(run, _beside(path))
        elif path.is_dir():
            _read(run, found_files(path))
        else:
            raise DataError(f"there is no folder {path}: name the one that the run wrote into")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        why = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the run in {path}: {why}") from error
    return run


def _beside(log: Path) -> Found:
    """Return the files of the run of one log; of others there, nobody knows whose they are."""
    kind = kind_of(log)
    if kind not in ("event log", "empty"):
        raise DataError(
            f"{log} is no event log: name one, as EventLog(path) writes it, or a run's folder"
        )
    places = [each for each in (log.parent, *folders_in(log.parent)) if holds_checkpoints(each)]
    found: Found = {"event log": logs_of(log), "checkpoints": places}
    return {**found, "empty": [log]} if kind == "empty" else found


def _read(run: RunFolder, found: Found) -> None:
    _read_logs(run, found.get("event log", []))
    for file in found.get("rows", []):
        name = _source(run, file)
        rows, ends, notes = jsonl_rows(file, name)
        run.rows["JSONLLogger"] = rows
        if rows and rows[-1]["fit"] == len(ends):  # of an earlier fit, if there are any
            notes.append(
                f"{name} has no closing line: the process was killed or crashed behind the last "
                "row, or the run goes on"
            )
        else:
            run.ends += ends
        run.notes += notes
    for file in found.get("table", []):
        run.rows["CSVLogger"], notes = csv_rows(file, _source(run, file))
        run.notes += notes
    for file in found.get("history", []):
        content = json_of(file)
        rows = [row for row in content.pop("history") if isinstance(row, dict)]
        run.rows["eventtrain train"] = rows
        run.ends += [content]
        _source(run, file)
    for file in found.get("profile", []):
        run.handlers += [each for each in json_of(file)["handlers"] if isinstance(each, dict)]
        _source(run, file)
    for file in found.get("settings", [])[:1]:
        name = _source(run, file)
        try:
            run.settings = without_secrets(tomllib.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            run.notes.append(f"{name} is left out: {error}")
    _note_if_of_another_run(run, found)
    _read_checkpoints(run, found.get("checkpoints", []))
    run.notes += [f"{_name(run, file)} is empty" for file in found.get("empty", [])]


def _read_logs(run: RunFolder, files: Iterable[Path]) -> None:
    for file in files:
        attempts, damaged = attempts_of(lines_of(file))
        run.attempts[stem_and_rank(file)[1]] = attempts
        name = _source(run, file)
        for line in damaged[:3]:
            what = "the last one, is cut off" if line.is_cut else "is damaged"
            run.notes.append(f"{name}: line {line.number}, {what}: {line.reason[:200]}")
        if len(damaged) > 3:
            run.notes.append(f"{name}: {len(damaged) - 3} more lines are damaged")


def _note_if_of_another_run(run: RunFolder, found: Found) -> None:
    """Note where what ``eventtrain train`` wrote is younger than the log, which ends with it."""
    written = [file.stat().st_mtime for file in found.get("event log", [])]
    for file in found.get("history", []):
        if written and file.stat().st_mtime > max(written) + _MINUTE:
            run.notes.append(
                f"{_name(run, file)} is younger than the event log, and may be of another run"
            )


def _read_checkpoints(run: RunFolder, folders: Iterable[Path]) -> None:
    for folder in folders:
        try:
            records = list_checkpoints(folder)
        except CheckpointError as error:
            run.notes.append(str(error))
            continue
        _source(run, folder)
        run.checkpoints += [each for each in records if each.sha256]
        damaged = [each.path for each in records if not each.sha256]
        run.notes += [f"{_name(run, path)} is damaged" for path in damaged]


def _source(run: RunFolder, file: Path) -> str:
    """Note that a file was read, and return what it is called."""
    run.sources.append(_name(run, file))
    return run.sources[-1]


def _name(run: RunFolder, file: Path) -> str:
    folder = run.path if run.path.is_dir() else run.path.parent
    return file.relative_to(folder).as_posix()
