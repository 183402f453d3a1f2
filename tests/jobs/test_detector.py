"""A detector of torchvision, beside a loop written by hand.

Where torchvision has no operators for the torch at hand, ``stand_in`` is what suppresses boxes: the
rest of the detector is torchvision's own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests_of_jobs import needs, quiet, rows_of_lightning
from torch import Tensor
from torchvision_operators import import_torchvision

needs("torchvision", "torchmetrics", "pycocotools", "lightning")

import detector
import detector_lightning
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import boxes as box_ops

EPOCHS = 3


@pytest.fixture(autouse=True)
def operators(monkeypatch: pytest.MonkeyPatch) -> None:
    if not import_torchvision():
        monkeypatch.setattr(box_ops, "batched_nms", stand_in)


def stand_in(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Return what is kept of boxes, the best first, of which none overlaps a better of its kind."""
    kept: list[int] = []
    overlaps = box_ops.box_iou(boxes, boxes)
    for index in scores.argsort(descending=True).tolist():
        rivals = [each for each in kept if idxs[each] == idxs[index]]
        if not rivals or float(overlaps[index, rivals].max()) <= iou_threshold:
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def by_hand() -> tuple[torch.nn.Module, list[dict[str, float]]]:
    _, learn = detector.make()
    model, opt, data, rows = learn.model, learn.opt, learn.data, []
    for _ in range(EPOCHS):
        model.train()
        sums: dict[str, float] = {}
        for images, targets in data.train_dl:
            losses = model(images, targets)
            total = sum(losses.values())
            total.backward()
            opt.step()
            opt.zero_grad()
            for name, each in {"loss": total, **losses}.items():
                sums[f"train_{name}"] = sums.get(f"train_{name}", 0.0) + float(each.detach()) / 8
        model.eval()
        metric = MeanAveragePrecision()
        with torch.no_grad():
            for images, targets in data.valid_dl:
                metric.update(model(images), targets)
        rows.append({**sums, "valid_map_50": float(metric.compute()["map_50"])})
    return model, rows


def test_weights_losses_and_map_are_those_of_the_loop_by_hand() -> None:
    run, learn = detector.make()
    history = run.fit(EPOCHS, learn).history
    model, rows = by_hand()
    for row, expected in zip(history, rows, strict=True):
        assert {"train_classification", "train_bbox_regression"} < set(expected)
        for name, number in expected.items():
            assert row[name] == pytest.approx(number, abs=1e-6), name
    for name, each in model.state_dict().items():
        assert torch.equal(learn.model.state_dict()[name], each), name


def test_predictions_are_one_list_with_an_entry_for_each_image() -> None:
    run, learn = detector.make(images=6)
    run.fit(1, learn)
    found = run.predict(learn, learn.data.valid_dl)
    assert len(found) == 6
    learn.model.eval()
    with torch.no_grad():
        expected = [each for images, _ in learn.data.valid_dl for each in learn.model(images)]
    for own, other in zip(found, expected, strict=True):
        assert set(own) == {"boxes", "scores", "labels"}
        assert all(torch.equal(own[name], other[name]) for name in own)


def test_it_finds_the_squares() -> None:
    run, learn = detector.make()
    assert run.fit(12, learn).history[-1]["valid_map_50"] > 0.5


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_weights_losses_and_map_are_those_of_lightning(tmp_path: Path) -> None:
    run, learn = detector.make()
    history = run.fit(EPOCHS, learn).history
    trainer, model, train, valid = detector_lightning.make(EPOCHS, **quiet(tmp_path))
    rows = rows_of_lightning(trainer)
    trainer.fit(model, train, valid)
    for row, expected in zip(history, rows, strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    for name, each in model.model.state_dict().items():
        assert torch.equal(learn.model.state_dict()[name], each), name
