"""Nothing that ships makes the host wait for the device in a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eventtrain import AvgStatsCallback, Learner, Runner, TensorLoader, accuracy

READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda t: t.item(),
    "bool": bool,
    "float": float,
    "cpu": lambda t: t.cpu(),
    "tolist": lambda t: t.tolist(),
    "numpy": lambda t: t.detach().numpy(),
    "format": lambda t: f"{t:.3f}",
    "comparison": lambda t: 1 if t > 0 else 0,
}


@pytest.mark.parametrize("name", READS)
def test_the_check_notices_what_it_is_there_for(name: str, no_sync: Any) -> None:
    with no_sync, pytest.raises(AssertionError, match="makes the host wait"):
        READS[name](torch.ones(()))


def watch(run: Runner, no_sync: Any) -> None:
    """Forbid reading from the first event of a phase to its last batch."""
    for phase in ("train", "validate"):
        run.on(f"begin_{phase}", lambda run: no_sync.__enter__())
        run.on(f"after_{phase}", lambda run: no_sync.__exit__(), priority=1000)


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_loop_and_its_observers_read_nothing_in_a_batch(
    shuffle: bool, learner: Learner, no_sync: Any
) -> None:
    x, y = learner.data.train_ds.x, learner.data.train_ds.y
    learner.data.train_dl = TensorLoader(x, y, bs=4, shuffle=shuffle)
    run = Runner(cbs=AvgStatsCallback(accuracy, report=None))
    watch(run, no_sync)
    assert run.fit(2, learner).outcome == "completed"


def test_a_handler_that_reads_the_loss_is_caught(learner: Learner, no_sync: Any) -> None:
    run = Runner()
    watch(run, no_sync)
    run.on("after_loss", lambda run: run.loss.item() and None)
    with pytest.raises(AssertionError, match="makes the host wait"):
        run.fit(1, learner)


def test_prediction_reads_nothing_before_the_last_batch(learner: Learner, no_sync: Any) -> None:
    run = Runner()
    run.on("begin_predict", lambda run: no_sync.__enter__())
    run.on("after_predict", lambda run: no_sync.__exit__(), priority=1000)
    assert len(run.predict(learner, learner.data.valid_dl)) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees(learner: Learner, sync_debug_mode: Callable[[str], None]) -> None:
    device = torch.device("cuda")
    learner.model.to(device)
    x, y = learner.data.train_ds.x.to(device), learner.data.train_ds.y.to(device)
    learner.data.train_dl = TensorLoader(x, y, bs=4, shuffle=True)
    run = Runner(cbs=AvgStatsCallback(accuracy, report=None))
    for event, mode in {"begin_train": "error", "after_train": "default"}.items():
        run.on(event, lambda run, mode=mode: sync_debug_mode(mode), priority=1000)
    assert run.fit(1, learner).outcome == "completed"
