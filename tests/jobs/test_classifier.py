"""A classifier of transformers as it comes, beside the Trainer of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests_of_jobs import losses_of_lightning, needs, quiet

needs("transformers", "accelerate", "lightning")

import classifier
import classifier_lightning
import classifier_trainer


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_losses_and_accuracies_are_those_of_the_trainer_of_transformers(tmp_path: Path) -> None:
    run, learn = classifier.make(tmp_path / "own", 20)
    losses: list[float] = []

    @run.on("after_loss", during="train")
    def note(run: object) -> None:
        losses.append(float(run.loss.detach()))  # type: ignore[attr-defined]

    history = run.fit(steps=20, learn=learn, validate_every=10).history
    trainer = classifier_trainer.make(str(tmp_path / "peer"), 20)
    trainer.args.logging_steps = 1
    trainer.state.compute_steps(trainer.args, 20)
    trainer.train()
    rows = trainer.state.log_history
    assert losses == pytest.approx([row["loss"] for row in rows if "loss" in row], abs=1e-5)
    for name in ("loss", "accuracy"):
        expected = [row[f"eval_{name}"] for row in rows if f"eval_{name}" in row]
        assert [row[f"valid_{name}"] for row in history] == pytest.approx(expected, abs=1e-5)


def test_predictions_are_joined_by_name(tmp_path: Path) -> None:
    run, learn = classifier.make(tmp_path)
    found = run.predict(learn, learn.data.valid_dl)
    learn.model.eval()
    with torch.no_grad():
        expected = [learn.model(**batch).logits for batch in learn.data.valid_dl]
    assert torch.equal(found.logits, torch.cat(expected))


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_losses_and_accuracies_are_those_of_lightning(tmp_path: Path) -> None:
    run, learn = classifier.make(tmp_path / "own", 20)
    losses: list[float] = []

    @run.on("after_loss", during="train")
    def note(run: object) -> None:
        losses.append(float(run.loss.detach()))  # type: ignore[attr-defined]

    row = run.fit(steps=20, learn=learn, validate_every=10).history[-1]
    trainer, model, train, valid = classifier_lightning.make(tmp_path, 20, **quiet(tmp_path))
    expected = losses_of_lightning(trainer)
    trainer.fit(model, train, valid)
    assert losses == pytest.approx(expected, abs=1e-5)
    for name in ("valid_loss", "valid_accuracy"):
        assert row[name] == pytest.approx(float(trainer.callback_metrics[name]), abs=1e-5)
