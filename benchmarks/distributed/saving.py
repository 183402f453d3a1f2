"""How long the loop stands still for a checkpoint."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from .work import everywhere

STEPS, SAVED_AT = 8, 5
"""Steps in a fit, and the one after which it saves."""
TORCH_SAVE, DCP_SAVE, DCP_ASYNC = "torch.save, by rank 0", "dcp.save", "dcp.async_save"
SYNC, ASYNC = "Checkpoint", "Checkpoint(asynchronous=True)"

Saved = Callable[[Path], list[float]]
"""Trains, saves in a folder, and returns when each step had ended."""


class Large:
    """A model that is large enough for its files to take time, and AdamW, whose state is larger.

    Args:
        width: Of its hidden layers.
        seed: Of its weights.
    """

    def __init__(self, width: int, seed: int) -> None:
        torch.manual_seed(seed)
        layers = nn.Linear(784, width), nn.Linear(width, width), nn.Linear(width, 10)
        self.model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        self.opt = torch.optim.AdamW(self.model.parameters())
        self.batches = [(torch.randn(4, 784), torch.randn(4, 10)) for _ in range(STEPS)]

    @property
    def megabytes(self) -> float:
        """What the weights and the optimizer's state take."""
        return 3 * sum(p.nbytes for p in self.model.parameters()) / 1e6


def blocking(width: int, seed: int, rounds: int) -> tuple[dict[str, list[float]], list[str]]:
    """Return how much longer than others a batch took that saved, by who saves.

    On the slowest rank; without what is written after that.

    Returns:
        By name the seconds of every round, and a sentence for each that could not be measured.
    """
    ways: dict[str, Callable[[Large], Saved]] = {
        TORCH_SAVE: partial(_by_hand, _torch_save),
        DCP_SAVE: partial(_by_hand, _dcp_save),
        SYNC: partial(_by_runner, asynchronous=False),
        ASYNC: partial(_by_runner, asynchronous=True),
    }
    if dist.is_initialized():
        # Its thread has collectives of its own, which must not meet those of the training.
        ways[DCP_ASYNC] = partial(_by_hand, partial(_dcp_async_save, dist.new_group()))
    found: dict[str, list[float]] = {name: [] for name in ways}
    notes = []
    for number in range(-1, rounds):
        for name in list(ways):
            try:
                seconds = _round(ways[name](Large(width, seed)))
            except Exception as error:  # on all ranks alike: all have come this far
                del ways[name], found[name]
                notes.append(f"{name} left out: {type(error).__name__}: {error}")
            else:
                if number >= 0:
                    found[name].append(seconds)
    return found, notes


def _round(saved: Saved) -> float:
    folder = Path(everywhere(tempfile.mkdtemp())[0])  # that of rank 0
    try:
        ends = saved(folder)
    finally:
        everywhere(None)
        shutil.rmtree(folder, ignore_errors=True)
    steps = [after - before for before, after in pairwise(ends)]
    others = [seconds for step, seconds in enumerate(steps, 2) if 2 < step <= SAVED_AT]
    return max(everywhere(steps[SAVED_AT - 1] - statistics.median(others)))


def _by_runner(large: Large, *, asynchronous: bool) -> Saved:
    from eventtrain import Callback, DataBunch, Distributed, Learner, Runner
    from eventtrain.callbacks import Checkpoint

    def saved(folder: Path) -> list[float]:
        ends: list[float] = []
        callbacks: list[Callback] = [
            Checkpoint(folder, every_epochs=None, every_steps=SAVED_AT, asynchronous=asynchronous)
        ]
        if dist.is_initialized():
            callbacks.append(Distributed("ddp"))
        run = Runner(callbacks)
        run.on("after_step", lambda run: ends.append(time.perf_counter()), priority=10**9)
        run.fit(1, Learner(large.model, large.opt, F.mse_loss, DataBunch(large.batches)))
        return ends

    return saved


def _by_hand(save: Callable[[Path, nn.Module, Any], Any], large: Large) -> Saved:
    def saved(folder: Path) -> list[float]:
        model: Any = large.model
        if dist.is_initialized():
            model = DistributedDataParallel(model)
        ends, writing = [], None
        for step, (xb, yb) in enumerate(large.batches, 1):
            F.mse_loss(model(xb), yb).backward()
            large.opt.step()
            ends.append(time.perf_counter())
            large.opt.zero_grad()
            if step == SAVED_AT:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # in one process dcp says so
                    writing = save(folder, large.model, large.opt)
        if writing is not None:
            writing.result()
        return ends

    return saved


def _torch_save(folder: Path, model: nn.Module, opt: Any) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, folder / "saved.pt")


def _dcp_save(folder: Path, model: nn.Module, opt: Any) -> None:
    dcp.save(_state(model, opt), checkpoint_id=folder)


def _dcp_async_save(group: Any, folder: Path, model: nn.Module, opt: Any) -> Any:
    return dcp.async_save(_state(model, opt), checkpoint_id=folder, process_group=group)


def _state(model: nn.Module, opt: Any) -> dict[str, Any]:
    of_model, of_opt = get_state_dict(model, opt)
    return {"model": of_model, "opt": of_opt}
