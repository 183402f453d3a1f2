"""The algorithms on docs/optimizers.md, against loops written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pages import ROOT, run_program
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from eventtrain import DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint, GradientClip, MixedPrecision

Make = Callable[..., Learner]


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the blocks of the page define."""
    return run_program(ROOT / "docs" / "optimizers.md")


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(own, theirs) for own, theirs in pairs)


def stopping_after(steps: int) -> Callable[[Any], None]:
    def stop(run: Any) -> None:
        if run.steps == steps:
            run.token.cancel("fit", "enough")

    return stop


def cut_and_resumed(
    make_run: Callable[[], Runner], make: Callable[[], Learner], epochs: int, steps: int
) -> Learner:
    """Return what a fit has trained that was ended after some steps, and resumed."""
    run, ended, resumed = make_run(), make(), make()
    run.on("after_step", stopping_after(steps))
    torch.manual_seed(7)
    assert run.fit(epochs, ended).outcome == "cancelled"
    torch.manual_seed(8)
    make_run().fit(epochs, resumed, resume="auto")
    return resumed


# Two players


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


# SAM


def sam_by_hand(learn: Learner, epochs: int, dtype: Any = None, norm: float | None = None) -> None:
    model, opt, loss_func = learn.model, learn.opt, learn.loss_func
    assert loss_func is not None

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return loss_func(model(x), y)  # type: ignore[no-any-return]

    for _ in range(epochs):
        for x, y in learn.data.train_dl:
            loss_of(x, y).backward()
            params = list(model.parameters())
            total = torch.stack([p.grad.norm() for p in params]).norm()
            old = [p.detach().clone() for p in params]
            with torch.no_grad():
                for p in params:
                    p.add_(p.grad * (0.05 / (total + 1e-12)))
            opt.zero_grad()
            loss_of(x, y).backward()
            with torch.no_grad():
                for p, value in zip(params, old, strict=True):
                    p.copy_(value)
            if norm is not None:
                nn.utils.clip_grad_norm_(params, norm)
            opt.step()
            opt.zero_grad()


@pytest.mark.parametrize("norm", [None, 0.1])
def test_sam_is_that_of_a_loop_by_hand(
    page: dict[str, Any], make_learner: Make, norm: float | None
) -> None:
    ours, theirs, plain = make_learner(), make_learner(), make_learner()
    clip = [] if norm is None else [GradientClip(norm)]
    Runner([page["SAM"](), *clip]).fit(3, ours)
    sam_by_hand(theirs, 3, norm=norm)
    Runner(clip).fit(3, plain)
    assert same(ours.model, theirs.model)
    assert not same(ours.model, plain.model)


def test_sam_goes_on_bit_for_bit(page: dict[str, Any], make_learner: Make, tmp_path: Path) -> None:
    whole = make_learner()
    sam_by_hand(whole, 3)
    make_run = lambda: Runner([page["SAM"](), Checkpoint(tmp_path)])  # noqa: E731
    assert same(cut_and_resumed(make_run, make_learner, 3, 4).model, whole.model)


# Truncated backpropagation


def reader_of(page: dict[str, Any]) -> Learner:
    torch.manual_seed(3)
    reader = page["Reader"]()
    opt = torch.optim.Adam(reader.parameters(), lr=0.01)
    return Learner(reader, opt, mse_loss, DataBunch(page["pieces"], page["pieces"][:2]))


def truncated_by_hand(learn: Learner, epochs: int) -> None:
    for _ in range(epochs):
        state = None
        for x, y in learn.data.train_dl:
            for start in range(0, x.shape[1], 4):
                pred, state = learn.model(x[:, start : start + 4], state)
                mse_loss(pred, y[:, start : start + 4]).backward()
                state = state.detach()
                learn.opt.step()
                learn.opt.zero_grad()


def test_truncated_backpropagation_is_that_of_a_loop_by_hand(page: dict[str, Any]) -> None:
    ours, theirs = reader_of(page), reader_of(page)
    assert page["Truncated"](page["Carry"]()).fit(2, ours).steps == 48
    truncated_by_hand(theirs, 2)
    assert same(ours.model, theirs.model)


@pytest.mark.parametrize(("event", "steps"), [("after_batch", 10), ("after_loss", 10)])
def test_its_state_is_in_the_checkpoint(
    event: str, steps: int, page: dict[str, Any], tmp_path: Path
) -> None:
    whole, resumed = reader_of(page), reader_of(page)
    truncated_by_hand(whole, 2)
    run = page["Truncated"]([page["Carry"](), Checkpoint(tmp_path)])
    run.on(event, stopping_after(steps), during="train")
    run.fit(2, reader_of(page))
    again = page["Truncated"]([page["Carry"](), Checkpoint(tmp_path)])
    again.fit(2, resumed, resume="auto")
    assert same(resumed.model, whole.model)


# Two views


def encoder_of(page: dict[str, Any]) -> Learner:
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 8))
    opt = torch.optim.SGD(encoder.parameters(), lr=0.1)
    data = DataBunch(page["batches"])
    return Learner(encoder, opt, page["contrast"], data, forward=page["views"])


def views_by_hand(learn: Learner, epochs: int) -> None:
    for _ in range(epochs):
        for x in learn.data.train_dl:
            one, other = (
                normalize(learn.model(x + 0.1 * torch.randn_like(x)), dim=1) for _ in range(2)
            )
            logits, which = one @ other.T / 0.1, torch.arange(len(x))
            loss = (cross_entropy(logits, which) + cross_entropy(logits.T, which)) / 2
            loss.backward()
            learn.opt.step()
            learn.opt.zero_grad()


def test_two_views_are_those_of_a_loop_by_hand(page: dict[str, Any]) -> None:
    ours, theirs = encoder_of(page), encoder_of(page)
    torch.manual_seed(7)
    Runner().fit(2, ours)
    torch.manual_seed(7)
    views_by_hand(theirs, 2)
    assert same(ours.model, theirs.model)


def test_two_views_go_on_bit_for_bit(page: dict[str, Any], tmp_path: Path) -> None:
    whole = encoder_of(page)
    torch.manual_seed(7)
    views_by_hand(whole, 2)
    resumed = cut_and_resumed(lambda: Runner(Checkpoint(tmp_path)), lambda: encoder_of(page), 2, 8)
    assert same(resumed.model, whole.model)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_two_views_train_in_half_precision(name: Any, page: dict[str, Any]) -> None:
    learn = encoder_of(page)
    before = copy.deepcopy(learn.model)
    assert Runner(MixedPrecision(name)).fit(1, learn).steps > 0
    assert not same(before, learn.model)
