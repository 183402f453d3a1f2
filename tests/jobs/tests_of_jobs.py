"""What the tests of the jobs share."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision_operators import import_torchvision

from eventtrain import Learner, Runner

Made = tuple[Runner, Learner]


def needs(*packages: str) -> None:
    """Skip the module or the test that calls this where a package is not installed."""
    missing = [each for each in packages if not is_there(each)]
    if missing:
        pytest.skip(
            f"needs {', '.join(missing)}: pip install -e '.[jobs]'", allow_module_level=True
        )
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they call of torch as they are imported
        for each in packages:
            importlib.import_module(each)


def is_there(package: str) -> bool:
    """Say whether a package can be imported; one that is imported may have no spec."""
    return package in sys.modules or importlib.util.find_spec(package) is not None


def train_by_hand(learn: Learner, loss_of: Callable[[Any, Any], Tensor], epochs: int) -> None:
    """Train with a loop that knows nothing of events; ``loss_of`` gets the model and a batch."""
    for _ in range(epochs):
        learn.model.train()
        for batch in learn.data.train_dl:
            loss_of(learn.model, batch).backward()
            learn.opt.step()
            learn.opt.zero_grad()


def mean_by_hand(
    learn: Learner, loss_of: Callable[[Any, Any], Tensor], count: Callable[[Any], int]
) -> float:
    """Return the mean loss over the validation rows; ``count`` says how many a batch has."""
    learn.model.eval()
    with torch.no_grad():
        pairs = [(float(loss_of(learn.model, b)), count(b)) for b in learn.data.valid_dl]
    return sum(loss * rows for loss, rows in pairs) / sum(rows for _, rows in pairs)


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


def close(ours: nn.Module, theirs: nn.Module, atol: float = 1e-5) -> bool:
    """Say whether two models are equal but for rounding."""
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return all(torch.allclose(p, q, atol=atol) for p, q in pairs)


def ended_after(steps: int, run: Runner, event: str = "after_step") -> None:
    """Have a fit end after some steps."""
    run.on(
        event,
        lambda run: run.token.cancel("fit", "enough"),
        during="train",
        when=lambda run: run.steps == steps,
        once=True,
    )


def cut_and_resumed(make: Callable[[], Made], after: int, **fit: Any) -> Made:
    """Return a run that went on where another one was cut after some steps, in one folder."""
    (first, ended), (again, resumed) = make(), make()
    ended_after(after, first)
    assert first.fit(learn=ended, **fit).outcome == "cancelled"
    again.fit(learn=resumed, resume="auto", **fit)
    return again, resumed


def row_by_lightning(trainer: Any, *parts: Any) -> dict[str, float]:
    """Fit and return what was logged last; the trial run before it would draw random numbers."""
    trainer.num_sanity_val_steps = 0
    trainer.fit(*parts)
    return {name: float(each) for name, each in trainer.callback_metrics.items()}


def rows_of_lightning(trainer: Any) -> list[dict[str, float]]:
    """Have the numbers of each epoch be written down when it is over."""
    from lightning.pytorch.callbacks import LambdaCallback

    rows: list[dict[str, float]] = []

    def note(trainer: Any, model: Any) -> None:
        rows.append({name: float(each) for name, each in trainer.callback_metrics.items()})

    trainer.callbacks.append(LambdaCallback(on_train_epoch_end=note))
    return rows
