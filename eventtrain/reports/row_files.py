"""Rows of the history out of the files that callbacks write."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def jsonl_rows(file: Path, name: str) -> tuple[list[Row], list[Row], list[str]]:
    """Read what a ``JSONLLogger`` wrote.

    Args:
        file: The file.
        name: What notes call it.

    Returns:
        The rows, each with the number of its ``fit``; how fits ended; what is to be noted.

    Raises:
        OSError: It cannot be read.
    """
    rows: list[Row] = []
    ends: list[Row] = []
    notes: list[str] = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is not a JSON object")
        except (ValueError, RecursionError) as error:
            notes.append(f"{name}: line {number} is left out: {error}")
            continue
        if row.pop("event", None) == "after_fit":
            ends.append(row)
        else:
            rows.append({"fit": len(ends), **row})
    return rows, ends, notes


def csv_rows(file: Path, name: str) -> tuple[list[Row], list[str]]:
    """Read what a ``CSVLogger`` wrote; a row that is not behind the last one begins another fit.

    Args:
        file: The file.
        name: What notes call it.

    Returns:
        The rows, each with the number of its ``fit``; what is to be noted.

    Raises:
        OSError: It cannot be read.
    """
    rows: list[Row] = []
    notes: list[str] = []
    fit, last = 0, -1.0
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        for row in csv.DictReader(lines):
            plain = {key: _cell(cell) for key, cell in row.items() if key and cell != ""}
            place = plain.get("step", plain.get("epoch"))
            if not isinstance(place, (int, float)):
                notes.append(f"{name}: a row without an epoch is left out")
                continue
            fit += place <= last
            last = place
            rows.append({"fit": fit, **plain})
    except csv.Error as error:
        notes.append(f"{name}: the rest is left out: {error}")
    return rows, notes


def _cell(text: Any) -> Any:
    for kind in (int, float):
        with suppress(ValueError, TypeError):
            return kind(text)
    return text
