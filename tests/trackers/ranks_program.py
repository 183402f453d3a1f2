"""A fit of several processes with both trackers, by each strategy; each rank writes what it has."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eventtrain import AvgStatsCallback, DataBunch, Distributed, Learner, Runner, TensorLoader
from eventtrain.callbacks import MLflow, WandB


def fitted(strategy: Any, uri: str, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    x, y = torch.randn(20, 5), torch.randint(0, 3, (20,))
    data = DataBunch(TensorLoader(x[:12], y[:12], bs=4), TensorLoader(x[12:], y[12:], bs=4))
    model = nn.Linear(5, 3)
    loss = nn.functional.cross_entropy
    learn = Learner(model, lambda params: torch.optim.SGD(params, lr=0.1), loss, data)
    trackers = [
        MLflow(strategy, tracking_uri=uri, system=False),
        WandB(strategy, mode="offline", folder=folder / strategy, system=False),
    ]
    (folder / strategy).mkdir(exist_ok=True)
    run = Runner([Distributed(strategy), AvgStatsCallback(report=None), *trackers])
    result = run.fit(2, learn)
    return {"ids": [each.run_id for each in trackers], "history": result.history, "rank": run.rank}


if __name__ == "__main__":
    server, where = sys.argv[1], Path(sys.argv[2])
    told = {strategy: fitted(strategy, server, where) for strategy in ("ddp", "fsdp2")}
    (where / f"{told['ddp']['rank']}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()
