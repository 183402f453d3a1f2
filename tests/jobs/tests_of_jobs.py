"""What the tests of the jobs share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
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


def same_weights(ours: nn.Module, theirs: nn.Module) -> bool:
    """Say whether two models are equal bit for bit."""
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
