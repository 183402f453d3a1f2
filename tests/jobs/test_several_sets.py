"""Two validation loaders every few steps and all that goes by rows, beside Lightning."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_of_jobs import cut_and_resumed, needs

from eventtrain import load_checkpoint

needs("sklearn", "tensorboard")

import several_sets

FIT = {"steps": 200, "validate_every": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run, its learner, its result and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    run, learn = several_sets.make(folder)
    return run, learn, run.fit(learn=learn, **FIT), folder


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_rows_rates_and_end_are_those_of_lightning(whole: Any, tmp_path: Path) -> None:
    needs("lightning")
    import several_sets_lightning

    run, learn, result, _ = whole
    trainer, model, *loaders = several_sets_lightning.make(str(tmp_path))
    trainer.fit(model, *loaders)
    expected = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["step"] for row in result.history] == [row["step"] for row in expected]
    for name in ("clean_loss", "clean_accuracy", "noisy_loss", "noisy_accuracy"):
        found = [row[f"valid_{name}"] for row in result.history]
        assert found == pytest.approx([row[f"valid_{name}"] for row in expected], abs=1e-3)
    rates = [opt.param_groups[0]["lr"] for opt in (learn.opt, trainer.optimizers[0])]
    assert rates[0] == rates[1] < 0.5
    best = torch.load(trainer.checkpoint_callback.best_model_path)
    assert load_checkpoint(run.checkpoint.best)["counters"]["steps"] == best["global_step"]


def test_it_stops_early_with_the_averages_of_the_best_row(whole: Any) -> None:
    run, learn, result, _ = whole
    losses = [row["valid_noisy_loss"] for row in result.history]
    assert result.outcome == "cancelled"
    assert losses.index(min(losses)) == len(losses) - 5
    again = run.validate(learn).history[0]
    assert again["valid_noisy_loss"] == pytest.approx(min(losses), abs=1e-5)


def test_the_three_best_are_kept(whole: Any) -> None:
    _, _, result, folder = whole
    losses = [(row["valid_noisy_loss"], row["step"]) for row in result.history]
    kept = {load_checkpoint(path)["counters"]["steps"] for path in folder.glob("*.pt")}
    assert {step for _, step in sorted(losses)[:3]} <= kept
    assert len(kept) <= 5


def test_each_row_is_in_each_file(whole: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, _, result, folder = whole
    with (folder / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(folder)).Reload()
    for name in ("valid_clean_loss", "valid_noisy_loss", "valid_noisy_accuracy"):
        numbers = [row[name] for row in result.history]
        assert [float(row[name]) for row in table] == pytest.approx(numbers)
        assert [line[name] for line in lines[:-1]] == pytest.approx(numbers)
        assert [each.value for each in board.Scalars(f"row/{name}")] == pytest.approx(numbers)
    assert lines[-1]["outcome"] == "cancelled"


def test_cut_between_two_validations_it_goes_on_to_the_same_rows(
    whole: Any, tmp_path: Path
) -> None:
    _, learn, result, _ = whole
    again, resumed = cut_and_resumed(lambda: several_sets.make(tmp_path), 13, **FIT)
    assert again.history == result.history
    for name, each in learn.model.state_dict().items():
        assert torch.equal(each, resumed.model.state_dict()[name]), name
