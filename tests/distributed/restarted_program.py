"""A training that torchrun starts again when a rank is lost: ``program.py FOLDER [KILL]``.

With KILL, rank 0 is killed in the first attempt.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from checkpoint_program import EPOCHS, die, learner
from torch import distributed as dist

from eventtrain import AvgStatsCallback, Distributed, Runner
from eventtrain.callbacks import Checkpoint

LOST_AT = 9
"""After which batch."""


def main(folder: Path, is_to_be_lost: bool) -> None:
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    rank, learn = int(os.environ["RANK"]), learner()
    began: list[int] = []
    run = Runner(
        [
            Distributed("ddp"),
            AvgStatsCallback(report=None),
            Checkpoint(folder / "checkpoints", every_steps=1, asynchronous=True),
        ]
    )

    def lose(run: Any) -> None:
        if is_to_be_lost and (attempt, rank, run.n_iter) == (0, 0, LOST_AT):
            die()

    run.on("after_batch", lose, during="train", priority=-2000)
    run.on("begin_batch", lambda run: began.append(run.steps), once=True)
    result = run.fit(EPOCHS, learn, resume="auto")
    weights = [float(n) for t in learn.model.state_dict().values() for n in t.flatten().tolist()]
    numbers = torch.rand(2).tolist()
    told = {"attempt": attempt, "began at": began[0], "history": result.history}
    told |= {"weights": weights, "numbers": numbers, "steps": result.steps}
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), "KILL" in sys.argv)
