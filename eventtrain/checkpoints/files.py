"""Checkpoints on disk: written whole or not at all, checked when they are read.

A checkpoint is two files. ``NAME.pt`` is what ``torch.save`` writes, ``NAME.json`` a record
with its SHA-256 sum. The record gets its name first and loses it last: what has a ``.pt``
is whole, whenever the process was killed, and one without a record, or with another
sum, is damaged. The record has a sum of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
import zipfile
from dataclasses import replace
from functools import lru_cache
from io import BufferedRandom
from pathlib import Path
from typing import Any

import torch

from ..atomic_file import PART, remove_parts, replace_file
from ..errors import CheckpointError
from .records import FORMAT, Record, read_record, record_content, record_from, record_text

_NAME = re.compile(r"checkpoint-(\d{6,})\.(pt|json)")


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
    matches = [_NAME.fullmatch(path.name) for path in folder.iterdir()]
    serial = 1 + max((int(each[1]) for each in matches if each), default=0)
    return folder / f"checkpoint-{serial:06}.pt", serial


def remove_checkpoint(record: Record) -> None:
    """Remove a checkpoint, and then its record."""
    record.path.unlink(missing_ok=True)
    record.path.with_suffix(".json").unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed left in ``folder`` of checkpoints.

    Those are files half written, and records whose checkpoint is not there yet or no more.
    """
    remove_parts(folder)
    for path in folder.glob("*.json"):
        checkpoint = path.with_suffix(".pt")
        # A link whose target is away just now (another disk) is there.
        is_there = os.path.lexists(checkpoint) or any(folder.glob(f".{checkpoint.name}.*{PART}"))
        if _NAME.fullmatch(path.name) and path.is_file() and not is_there:
            path.unlink(missing_ok=True)


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint, without running any code that it might hold.

    Args:
        path: A ``.pt`` file that ``Checkpoint`` wrote, or the folder of several: then the
            newest that is not damaged, with a warning for each that is.
        map_location: As for ``torch.load``. Default: the CPU.

    Returns:
        ``"model"``, ``"opt"``, ``"history"``, ``"callbacks"`` and what else a run needs to
        go on. ``model.load_state_dict(load_checkpoint(path)["model"])`` is all that
        using the weights takes: at the end of an epoch they are those that it was validated
        with. Where these were averages (``EMA``), ``"training_model"`` has the weights that
        are trained, from which a run goes on.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    path = Path(path)
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or a loop of links
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    if not is_folder:
        return _load(path, map_location)
    records = list_checkpoints(path)
    for record in reversed(records):
        try:
            return _load(record.path, map_location)
        except CheckpointError as error:
            warnings.warn(f"{error}; the one before it is tried", RuntimeWarning, stacklevel=2)
    if records:
        raise CheckpointError(f"all {len(records)} checkpoints in {path} are damaged")
    raise CheckpointError(f"there is no checkpoint in {path}")


def _load(path: Path, map_location: Any) -> dict[str, Any]:
    if not path.is_file():
        kind = "is no file" if os.path.lexists(path) else "is not there"
        raise CheckpointError(f"there is no checkpoint {path}: it {kind}")
    try:
        expected = read_record(path).sha256
    except FileNotFoundError:
        raise _damaged(path, "its record beside it is missing") from None
    except ValueError as error:
        raise _damaged(path, f"its record beside it is not to be believed: {error}") from error
    if _sum_of(path) != expected:
        raise _damaged(path, "its SHA-256 sum is another")
    try:
        loaded = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # the unpickler's own errors are of many types
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    content: dict[str, Any] = loaded if isinstance(loaded, dict) else {}
    found = content.get("format")
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise CheckpointError(
            f"{path} is no checkpoint of format {FORMAT}, or of one before it, which this version "
            "reads"
        )
    if found == 1:
        content = _from_format_1(content)
    content["format"] = FORMAT  # format 2 lacks what has been added since, and differs in no more
    return content


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """Give counters, which were written under names of the code's own, those of the format."""
    names = {"_epochs_done": "epochs_done", "_first_iter": "epoch_began_at"}
    names["_train_iters"] = "train_iters"
    counters = content.get("counters", {})
    if isinstance(counters, dict):
        counters = {names.get(key, key): n for key, n in counters.items()}
    return {**content, "counters": counters}


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} is damaged: {why}. Resume from the folder, which takes the newest "
        "that is whole, or from another file"
    )


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
    return replace(found, sha256=_sum_of(path))


def _sum_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
