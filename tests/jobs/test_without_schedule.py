"""The package ``schedulefree`` as it comes: its modes are the loop's business."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests_of_jobs import close, cut_and_resumed, needs
from torch.nn.functional import cross_entropy

from eventtrain import load_checkpoint

needs("schedulefree", "sklearn")

import without_schedule

FIT = {"steps": 60, "validate_every": 10}


def test_rows_and_weights_are_those_of_a_loop_by_hand_that_switches_the_modes(
    tmp_path: Path,
) -> None:
    (run, ours), (_, theirs) = without_schedule.make(tmp_path), without_schedule.make(tmp_path)
    rows = run.fit(learn=ours, **FIT).history
    model, opt, expected, step = theirs.model, theirs.opt, [], 0
    x_valid, y_valid = theirs.data.valid_dl.dataset.tensors
    while step < 60:
        for x, y in theirs.data.train_dl:
            opt.train()
            cross_entropy(model(x), y).backward()
            opt.step()
            opt.zero_grad()
            step += 1
            if step % 10 == 0:
                opt.eval()
                with torch.no_grad():
                    expected.append(float(cross_entropy(model(x_valid), y_valid)))
            if step == 60:
                break
    assert [row["valid_loss"] for row in rows] == pytest.approx(expected, abs=1e-6)
    ours.opt.train()
    opt.train()
    assert close(ours.model, model, atol=1e-6)


def test_cut_between_two_validations_it_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    run, learn = without_schedule.make(tmp_path / "whole")
    rows = run.fit(learn=learn, **FIT).history
    again, _ = cut_and_resumed(lambda: without_schedule.make(tmp_path / "cut"), 25, **FIT)
    assert again.history == rows
    kept = load_checkpoint(again.checkpoint.best)["model"]
    best = load_checkpoint(run.checkpoint.best)["model"]
    assert all(torch.equal(kept[name], each) for name, each in best.items())


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_losses_and_accuracies_are_those_of_the_trainer_of_transformers(tmp_path: Path) -> None:
    needs("transformers", "accelerate")
    import without_schedule_trainer

    run, learn = without_schedule.make(tmp_path / "own")
    history = run.fit(learn=learn, **FIT).history
    trainer = without_schedule_trainer.make(str(tmp_path / "peer"))
    trainer.train()
    for name in ("loss", "accuracy"):
        logged = [row for row in trainer.state.log_history if f"eval_{name}" in row]
        expected = [row[f"eval_{name}"] for row in logged]
        assert [row[f"valid_{name}"] for row in history] == pytest.approx(expected, abs=1e-5)
