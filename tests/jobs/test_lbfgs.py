"""LBFGS, beside a loop written by hand and Lightning."""

from __future__ import annotations

from typing import Any

import pytest
from tests_of_jobs import close, needs, row_by_lightning, same_weights
from torch import Tensor
from torch.nn.functional import cross_entropy

needs("sklearn")

import lbfgs


def by_hand(model: Any, opt: Any, data: Any) -> None:
    for _ in range(4):
        for x, y in data.train_dl:

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                opt.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            opt.step(closure)


def test_weights_are_those_of_a_loop_by_hand() -> None:
    (run, ours), (_, theirs) = lbfgs.make(), lbfgs.make()
    run.fit(4, ours)
    by_hand(theirs.model, theirs.opt, theirs.data)
    assert same_weights(ours.model, theirs.model)


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_weights_and_metrics_are_those_of_lightning() -> None:
    needs("lightning")
    import lbfgs_lightning

    run, learn = lbfgs.make()
    row = run.fit(4, learn).history[-1]
    trainer, model, *loaders = lbfgs_lightning.make()
    expected = row_by_lightning(trainer, model, *loaders)
    assert close(learn.model, model.model)
    for name in ("valid_loss", "valid_accuracy"):
        assert row[name] == pytest.approx(expected[name], abs=1e-5)
