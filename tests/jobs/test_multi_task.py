"""Two heads, beside a loop and metrics written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests_of_jobs import needs, peer, quiet, rows_of_lightning
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

needs("torchmetrics")

import multi_task
from two_tasks import auc, two_tasks


def f1_by_hand(found: Tensor, target: Tensor) -> float:
    scores = []
    for kind in range(3):
        hits = ((found == kind) & (target == kind)).sum()
        scores.append(float(2 * hits / ((found == kind).sum() + (target == kind).sum())))
    return sum(scores) / 3


def by_hand(model: Any, opt: Any) -> dict[str, float]:
    def parts(x: Tensor, y: Any) -> tuple[Any, Tensor, Tensor]:
        pred = model(x)
        odd = binary_cross_entropy_with_logits(pred["odd"], y["odd"])
        return pred, cross_entropy(pred["kind"], y["kind"]), odd

    train, valid = two_tasks()
    for _ in range(3):
        for x, y in train:
            _, kind, odd = parts(x, y)
            (kind + 0.5 * odd).backward()
            opt.step()
            opt.zero_grad()
    x = torch.cat([each for each, _ in valid])
    y = {name: torch.cat([each[name] for _, each in valid]) for name in ("kind", "odd")}
    with torch.no_grad():
        pred, kind, odd = parts(x, y)
    found, target = pred["kind"].argmax(1), y["kind"]
    recalls = [float((found == target)[target == kind].float().mean()) for kind in range(3)]
    return {
        "valid_loss": float(kind + 0.5 * odd),
        "valid_kind_loss": float(kind),
        "valid_odd_loss": float(odd),
        "valid_kind_acc": sum(recalls) / 3,
        "valid_kind_f1": f1_by_hand(found, target),
        "valid_odd_auc": float(auc(pred["odd"], y["odd"])),
        "valid_odd_rate": float(pred["odd"].sigmoid().mean()),
    }


def test_the_row_has_what_a_loop_by_hand_measures_over_all_predictions() -> None:
    (run, ours), (_, theirs) = multi_task.make(), multi_task.make()
    row, expected = run.fit(3, ours).history[-1], by_hand(theirs.model, theirs.opt)
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_training_has_columns_of_each_head_too() -> None:
    run, learn = multi_task.make()
    row = run.fit(1, learn).history[-1]
    names = ("loss", "kind_loss", "odd_loss", "kind_acc", "kind_f1", "odd_auc", "odd_rate")
    assert {f"train_{name}" for name in names} <= row.keys()


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_rows_and_weights_are_those_of_lightning(tmp_path: Path) -> None:
    run, learn = multi_task.make()
    history = run.fit(3, learn).history
    program = peer("multi_task_lightning", "lightning")
    trainer, model, train, valid = program.make(3, **quiet(tmp_path))
    rows = rows_of_lightning(trainer)
    trainer.fit(model, train, valid)
    for row, expected in zip(history, rows, strict=True):
        assert len(expected) == 14
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    for name, each in learn.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], each), name
