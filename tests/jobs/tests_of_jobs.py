"""What the tests of the jobs share."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
from torchvision_operators import import_torchvision


def needs(*packages: str) -> None:
    """Skip the module that calls this where a package is not installed."""
    missing = [each for each in packages if importlib.util.find_spec(each) is None]
    if missing:
        pytest.skip(
            f"needs {', '.join(missing)}: pip install -e '.[jobs]'", allow_module_level=True
        )
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they call of torch as they are imported
        for each in packages:
            importlib.import_module(each)


def quiet(folder: Path) -> dict[str, Any]:
    """Return options that have a Trainer of Lightning print nothing, and write into ``folder``."""
    silent = ("logger", "enable_progress_bar", "enable_model_summary")
    return {**dict.fromkeys(silent, False), "accelerator": "cpu", "default_root_dir": folder}


def losses_of_lightning(trainer: Any) -> list[float]:
    """Have the loss of each training batch be written down."""
    from lightning.pytorch.callbacks import LambdaCallback

    found: list[float] = []

    def note(trainer: Any, model: Any, outputs: Any, *_: Any) -> None:
        found.append(float(outputs["loss"]))

    trainer.callbacks.append(LambdaCallback(on_train_batch_end=note))
    return found


def rows_of_lightning(trainer: Any) -> list[dict[str, float]]:
    """Have the numbers of each epoch be written down when it is over."""
    from lightning.pytorch.callbacks import LambdaCallback

    rows: list[dict[str, float]] = []

    def note(trainer: Any, model: Any) -> None:
        rows.append({name: float(each) for name, each in trainer.callback_metrics.items()})

    trainer.callbacks.append(LambdaCallback(on_train_epoch_end=note))
    return rows
