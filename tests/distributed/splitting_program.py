"""What ranks train whose memory is too small on one of them: ``splitting_program.py FOLDER``.

All deeds are done one after the other in one process group. Each rank writes what has come of them
into FOLDER as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from eventtrain import AvgStatsCallback, DataBunch, Distributed, Learner, Runner, TensorLoader
from eventtrain.callbacks import (
    EMA,
    ActivationCheckpointing,
    Checkpoint,
    GradientAccumulation,
    GradientClip,
    MixedPrecision,
    SplitOnOOM,
)
from eventtrain.distributed.groups import joined_group

RANK = int(os.environ.get("RANK", "0"))
ROWS, BS = 37, 16
"""The last batch has 5 rows, so ranks have 8 and 8, and then 3 and 2."""
MUCH = 10**9
Told = dict[str, Any]


class Memory:
    """Room for so many rows, in the forward and in the backward pass."""

    def __init__(self, forward: int = MUCH, backward: int = MUCH) -> None:
        self.forward, self.backward, self.failed = forward, backward, 0

    def take(self, rows: int, room: int) -> None:
        if rows > room:
            self.failed += 1
            raise torch.OutOfMemoryError("no room")


class Costly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, memory: Memory) -> Tensor:
        ctx.memory, ctx.rows = memory, len(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.memory.take(ctx.rows, ctx.memory.backward)
        return gradients[0], None


class Model(nn.Module):
    """Parameters before and behind the place where memory runs out."""

    def __init__(self, memory: Memory, dropout: float = 0.0) -> None:
        super().__init__()
        self.memory = memory
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.dropout(self.first(x)))
        self.memory.take(len(x), self.memory.forward)
        return self.last(Costly.apply(x, self.memory))  # type: ignore[no-any-return]


class Blocks(nn.Module):
    """Parts that each need memory, between what is in no part."""

    def __init__(self, memory: Memory, dropout: float = 0.0) -> None:
        super().__init__()
        self.memory = memory
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList([Block(memory, dropout) for _ in range(3)])

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.last(x)


class Block(nn.Module):
    def __init__(self, memory: Memory, dropout: float) -> None:
        super().__init__()
        self.memory = memory
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        inner = torch.tanh(self.dropout(self.inner(x)))
        self.memory.take(len(x), self.memory.forward)
        return x + scale * self.outer(Costly.apply(inner, self.memory))  # type: ignore[no-any-return]


def data() -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 5, generator=dice, dtype=torch.float64)
    return x, torch.randint(0, 3, (ROWS,), generator=dice)


def large(batch: Any) -> Tensor:
    """The rows that count: in unequal numbers on the ranks."""
    return (batch[0][:, 0] > 0.1).sum()


def mean_of_large(xb: Tensor, pred: Tensor, yb: Tensor) -> Tensor:
    counts = xb[:, 0] > 0.1
    return (cross_entropy(pred, yb, reduction="none") * counts).sum() / counts.sum()


def learner(
    forward: int = MUCH, backward: int = MUCH, dropout: float = 0.0, kind: type[nn.Module] = Model
) -> Learner:
    """Memory is that small on the last rank alone."""
    memory = Memory(forward, backward) if RANK else Memory()
    torch.manual_seed(0)
    model: nn.Module = kind(memory, dropout).double()
    x, y = data()
    loaders = DataBunch(TensorLoader(x, y, bs=BS), TensorLoader(x, y, bs=BS))
    return Learner(model, sgd, cross_entropy, loaders)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.3, momentum=0.9)


def weights(model: nn.Module) -> list[float]:
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    tensors = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in tensors]).tolist()


def fit(learn: Learner, *cbs: Any, epochs: int = 2, strategy: Any = "ddp", **options: Any) -> Told:
    torch.manual_seed(3 + RANK)
    run = Runner([Distributed(strategy, lost_after=20), AvgStatsCallback(report=None), *cbs])
    sizes: list[Any] = []
    split = next((cb for cb in cbs if isinstance(cb, SplitOnOOM)), None)
    if split is not None:
        run.on("after_batch", lambda run: sizes.append(split.rows), during="train")
    result = run.fit(epochs, learn, **options)
    history = [{k: v for k, v in row.items() if k.endswith("loss")} for row in run.history]
    return {
        "weights": weights(learn.model),
        "history": history,
        "steps": result.steps,
        "failed": learn.model.memory.failed,
        "rows": None if split is None else split.rows,
        "sizes": sizes,
    }


def fits() -> Told:
    """Nothing runs out: with and without the callback."""
    plain, watched = fit(learner(dropout=0.3)), fit(learner(dropout=0.3), SplitOnOOM())
    return {**watched, "plain": plain["weights"]}


def counts_large() -> Told:
    learn = learner(forward=3)
    learn.weight = large
    batch: list[Any] = []
    learn.forward = lambda model, found: batch.__setitem__(slice(None), found) or model(found[0])
    learn.loss_func = lambda pred, yb: mean_of_large(batch[0], pred, yb)
    return fit(learn, SplitOnOOM())


def resumes(folder: Path) -> Told:
    """Cut in the middle of an epoch, after the size was lowered on one rank alone."""

    def cut(run: Any) -> None:
        if run.n_iter == 1 and run.rank == 0:
            run.token.cancel("fit", "cut")

    def made(*cbs: Any) -> tuple[Learner, list[Any]]:
        return learner(backward=3, dropout=0.2), [SplitOnOOM(), *cbs]

    whole, cbs = made()
    expected = fit(whole, *cbs)
    first, cbs = made(Checkpoint(folder, every_steps=1))
    torch.manual_seed(3 + RANK)
    run = Runner([Distributed(lost_after=20), AvgStatsCallback(report=None), *cbs])
    run.on("after_step", cut)
    run.fit(2, first)
    again, cbs = made(Checkpoint(folder))
    told = fit(again, *cbs, resume="auto")
    return {**told, "whole": expected["weights"], "begun with": told["sizes"][0]}


def sharded(*rooms: int, dropout: float = 0.0, cbs: Any = (), split: Any = None) -> Told:
    learn = learner(*rooms, dropout=dropout, kind=Blocks)
    told = fit(learn, split or SplitOnOOM(), *cbs, strategy="fsdp2")
    told["is put back"] = not any("forward" in vars(module) for module in learn.model.modules())
    return told


def fits_sharded() -> Told:
    """Nothing runs out: with and without the callback."""
    plain = fit(learner(dropout=0.3, kind=Blocks), strategy="fsdp2")
    return {**sharded(dropout=0.3), "plain": plain["weights"]}


def resumes_sharded(folder: Path) -> Told:
    def made(**options: Any) -> list[Any]:
        return [SplitOnOOM(), Checkpoint(folder, **options)]

    first = learner(3, kind=Blocks)
    run = Runner([Distributed("fsdp2", lost_after=20), *made(every_steps=1)])
    run.on("after_step", lambda run: run.token.cancel("fit"), when=lambda run: run.n_iter == 3)
    run.fit(2, first)
    return fit(learner(3, kind=Blocks), *made(), strategy="fsdp2", resume="auto")


def refused() -> Told:
    learn = learner()
    model = DistributedDataParallel(learn.model)
    learn = Learner(model, sgd(model.parameters()), cross_entropy, learn.data)
    return fails(lambda: fit(learn, SplitOnOOM()))


def fails(deed: Callable[[], Told]) -> Told:
    """What the ranks are told where one cannot go on, while the other waits for it."""
    try:
        return deed()
    except Exception as error:
        notes = getattr(error, "__notes__", [])
        return {"error": f"{type(error).__name__}: {error}", "notes": notes}


def deeds(folder: Path) -> dict[str, Callable[[], Told]]:
    return {
        "fits": fits,
        "forward": lambda: fit(learner(forward=3), SplitOnOOM()),
        "backward": lambda: fit(learner(backward=3), SplitOnOOM()),
        "both": lambda: fit(learner(5, 2), SplitOnOOM()),
        "from the start": lambda: fit(learner(), SplitOnOOM(3)),
        "accumulates": lambda: fit(learner(backward=3), SplitOnOOM(), GradientAccumulation(2)),
        "clips": lambda: fit(learner(backward=3), SplitOnOOM(), GradientClip(0.1), EMA(0.5)),
        "precision": lambda: fit(learner(backward=3), MixedPrecision("bf16"), SplitOnOOM()),
        "draws": lambda: fit(learner(backward=3, dropout=0.3), SplitOnOOM()),
        "counts large": counts_large,
        "resumes": lambda: resumes(folder / "checkpoints"),
        "wrapped": refused,
        "fits sharded": fits_sharded,
        "sharded whole": lambda: fit(learner(forward=3), SplitOnOOM(), strategy="fsdp2"),
        "sharded forward": lambda: sharded(3),
        "sharded backward": lambda: sharded(MUCH, 3),
        "sharded both": lambda: sharded(5, 2),
        "sharded from the start": lambda: sharded(split=SplitOnOOM(3)),
        "sharded draws": lambda: sharded(3, dropout=0.3),
        "sharded accumulates": lambda: sharded(MUCH, 3, cbs=[GradientAccumulation(2)]),
        "sharded clips": lambda: sharded(MUCH, 3, cbs=[GradientClip(0.1), EMA(0.5)]),
        "sharded checkpointed": lambda: sharded(
            MUCH, 3, cbs=[ActivationCheckpointing(lambda name, module: isinstance(module, Block))]
        ),
        "sharded precision": lambda: sharded(MUCH, 3, cbs=[MixedPrecision("bf16")]),
        "sharded resumes": lambda: resumes_sharded(folder / "sharded"),
    }


def last_deeds() -> dict[str, Callable[[], Told]]:
    """Those after which the group is gone."""
    return {
        "has no room": lambda: fit(learner(backward=0), SplitOnOOM()),
        "has no room sharded": lambda: sharded(MUCH, 0),
        "draws behind": lambda: sharded(MUCH, 3, dropout=0.3),
    }


def main(folder: Path, last: str | None = None) -> None:
    torch.set_num_threads(1)
    joined_group()
    if last is not None:
        told = {last: fails(last_deeds()[last])}
        (folder / f"{RANK}.json").write_text(json.dumps(told))
        os._exit(0)  # its group is broken, and would be waited for
    told = {name: deed() for name, deed in deeds(folder).items()}
    (folder / f"{RANK}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
