"""What do the callbacks that ship cost in an epoch of real training?

A small convolutional network on images of MNIST's shape: on MNIST where
``EVENTTRAIN_DATA`` names its folder, else on random numbers.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eventtrain import Callback, DataBunch, Learner, Runner, TensorLoader, accuracy
from eventtrain.callbacks import (
    AvgStatsCallback,
    Checkpoint,
    EarlyStopping,
    GradientClip,
    Progress,
    Recorder,
)

from .data import by_loader, tensors
from .measure import Options, Suite, Target, Variant, compare, stopwatch

BS = 64
HAND_WRITTEN = "hand-written loop"
RUNNER = "Runner, no callbacks"
ALL = "Runner with all six"
Kit = dict[str, Callable[[], Callback]]


def run(options: Options) -> Suite:
    """Measure an epoch of training and validation, with each callback and with all."""
    x, y, what = tensors(options)
    rows = options.pick(6_400, 128)
    x, y = x[: rows * 5 // 4].view(-1, 1, 28, 28), y[: rows * 5 // 4]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        kit = _kit(Path(folder), stack)
        variants: dict[str, Variant] = {
            HAND_WRITTEN: stopwatch(partial(by_hand, learner(x, y, rows, options))),
            RUNNER: _fit(learner(x, y, rows, options), []),
        }
        for name, make in kit.items():
            variants[name] = _fit(learner(x, y, rows, options), [make()])
        variants[ALL] = _fit(learner(x, y, rows, options), [make() for make in kit.values()])
        title = f"an epoch of {rows} images in batches of {BS}, and {len(x) - rows} to validate on"
        group = compare(title, "ms", variants, rounds=options.pick(7, 1))
    text = "an epoch with progress, stats, recorder, checkpoint, early stopping and clipping"
    target = Target(f"{text}, over the hand-written loop", group.ratio(ALL).median, 1.03)
    note = f"data: {what}; EarlyStopping comes with an AvgStatsCallback, whose metric it watches"
    return Suite([group], [target], [note])


def by_hand(learn: Learner) -> None:
    """Train for an epoch and validate: the baseline."""
    by_loader(learn)
    model, loss_func = learn.model, learn.loss_func
    model.eval()
    with torch.no_grad():
        for xb, yb in learn.data.valid_dl:
            loss_func(model(xb), yb)


def learner(x: Tensor, y: Tensor, rows: int, options: Options) -> Learner:
    """Return a learner over the first ``rows`` images; the others are for validation."""
    torch.manual_seed(options.seed)
    loaders = TensorLoader(x[:rows], y[:rows], BS), TensorLoader(x[rows:], y[rows:], 2 * BS)
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((1, 16), (16, 32), (32, 64)):
        conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(channels_out), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 10))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Learner(model, opt, F.cross_entropy, DataBunch(*loaders, c=10))


def _kit(folder: Path, stack: ExitStack) -> Kit:
    screen = stack.enter_context(io.StringIO())
    return {
        "Progress": lambda: Progress(disable=False, file=screen),
        "AvgStatsCallback(accuracy)": lambda: AvgStatsCallback(accuracy, report=None),
        "Recorder": Recorder,
        "Checkpoint, every epoch": lambda: Checkpoint(tempfile.mkdtemp(dir=folder)),
        "EarlyStopping": lambda: EarlyStopping("valid_loss", patience=10**6),
        "GradientClip": lambda: GradientClip(norm=1.0),
    }


def _fit(learn: Learner, callbacks: list[Any]) -> Variant:
    names = {type(callback) for callback in callbacks}
    if EarlyStopping in names and AvgStatsCallback not in names:
        callbacks = [AvgStatsCallback(report=None), *callbacks]
    run = Runner(callbacks)
    return stopwatch(lambda: run.fit(1, learn))
