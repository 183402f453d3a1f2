"""What does an epoch of real training cost, by how its batches come?

The model of 784, 50 and 10 units at batch size 64, on MNIST where
``EVENTTRAIN_DATA`` names its folder, else on random numbers of its shape.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from eventtrain import DataBunch, Learner, Runner, TensorLoader, get_data, get_model

from .measure import Group, Options, Suite, Target, compare, stopwatch

BS = 64
SLICES = "hand slicing, hand-written loop"
LOADER = "TensorLoader, hand-written loop"
RUNNER = "TensorLoader, Runner"
TORCH = "DataLoader, hand-written loop"
TORCH_RUNNER = "DataLoader, Runner"


def run(options: Options) -> Suite:
    """Measure an epoch in order and a shuffled one."""
    x, y, what = tensors(options)
    suite = Suite(notes=[f"data: {what}, {list(x.shape)}, batch size {BS}"])
    for shuffle in (False, True):
        group, same = _epochs(x, y, shuffle, options)
        suite.groups.append(group)
        order = "shuffled" if shuffle else "unshuffled"
        suite.notes.append(
            f"{order}: final weights equal bit for bit to the hand-written loop's: "
            + "; ".join(f"{name}: {'yes' if equal else 'NO'}" for name, equal in same.items())
        )
        for name in (LOADER, RUNNER):
            text = f"{order} epoch, {name}, over hand slicing"
            suite.targets.append(Target(text, group.ratio(name).median, 1.03))
    return suite


def by_slices(learn: Learner, x: Tensor, y: Tensor, generator: torch.Generator | None) -> None:
    """Train for an epoch, everything written by hand: the baseline."""
    model, loss_func, opt = learn.model, learn.loss_func, learn.opt
    model.train()
    order = None if generator is None else torch.randperm(len(x), generator=generator)
    for start in range(0, len(x), BS):
        if order is None:
            xb, yb = x[start : start + BS], y[start : start + BS]
        else:
            rows = order[start : start + BS]
            xb, yb = x[rows], y[rows]
        loss = loss_func(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()


def by_loader(learn: Learner) -> None:
    """Train for an epoch over the learner's loader, the loop written by hand."""
    model, loss_func, opt = learn.model, learn.loss_func, learn.opt
    model.train()
    for xb, yb in learn.data.train_dl:
        loss = loss_func(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()


def tensors(options: Options) -> tuple[Tensor, Tensor, str]:
    """Return images as rows of 784 numbers, their classes, and where they come from."""
    if os.environ.get("EVENTTRAIN_DATA") and not options.quick:
        x, y, _, _ = get_data("mnist")
        return x, y, "MNIST"
    generator = torch.Generator().manual_seed(options.seed)
    rows = options.pick(50_000, 500)
    x = torch.rand(rows, 784, generator=generator)
    return x, torch.randint(10, (rows,), generator=generator), "random numbers"


def _epochs(x: Tensor, y: Tensor, shuffle: bool, options: Options) -> tuple[Group, dict[str, bool]]:
    def generator() -> torch.Generator | None:
        return torch.Generator().manual_seed(options.seed) if shuffle else None

    def learner(dl: Any) -> Learner:
        torch.manual_seed(options.seed)
        model, opt = get_model(DataBunch(TensorLoader(x, y), c=10))
        return Learner(model, opt, F.cross_entropy, DataBunch(dl))

    def fit(learn: Learner, run: Runner) -> None:
        run.fit(1, learn)

    def loaders() -> tuple[TensorLoader, DataLoader[Any]]:
        own = TensorLoader(x, y, BS, shuffle, generator())
        return own, DataLoader(TensorDataset(x, y), BS, shuffle=shuffle, generator=generator())

    (first, third), (second, fourth) = loaders(), loaders()
    ways: dict[str, tuple[Learner, Callable[..., None], tuple[Any, ...]]] = {
        SLICES: (learner(None), by_slices, (x, y, generator())),
        LOADER: (learner(first), by_loader, ()),
        RUNNER: (learner(second), fit, (Runner(),)),
        TORCH: (learner(third), by_loader, ()),
        TORCH_RUNNER: (learner(fourth), fit, (Runner(),)),
    }
    variants = {
        name: stopwatch(partial(way, learn, *rest)) for name, (learn, way, rest) in ways.items()
    }
    title = f"{'a shuffled' if shuffle else 'an unshuffled'} epoch of training"
    group = compare(title, "ms", variants, rounds=options.pick(9, 2), passes=options.pick(3, 1))
    weights = {
        name: torch.nn.utils.parameters_to_vector(learn.model.parameters())
        for name, (learn, _, _) in ways.items()
        if name in (LOADER, RUNNER) or not shuffle or name == SLICES  # DataLoader shuffles its way
    }
    own = weights.pop(SLICES)
    return group, {name: torch.equal(own, other) for name, other in weights.items()}
