"""A model that knows the digits: what the program on distillation learns from."""

from __future__ import annotations

import torch
from images import digits
from torch import nn
from torch.nn.functional import cross_entropy


def teacher() -> nn.Module:
    """Return a model of images [n, 1, 8, 8] that gives logits [n, 10], trained a little."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    x, y = digits(8)[0].tensors
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()
    return model
