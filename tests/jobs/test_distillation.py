"""A student and a frozen teacher, beside a loop written by hand and Lightning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests_of_jobs import close, needs, row_by_lightning, same_weights, train_by_hand
from torch import Tensor

needs("sklearn")

import distillation
from teacher import teacher


def test_weights_and_parts_of_the_loss_are_those_of_a_loop_by_hand() -> None:
    (run, ours), (_, theirs), teach = distillation.make(), distillation.make(), teacher()

    def loss_of(model: Any, batch: Any) -> Tensor:
        return distillation.distilled((model(batch[0]), teach(batch[0]).detach()), batch[1])["loss"]

    row = run.fit(2, ours).history[-1]
    train_by_hand(theirs, loss_of, 2)
    assert same_weights(ours.model, theirs.model)
    x, y = theirs.data.valid_dl.dataset.tensors
    with torch.no_grad():
        parts = distillation.distilled((theirs.model(x), teach(x)), y)
    found = {name: row[f"valid_{name}"] for name in ("loss", "soft", "hard")}
    assert found == pytest.approx({name: float(part) for name, part in parts.items()}, abs=1e-6)


def test_the_teacher_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    teach = teacher()
    before = [p.detach().clone() for p in teach.parameters()]
    monkeypatch.setattr(distillation, "teacher", lambda: teach)
    run, learn = distillation.make()
    run.fit(1, learn)
    assert all(torch.equal(p, q) for p, q in zip(teach.parameters(), before, strict=True))
    assert not teach.training
    assert all(p.grad is None for p in teach.parameters())


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_weights_and_parts_of_the_loss_are_those_of_lightning() -> None:
    needs("lightning")
    import distillation_lightning

    run, learn = distillation.make()
    row = run.fit(5, learn).history[-1]
    trainer, model, *loaders = distillation_lightning.make()
    expected = row_by_lightning(trainer, model, *loaders)
    assert close(learn.model, model.model)
    for name in ("loss", "soft", "hard", "accuracy"):
        for phase in ("train", "valid"):
            column = f"{phase}_{name}"
            assert row[column] == pytest.approx(expected[column], abs=1e-5), column
