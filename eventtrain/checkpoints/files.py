"""Checkpoints on disk: written whole or not at all, checked when they are read.

A checkpoint is two files. ``NAME.pt`` is what ``torch.save`` writes, ``NAME.json`` a record
with its SHA-256 sum. The record gets its name first and loses it last: what has a ``.pt``
is whole, whenever the process was killed, and one without a record, or with another
sum, is damaged.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
import warnings
from dataclasses import asdict, dataclass, field
from io import BufferedRandom
from pathlib import Path
from typing import Any

import torch

from ..atomic_file import PART, remove_parts, replace_file
from ..errors import CheckpointError

FORMAT = 2
_NAME = re.compile(r"checkpoint-(\d{6,})\.(pt|json)")


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
        sha256: Of the ``.pt`` file, in hexadecimal digits.
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


def write_checkpoint(record: Record, content: dict[str, Any]) -> None:
    """Write ``content`` to ``record.path``, and the record beside it.

    Raises:
        CheckpointError: The files cannot be written; older ones are as they were.
    """

    def write(file: BufferedRandom) -> None:
        torch.save(content, file)
        file.seek(0)
        _write_record(record, hashlib.file_digest(file, "sha256").hexdigest())

    try:
        replace_file(record.path, write)
    except (OSError, RuntimeError) as error:  # torch.save has errors of its own for a full disk
        raise CheckpointError(f"cannot write checkpoint {record.path}: {error}") from error


def _write_record(record: Record, sha256: str) -> None:
    about = {
        **asdict(record),
        "path": record.path.name,
        "sha256": sha256,
        "format": FORMAT,
        "saved_at": time.time(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    text = json.dumps(about, indent=1) + "\n"
    replace_file(record.path.with_suffix(".json"), lambda file: file.write(text.encode()))


def list_checkpoints(folder: Path) -> list[Record]:
    """Return the checkpoints in ``folder``, oldest first, damaged ones too as far as they tell."""
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        matched = _NAME.fullmatch(path.name)
        if matched and matched[2] == "pt":
            found.append(_record_of(path, int(matched[1])))
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
        is_being_written = any(folder.glob(f".{checkpoint.name}.*{PART}"))
        if _NAME.fullmatch(path.name) and not (checkpoint.exists() or is_being_written):
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
    if not path.is_dir():
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
        raise CheckpointError(f"there is no checkpoint {path}")
    expected = _about(path).get("sha256")
    if expected is None:
        raise CheckpointError(f"checkpoint {path} is damaged: its record beside it is missing")
    if _sum_of(path) != expected:
        raise CheckpointError(f"checkpoint {path} is damaged: its SHA-256 sum is another")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # the unpickler's own errors are of many types
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    if isinstance(content, dict) and content.get("format") == 1:
        content = _from_format_1(content)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no checkpoint of format {FORMAT}, which this version reads"
        )
    return content


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """Give counters, which were written under names of the code's own, those of the format."""
    names = {"_epochs_done": "epochs_done", "_first_iter": "epoch_began_at"}
    names["_train_iters"] = "train_iters"
    counters = {names.get(key, key): n for key, n in content.get("counters", {}).items()}
    return {**content, "format": FORMAT, "counters": counters}


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _record_of(path: Path, serial: int) -> Record:
    about = _about(path)
    return Record(
        path=path,
        serial=serial,
        fit=str(about.get("fit", "")),
        epoch=about.get("epoch", 0),
        phase=about.get("phase"),
        batch=about.get("batch", 0),
        steps=about.get("steps", 0),
        metrics=about.get("metrics", {}),
        sha256=about.get("sha256", ""),
    )


def _sum_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
