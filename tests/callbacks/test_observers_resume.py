"""All observers together, in a run that fails and is resumed from a checkpoint on disk."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eventtrain import AvgStatsCallback, Callback, Learner, Runner
from eventtrain.callbacks import (
    ActivationStats,
    Checkpoint,
    CSVLogger,
    DeviceStats,
    GradientAccumulation,
    GradStats,
    History,
    JSONLLogger,
    Progress,
    Recorder,
    Throughput,
    Timing,
)

pytest.importorskip("tqdm", reason="needs tqdm (extra 'watch')")

Make = Callable[..., Learner]


def observers(folder: Path) -> list[Callback]:
    return [
        AvgStatsCallback(report=None),
        Recorder(),
        Progress(every=0, file=io.StringIO(), disable=False),
        History(batches=True),
        CSVLogger(folder / "log.csv"),
        JSONLLogger(folder / "log.jsonl"),
        Timing(),
        Throughput(),
        DeviceStats(),
        GradStats(every=2),
        ActivationStats(bins=4),
    ]


def only(rows: list[dict[str, Any]], *names: str) -> list[list[Any]]:
    return [[row.get(name) for name in names] for row in rows]


def all_seen(run: Runner, folder: Path) -> dict[str, Any]:
    """What the observers have seen, without what depends on the clock."""
    with (folder / "log.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    activations: Any = run.activation_stats
    return {
        "losses": run.recorder.losses,
        "rates": run.recorder.lrs,
        "rows": only(run.recorder.rows, "epoch", "valid_loss", "batches", "outcome"),
        "history": only(run.history_table.to_dicts(), "fit", "epoch", "valid_loss", "outcome"),
        "batches": run.history_table.to_dicts("batches"),
        "csv": only(table, "epoch", "train_loss", "valid_loss", "outcome"),
        "jsonl": only(lines, "event", "epoch", "valid_loss", "epochs", "steps", "outcome"),
        "timing": only(run.timing.rows, "epoch", "phase", "batches"),
        "device": only(run.device_stats.rows, "epoch", "n_iter"),
        "gradients": run.grad_stats.to_dicts(),
        "activations": [activations.values("", name) for name in ("mean", "std", "zeros")],
        "histograms": activations.histogram("").tolist(),
        "weights": run.model_seen.tolist(),
    }


def fit(folder: Path, learner: Learner, fail_at: int | None = None) -> Runner:
    run = Runner([*observers(folder), Checkpoint(folder / "saved", every_steps=2)])

    @run.on("after_step", when=lambda run: run.n_iter == fail_at)
    def fail(run: Runner) -> None:
        raise RuntimeError("gone")

    run.fit(3, learner, resume="auto")
    run.model_seen = learner.model.weight.detach()  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize("fail_at", [4, 6, 8])
def test_the_resumed_run_has_seen_what_an_uninterrupted_one_sees(
    fail_at: int, make_learner: Make, tmp_path: Path
) -> None:
    whole = all_seen(fit(tmp_path / "whole", make_learner()), tmp_path / "whole")
    broken = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="gone"):
        fit(broken, make_learner(), fail_at)
    torch.manual_seed(99)
    assert all_seen(fit(broken, make_learner()), broken) == whole


@pytest.mark.parametrize("event", ["begin_batch", "after_loss", "begin_step"])
@pytest.mark.parametrize("at", [2, 3, 6])
def test_batches_that_were_cut_and_are_run_again_are_recorded_once(
    event: str, at: int, make_learner: Make, tmp_path: Path
) -> None:
    def run_in(folder: Path) -> Runner:
        observing = [Recorder(), History(batches=True)]
        return Runner([*observing, GradientAccumulation(2), Checkpoint(folder)])

    whole, broken = run_in(tmp_path / "whole"), run_in(tmp_path / "broken")
    whole.fit(3, make_learner())
    is_there = lambda run: run.in_train and run.n_iter == at  # noqa: E731
    broken.on(event, lambda run: run.token.cancel("fit"), when=is_there, priority=200)
    broken.fit(3, make_learner())
    resumed = run_in(tmp_path / "broken")
    resumed.fit(3, make_learner(), resume="auto")
    assert resumed.recorder.losses == whole.recorder.losses
    assert resumed.recorder.lrs == whole.recorder.lrs
    batches = [run.history_table.to_dicts("batches") for run in (resumed, whole)]
    assert batches[0] == batches[1]
