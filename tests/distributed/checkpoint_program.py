"""Runs on real processes that save, end in the middle, and go on; for test_distributed_checkpoints.

``checkpoint_program.py FOLDER NAME...`` forks the ranks of each scenario, one after the other, so
that torch is imported once, and writes what has come of each into FOLDER as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torch.nn.functional import mse_loss

from eventtrain import AvgStatsCallback, DataBunch, Distributed, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint
from eventtrain.distributed.groups import found_group

LIMIT = 60.0
EPOCHS, BATCHES, BATCH = 2, 6, 8
Deed = Callable[[Path], Any]


def learner() -> Learner:
    """Weights, running means, dropout, an optimizer with state; its data is one order for all."""
    rank = found_group().rank
    torch.manual_seed(0)
    x, y = torch.randn(BATCH * BATCHES, 5), torch.randn(BATCH * BATCHES, 2)
    layers = [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)]
    model = nn.Sequential(*layers)
    torch.manual_seed(100 + rank)  # what is dropped out differs
    random.seed(rank)
    numpy.random.seed(rank)
    train = TensorLoader(x, y, bs=BATCH, shuffle=True, seed=3)
    data = DataBunch(train, TensorLoader(x[:10], y[:10], bs=BATCH))
    return Learner(model, lambda params: torch.optim.AdamW(params, lr=0.01), mse_loss, data)


def fit(
    folder: Path,
    strategy: Any,
    *more: Any,
    lost_at: int | None = None,
    resume: str | None = None,
    cancelled_by: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train with checkpoints, and tell what has come of it."""
    learn = learner()
    options = {"every_steps": 1, **options}
    checkpoint = Checkpoint(folder, **options)
    run = Runner([Distributed(strategy), AvgStatsCallback(report=None), *more, checkpoint])

    @run.on("after_batch", priority=-2000, during="train")
    def end(run: Any) -> None:
        if run.n_iter == lost_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if run.n_iter == 7 and run.rank == cancelled_by:
            run.token.cancel("fit", "enough")

    if resume is not None:
        torch.manual_seed(999)
    result = run.fit(EPOCHS, learn, resume=resume)
    return {**state(learn), "history": result.history, "steps": result.steps, "by": result.outcome}


def state(learn: Learner) -> dict[str, Any]:
    tensors = learn.model.state_dict().values()
    whole = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in tensors]
    return {
        "weights": [float(n) for t in whole for n in t.flatten().tolist()],
        "numbers": [random.random(), float(numpy.random.rand()), torch.rand(1).item()],
    }


def run_ranks(folder: Path, size: int, deed: Deed) -> list[Any]:
    """Fork the ranks, and return what each tells; text where it has failed, or was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(size):
        (folder / f"told{rank}").unlink(missing_ok=True)
        child = os.fork()
        if not child:
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )  # fmt: skip
            _be_rank(folder, rank, size, deed)
        children.append(child)
    end = time.monotonic() + LIMIT
    left = set(children)
    while left and time.monotonic() < end:
        left = {child for child in left if os.waitpid(child, os.WNOHANG)[0] == 0}
        time.sleep(0.005)
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    files = [folder / f"told{rank}" for rank in range(size)]
    return [json.loads(file.read_text()) if file.exists() else "was killed" for file in files]


def _be_rank(folder: Path, rank: int, size: int, deed: Deed) -> None:
    told: Any = "nothing"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            told = deed(folder)
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"
        (folder / f"trace{rank}").write_text(traceback.format_exc())
    (folder / f"told{rank}").write_text(json.dumps(told))
    os._exit(0)


def goes_on(
    folder: Path,
    strategy: Any,
    lost_at: int,
    more: Callable[[], list[Any]] = list,
    sizes: tuple[int, int] = (2, 2),
    **options: Any,
) -> list[Any]:
    """What ranks tell of a whole run, and of one that all were lost in, and that went on."""
    first, then = sizes

    def run(name: str, size: int, **more_options: Any) -> list[Any]:
        def deed(folder: Path) -> Any:
            return fit(folder, strategy, *more(), **options, **more_options)

        return run_ranks(folder / name, size, deed)

    whole = run("whole", first)
    run("lost", first, lost_at=lost_at)
    return [whole, run("lost", then, resume="auto")]


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "ddp": lambda folder: goes_on(folder, "ddp", 9),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        start = time.monotonic()
        told = SCENARIOS[name](folder / name)
        (folder / f"{name}.json").write_text(json.dumps(told))
        print(name, f"{time.monotonic() - start:.1f} s", flush=True)
