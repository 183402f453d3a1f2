"""The algorithm on docs/optimizers.md, against a loop written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_pages import ROOT, run_program
from torch import nn

from eventtrain import DataBunch, Learner, TensorLoader
from eventtrain.callbacks import GradientClip


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the blocks of the page define."""
    return run_program(ROOT / "docs" / "optimizers.md")


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(own, theirs) for own, theirs in pairs)


def test_the_two_players_are_those_of_a_loop_by_hand(page: dict[str, Any]) -> None:
    judged = page["judged"]

    def made() -> tuple[Any, dict[str, Any]]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"maker": nn.Linear(4, 2), "judge": nn.Linear(2, 1)})
        return model, {
            "g": torch.optim.Adam(model.maker.parameters(), lr=1e-2),
            "d": torch.optim.SGD(model.judge.parameters(), lr=0.1),
        }

    torch.manual_seed(1)
    data = DataBunch(TensorLoader(torch.randn(64, 2) + 3, torch.zeros(64), bs=16))
    ours, opts = made()
    torch.manual_seed(7)
    page["Gan"](GradientClip(1.0, optimizer="d")).fit(2, Learner(ours, opts, judged, data))
    theirs, opts = made()
    torch.manual_seed(7)
    for _ in range(2):
        for x, _y in data.train_dl:
            fake = theirs.maker(torch.rand(16, 4))
            opts["d"].zero_grad()
            (judged(theirs, x, 1.0) + judged(theirs, fake.detach(), 0.0)).backward()
            nn.utils.clip_grad_norm_(theirs.judge.parameters(), 1.0)
            opts["d"].step()
            opts["g"].zero_grad()
            judged(theirs, fake, 1.0).backward()
            opts["g"].step()
    assert same(ours, theirs)
