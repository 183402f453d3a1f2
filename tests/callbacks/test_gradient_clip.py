"""Clipping against torch's own functions in a loop written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from eventtrain import DataBunch, Learner, Runner
from eventtrain.callbacks import GradientAccumulation, GradientClip


def by_hand(learner: Learner, clip: Callable[[Any], object], epochs: int = 2) -> Learner:
    for _ in range(epochs):
        for x, y in learner.data.train_dl:
            learner.loss_func(learner.model(x), y).backward()
            clip(learner.model.parameters())
            learner.opt.step()
            learner.opt.zero_grad()
    return learner


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
def test_clipping_by_norm_is_that_of_torch(make_learner, norm_type: float) -> None:
    ours = make_learner()
    Runner(GradientClip(norm=0.1, norm_type=norm_type)).fit(2, ours)
    theirs = by_hand(make_learner(), lambda p: clip_grad_norm_(p, 0.1, norm_type))
    unclipped = by_hand(make_learner(), lambda p: None)
    assert torch.equal(ours.model.weight, theirs.model.weight)
    assert not torch.equal(ours.model.weight, unclipped.model.weight)


def test_clipping_by_value_is_that_of_torch(make_learner) -> None:
    ours = make_learner()
    Runner(GradientClip(value=0.01)).fit(2, ours)
    theirs = by_hand(make_learner(), lambda p: clip_grad_value_(p, 0.01))
    assert torch.equal(ours.model.weight, theirs.model.weight)


def test_the_norm_before_clipping_can_be_read(learner: Learner) -> None:
    clip = GradientClip(norm=1e-3)
    run = Runner(clip)
    norms: list[tuple[float, float]] = []

    @run.on("begin_step")
    def before(run: Runner) -> None:
        gradients = [p.grad.flatten() for p in run.model.parameters()]
        norms.append((float(torch.cat(gradients).norm()), 0.0))

    @run.on("after_step")
    def after(run: Runner) -> None:
        norms[-1] = norms[-1][0], float(clip.total_norm)

    run.fit(1, learner)
    assert len(norms) == 3
    for expected, read in norms:
        assert read == pytest.approx(expected)


def test_a_second_fit_forgets_the_norm(learner: Learner) -> None:
    clip = GradientClip(norm=1e-3)
    run = Runner(clip)
    run.fit(1, learner)
    assert clip.total_norm is not None
    run.fit(0, learner)
    assert clip.total_norm is None


def test_nothing_makes_the_host_wait(
    learner: Learner, no_sync: AbstractContextManager[None]
) -> None:
    with no_sync:
        Runner(GradientClip(norm=0.1)).fit(1, learner)
        result = Runner(GradientClip(value=0.1)).fit(1, learner)
    assert result.steps == 3


def test_accumulated_gradients_are_clipped_once_as_a_whole(make_learner) -> None:
    clipped: list[float] = []
    learner = make_learner(train=4)
    run = Runner([GradientClip(norm=1e-3), GradientAccumulation(2)])

    @run.on("begin_step", priority=-60)
    def norm(run: Runner) -> None:
        gradients = [p.grad.flatten() for p in run.model.parameters()]
        clipped.append(float(torch.cat(gradients).norm()))

    run.fit(1, learner)
    assert clipped == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_parameters_that_the_optimizer_lacks_are_left_alone(learner: Learner) -> None:
    model = learner.model
    learner.opt = torch.optim.SGD([model.weight], lr=0.1)
    clip = GradientClip(norm=1e-9)
    Runner(clip).fit(1, learner)
    assert model.bias.grad is not None and model.bias.grad.norm() > 1e-3


def test_an_optimizer_without_groups_has_the_models_gradients_clipped(learner: Learner) -> None:
    class Own:
        def step(self) -> None:
            with torch.no_grad():
                for parameter in learner.model.parameters():
                    parameter -= parameter.grad

        def zero_grad(self) -> None:
            learner.model.zero_grad()

    before = learner.model.weight.detach().clone()
    learner.opt = Own()
    Runner(GradientClip(norm=1e-6)).fit(1, learner)
    change = (learner.model.weight - before).norm()
    assert 0 < change < 1e-5


def test_validation_and_prediction_alone_are_left_alone(learner: Learner) -> None:
    run = Runner(GradientClip(norm=1.0))
    assert run.validate(learner).outcome == "completed"
    assert len(run.predict(learner, learner.data.valid_dl)) == 8


@pytest.mark.parametrize(
    "arguments",
    [{}, {"norm": 1.0, "value": 1.0}, {"norm": 0.0}, {"value": -1.0}, {"norm": math.nan}],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"norm|value"):
        GradientClip(**arguments)


def test_models_of_several_layers_are_clipped_together(make_learner) -> None:
    def deep() -> Learner:
        learner = make_learner()
        torch.manual_seed(1)
        learner.model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
        learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
        return learner

    ours = deep()
    Runner(GradientClip(norm=0.05)).fit(2, ours)
    theirs = by_hand(deep(), lambda p: clip_grad_norm_(p, 0.05))
    for own, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(own, other)


class Bags(nn.Module):
    """An embedding, whose gradient may be sparse, and a layer, whose gradient is dense."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(7, 5, sparse=sparse)
        self.layer = nn.Linear(5, 3)

    def forward(self, ids: Any) -> Any:
        return self.layer(self.words(ids).mean(1)) * 30  # so that there is something to clip


def of_words(sparse: bool) -> Learner:
    model = Bags(sparse)
    ids = torch.tensor([[1, 1, 2], [5, 1, 5], [0, 2, 1], [6, 6, 6]])  # some several times
    data = DataBunch([(ids, torch.tensor([0, 1, 2, 1]))] * 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Learner(model, opt, nn.functional.cross_entropy, data)


CLIPS: dict[str, Callable[[], GradientClip]] = {
    "norm": lambda: GradientClip(norm=0.1),
    "norm 1": lambda: GradientClip(norm=0.1, norm_type=1.0),
    "largest": lambda: GradientClip(norm=0.1, norm_type=math.inf),
    "value": lambda: GradientClip(value=0.01),
}


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("accumulate", [False, True])
def test_sparse_gradients_are_clipped_as_dense_ones_are(name: str, accumulate: bool) -> None:
    models, norms = [], []
    for sparse in (True, False):
        learn, clip = of_words(sparse), CLIPS[name]()
        Runner([clip, *([GradientAccumulation(2)] if accumulate else [])]).fit(2, learn)
        models.append(learn.model)
        norms.append(clip.total_norm)
    for own, due in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(own, due, atol=1e-6)
    assert norms[0] is norms[1] is None or torch.allclose(*norms)


def test_a_sparse_gradient_without_an_entry_is_clipped() -> None:
    learn = of_words(True)
    learn.data = DataBunch([(torch.zeros(2, 0, dtype=torch.int64), torch.tensor([0, 1]))])
    learn.loss_func = lambda pred, yb: pred.nan_to_num().sum()
    for name in CLIPS:
        assert Runner(CLIPS[name]()).fit(1, learn).outcome == "completed"


def of_complex() -> Learner:
    weight = nn.Parameter(torch.tensor([3 + 4j, 1j]))
    opt = torch.optim.SGD([weight], lr=1.0)
    loss = lambda pred, yb: (pred * pred.conj()).real.sum() / 2  # noqa: E731
    return Learner(lambda xb: weight * 1, opt, loss, DataBunch([torch.zeros(1)]))


def test_complex_gradients_are_clipped_by_their_norm() -> None:
    learn = of_complex()
    clip = GradientClip(norm=1.0)
    Runner(clip).fit(1, learn)
    assert clip.total_norm is not None
    assert clip.total_norm.item() == pytest.approx(math.sqrt(26))


def test_complex_gradients_cannot_be_clamped_and_the_error_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"shape \[2\]. Use GradientClip\(norm=") as caught:
        Runner(GradientClip(value=1.0)).fit(1, of_complex())
    assert "'gradient_clip' of event 'begin_step'" in caught.value.__notes__[0]


def test_where_there_is_no_gradient_nothing_is_clipped(learner: Learner) -> None:
    run = Runner([GradientClip(norm=1.0)])
    run.on("after_backward", lambda run: run.opt.zero_grad())
    assert run.fit(1, learner).outcome == "completed"
    assert run.gradient_clip.total_norm == 0


def test_a_norm_that_is_not_finite_shows_and_makes_all_gradients_nan(learner: Learner) -> None:
    run = Runner(GradientClip(norm=1.0))

    def spoil(run: Runner) -> None:
        next(run.model.parameters()).grad[0, 0] = math.nan  # type: ignore[index]

    run.on("after_backward", spoil)
    run.fit(1, learner)
    assert torch.isnan(run.gradient_clip.total_norm)
    assert torch.isnan(learner.model.bias).all()
