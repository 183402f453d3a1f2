"""A folder of checkpoints: each written whole or not at all by all ranks, old ones removed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, distributed as dist

from ..atomic_file import PART, prepare_folder, replace_file
from ..errors import CheckpointError
from .files import (
    list_checkpoints,
    next_path,
    rank_path,
    remove_checkpoint,
    remove_unfinished,
    shards_path,
    sum_of,
    write_checkpoint,
)
from .rank_states import own_part
from .ranks import Ranks
from .records import FORMAT, Record
from .shards import files_of_rank, make_group_of_thread, on_host, split_shards, write_shards

Choose = Callable[[list[Record]], list[Record]]


class CheckpointWriter:
    """Writes the checkpoints of one fit, and keeps those that are to be kept.

    Rank 0 chooses a serial number, all ranks write under it what is their own, and when all have
    said that it is on the disk rank 0 writes the rest, and the record with all the sums: from then
    on there is a checkpoint. Only then are older ones removed. So a rank that is killed, or cannot
    write, at any moment leaves the newest whole one as it was.

    Args:
        folder: Where to; one that all ranks see.
        keep: Which of the fit's records are to be kept.
        asynchronous: Write in a thread, from copies in host memory.

    Attributes:
        fit: Tells this fit's checkpoints from others'; a resumed fit keeps it.
    """

    def __init__(self, folder: Path, keep: Choose, *, asynchronous: bool = False) -> None:
        self.folder = folder
        self.fit = ""
        self._keep = keep
        self._asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._told: set[Path] = set()
        self._ranks = self._writing = Ranks()
        self._group: Any = None

    def records(self) -> list[Record]:
        """Return those of this fit, oldest first."""
        return [record for record in list_checkpoints(self.folder) if record.fit == self.fit]

    def begin(self, ranks: Ranks, *, is_divided: bool = False) -> None:
        """Make the folder, and clear away what a killed run left half written.

        Args:
            ranks: Of the run.
            is_divided: Whether the model's parameters are.

        Raises:
            CheckpointError: It cannot be written to, or is not the same on all ranks.
        """
        self._ranks = self._writing = ranks
        what = f"write checkpoints to {self.folder}"
        probe, self.fit = ranks.together(what, lambda: self._prepare(ranks))[0]
        if ranks.size > 1:
            ranks.together(what, lambda: self._look_for(probe))
            if ranks.is_zero:
                (self.folder / probe).unlink(missing_ok=True)
            if self._asynchronous:
                self._writing = ranks.for_thread()
                self._group = make_group_of_thread() if is_divided else None

    def _prepare(self, ranks: Ranks) -> tuple[str, str]:
        fit = uuid4().hex
        probe = f".{fit}.0{PART}"
        try:
            prepare_folder(self.folder)
            if ranks.is_zero:
                remove_unfinished(self.folder)
                if ranks.size > 1:
                    (self.folder / probe).touch()
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        return probe, fit

    def _look_for(self, probe: str) -> None:
        if not (self.folder / probe).exists():
            raise CheckpointError(
                f"it does not see what rank 0 writes to {self.folder}. Several processes save into "
                "one folder, which all of them must have: on several machines, put it on a file "
                "system that they share"
            )

    def write(self, take: Callable[[], tuple[Record, dict[str, Any]]], buffers: list[str]) -> None:
        """Write a checkpoint; together with all ranks, once the one before is written.

        Args:
            take: Returns the content, and a record without path and serial number.
            buffers: The names of the model's buffers.

        Raises:
            CheckpointError: It cannot be written; the ones before are as they were.
        """
        self.join()
        taken: list[tuple[Record, dict[str, Any]]] = []

        def begin() -> tuple[str, int]:
            taken.append(take())
            return self._next_path() if self._ranks.is_zero else ("", 0)

        name, serial = self._ranks.together(f"save to {self.folder}", begin)[0]
        about, content = taken[0]
        record = replace(about, path=self.folder / name, serial=serial, fit=self.fit)
        rest, shards = (content, {}) if self._ranks.size == 1 else split_shards(content)
        own = own_part(rest, buffers) if self._ranks.rank else {}
        if not self._asynchronous:
            self._write(record, rest if self._ranks.is_zero else own, shards)
            return
        kept = _on_the_host(rest if self._ranks.is_zero else own)
        arguments = (record, kept, on_host(shards))
        self._thread = threading.Thread(target=self._write_later, args=arguments)
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread, and raise what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def end(self) -> None:
        """Wait for the thread, raise what it raised, and let go of the ranks."""
        try:
            self.join()
        finally:
            self._ranks = self._writing = Ranks()
            group, self._group = self._group, None
            if group is not None:
                dist.destroy_process_group(group)

    def _next_path(self) -> tuple[str, int]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # somebody may remove it
            path, serial = next_path(self.folder)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        return path.name, serial

    def _write_later(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:
            self._failure = error

    def _write(self, record: Record, content: dict[str, Any], shards: Mapping[str, Tensor]) -> None:
        ranks = self._writing
        what = f"write checkpoint {record.path}"
        try:
            ranks.together(what, lambda: self._write_own(record, content))
            files = ranks.together(what, lambda: self._write_shards(record, shards))
            record = replace(record, files={k: v for each in files for k, v in each.items()})
            ranks.together(what, lambda: self._write_record(record, content))
        except CheckpointError:
            self._discard(record)
            raise
        if ranks.is_zero:
            self._remove_old()

    def _write_own(self, record: Record, content: dict[str, Any]) -> None:
        if self._writing.is_zero:
            return
        path = rank_path(record.path, self._writing.rank)
        try:
            replace_file(path, lambda file: torch.save({"format": FORMAT, **content}, file))
        except (OSError, RuntimeError) as error:  # torch.save has errors of its own for a full disk
            raise _cannot_write(path, error) from error

    def _write_shards(self, record: Record, shards: Mapping[str, Tensor]) -> dict[str, str]:
        """Write what lies divided; return the sums of this rank's files."""
        rank = self._writing.rank
        files = [rank_path(record.path, rank)] if rank else []
        if shards:
            folder = shards_path(record.path)
            write_shards(folder, shards, self._group)
            files += files_of_rank(folder, rank)
        return {str(path.relative_to(self.folder)): sum_of(path) for path in files}

    def _write_record(self, record: Record, content: dict[str, Any]) -> None:
        if self._writing.is_zero:
            write_checkpoint(record, content)

    def _discard(self, record: Record) -> None:
        """Remove what this rank has written of a checkpoint that others could not write."""
        with suppress(OSError):
            if self._writing.is_zero:
                remove_checkpoint(record)
            else:
                rank_path(record.path, self._writing.rank).unlink(missing_ok=True)

    def _remove_old(self) -> None:
        records = self.records()
        self._tell_of_unknown()
        kept = {record.serial for record in self._keep(records)}
        for each in records:
            if each.serial not in kept:
                remove_checkpoint(each)

    def _tell_of_unknown(self) -> None:
        """Warn, once each, of checkpoints that may be among the best, and nobody can know."""
        for record in list_checkpoints(self.folder):
            if not record.sha256 and record.path not in self._told:
                self._told.add(record.path)
                warnings.warn(
                    f"checkpoint {record.path} and its record are damaged: it is left where it is, "
                    "and counts neither as one of the newest nor as one of the best",
                    RuntimeWarning,
                    stacklevel=2,
                )


def _cannot_write(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"cannot write checkpoints to {path}: {error}")


def _on_the_host(value: Any) -> Any:
    """Copy all tensors into host memory, so that the run may go on changing its own."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copy: Any = type(value)((key, _on_the_host(each)) for key, each in value.items())
        if hasattr(value, "_metadata"):  # what a model knows of versions
            copy._metadata = value._metadata
        return copy
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(_on_the_host(each) for each in value)
    return value


def buffers_of(model: Any) -> list[str]:
    """Return the names of a model's buffers, as its state dictionary has them."""
    return [name for name, _ in model.named_buffers()] if hasattr(model, "named_buffers") else []
