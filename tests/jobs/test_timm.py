"""Models of timm, beside a loop like that of timm's training script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from tests_of_jobs import needs, quiet, rows_of_lightning

needs("timm", "sklearn", "lightning")

import timm_images
import timm_lightning
import timm_loop


@pytest.fixture
def double() -> Iterator[None]:
    """Have all be in float64: kernels round otherwise for other strides, and Adam enlarges that."""
    held = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(held)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_losses_and_weights_are_those_of_timms_loop(name: str) -> None:
    numpy.random.seed(0)  # mixup draws from it
    run, learn = timm_images.make(name, steps=32)
    run.avg_stats.report = None
    rows = run.fit(4, learn).history
    numpy.random.seed(0)
    model, averages, expected = timm_loop.train(name, epochs=4, steps=32)
    for row, (_, train_loss, valid_loss, valid_accuracy) in zip(rows, expected, strict=True):
        assert row["train_loss"] == pytest.approx(train_loss, abs=1e-5)
        assert row["valid_loss"] == pytest.approx(valid_loss, abs=1e-5)
        assert row["valid_accuracy"] == pytest.approx(valid_accuracy, abs=1e-6)
    for key, each in model.state_dict().items():
        torch.testing.assert_close(learn.model.state_dict()[key], each, atol=1e-5, rtol=1e-4)
    run.ema.copy_to(learn.model)
    for key, each in averages.named_parameters():
        torch.testing.assert_close(learn.model.get_parameter(key), each, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")  # of the other framework
@pytest.mark.usefixtures("double")
def test_rows_and_averages_are_those_of_lightning(tmp_path: Path) -> None:
    numpy.random.seed(0)
    run, learn = timm_images.make("test_resnet", steps=32)
    run.avg_stats.report = None
    history = run.fit(2, learn).history
    numpy.random.seed(0)
    trainer, model, train, valid = timm_lightning.make("test_resnet", 2, 32, **quiet(tmp_path))
    rows = rows_of_lightning(trainer)
    trainer.fit(model, train, valid)
    for row, expected in zip(history, rows, strict=True):
        assert len(expected) == 4
        assert {column: row[column] for column in expected} == pytest.approx(expected, abs=1e-5)
    run.ema.copy_to(learn.model)  # Lightning leaves the averages in the model
    for key, each in model.model.named_parameters():
        torch.testing.assert_close(learn.model.get_parameter(key), each, atol=1e-5, rtol=1e-4)
