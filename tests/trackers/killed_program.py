"""A fit that is resumed automatically, and killed after some of its batches."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint, MLflow, WandB


def learner() -> Learner:
    torch.manual_seed(0)
    x, y = torch.randn(20, 5), torch.randint(0, 3, (20,))
    data = DataBunch(TensorLoader(x[:12], y[:12], bs=4), TensorLoader(x[12:], y[12:], bs=4))
    model = nn.Linear(5, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Learner(model, opt, nn.functional.cross_entropy, data)


def trained(tracker: Any, folder: Path, kill_in: int | None = None, every: int = 2) -> Runner:
    """Train four epochs of three steps, with a checkpoint every other one."""
    saving = Checkpoint(folder / "saved", every_epochs=every)
    run = Runner([AvgStatsCallback(report=None), saving, tracker])

    @run.on("begin_train", when=lambda run: run.epoch == kill_in)
    def kill(run: Runner) -> None:
        box: Any = getattr(tracker, "_outbox", None)  # rows have got through before
        assert box is None or box.wait(60)
        os.kill(os.getpid(), signal.SIGKILL)

    run.fit(4, learner(), resume="auto")
    return run


if __name__ == "__main__":
    kind, where, folder, kill_in = sys.argv[1:]
    tracker: Any = (
        MLflow("killed", tracking_uri=where, system=False)
        if kind == "mlflow"
        else WandB("killed", mode="offline", folder=where, system=False)
    )
    trained(tracker, Path(folder), int(kill_in) if kill_in != "-" else None)
    print(tracker.run_id)
