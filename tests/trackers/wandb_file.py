"""Reads what W&B writes offline: a log of records, in blocks as LevelDB has them."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # bytes


def records(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), HEADER, b""
    assert data[:4] in (b":W&B", b"")
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # too little for another one
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0 or at + HEADER + size > len(data):  # it is yet to be written
            return
        parts += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def _named(items: Any) -> dict[str, Any]:
    return {
        "/".join([item.key] if item.key else item.nested_key): json.loads(item.value_json)
        for item in items
    }


def read(folder: Path, rows: int | None = None) -> dict[str, Any]:
    """Rows, parameters, summary and exit code of the run in an offline folder.

    W&B's process writes on for a moment when a run has ended: this waits for its end, or, of one
    that was killed, for so many rows.
    """
    pause = threading.Event()
    for _ in range(600):
        found = _read(folder)
        if found["exit"] is not None if rows is None else len(found["rows"]) >= rows:
            return found
        pause.wait(0.1)
    raise AssertionError(f"the file is not complete: {found}")


def _read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": [], "config": {}, "summary": {}, "exit": None, "machine": 0}
    (path,) = folder.glob("*.wandb")
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            found["rows"].append(_named(record.history.item))
        elif kind == "run":
            found["id"], found["project"] = record.run.run_id, record.run.project
            found["config"] |= _named(record.run.config.update)
        elif kind == "config":
            found["config"] |= _named(record.config.update)
        elif kind == "summary":
            found["summary"] |= _named(record.summary.update)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
        elif kind == "stats":
            found["machine"] += 1
        elif kind == "artifact":
            found.setdefault("artifacts", []).append(record.artifact.name)
    return found
