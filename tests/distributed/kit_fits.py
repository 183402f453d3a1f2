"""What is fitted in the tests of the kit, alone and as one of several, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eventtrain import (
    AvgStatsCallback,
    DataBunch,
    Distributed,
    Learner,
    Runner,
    TensorLoader,
    accuracy,
)

Told = dict[str, Any]
Factory = Callable[[Any], torch.optim.Optimizer]
LOSS = nn.functional.cross_entropy
ROWS, CLASSES = 25, 3
"""In batches of 8 and 6: the last one has a single row, and so the last rank none."""


class Net(nn.Module):
    """Small, with a part of each kind that some callback is about."""

    def __init__(self, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.blocks = nn.ModuleList([nn.Linear(64, 8), nn.Linear(8, 8)])
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.conv(x)).relu().flatten(1)
        for block in self.blocks:
            x = block(x).tanh()
        return self.out(self.dropout(x))


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.2, momentum=0.9)


def data(rows: int = ROWS) -> DataBunch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 2, 6, 6, generator=generator)
    y = torch.randint(CLASSES, (rows,), generator=generator)
    return DataBunch(TensorLoader(x, y, bs=8, shuffle=True, seed=3), TensorLoader(x, y, bs=6))


def learner(opt: Factory = sgd, model: nn.Module | None = None, rows: int = ROWS) -> Learner:
    torch.manual_seed(0)
    return Learner(model or Net(), opt, LOSS, data(rows))


def weights(model: Any) -> list[float]:
    for part in model.modules():
        if hasattr(part, "reshard"):
            part.reshard()
    tensors = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [float(v) for v in torch.cat([t.detach().flatten() for t in tensors])]


def fit(
    strategy: str | None,
    *cbs: Any,
    epochs: int = 2,
    learn: Learner | None = None,
    on: dict[str, Callable[[Any], object]] | None = None,
    metrics: Any = accuracy,
    numbers: Callable[[Runner], Any] = lambda run: None,
) -> Told:
    """Train, and tell what has come of it; ``lines`` are those that were printed."""
    learn = learn or learner()
    lines: list[str] = []
    distributed = [] if strategy is None else [Distributed(strategy, lost_after=20)]  # type: ignore[arg-type]
    run = Runner([*distributed, AvgStatsCallback(metrics, report=lines.append), *cbs])
    for event, function in (on or {}).items():
        run.on(event, function)
    result = run.fit(epochs, learn)
    return {
        "outcome": result.outcome,
        "reason": result.reason,
        "steps": result.steps,
        "history": [plain(row) for row in run.history],
        "printed": len(lines),
        "weights": weights(learn.model),
        "numbers": numbers(run),
    }


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what depends on the clock."""
    clocks = ("second", "share", "spread", "slowest", "host", "cpu")
    return {k: float(v) for k, v in row.items() if not any(clock in k for clock in clocks)}


def texts(folder: Path) -> dict[str, int]:
    """The files below a folder, with their lines."""
    return {
        str(path.relative_to(folder)): path.read_bytes().count(b"\n")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
