"""The package ``schedulefree`` as it comes: its modes are the loop's business."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, TensorLoader

schedulefree = pytest.importorskip("schedulefree", reason="needs schedulefree (extra 'jobs')")
torch.manual_seed(0)
X = torch.randn(40, 4)
Y = (X.sum(1) > 0).long()


def made() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    return model, schedulefree.AdamWScheduleFree(model.parameters(), lr=0.02, warmup_steps=5)


def program(model: Any, opt: Any) -> Any:
    data = DataBunch(TensorLoader(X, Y, bs=8), TensorLoader(X, Y, bs=40))
    run = Runner(AvgStatsCallback(report=None))
    return run.fit(4, Learner(model, opt, cross_entropy, data), validate_every=3)


def test_rows_and_weights_are_those_of_a_loop_by_hand_that_switches_the_modes() -> None:
    (ours, opt), (theirs, other) = made(), made()
    losses = {row["step"]: row["valid_loss"] for row in program(ours, opt).history}
    expected, step = {}, 0
    for _ in range(4):
        for x, y in zip(X.split(8), Y.split(8), strict=True):
            other.train()
            cross_entropy(theirs(x), y).backward()
            other.step()
            other.zero_grad()
            step += 1
            if step % 3 == 0 or step == 20:
                other.eval()
                with torch.no_grad():
                    expected[step] = float(cross_entropy(theirs(X), Y))
    assert losses == pytest.approx(expected, abs=1e-6)
    opt.train()
    other.train()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)
