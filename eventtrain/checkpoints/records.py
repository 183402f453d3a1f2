"""The record beside a checkpoint: what is known without reading it, under a sum of its own."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

FORMAT = 4
_SUM = "record_sha256"
_WHAT_TEXT_TELLS = {"format", "saved_at", "torch", "python"}
_FILE = re.compile(r"checkpoint-\d{6,}\.(rank\d{4,}\.pt|shards/(__\d+_\d+\.distcp|\.metadata))")
_LONGEST = 2**24  # bytes; a record has some hundred for each process


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a checkpoint without reading it.

    Attributes:
        path: The ``.pt`` file.
        serial: Counts the checkpoints of a folder, from 1.
        fit: Tells the fits apart that saved into a folder; a resumed fit keeps it.
        epoch, phase, batch: Where the run stood: how many batches of which phase of
            which epoch were done; ``phase`` is ``None`` between epochs.
        steps: Optimizer steps taken.
        metrics: The numbers in the last row of ``run.history``.
        sha256: Of the ``.pt`` file, in hexadecimal digits; empty where nothing is known.
        files: The same sums of the other files of a checkpoint of several processes, by name,
            relative to the folder.
    """

    path: Path
    serial: int
    fit: str
    epoch: int
    phase: str | None
    batch: int
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    sha256: str = ""
    files: dict[str, str] = field(default_factory=dict)


def record_text(record: Record, sha256: str) -> str:
    """Write a record down, with the sum ``sha256`` of its checkpoint and one of its own."""
    about = {
        **record_content(record),
        "sha256": sha256,
        "format": FORMAT,
        "saved_at": time.time(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return json.dumps({**about, _SUM: _sum_of(about)}, indent=1) + "\n"


def record_content(record: Record) -> dict[str, Any]:
    """Return a record as plain data, as it is kept inside of the checkpoint too."""
    return {**asdict(record), "path": record.path.name}


def read_record(path: Path, serial: int = 0) -> Record:
    """Read the record beside a checkpoint.

    Args:
        path: The ``.pt`` file.
        serial: The number in its name.

    Raises:
        FileNotFoundError: There is no record.
        ValueError: It cannot be read, has another sum than it tells, or is no record by its form.
    """
    beside = path.with_suffix(".json")
    try:
        if beside.exists() and not beside.is_file():
            raise ValueError("it is no file")
        if beside.stat().st_size > _LONGEST:
            raise ValueError("it is far too long")
        about = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(about, dict):
        raise ValueError("it is no object")
    if about.get("format") in (1, 2) and _SUM not in about:
        if not about.keys() <= {*Record.__slots__, *_WHAT_TEXT_TELLS}:
            raise ValueError("it has keys that its format has not")
    elif about.pop(_SUM, None) != _sum_of(about):
        raise ValueError("its sum is another")
    return record_from(about, path, serial)


def record_from(about: Any, path: Path, serial: int) -> Record:
    """Return the record of ``path`` that plain data holds.

    Raises:
        ValueError: It is no record by its form.
    """
    if not isinstance(about, Mapping):
        raise ValueError("it is no mapping")
    about = {"files": {}, **about}  # earlier formats lack it
    for name, is_right in _FORMS.items():
        if name not in about:
            raise ValueError(f"it lacks {name!r}")
        if not is_right(about[name]):
            raise ValueError(f"its {name!r} is of another kind")
    known = {name: about[name] for name in _FORMS}
    return Record(path=path, serial=serial, **known)


def _sum_of(about: Mapping[str, Any]) -> str:
    """Sum up the content, however it is laid out."""
    try:
        text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return hashlib.sha256(text.encode()).hexdigest()


def is_count(value: Any) -> bool:
    """Whether ``value`` is a whole number that can count something."""
    return type(value) is int and 0 <= value < 2**63


def _are_numbers(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return False
    return all(
        type(each) is float or (type(each) is int and abs(each) < 2**1000)  # a float holds it
        for each in value.values()
    )


def _are_files(value: Any) -> bool:
    """Whether these are sums of files that a checkpoint may have in its folder."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and _FILE.fullmatch(name) and isinstance(each, str)
        for name, each in value.items()
    )


_FORMS: dict[str, Callable[[Any], bool]] = {
    "fit": lambda value: isinstance(value, str),
    "epoch": is_count,
    "phase": lambda value: value is None or isinstance(value, str),
    "batch": is_count,
    "steps": is_count,
    "metrics": _are_numbers,
    "sha256": lambda value: isinstance(value, str),
    "files": _are_files,
}
