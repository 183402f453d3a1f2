"""Checkpoints read from disk, and checked, without running any code that they might hold."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .files import list_checkpoints, rank_path, shards_path, sum_of
from .rank_states import StateForRank, for_another_world, with_own_part
from .records import FORMAT, Record, read_record
from .shards import with_shards


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
    if not is_folder(path):
        return _load_whole(path, map_location)
    records = list_checkpoints(path)
    for record in reversed(records):
        try:
            return _load_whole(record.path, map_location)
        except CheckpointError as error:
            warnings.warn(f"{error}; the one before it is tried", RuntimeWarning, stacklevel=2)
    raise none_whole_in(path, len(records))


def is_folder(path: Path) -> bool:
    """Whether it is a folder.

    Raises:
        CheckpointError: Nobody can tell.
    """
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or a loop of links
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error


def none_whole_in(folder: Path, damaged: int) -> CheckpointError:
    """Return the error that says that no checkpoint in a folder is whole."""
    if damaged:
        return CheckpointError(f"all {damaged} checkpoints in {folder} are damaged")
    return CheckpointError(f"there is no checkpoint in {folder}")


def _load_whole(path: Path, map_location: Any) -> dict[str, Any]:
    content, record = read_content(path, map_location)
    if not content.get("shards"):
        return content
    for name in record.files:
        if name.startswith(f"{shards_path(path).name}/"):
            check_sum(path, name, record)
    return with_shards(content, shards_path(path))


def read_content(path: Path, map_location: Any = "cpu") -> tuple[dict[str, Any], Record]:
    """Read what rank 0 has written of a checkpoint, and the record beside it.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    if not path.is_file():
        kind = "is no file" if os.path.lexists(path) else "is not there"
        raise CheckpointError(f"there is no checkpoint {path}: it {kind}")
    try:
        record = read_record(path)
    except FileNotFoundError:
        raise _damaged(path, "its record beside it is missing") from None
    except ValueError as error:
        raise _damaged(path, f"its record beside it is not to be believed: {error}") from error
    if sum_of(path) != record.sha256:
        raise _damaged(path, "its SHA-256 sum is another")
    content = _read(path, map_location)
    if content["format"] == 1:
        content = _from_format_1(content)
    content["format"] = FORMAT  # earlier ones lack what has been added since, and differ in no more
    return content, record


def read_rank(path: Path, rank: int, record: Record) -> dict[str, Any]:
    """Read what a rank has written of its own of the checkpoint ``path``.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    part = rank_path(path, rank)
    check_sum(path, part.name, record)
    return _read(part, "cpu")


def check_sum(path: Path, name: str, record: Record) -> None:
    """See that a further file of the checkpoint ``path`` is the one of the record.

    Raises:
        CheckpointError: It is not, or is missing.
    """
    file = path.parent / name
    if name not in record.files or not file.is_file():
        raise _damaged(path, f"{name} is missing")
    if sum_of(file) != record.files[name]:
        raise _damaged(path, f"the SHA-256 sum of {name} is another")


def _read(path: Path, map_location: Any) -> dict[str, Any]:
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
    return content


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """Give counters, which were written under names of the code's own, those of the format."""
    names = {"_epochs_done": "epochs_done", "_first_iter": "epoch_began_at"}
    names["_train_iters"] = "train_iters"
    counters = content.get("counters", {})
    if isinstance(counters, dict):
        counters = {names.get(key, key): n for key, n in counters.items()}
    return {**content, "counters": counters}


def load_for_rank(
    path: Path, rank: int, size: int, states: Mapping[str, StateForRank]
) -> dict[str, Any]:
    """Read a checkpoint as a rank goes on from it; what lies divided is yet to be read.

    Args:
        path: The ``.pt`` file.
        rank: This one.
        size: How many there are; there may have been others.
        states: ``Callback.state_for_rank`` of the run's callbacks, by their names.

    Raises:
        CheckpointError: A part that this rank needs is missing, damaged, or none by its form.
    """
    content, record = read_content(path)
    shards = sorted(name for name in record.files if name.startswith(f"{shards_path(path).name}/"))
    for name in shards[rank::size]:
        check_sum(path, name, record)
    was = content.get("world_size", 1)
    if type(was) is not int or was < 1:
        raise CheckpointError(f"checkpoint {path} was taken on {was!r} processes")
    if was == size == 1:
        return content
    try:
        if was == size:
            return with_own_part(content, read_rank(path, rank, record)) if rank else content
        others = (read_rank(path, each, record) for each in range(1, was))
        contents = [content, *(with_own_part(content, own) for own in others)]
        return for_another_world(contents, rank, size, states)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint {path} is whole, but rank {rank} of {size} cannot go on from it: {error}"
        ) from error


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} is damaged: {why}. Resume from the folder, which takes the newest "
        "that is whole, or from another file"
    )
