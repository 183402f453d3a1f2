"""Metrics go on from what they had gathered."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from eventtrain.callbacks.shared.metric_state import metric_state, set_metric_state


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Own:
    def __init__(self) -> None:
        self.total = 0

    def update(self, pred: Any, yb: Any) -> None:
        self.total += 1

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


def make(name: str) -> Any:
    if name == "own":
        return Own()
    torchmetrics = pytest.importorskip("torchmetrics", reason="needs torchmetrics (extra 'test')")
    classification = torchmetrics.classification
    return {
        "accuracy": lambda: classification.MulticlassAccuracy(3),
        "curve": lambda: classification.MulticlassAUROC(3),  # keeps lists of batches
        "collection": lambda: torchmetrics.MetricCollection(
            [classification.MulticlassAccuracy(3), classification.MulticlassF1Score(3)]
        ),
    }[name]()


def result(metric: Any) -> Any:
    return metric.total if isinstance(metric, Own) else metric.compute()


@pytest.mark.parametrize("name", ["own", "accuracy", "curve", "collection"])
def test_a_metric_that_is_put_back_ends_with_the_same_result(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(6, 3, generator=generator), torch.randint(0, 3, (6,), generator=generator))
        for _ in range(4)
    ]
    whole, first, second = make(name), make(name), make(name)
    for pred, yb in batches:
        whole.update(pred, yb)
    for pred, yb in batches[:2]:
        first.update(pred, yb)
    set_metric_state(second, through_a_file(metric_state(first)))
    for pred, yb in batches[2:]:
        second.update(pred, yb)
    assert result(second) == result(whole)


def test_what_has_no_state_dict_has_no_state() -> None:
    assert metric_state(object()) == {}
    set_metric_state(object(), {})


def test_a_metric_put_back_at_its_end_computes_without_a_warning() -> None:
    first, second = make("accuracy"), make("accuracy")
    first.update(torch.eye(3), torch.arange(3))
    set_metric_state(second, metric_state(first))
    assert second.compute() == 1


def test_a_result_computed_before_does_not_outlive_the_state_that_is_put_back() -> None:
    first, second = make("accuracy"), make("accuracy")
    first.update(torch.eye(3), torch.arange(3))
    second.update(torch.eye(3), torch.arange(3).flip(0))
    assert second.compute() < 1
    set_metric_state(second, metric_state(first))
    assert second.compute() == 1
