"""What ranks do with a model that is sharded (FSDP2), and its likeness on one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist, nn
from torch.amp import GradScaler
from torch.distributed.fsdp import fully_shard

from eventtrain import Callback, DataBunch, Learner, Runner
from eventtrain.callbacks import GradientAccumulation, GradStats, MixedPrecision

Fit = Callable[[list[Callback], Learner, int], Runner]


def learner(data: DataBunch) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    if dist.is_initialized():
        fully_shard(model)
    opt = torch.optim.SGD(model.parameters(), lr=0.3)
    return Learner(model, opt, nn.functional.mse_loss, data)


def trains(fit: Fit, data: DataBunch, n: int) -> dict[str, Any]:
    learn = learner(data)
    cbs: list[Callback] = [GradStats(history=True)]
    run = fit([GradientAccumulation(n), *cbs] if n > 1 else cbs, learn, 2)
    model: Any = learn.model
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    weights = torch.cat([parameter.detach().flatten() for parameter in whole])
    return {"weights": weights.tolist(), "history": run.history}


def overflows(fit: Fit, learn: Learner) -> dict[str, Any]:
    """The last rank alone has a gradient that is too large, in one batch."""
    scaler = GradScaler("cpu", init_scale=4.0)
    precision = MixedPrecision("fp16", scaler=scaler)

    class Spoil(Callback):
        def after_backward(self, run: Runner) -> None:
            if run.n_iter == 1 and run.world.rank == run.world.size - 1:
                gradient: Any = next(iter(run.model.parameters())).grad
                getattr(gradient, "to_local", lambda: gradient)().fill_(float("inf"))

    run = fit([precision, Spoil()], learn, 1)
    assert run.result is not None
    reasons = [cancellation.reason for cancellation in run.result.cancellations]
    return {"steps": run.steps, "reasons": reasons, "scale": scaler.get_scale()}
