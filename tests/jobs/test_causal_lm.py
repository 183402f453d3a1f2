"""A causal language model of transformers as it comes, beside the Trainer of transformers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_of_jobs import (
    PowerFailure,
    fitted_by_lightning,
    losses_of_lightning,
    needs,
    quiet,
    same_weights,
)

from eventtrain import Runner, load_checkpoint

needs("transformers", "accelerate", "torchdata", "lightning")

import causal_lm
import causal_lm_lightning
import causal_lm_trainer
from texts import blocks, padded
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

STEPS = 15  # of 4 batches each, and the third pass over 25 batches is under way
KILLED = """
import os, signal, sys
from torchvision_operators import import_torchvision
import_torchvision()
import causal_lm
run, learn = causal_lm.make(sys.argv[1], 15, bf16=False, every_seconds=1e-9)
@run.on("after_batch", during="train", priority=-1000)
def die(run):
    if run.n_iter == 31:
        os.kill(os.getpid(), signal.SIGKILL)
run.fit(steps=15, learn=learn, validate_every=5)
"""


def losses_of_steps(run: Runner) -> list[float]:
    """Have the mean loss over the tokens of each step be written down."""
    found: list[float] = []
    total = [0.0, 0.0]

    @run.on("after_batch", during="train")
    def add(run: Runner) -> None:
        assert run.loss is not None
        total[0] += float(run.loss * run.weight)
        total[1] += float(run.weight)
        if run.steps > len(found):
            found.append(total[0] / total[1])
            total[:] = [0.0, 0.0]

    return found


def trained(folder: Path, *, bf16: bool) -> tuple[Any, list[float]]:
    run, learn = causal_lm.make(folder, STEPS, bf16)
    losses = losses_of_steps(run)
    run.fit(steps=STEPS, learn=learn, validate_every=5)
    return run, losses


def trained_by_trainer(folder: Path, *, bf16: bool) -> tuple[list[float], list[float]]:
    trainer = causal_lm_trainer.make(str(folder), STEPS, bf16)
    trainer.args.logging_steps, trainer.args.eval_steps = 1, 5
    trainer.args.save_steps = 5
    trainer.state.compute_steps(trainer.args, STEPS)
    trainer.train()
    rows = trainer.state.log_history
    losses = [row["loss"] for row in rows if "loss" in row]
    return losses, [row["eval_loss"] for row in rows if "eval_loss" in row]


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_losses_are_those_of_the_trainer_of_transformers(tmp_path: Path) -> None:
    run, losses = trained(tmp_path / "own", bf16=False)
    expected, expected_valid = trained_by_trainer(tmp_path / "peer", bf16=False)
    assert len(losses) == STEPS
    assert losses == pytest.approx(expected, abs=1e-5)
    valid = [row["valid_loss"] for row in run.history]
    assert valid == pytest.approx(expected_valid, abs=1e-5)


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_in_bf16_losses_are_those_of_the_trainer_but_for_the_rounding_of_bf16(
    tmp_path: Path,
) -> None:
    _, losses = trained(tmp_path / "own", bf16=True)
    expected, _ = trained_by_trainer(tmp_path / "peer", bf16=True)
    _, exact = trained(tmp_path / "exact", bf16=False)
    assert losses == pytest.approx(expected, abs=2e-3)
    assert losses != exact


def test_the_best_weights_are_kept_and_put_back(tmp_path: Path) -> None:
    run, learn = causal_lm.make(tmp_path, 30, bf16=False)
    # Too fast after the third validation: what comes later is worse.
    run.on("begin_step", lambda run: run.opt.param_groups[0].update(lr=1.0), when=is_late)
    result = run.fit(steps=30, learn=learn, validate_every=5)
    losses = [row["valid_loss"] for row in result.history]
    assert losses[-1] > min(losses) == losses[2]
    with torch.no_grad():
        batches = [padded(blocks(48, 16)[at : at + 8]) for at in (0, 8)]
        again = sum(float(learn.model.eval()(**batch).loss) for batch in batches) / 2
    assert again == pytest.approx(losses[2], abs=1e-6)
    kept = load_checkpoint(run.checkpoint.best)["model"]
    assert all(torch.equal(kept[name], each) for name, each in learn.model.state_dict().items())


def is_late(run: Runner) -> bool:
    return run.steps >= 15


def test_killed_within_a_group_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    run, learn = causal_lm.make(tmp_path / "whole", STEPS, bf16=False)
    run.fit(steps=STEPS, learn=learn, validate_every=5)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again, other = causal_lm.make(tmp_path / "killed", STEPS, bf16=False)
    batches: list[int] = []
    again.on("begin_batch", lambda run: batches.append(run.n_iter), during="train")
    again.fit(steps=STEPS, learn=other, validate_every=5, resume="auto")
    assert batches[0] == 31  # of a pass that begins with 25, and groups of 4
    assert again.history == run.history
    for name, each in learn.model.state_dict().items():
        assert torch.equal(each, other.model.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_losses_and_weights_are_those_of_lightning(tmp_path: Path) -> None:
    run, learn = causal_lm.make(tmp_path / "own", STEPS, bf16=False)
    row = run.fit(steps=STEPS, learn=learn, validate_every=STEPS).history[-1]
    made = made_for_lightning(tmp_path / "peer")
    model = fitted_by_lightning(made)
    (found,) = made[0].validate(model, made[3])
    assert row["valid_loss"] == pytest.approx(found["valid_loss"], abs=1e-5)
    for name, each in learn.model.state_dict().items():
        torch.testing.assert_close(model.model.state_dict()[name], each, atol=1e-5, rtol=1e-4)


def made_for_lightning(folder: Path) -> Any:
    return causal_lm_lightning.make(folder, STEPS, 5, "32-true", **quiet(folder))


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_lightning_goes_on_from_the_last_step_that_it_saved(tmp_path: Path) -> None:
    whole = fitted_by_lightning(made_for_lightning(tmp_path / "whole"))
    fitted_by_lightning(made_for_lightning(tmp_path / "cut"), fail_at=47)
    made = made_for_lightning(tmp_path / "cut")
    losses = losses_of_lightning(made[0])
    assert same_weights(whole, fitted_by_lightning(made))
    assert len(losses) == 2 * 25 + 4 - 37  # of ten steps' batches on, and not of the 47th


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_the_trainer_of_transformers_goes_on_from_the_last_step_that_it_saved(
    tmp_path: Path,
) -> None:
    whole = resumed_by_trainer(tmp_path / "whole")
    with pytest.raises(PowerFailure):
        resumed_by_trainer(tmp_path / "cut", fail_at=12)
    assert same_weights(whole, resumed_by_trainer(tmp_path / "cut"))


def resumed_by_trainer(folder: Path, fail_at: int | None = None) -> Any:
    folder.mkdir(exist_ok=True)
    trainer = causal_lm_trainer.make(str(folder), STEPS, bf16=False)
    trainer.args.eval_steps = trainer.args.save_steps = 5
    trainer.state.compute_steps(trainer.args, STEPS)

    class Fails(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == fail_at:
                raise PowerFailure

    trainer.add_callback(Fails())
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    return trainer.model
