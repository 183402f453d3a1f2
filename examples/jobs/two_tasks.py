"""Rows with two targets, and the area under a curve: what the program with two heads reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def two_tasks() -> tuple[list[Any], list[Any]]:
    """Return batches to train on and to validate with: rows [n, 6], targets by name."""
    x = torch.randn(90, 6, generator=torch.Generator().manual_seed(3))
    kind, odd = x[:, :3].argmax(1), (x[:, 3] > 0.3).float()

    def batches(rows: slice, bs: int) -> list[Any]:
        parts = zip(x[rows].split(bs), kind[rows].split(bs), odd[rows].split(bs), strict=True)
        return [(each, {"kind": k, "odd": o}) for each, k, o in parts]

    return batches(slice(0, 60), 16), batches(slice(60, 90), 7)


def auc(pred: Tensor, target: Tensor) -> Tensor:
    """Return how often a row of the class scores above one that is not, ties counting half."""
    gap = pred[target == 1][:, None] - pred[target == 0]
    return ((gap > 0).float() + (gap == 0).float() / 2).mean()
