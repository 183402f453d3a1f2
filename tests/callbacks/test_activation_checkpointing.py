"""Activations computed twice, with the same gradients bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from eventtrain import Learner, Runner
from eventtrain.callbacks import ActivationCheckpointing

Make = Callable[..., Learner]
Fit = Callable[[Runner, Learner], None]


class Counted(nn.Linear):
    """Counts its forward passes."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def deep(learner: Learner) -> Learner:
    """A learner with dropout and batch normalization inside of its blocks."""
    torch.manual_seed(1)
    block = nn.Sequential(Counted(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 5))
    learner.model = nn.Sequential(block, nn.ReLU(), nn.Linear(5, 3))
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    torch.manual_seed(2)  # for dropout
    return learner


def state(learner: Learner) -> list[Tensor]:
    return list(learner.model.state_dict().values())


@pytest.mark.parametrize("choice", ["0", ["0", "2"], lambda name, module: name == "0"])
def test_weights_and_buffers_are_those_of_a_fit_without_it(make_learner: Make, choice: Any) -> None:
    plain = deep(make_learner())
    Runner().fit(3, plain)
    drawn = torch.rand(3)
    ours = deep(make_learner())
    Runner(ActivationCheckpointing(choice)).fit(3, ours)
    assert all(torch.equal(a, b) for a, b in zip(state(ours), state(plain), strict=True))
    assert torch.equal(torch.rand(3), drawn)


class Warming(nn.Linear):
    """Counts its runs in a buffer that it computes with, and makes another in the first."""

    def __init__(self) -> None:
        super().__init__(5, 5)
        self.register_buffer("runs", torch.zeros(()))
        self.register_buffer("first", None)

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        scale = 0.5 if self.first is None else 1.0
        self.first = torch.ones(()) if self.first is None else self.first
        return super().forward(x) * torch.tanh(self.runs) * scale


@pytest.mark.parametrize("make", [Warming, lambda: spectral_norm(nn.Linear(5, 5))])
def test_what_a_part_computes_with_buffers_that_it_changes_is_the_same(
    make_learner: Make, make: Callable[[], nn.Module]
) -> None:
    states = []
    for callbacks in ([], [ActivationCheckpointing("0")]):
        learner = make_learner()
        torch.manual_seed(1)
        learner.model = nn.Sequential(make(), nn.Linear(5, 3))
        learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
        Runner(callbacks).fit(2, learner)
        states.append(state(learner))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_the_part_runs_twice_in_training_and_once_in_validation(make_learner: Make) -> None:
    learner = deep(make_learner(train=3, valid=2))
    Runner(ActivationCheckpointing("0")).fit(1, learner)
    assert learner.model[0][0].calls == 2 * 3 + 2


def test_a_graph_that_is_retained_can_be_gone_through_twice(learner: Learner) -> None:
    learner = deep(learner)
    run = Runner(ActivationCheckpointing("0"))
    seen: list[bool] = []

    @run.on("after_loss", during="train")
    def look(run: Runner) -> None:
        before = [buffer.clone() for buffer in run.model.buffers()]
        one, other = (
            torch.autograd.grad(run.loss, list(run.model.parameters()), retain_graph=True)
            for _ in range(2)
        )
        seen.append(all(torch.equal(a, b) for a, b in zip(one, other, strict=True)))
        seen.append(
            all(torch.equal(a, b) for a, b in zip(run.model.buffers(), before, strict=True))
        )

    run.fit(1, learner)
    assert seen and all(seen)


def test_less_is_kept_for_the_backward_pass(make_learner: Make) -> None:
    def kept(callbacks: list[Any]) -> int:
        learner, sizes = deep(make_learner()), []
        run = Runner(callbacks)
        model = learner.model
        forward = type(model).forward

        def counted(x: Tensor) -> Tensor:
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
            ):
                return forward(model, x)

        model.forward = counted
        run.on("after_pred", lambda run: run.token.cancel("fit"))
        run.fit(1, learner)
        return sum(sizes)

    assert kept([ActivationCheckpointing("0")]) < kept([])


def test_the_modules_are_put_back_however_the_fit_ends(
    make_learner: Make, fit_however_it_ends: Fit
) -> None:
    learner = deep(make_learner())
    run = Runner(ActivationCheckpointing(["0", "2"]))
    wrapped: list[bool] = []
    run.on("begin_batch", lambda run: wrapped.append("forward" in vars(run.model[0])))
    fit_however_it_ends(run, learner)
    assert all(wrapped) and wrapped
    assert not any("forward" in vars(module) for module in learner.model.modules())


def test_a_wrapper_of_somebody_elses_is_kept(make_learner: Make) -> None:
    learner = deep(make_learner())
    part, calls = learner.model[2], []
    own = part.forward

    def theirs(x: Tensor) -> Tensor:
        calls.append(1)
        return own(x)

    part.forward = theirs
    Runner(ActivationCheckpointing("2")).fit(1, learner)
    assert part.forward is theirs
    assert len(calls) == 2 * 3 + 2


def test_buffers_are_the_same_objects_afterwards(make_learner: Make) -> None:
    learner = deep(make_learner())
    before = list(learner.model.buffers())
    Runner(ActivationCheckpointing("0")).fit(1, learner)
    assert all(a is b for a, b in zip(learner.model.buffers(), before, strict=True))
    assert learner.model[0][1].num_batches_tracked == 3


def test_a_part_that_the_model_lacks_is_an_error_that_leaves_it_as_it_was(
    make_learner: Make,
) -> None:
    learner = deep(make_learner())
    with pytest.raises(ValueError, match="no module 'block'"):
        Runner(ActivationCheckpointing(["0", "block"])).fit(1, learner)
    assert not any("forward" in vars(module) for module in learner.model.modules())


def test_second_fits_validation_and_prediction_are_fine(make_learner: Make) -> None:
    learner = deep(make_learner())
    run = Runner(ActivationCheckpointing("0"))
    assert run.fit(0, learner).outcome == "completed"
    assert [run.fit(1, learner).steps for _ in range(2)] == [3, 3]
    assert run.validate(learner).outcome == "completed"
    assert len(run.predict(learner, learner.data.valid_dl)) == 8
