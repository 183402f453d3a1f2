"""What the tests of the jobs share."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision_operators import import_torchvision


def needs(*packages: str) -> None:
    """Skip the module or test that calls this where a package is not installed."""
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


def peer(program: str, *packages: str) -> Any:
    """Return the program of another framework; the test that asks is skipped without that."""
    needs(*packages)
    return importlib.import_module(program)


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


def fitted_by_lightning(made: Any, fail_at: int | None = None) -> Any:
    """Have a trainer of Lightning fit what was made, from its last checkpoint on.

    Args:
        made: The trainer, and what it is given.
        fail_at: The batch of this fit in which it fails. Default ``None``.

    Returns:
        The model.
    """
    from lightning.pytorch.callbacks import LambdaCallback

    trainer, model, *loaders = made

    def fail(trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == fail_at:
            raise PowerFailure

    trainer.callbacks.append(LambdaCallback(on_train_batch_start=fail))
    with contextlib.suppress(PowerFailure):
        trainer.fit(model, *loaders, ckpt_path="last")
    return model


class PowerFailure(Exception):
    """What ends a run at any moment."""


def same_weights(ours: Any, theirs: Any) -> bool:
    """Whether two models have the same parameters, bit for bit."""
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def rows_of_lightning(trainer: Any) -> list[dict[str, float]]:
    """Have the numbers of each epoch be written down when it is over."""
    from lightning.pytorch.callbacks import LambdaCallback

    rows: list[dict[str, float]] = []

    def note(trainer: Any, model: Any) -> None:
        rows.append({name: float(each) for name, each in trainer.callback_metrics.items()})

    trainer.callbacks.append(LambdaCallback(on_train_epoch_end=note))
    return rows
