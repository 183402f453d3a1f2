"""Folds, a rate that was found before, a frozen teacher: each in a few lines around ``fit``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from torch.utils.data import Subset, TensorDataset

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, TensorLoader, accuracy, get_dls
from eventtrain.callbacks import LRFinder

torch.manual_seed(2)
X = torch.randn(60, 5)
Y = X[:, :3].argmax(1)
FOLDS = [list(range(start, 60, 4)) for start in range(4)]


def net(width: int = 8, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3))


def by_hand(model: Any, x: Tensor, loss_of: Any, epochs: int, lr: float = 0.1) -> None:
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(epochs):
        for rows in (slice(start, start + 10) for start in range(0, len(x), 10)):
            loss_of(rows).backward()
            opt.step()
            opt.zero_grad()


# Folds


def folds_program() -> list[float]:
    rows, scores = TensorDataset(X, Y), []
    for fold in FOLDS:
        others = [row for row in range(60) if row not in fold]
        generator = torch.Generator().manual_seed(1)
        loaders = get_dls(Subset(rows, others), Subset(rows, fold), 10, generator=generator)
        learn = Learner(
            net(),
            lambda params: torch.optim.SGD(params, lr=0.1),
            cross_entropy,
            DataBunch(*loaders),
        )
        result = Runner(AvgStatsCallback(accuracy, None)).fit(3, learn)
        scores.append(result.history[-1]["valid_accuracy"])
    return scores


def test_each_fold_is_judged_as_by_hand() -> None:
    expected = []
    for fold in FOLDS:
        others = torch.tensor([row for row in range(60) if row not in fold])
        generator = torch.Generator().manual_seed(1)
        model = net()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = torch.utils.data.DataLoader(
            TensorDataset(X[others], Y[others]), 10, shuffle=True, generator=generator
        )
        for _ in range(3):
            for x, y in loader:
                cross_entropy(model(x), y).backward()
                opt.step()
                opt.zero_grad()
        expected.append(float((model(X[fold]).argmax(1) == Y[fold]).float().mean()))
    assert folds_program() == pytest.approx(expected)


# A rate that was found before


def rate_program() -> tuple[nn.Module, float]:
    model = net()
    learn = Learner(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        cross_entropy,
        DataBunch(TensorLoader(X, Y, bs=10)),
    )
    Runner(finder := LRFinder(1e-3, 100.0, steps=40)).fit(10, learn)
    assert finder.suggestion is not None
    learn.opt.param_groups[0]["lr"] = finder.suggestion.tenth_of_minimum
    Runner().fit(3, learn)
    return model, finder.suggestion.tenth_of_minimum


def test_the_search_leaves_no_trace_and_the_fit_has_the_rate() -> None:
    ours, rate = rate_program()
    theirs = net()
    by_hand(theirs, X, lambda rows: cross_entropy(theirs(X[rows]), Y[rows]), 3, rate)
    assert 1e-3 < rate < 100
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


# A frozen teacher


def distilled(student: Tensor, teacher: Tensor, y: Tensor) -> dict[str, Tensor]:
    soft = kl_div(log_softmax(student / 2, 1), softmax(teacher / 2, 1), reduction="batchmean") * 4
    hard = cross_entropy(student, y)
    return {"loss": 0.7 * soft + 0.3 * hard, "soft": soft, "hard": hard}


def teacher_program(student: Any, teacher: Any) -> Any:
    @torch.no_grad()
    def taught(x: Tensor) -> Tensor:
        return teacher(x)  # type: ignore[no-any-return]

    learn = Learner(
        student,
        lambda params: torch.optim.SGD(params, lr=0.1),
        lambda pred, y: distilled(*pred, y),
        DataBunch(TensorLoader(X, Y, bs=10), TensorLoader(X, Y, bs=25)),
        forward=lambda model, batch: (model(batch[0]), taught(batch[0])),
    )
    stats = AvgStatsCallback(accuracy, None, pred=lambda run: run.pred[0])
    return Runner(stats).fit(3, learn)


def test_a_student_learns_from_a_teacher_that_stays_as_it_is() -> None:
    teacher, ours, theirs = net(32, seed=5).eval(), net(), net()
    before = [p.detach().clone() for p in teacher.parameters()]
    row = teacher_program(ours, teacher).history[-1]
    by_hand(
        theirs,
        X,
        lambda rows: distilled(theirs(X[rows]), teacher(X[rows]).detach(), Y[rows])["loss"],
        3,
    )
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)
    with torch.no_grad():
        parts = distilled(theirs(X), teacher(X), Y)
    found = {name: row[f"valid_{name}"] for name in ("loss", "soft", "hard")}
    assert found == pytest.approx({name: float(part) for name, part in parts.items()}, abs=1e-6)
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), before, strict=True))
    assert all(p.grad is None for p in teacher.parameters())
