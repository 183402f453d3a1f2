"""Trackers among the other callbacks, and as plugins."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eventtrain import AvgStatsCallback, Callback, Learner, Runner, accuracy, callbacks as kit

pytest.importorskip("mlflow", reason="needs mlflow (extra 'mlflow')")
pytest.importorskip("wandb", reason="needs wandb (extra 'wandb')")
ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Learner]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what the trackers import
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def others(folder: Path) -> list[Callback]:
    return [
        AvgStatsCallback(accuracy, report=None),
        kit.OneCycle(0.05),
        kit.GradientAccumulation(2),
        kit.MixedPrecision("bf16"),
        kit.EMA(0.9),
        kit.EarlyStopping("valid_loss", patience=5),
        kit.Timing(),
        kit.History(),
        kit.EventLog(folder / "events.jsonl"),
        kit.Checkpoint(folder / "saved", every_steps=1),
    ]


def trackers(server: Any, folder: Path) -> list[Any]:
    return [
        kit.MLflow("together", tracking_uri=server.uri, system=False),
        kit.WandB("together", mode="offline", folder=folder, system=False),
    ]


@pytest.mark.parametrize("are_first", [True, False])
def test_with_many_others_the_weights_are_those_without_trackers(
    are_first: bool, server: Any, make_learner: Make, tmp_path: Path
) -> None:
    alone, watched = make_learner(), make_learner()
    (tmp_path / "a").mkdir()
    Runner(others(tmp_path)).fit(3, alone)
    told = trackers(server, tmp_path / "a")
    among = others(tmp_path / "a")
    result = Runner([*told, *among] if are_first else [*among, *told]).fit(3, watched)
    for one, other in zip(alone.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)
    points = server.points(told[0].run_id, "valid_accuracy")
    assert [value for _, value in points] == [row["valid_accuracy"] for row in result.history]
    assert points[-1][0] == result.steps


@pytest.mark.parametrize("event", ["begin_epoch", "after_loss", "after_step", "after_validate"])
def test_wherever_it_is_cancelled_it_goes_on_as_the_same_run_with_each_row_once(
    event: str, server: Any, make_learner: Make, tmp_path: Path
) -> None:
    first = trackers(server, tmp_path)
    run = Runner([*others(tmp_path), *first])
    run.on(event, lambda run: run.token.cancel("fit"), when=lambda run: run.epoch == 1, once=True)
    assert run.fit(3, make_learner()).outcome == "cancelled"
    again = trackers(server, tmp_path)
    assert Runner([*others(tmp_path), *again]).fit(3, make_learner(), resume="auto").epochs == 3
    assert [each.run_id for each in again] == [each.run_id for each in first]
    points = server.points(first[0].run_id, "epoch")
    assert [epoch for _, epoch in points] == sorted({epoch for _, epoch in points})
    assert points[-1][1] == 2


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("place", [0, 1], ids=["MLflow", "WandB"])
def test_a_copy_tracks_a_run_of_its_own(
    copied: Callable[[Any], Any], place: int, server: Any, make_learner: Make, tmp_path: Path
) -> None:
    tracker = trackers(server, tmp_path)[place]
    ours = copied(tracker)
    assert [h.describe() for h in ours.handlers()] == [h.describe() for h in tracker.handlers()]
    Runner([AvgStatsCallback(report=None), ours]).fit(1, make_learner())
    Runner([AvgStatsCallback(report=None), tracker]).fit(1, make_learner())
    assert ours.run_id != tracker.run_id


def eventtrain(*arguments: str, folder: Path, **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "eventtrain", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=120,
    )


def test_the_command_line_trains_with_them_when_asked(server: Any, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    asked = [part for name in ("mlflow", "wandb") for part in ("--plugin", name)]
    settings = {
        "mlflow.experiment": "cli", "mlflow.tracking_uri": server.uri, "mlflow.system": "False",
        "wandb.mode": "offline", "wandb.project": "cli",
    }  # fmt: skip
    for key, value in settings.items():
        asked += ["--plugin-option", f"{key}={value}"]
    done = eventtrain("train", "--epochs", "1", *asked, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (run_id,) = server.runs("cli")
    assert server.points(run_id, "epoch") == [(23, 0)]
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_the_python_of_its_page_runs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    page = (ROOT / "docs" / "callbacks" / f"{name}.md").read_text(encoding="utf-8")
    program = "".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_they_are_listed_last_and_all_does_not_mean_them(tmp_path: Path) -> None:
    done = eventtrain("plugins", "--json", folder=tmp_path)
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert list(found)[-2:] == ["mlflow", "wandb"]
    assert found["mlflow"]["status"] == found["wandb"]["status"] == "ok"
    done = eventtrain("explain", folder=tmp_path, EVENTTRAIN_PLUGINS="all")
    assert done.returncode == 0, done.stderr
    assert "wandb" not in done.stdout
