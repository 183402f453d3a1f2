"""Two heads: a mapping of losses, parts in the row, metrics of each over all predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner
from eventtrain.callbacks import OverAll

torchmetrics = pytest.importorskip("torchmetrics")
torch.manual_seed(3)
X = torch.randn(90, 6)
KIND, IS_ODD = X[:, :3].argmax(1), (X[:, 3] > 0.3).float()
ROWS = {"train": (slice(0, 60), 16), "valid": (slice(60, 90), 7)}


def batches(which: str) -> list[Any]:
    rows, bs = ROWS[which]
    parts = zip(X[rows].split(bs), KIND[rows].split(bs), IS_ODD[rows].split(bs), strict=True)
    return [(x, {"kind": kind, "odd": odd}) for x, kind, odd in parts]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.odd = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x).relu()
        return {"kind": self.kind(hidden), "odd": self.odd(hidden)[:, 0]}


def made() -> tuple[TwoHeads, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = TwoHeads()
    return model, torch.optim.Adam(model.parameters(), lr=0.02)


def program(model: Any, opt: Any) -> Any:
    from torchmetrics.classification import MulticlassAccuracy as Accuracy, MulticlassF1Score as F1

    def losses(pred: Any, yb: Any) -> Any:
        kind = cross_entropy(pred["kind"], yb["kind"])
        odd = binary_cross_entropy_with_logits(pred["odd"], yb["odd"])
        return {"loss": kind + 0.5 * odd, "kind_loss": kind, "odd_loss": odd}

    def head(name: str, metrics: Any) -> AvgStatsCallback:
        stats = AvgStatsCallback(
            metrics, None, pred=lambda run: run.pred[name], target=lambda run: run.yb[name]
        )
        stats.name = name
        return stats

    kinds = torchmetrics.MetricCollection({"kind_acc": Accuracy(3), "kind_f1": F1(3)})
    data = DataBunch(batches("train"), batches("valid"))
    run = Runner([head("kind", kinds), head("odd", OverAll(auc, name="odd_auc"))])
    run.on("after_loss", lambda run: run.log("odd_rate", run.pred["odd"].sigmoid().mean()))
    return run.fit(3, Learner(model, opt, losses, data))


def auc(pred: Tensor, target: Tensor) -> Tensor:
    """How often a row of the class scores above one that is not, ties counting half."""
    gap = pred[target == 1][:, None] - pred[target == 0]
    return ((gap > 0).float() + (gap == 0).float() / 2).mean()


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

    for _ in range(3):
        for x, y in batches("train"):
            _, kind, odd = parts(x, y)
            (kind + 0.5 * odd).backward()
            opt.step()
            opt.zero_grad()
    rows, _ = ROWS["valid"]
    with torch.no_grad():
        pred, kind, odd = parts(X[rows], {"kind": KIND[rows], "odd": IS_ODD[rows]})
    found, target = pred["kind"].argmax(1), KIND[rows]
    recalls = [float((found == target)[target == kind].float().mean()) for kind in range(3)]
    return {
        "valid_loss": float(kind + 0.5 * odd),
        "valid_kind_loss": float(kind),
        "valid_odd_loss": float(odd),
        "valid_kind_acc": sum(recalls) / 3,
        "valid_kind_f1": f1_by_hand(found, target),
        "valid_odd_auc": float(auc(pred["odd"], IS_ODD[rows])),
        "valid_odd_rate": float(pred["odd"].sigmoid().mean()),
    }


def test_the_row_has_what_a_loop_by_hand_measures_over_all_predictions() -> None:
    (ours, opt), (theirs, other) = made(), made()
    row, expected = program(ours, opt).history[-1], by_hand(theirs, other)
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_training_has_columns_of_each_head_too() -> None:
    row = program(*made()).history[-1]
    names = ("loss", "kind_loss", "odd_loss", "kind_acc", "kind_f1", "odd_auc", "odd_rate")
    assert {f"train_{name}" for name in names} <= row.keys()
