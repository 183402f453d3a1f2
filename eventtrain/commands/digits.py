"""What ``eventtrain demo`` does: train a small model on digits and draw its losses."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from ..atomic_file import prepare_folder
from ..callbacks import AvgStatsCallback, Progress, Recorder
from ..callbacks.shared.plots import FAINT, MAIN, SECOND, saved_figure, tidy
from ..data import DataBunch, Dataset, get_data, get_dls
from ..learner import Learner, accuracy, get_model
from ..runner import Runner
from ..state import FitResult


class DemoError(Exception):
    """The demo cannot run here; the message is for the user."""


def run_demo(*, epochs: int, lr: float, batch_size: int, seed: int, out: Path) -> int:
    """Train on digits, print a line an epoch, and save ``loss.png`` in ``out``.

    Returns:
        0, or 128 plus the number of the signal that ended it early.

    Raises:
        DemoError: ``out`` cannot be written to.
        ModuleNotFoundError: scikit-learn or tqdm is missing.
    """
    picture = _writable(out)
    torch.manual_seed(seed)
    x_train, y_train, x_valid, y_valid = get_data("digits")
    loaders = get_dls(Dataset(x_train, y_train), Dataset(x_valid, y_valid), batch_size)
    data = DataBunch(*loaders, c=10)
    model, opt = get_model(data, lr=lr)
    recorder = Recorder()
    callbacks = [AvgStatsCallback(accuracy), recorder, Progress(leave=False)]
    print(f"{len(x_train)} images of digits to train on, {len(x_valid)} to validate on")

    run = Runner(callbacks, on_interrupt="return")
    result = run.fit(epochs, Learner(model, opt, nn.functional.cross_entropy, data))

    if recorder.losses:
        _save(draw(recorder.losses, _validation(recorder)), picture)
        print(f"loss curves: {picture}")
    final = _last_accuracy(result)
    if result.outcome == "cancelled":
        print(f"ended early by {result.reason} after {result.epochs} of {epochs} epochs")
    if final is not None:
        print(f"validation accuracy: {final:.4f}")
    return 0 if result.outcome == "completed" else 128 + signal.Signals[str(result.reason)]


def draw(train: list[float], valid: list[tuple[int, float]]) -> Figure:
    """Draw loss curves over the number of training batches, on a logarithmic scale.

    Args:
        train: The training loss of every batch; at least one.
        valid: ``(batches trained so far, validation loss)`` of every epoch.
    """
    steps = range(1, len(train) + 1)
    ends, means = _means(train, valid[0][0] if valid else len(train))
    figure: Figure = saved_figure("the demo", (8, 5), dpi=150)
    axes = figure.add_subplot()
    axes.plot(steps, train, color=FAINT, linewidth=0.6, label="training, each batch")
    line: dict[str, Any] = {"linewidth": 1.8, "marker": "o", "markersize": 3.5}
    axes.plot(ends, means, color=MAIN, label="training, mean of the epoch", **line)
    axes.plot(
        [batches for batches, _ in valid],
        [loss for _, loss in valid],
        color=SECOND,
        label="validation",
        **line,
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="training batches", ylabel="cross entropy", title="Loss on handwritten digits")
    tidy(axes, which="both").legend(frameon=False)
    return figure


def _validation(recorder: Recorder) -> list[tuple[int, float]]:
    """Return batches so far and validation loss of the epochs that saw the whole set."""
    rows = [row for row in recorder.rows if row["outcome"] == "completed"]
    return [(row["batches"], row["valid_loss"]) for row in rows]


def _means(values: list[float], size: int) -> tuple[list[int], list[float]]:
    """Average every ``size`` values; return the ends of the stretches and the averages."""
    starts = range(0, len(values) - size + 1, size)
    return [i + size for i in starts], [sum(values[i : i + size]) / size for i in starts]


def _last_accuracy(result: FitResult) -> float | None:
    known = [row["valid_accuracy"] for row in result.history[: result.epochs]]
    return known[-1] if known else None


def _writable(out: Path) -> Path:
    """Make the folder and see that a picture can be written there; return the picture's path."""
    picture = out / "loss.png"
    try:
        prepare_folder(out)
        if picture.exists():
            with picture.open("r+b"):
                pass
    except OSError as error:
        raise _cannot_write(picture, error) from error
    return picture


def _save(figure: Figure, picture: Path) -> None:
    try:
        # Long lines are drawn in pieces: Agg refuses a path with too many turns.
        with rc_context({"agg.path.chunksize": 10_000}):
            figure.savefig(picture)
    except OSError as error:
        raise _cannot_write(picture, error) from error


def _cannot_write(picture: Path, error: OSError) -> DemoError:
    if isinstance(error, FileExistsError):  # from mkdir
        return DemoError(f"cannot write {picture}: {picture.parent} is not a folder")
    return DemoError(f"cannot write {picture}: {error.strerror or error}")
