"""Which rows of a run W&B has for certain: its process keeps them in memory for a while."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from glob import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from ...atomic_file import replace_file

Place = tuple[int, int]
"""Step and epoch of a row."""

Row = tuple[Place, dict[str, Any]]

_BLOCK, _HEADER = 32768, 7  # bytes of a block of W&B's file, and of what is before each record
_WHOLE, _LAST = 1, 4  # kinds of records


class Journal:
    """Notes rows as they are handed to W&B's process, which may be killed before it writes them.

    Args:
        path: The file; nothing is noted where its folder is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[Place | None, list[Row]]:
        """Return the last row that is written for certain, and those handed over since."""
        last: Place | None = None
        rows: list[Row] = []
        try:
            lines = self._path.read_text("utf-8").splitlines()
        except OSError:
            return None, []
        for line in lines:
            try:
                step, epoch, row = json.loads(line)
            except ValueError:  # a process was killed as it wrote it
                continue
            if row is None:
                last, rows = (step, epoch), []
            else:
                rows.append(((step, epoch), row))
        return last, rows

    def add(self, place: Place, row: dict[str, Any]) -> None:
        """Note a row that has been handed over."""
        if self._path.parent.is_dir():
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps([*place, row])}\n")

    def close(self, place: Place) -> None:
        """Note that everything is written, up to ``place``."""
        if self._path.parent.is_dir():
            line = f"{json.dumps([*place, None])}\n".encode()
            replace_file(self._path, lambda file: file.write(line))


def rows_in(folder: Path, run_id: str) -> set[Place]:
    """Return which rows stand in the files that W&B has written of a run.

    Args:
        folder: W&B's, with a folder for each process that wrote.
        run_id: The run.
    """
    # Of folders made within one second all but the first have a number behind the run's id.
    files = folder.glob(f"*/run-{escape(run_id)}.wandb")
    return {place for file in files for place in _places(file)}


def _places(file: Path) -> Iterator[Place]:
    kind = import_module("wandb.proto.wandb_internal_pb2").Record
    for data in _records(file.read_bytes()):
        record = kind.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            if "step" in items and "epoch" in items:
                yield int(float(items["step"])), int(float(items["epoch"]))


def _records(data: bytes) -> Iterator[bytes]:
    """Take apart a log of records in blocks, as LevelDB has them; its end may be missing."""
    at, parts = _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:  # too little for another one
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        at += _HEADER
        if kind == 0 or at + size > len(data):
            return
        parts += data[at : at + size]
        at += size
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""
