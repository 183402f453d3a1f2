"""What ranks train in tests: ``train_program.py FOLDER DEED``, started by torchrun.

Each rank does the deed, and writes what has come of it into FOLDER as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import destroy_process_group
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from eventtrain import DataBunch, DesyncError, Distributed, FitResult, Learner, RemoteError, Runner
from eventtrain.callbacks import GradientAccumulation
from eventtrain.distributed.groups import joined_group

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
EPOCHS, BATCHES = 2, 4


def loader() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's share of each batch."""
    dice = torch.Generator().manual_seed(7)
    x, y = torch.randn(8 * BATCHES, 5, generator=dice), torch.randn(8 * BATCHES, 2, generator=dice)
    return [(x[i : i + 8][RANK::SIZE], y[i : i + 8][RANK::SIZE]) for i in range(0, len(x), 8)]


def model(seed: int = RANK) -> nn.Module:
    """One whose first weights differ between ranks."""
    torch.manual_seed(seed)
    blocks = nn.ModuleList([nn.Linear(5, 4), nn.Linear(4, 4)])

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.norm, self.out = blocks, nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> Any:
            for block in self.blocks:
                x = block(x).relu()
            return self.out(self.norm(x))

    return Blocks()


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def weights(trained: nn.Module) -> list[float]:
    tensors = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in trained.parameters()]
    return torch.cat([t.detach().flatten() for t in tensors]).tolist()


def trained_by_hand() -> list[float]:
    wrapped = DistributedDataParallel(model())
    opt = sgd(wrapped.parameters())
    for _ in range(EPOCHS):
        for x, y in loader():
            mse_loss(wrapped(x), y).backward()
            opt.step()
            opt.zero_grad()
    return weights(wrapped.module)


def train(*callbacks: Any, on: dict[str, Callable[[Any], object]] | None = None) -> dict[str, Any]:
    """Train, and tell all about it."""
    told: dict[str, Any] = {"closed": [], "error": None}
    run = Runner(list(callbacks))
    for event, function in (on or {}).items():
        run.on(event, function)
    for event in ("fit_failed", "after_cancel_epoch", "after_epoch", "after_fit"):
        run.on(event, lambda run, event=event: told["closed"].append(event))
    learn = Learner(model(), sgd, mse_loss, DataBunch(loader(), loader()))
    try:
        run.fit(EPOCHS, learn)
    except Exception as error:
        told["error"] = f"{type(error).__name__}: {error}"
    result = run.result
    if isinstance(result, FitResult):
        told.update(outcome=result.outcome, reason=result.reason, steps=result.steps)
        told["by"] = [asked.rank for asked in result.cancellations if asked.scope != "step"]
    told["weights"] = weights(learn.model)
    return told


def asks(scope: str, batch: int | None = None) -> Callable[[Any], None]:
    """A handler of the last rank that cancels in the first epoch: others may be ahead by then."""

    def ask(run: Any) -> None:
        if RANK == SIZE - 1 and run.epoch == 0 and run.batch_index == batch:
            run.token.cancel(scope, "enough")

    return ask


def together() -> dict[str, Any]:
    """Runs after which the ranks can go on together, one after the other."""
    told: dict[str, Any] = {"without": train()["error"]}
    told["ddp"] = train(Distributed(), on={"begin_fit": lambda run: note(told, run)})
    told["hand"] = trained_by_hand()
    told["fsdp2"] = train(Distributed("fsdp2"))
    told["in after_batch"] = train(Distributed(), on={"after_batch": asks("fit", 2)})
    told["in begin_epoch"] = train(Distributed(), on={"begin_epoch": asks("epoch")})
    told["in after_validate"] = train(Distributed(), on={"after_validate": asks("fit")})
    told["alike"] = train(
        Distributed(lost_after=20),
        GradientAccumulation(2),
        on={"after_loss": lambda run: run.token.cancel("batch") if run.batch_index == 1 else None},
    )
    told["alone"] = used_without_training()
    told["guest"] = train(Distributed(), on={"after_epoch": validate_as_guest})
    told["profiled"] = profiled()
    told["past DDP"] = trained_past_ddp()
    told["step"] = train(Distributed(), on={"begin_step": asks("step", 1)})
    return told


def used_without_training() -> list[Any]:
    """A validation and predictions, with a buffer of each kind that differs between ranks."""
    made = model(0)
    made.register_buffer("flags", torch.tensor([RANK == 0, True]))
    made.register_buffer("strided", torch.full((3, 2), float(RANK)).t())
    run, learn = Runner(Distributed()), Learner(made, None, mse_loss, DataBunch(None, loader()))
    outcome = run.validate(learn).outcome
    with torch.no_grad():
        same = torch.equal(run.predict(learn, loader()), torch.cat([made(x) for x, _ in loader()]))
    return [outcome, same, made.flags.tolist(), made.strided.tolist()]


def validate_as_guest(run: Any) -> None:
    inner = Runner(Distributed())
    assert inner.validate(run.learn, token=run.token).outcome == "completed"


def profiled() -> dict[str, Any]:
    """Cancelled while a profile times the scopes."""
    told: dict[str, Any] = {}
    run = Runner(Distributed())
    run.on("after_batch", asks("fit", 1))
    with run.bus.profile() as profile:
        result = run.fit(EPOCHS, Learner(model(), sgd, mse_loss, DataBunch(loader(), loader())))
    told.update(outcome=result.outcome, steps=result.steps, is_timed=bool(profile.table()))
    return told


class PastDDP(Runner):
    """Calls the model itself."""

    def one_batch(self) -> None:
        self.pred = self.model(self.xb)
        self.emit.after_pred()
        self.loss = self.loss_func(self.pred, self.yb)
        self.emit.after_loss()
        if self.in_train:
            self.loss.backward()
            self.emit.after_backward()
            self.optimizer_step()


def trained_past_ddp() -> str:
    learn = Learner(model(), sgd, mse_loss, DataBunch(loader(), None))
    try:
        PastDDP(Distributed()).fit(1, learn)
    except (DesyncError, RemoteError) as error:  # who is second hears of the first
        return str(error)
    return ""


def note(told: dict[str, Any], run: Runner) -> None:
    told["group"] = [run.rank, run.world_size, run.is_zero, type(run.model).__name__]


def at_third_batch(deed: Callable[[], object]) -> dict[str, Any]:
    """What follows when the last rank does something in an early batch."""

    def boom(run: Any) -> None:
        if RANK == SIZE - 1 and run.n_iter == 2 and run.in_train:
            deed()

    return train(Distributed(lost_after=10), on={"after_backward": boom, "after_fit": keep})


def keep(run: Any) -> None:
    """Tell before a signal ends the process."""
    path = FOLDER / f"{RANK}.closed"
    path.write_text(f"{run.outcome} {run.exception}")


def fail() -> None:
    raise ValueError("no luck")


DEEDS: dict[str, Callable[[], dict[str, Any]]] = {
    "together": together,
    "fails": lambda: at_third_batch(fail),
    "is terminated": lambda: at_third_batch(lambda: signal.raise_signal(signal.SIGTERM)),
    "is killed": lambda: at_third_batch(lambda: os.kill(os.getpid(), signal.SIGKILL)),
}

if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    joined_group()
    found = DEEDS[sys.argv[2]]()
    (FOLDER / f"{RANK}.json").write_text(json.dumps(found))
    if sys.argv[2] == "together":
        destroy_process_group()
