"""A run in a process of its own, that ends as it is told to; see ``test_why``."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import torch

from eventtrain import (
    AvgStatsCallback,
    DataBunch,
    EventLog,
    Learner,
    Runner,
    TensorLoader,
    accuracy,
)
from eventtrain.callbacks import Checkpoint, Distributed


def kill(run: Runner) -> None:
    """Die at once, in the third epoch."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(run: Runner) -> None:
    """Raise what looks like markup."""
    raise ValueError("no <b>more</b>")


def interrupt(run: Runner) -> None:
    """Be told to end by the system."""
    os.kill(os.getpid(), signal.SIGTERM)


def judge(run: Runner) -> None:
    """Have another thread ask for the end."""
    thread = threading.Thread(target=lambda: run.token.cancel("fit", "enough"), name="judge")
    thread.start()
    thread.join()


DEEDS = {"kill": kill, "fail": fail, "interrupt": interrupt, "judge": judge}


def make_run(folder: Path, *more: object) -> tuple[Runner, Learner]:
    """Make a run that leaves its log and its checkpoints in ``folder``, and what it trains."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 5), torch.randint(0, 3, (12,))
    loader = TensorLoader(x, y, bs=4)
    model = torch.nn.Linear(5, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    learn = Learner(model, opt, torch.nn.functional.cross_entropy, DataBunch(loader, loader))
    log = EventLog(folder / "events.jsonl", flush_every=5)
    stats = AvgStatsCallback(accuracy, report=None)
    return Runner([stats, log, Checkpoint(folder / "checkpoints"), *more]), learn


def main(folder: Path, deed: str, rank: str = "") -> None:
    """Train for five epochs, and do the deed in the third, at rank ``rank`` of several."""
    run, learn = make_run(folder, *([Distributed("ddp")] if rank else []))
    if deed in DEEDS and os.environ.get("RANK", "") == rank:
        run.on("after_train", DEEDS[deed], name="culprit", when=lambda run: run.epoch == 2)
    run.fit(5, learn, resume="auto")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
