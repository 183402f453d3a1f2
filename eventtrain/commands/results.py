"""The files that ``eventtrain train`` leaves behind; each gets its name when it is whole."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..atomic_file import prepare_folder, replace_file
from ..errors import DataError
from ..state import FitResult


def prepare(out: Path) -> None:
    """Make the folder and see that it can be written to, before any work is done.

    Raises:
        DataError: It cannot.
    """
    try:
        prepare_folder(out)
        for name in ("history.json", "model.pt", "events.jsonl", "config.toml"):
            if (out / name).is_dir():
                raise IsADirectoryError(None, f"{name} is a folder")
    except FileExistsError as error:  # from mkdir
        raise DataError(f"cannot write to {out}: it is not a folder (--out)") from error
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror or error} (--out)") from error


def save_history(out: Path, result: FitResult, about: Mapping[str, Any]) -> None:
    """Write ``history.json``. Numbers that are not finite become ``null``: JSON has none."""
    content = {
        **about,
        "outcome": result.outcome,
        "reason": result.reason,
        "epochs": result.epochs,
        "steps": result.steps,
        "seconds": result.seconds,
        "history": [{k: _finite(v) for k, v in row.items()} for row in result.history],
    }
    text = json.dumps(content, indent=2, default=str, allow_nan=False) + "\n"
    _replace(out / "history.json", lambda file: file.write(text.encode()))


def save_model(out: Path, model: Any, *, is_writer: bool = True) -> list[str]:
    """Write ``model.pt``, whole and on the CPU, and return the names of the files written.

    Every process that has a part of the model calls this; one of them is the writer.
    """
    if not hasattr(model, "state_dict"):
        return []
    state = {k: _on_cpu(value) for k, value in model.state_dict().items()}
    if not is_writer:
        return []
    _replace(out / "model.pt", lambda file: torch.save(state, file))
    return ["model.pt"]


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    try:
        replace_file(path, write)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _on_cpu(value: Any) -> Any:
    if hasattr(value, "full_tensor"):  # divided: its parts are gathered
        value = value.full_tensor()
    return value.cpu() if isinstance(value, torch.Tensor) else value
