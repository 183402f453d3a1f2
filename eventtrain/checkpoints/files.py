"""Checkpoints on disk: written whole or not at all, checked when they are read.

A checkpoint is two files. ``NAME.pt`` is what ``torch.save`` writes, ``NAME.json`` a record
with its SHA-256 sum. The record gets its name first and loses it last: what has a ``.pt``
is whole, whenever the process was killed, and one without a record, or with another
sum, is damaged. The record has a sum of its own.

A checkpoint of several processes has more: ``NAME.rank0001.pt`` is what rank 1 has of its own, and
in ``NAME.shards`` are tensors that lie divided. They are whole before the record is written, which
has their sums, and go after ``NAME.pt``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
from dataclasses import replace
from functools import lru_cache
from io import BufferedRandom
from pathlib import Path
from typing import Any

import torch

from ..atomic_file import PART, remove_parts, replace_file
from ..errors import CheckpointError
from .records import Record, read_record, record_content, record_from, record_text

_NAME = re.compile(r"checkpoint-(\d{6,})\.(pt|json)")
_MORE_NAMES = re.compile(r"checkpoint-(\d{6,})\.(rank\d{4,}\.pt|shards)")


def write_checkpoint(record: Record, content: dict[str, Any]) -> None:
    """Write ``content`` to ``record.path``, and the record beside it.

    Raises:
        CheckpointError: The files cannot be written; older ones are as they were.
    """

    def write(file: BufferedRandom) -> None:
        # The record inside too: it is what remains where the one beside is damaged.
        torch.save({**content, "record": record_content(record)}, file)
        file.seek(0)
        text = record_text(record, hashlib.file_digest(file, "sha256").hexdigest())
        replace_file(record.path.with_suffix(".json"), lambda beside: beside.write(text.encode()))

    try:
        replace_file(record.path, write)
    except (OSError, RuntimeError) as error:  # torch.save has errors of its own for a full disk
        raise CheckpointError(f"cannot write checkpoint {record.path}: {error}") from error


def list_checkpoints(folder: Path) -> list[Record]:
    """Return the checkpoints in ``folder``, oldest first.

    A record that is damaged or missing is not believed: what it told is taken from the
    checkpoint itself. Where that is damaged too, path and serial number are all that is known.

    Raises:
        CheckpointError: The folder cannot be read.
    """
    try:
        if not folder.is_dir():
            return []
        names = [_NAME.fullmatch(path.name) for path in folder.iterdir()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot look for checkpoints in {folder}: {error}") from error
    found = [
        _record_of(folder / each[0], int(each[1])) for each in names if each and each[2] == "pt"
    ]
    return sorted(found, key=lambda record: record.serial)


def next_path(folder: Path) -> tuple[Path, int]:
    """Return path and serial number of a new checkpoint in ``folder``."""
    names = [path.name for path in folder.iterdir()]
    matches = [_NAME.fullmatch(name) or _MORE_NAMES.fullmatch(name) for name in names]
    serial = 1 + max((int(each[1]) for each in matches if each), default=0)
    return folder / f"checkpoint-{serial:06}.pt", serial


def rank_path(path: Path, rank: int) -> Path:
    """Return the file of what a rank has of its own, beside the checkpoint ``path``."""
    return path.with_suffix(f".rank{rank:04}.pt")


def shards_path(path: Path) -> Path:
    """Return the folder of the tensors that lie divided, beside the checkpoint ``path``."""
    return path.with_suffix(".shards")


def remove_checkpoint(record: Record) -> None:
    """Remove a checkpoint, its other files, and then its record."""
    record.path.unlink(missing_ok=True)
    for path in record.path.parent.glob(f"{record.path.stem}.*"):
        if _MORE_NAMES.fullmatch(path.name):
            _remove(path)
    beside = record.path.with_suffix(".json")
    if beside.is_file() or beside.is_symlink():  # a folder of that name is somebody's own
        beside.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed left in ``folder`` of checkpoints.

    Those are files half written, and all that belongs to a checkpoint which is not there yet or no
    more.
    """
    remove_parts(folder)
    for path in sorted(folder.glob("checkpoint-*")):
        more = _MORE_NAMES.fullmatch(path.name)
        is_record = path.suffix == ".json" and _NAME.fullmatch(path.name) and path.is_file()
        if not (more or is_record):
            continue
        checkpoint = folder / f"{path.name.partition('.')[0]}.pt"
        # A link whose target is away just now (another disk) is there.
        is_there = os.path.lexists(checkpoint) or any(folder.glob(f".{checkpoint.name}.*{PART}"))
        if not is_there:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _record_of(path: Path, serial: int) -> Record:
    try:
        return read_record(path, serial)
    except (FileNotFoundError, ValueError):
        pass
    try:
        about = path.stat()
        return _record_inside(path, serial, about.st_mtime_ns, about.st_size)
    except Exception:  # the unpickler's own errors are of many types
        return Record(path, serial, fit="", epoch=0, phase=None, batch=0, steps=0)


@lru_cache(maxsize=16)
def _record_inside(path: Path, serial: int, modified: int, size: int) -> Record:
    """Return what a checkpoint tells of itself, if all that is in it is whole."""
    if not path.is_file():
        raise ValueError("it is no file")
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise ValueError("its checksums are others")
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    found = record_from(content["record"], path, serial)
    return replace(found, sha256=sum_of(path))


def sum_of(path: Path) -> str:
    """Return the SHA-256 sum of a file, in hexadecimal digits.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
