"""What is recorded belongs to what is saved: the weights in a checkpoint gave its numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, TensorLoader, load_checkpoint
from eventtrain.callbacks import EMA, SWA, Checkpoint
from eventtrain.checkpoint_files import list_checkpoints


def validated(kind: str = "plain") -> Learner:
    """A learner whose validation loss goes up and down, of a model with buffers."""
    torch.manual_seed(3)
    x, y = torch.randn(40, 5), torch.randint(0, 3, (40,))
    data = DataBunch(TensorLoader(x[:24], y[:24], bs=4), TensorLoader(x[24:], y[24:], bs=4))
    model: Any = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    if kind == "compiled":
        model = torch.compile(model, backend="eager")
    opt = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return Learner(model, opt, nn.functional.cross_entropy, data)


def loss_of(learner: Learner) -> float:
    learner.model.eval()
    with torch.no_grad():
        losses = [learner.loss_func(learner.model(x), y).item() for x, y in learner.data.valid_dl]
    return sum(losses) / len(losses)


AVERAGES: dict[str, Callable[[], list[Any]]] = {
    "none": lambda: [],
    "ema": lambda: [EMA(0.9)],
    "ema of buffers": lambda: [EMA(0.9, buffers=True)],
    "ema now and then": lambda: [EMA(0.9, every=5)],
    "ema kept out": lambda: [EMA(0.9, use_in_validation=False)],
    "swa": lambda: [SWA(1)],
    "both": lambda: [EMA(0.9), SWA(1)],
}


@pytest.mark.parametrize("kind", ["plain", "compiled"])
@pytest.mark.parametrize("checkpoint_first", [True, False])
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("name", AVERAGES)
def test_every_checkpoint_of_an_epoch_holds_the_weights_that_gave_its_number(
    name: str, asynchronous: bool, checkpoint_first: bool, kind: str, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(
        tmp_path, monitor="valid_loss", keep_best=2, keep_last=4, asynchronous=asynchronous
    )
    callbacks = [*AVERAGES[name](), AvgStatsCallback(report=None)]
    Runner([checkpoint, *callbacks] if checkpoint_first else [*callbacks, checkpoint]).fit(
        4, validated(kind)
    )
    records = list_checkpoints(tmp_path)
    assert len(records) == 4
    for record in records:
        learner = validated(kind)
        learner.model.load_state_dict(load_checkpoint(record.path)["model"])
        assert loss_of(learner) == pytest.approx(record.metrics["valid_loss"], rel=1e-5)
    best = min(records, key=lambda record: record.metrics["valid_loss"])
    assert checkpoint.best == best.path


def test_the_model_of_a_checkpoint_chosen_by_a_training_number_is_the_one_trained(
    tmp_path: Path,
) -> None:
    run = Runner([Checkpoint(tmp_path, monitor="train_loss"), EMA(0.9), AvgStatsCallback()])
    learner = validated()
    run.fit(1, learner)
    saved = load_checkpoint(tmp_path)["model"]
    assert all(torch.equal(saved[key], t) for key, t in learner.model.state_dict().items())


def test_validating_with_the_loaded_best_weights_gives_their_number(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, monitor="valid_loss")
    run, learner = Runner([checkpoint, EMA(0.9), AvgStatsCallback(report=None)]), validated()
    run.fit(4, learner)
    # The averages of the end are not to stand in for weights that were loaded since.
    learner.model.load_state_dict(load_checkpoint(checkpoint.best)["model"])
    best = next(r for r in list_checkpoints(tmp_path) if r.path == checkpoint.best)
    found = run.validate(learner).history[0]["valid_loss"]
    assert found == pytest.approx(best.metrics["valid_loss"], rel=1e-5)


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("after", [6, 8, 12])
def test_a_run_goes_on_from_the_weights_that_are_trained(
    name: str, after: int, tmp_path: Path
) -> None:
    whole, learner = validated(), validated()
    Runner([*AVERAGES[name](), AvgStatsCallback(report=None)]).fit(4, whole)
    for resume, epoch_end in ((None, after), ("auto", None)):
        learner = validated()
        run = Runner([*AVERAGES[name](), AvgStatsCallback(report=None), Checkpoint(tmp_path)])
        if epoch_end:
            event = "after_epoch" if after % 6 == 0 else "after_batch"
            stop = {"when": lambda run: run.n_iter == after}
            run.on(event, lambda run: run.token.cancel("fit"), **stop)
        run.fit(4, learner, resume=resume)
    expected = whole.model.state_dict()
    assert all(torch.equal(t, expected[key]) for key, t in learner.model.state_dict().items())


@pytest.mark.parametrize("cancel", ["validate", "epoch"])
def test_a_number_of_a_part_of_the_validation_is_not_recorded(cancel: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, monitor="valid_loss", keep_last=9)
    run = Runner([checkpoint, AvgStatsCallback(report=None)])

    @run.on("after_loss", during="validate")
    def cut_short(run: Runner) -> None:
        if run.epoch == 1:
            run.loss = run.loss * 0
            run.token.cancel(cancel)

    run.fit(3, validated())
    numbers = [record.metrics.get("valid_loss") for record in list_checkpoints(tmp_path)]
    assert numbers[1] is None and None not in (numbers[0], numbers[2])
