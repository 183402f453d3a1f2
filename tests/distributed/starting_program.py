"""What processes do that were started in some way: ``starting_program.py FOLDER DEED``.

Each does the deed, and writes what has come of it into FOLDER as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist, nn
from torch.nn.functional import mse_loss

from eventtrain import DataBunch, Distributed, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint

FOLDER = Path(sys.argv[1])


def train(cancel_on: int | None = None, resume: str | None = None) -> dict[str, Any]:
    """Train, and tell where this process is, who ran what, and to what weights.

    A fit that is cancelled leaves a checkpoint, from which another one may go on.
    """
    told: dict[str, Any] = {"ran": []}
    dice = torch.Generator().manual_seed(7)
    x, y = torch.randn(64, 5, generator=dice), torch.randn(64, 2, generator=dice)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = TensorLoader(x, y, bs=8, shuffle=True, seed=1)
    is_saved = cancel_on is not None or resume is not None
    save = [Checkpoint(FOLDER / "checkpoints")] if is_saved else []
    run = Runner([Distributed(lost_after=20), *save])

    for ranks in ("all", "zero", "local_zero"):
        run.on("begin_fit", lambda run, r=ranks: told["ran"].append(r), name=ranks, ranks=ranks)

    @run.on("after_batch")
    def ask(run: Runner) -> None:
        if run.rank == cancel_on and run.epoch == 0 and run.batch_index == 2:
            run.token.cancel("fit", "enough")

    @run.on("after_batch", once=True)
    def note(run: Runner) -> None:
        told["place"] = [run.rank, run.world_size, run.local_rank]
        told["world"] = [run.world.rank, run.world.size]

    learn = Learner(model, opt, mse_loss, DataBunch(loader, None))
    result = run.fit(3, learn, resume=resume)
    told.update(outcome=result.outcome, steps=result.steps)
    told["by"] = [asked.rank for asked in result.cancellations]
    told["weights"] = nn.utils.parameters_to_vector(model.parameters()).tolist()
    return told


def twice() -> dict[str, Any]:
    """Trained to the end, ended by the last rank, and gone on with from there."""
    told = {"completed": train()}
    told["cancelled"] = train(cancel_on=told["completed"]["place"][1] - 1)
    told["resumed"] = train(resume="auto")
    return told


def made_by_the_user(**where: Any) -> dict[str, Any]:
    """The same in a group that the script has made."""
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    dist.init_process_group("gloo", rank=rank, world_size=size, **where)
    return twice()


def in_groups_of_each_kind() -> dict[str, Any]:
    """In the group that is found, and in such as users make."""
    told = {"found": twice()}
    told["file"] = made_by_the_user(init_method=f"file://{FOLDER / 'meeting'}")
    told["tcp"] = made_by_the_user(init_method=f"tcp://127.0.0.1:{os.environ['OTHER_PORT']}")
    return told


DEEDS = {"train": twice, "in groups": in_groups_of_each_kind}

if __name__ == "__main__":
    done = DEEDS[sys.argv[2]]()
    (FOLDER / f"{dist.get_rank()}.json").write_text(json.dumps(done))
    dist.destroy_process_group()
