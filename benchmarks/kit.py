"""What do the callbacks that ship cost in an epoch of real training?

The network and the batches of ``examples/mnist_cnn.py``, on some of MNIST where
``EVENTTRAIN_DATA`` names its folder, else on random numbers of that shape.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
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
from .loops import Way, fit
from .measure import Options, Suite, Target
from .turns import compare_in_turns

BS = 128
HAND_WRITTEN = "hand-written loop"
RUNNER = "Runner, no callbacks"
ALL = "Runner with all six"
Kit = dict[str, Callable[[], Callback]]


def run(options: Options) -> Suite:
    """Measure an epoch of training and validation, with each callback and with all."""
    try:
        Progress(disable=True)
    except ModuleNotFoundError as error:
        return Suite(notes=[f"left out: {error}"])
    x, y, what = tensors(options)
    rows = options.pick(5_120, 256)
    x, y = x[: rows * 5 // 4].view(-1, 1, 28, 28), y[: rows * 5 // 4]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        kit = _kit(Path(folder), stack)
        runs = {RUNNER: _runner([]), **{name: _runner([make()]) for name, make in kit.items()}}
        runs[ALL] = _runner([make() for make in kit.values()])
        ways: dict[str, Way] = {HAND_WRITTEN: by_hand}
        ways.update((name, fit(run)) for name, run in runs.items())
        learners = {name: (way, learner(x, y, rows, options)) for name, way in ways.items()}
        title = f"an epoch of {rows} images in batches of {BS}, and {len(x) - rows} to validate on"
        rounds, passes = options.pick(5, 1), options.pick(3, 1)
        group = compare_in_turns(title, "ms", learners, rounds=rounds, passes=passes)
        share = _share_of_handlers(runs[ALL], learners[ALL][1])
    six = "progress, stats, recorder, checkpoint, early stopping and clipping"
    over = f"an epoch with {six}, over the hand-written loop"
    targets = [
        Target(over, group.ratio(ALL).median, 1.03),
        Target(f"share of an epoch that the handlers of {six} take", 100 * share, 3, "%"),
    ]
    note = f"data: {what}; EarlyStopping comes with an AvgStatsCallback, whose metric it watches"
    return Suite([group], targets, [note])


def _share_of_handlers(run: Runner, learn: Learner) -> float:
    """Measure within one epoch what the difference of two epochs hides in their spread."""
    with run.bus.profile() as profile:
        seconds = run.fit(1, learn).seconds
    return float(sum(row["total_ms"] for row in profile.to_dicts())) / (1000 * seconds)


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
    for channels_in, channels_out in ((1, 16), (16, 32), (32, 32), (32, 64)):
        conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        pool = nn.Identity() if channels_in == 16 else nn.MaxPool2d(2)
        layers += [conv, nn.BatchNorm2d(channels_out), nn.ReLU(), pool]
    layers[-1] = nn.AdaptiveMaxPool2d(2)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
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


def _runner(callbacks: list[Any]) -> Runner:
    names = {type(callback) for callback in callbacks}
    if EarlyStopping in names and AvgStatsCallback not in names:
        callbacks = [AvgStatsCallback(report=None), *callbacks]
    return Runner(callbacks)
