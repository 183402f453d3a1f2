"""Moving averages against torch's AveragedModel, and the way in and out of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from eventtrain import Learner, Runner
from eventtrain.callbacks import EMA, Checkpoint

Make = Callable[..., Learner]


def normed(learner: Learner) -> Learner:
    """A learner whose model has buffers."""
    torch.manual_seed(1)
    learner.model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    return learner


def by_hand(learner: Learner, decay: float, epochs: int, buffers: bool = False) -> AveragedModel:
    average = AveragedModel(
        learner.model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=buffers
    )
    for _ in range(epochs):
        learner.model.train()
        for x, y in learner.data.train_dl:
            learner.loss_func(learner.model(x), y).backward()
            learner.opt.step()
            average.update_parameters(learner.model)
            learner.opt.zero_grad()
    return average


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.0, 1.0])
def test_the_averages_are_those_of_torch(make_learner: Make, decay: float) -> None:
    ours, theirs = normed(make_learner()), normed(make_learner())
    ema = EMA(decay)
    Runner(ema).fit(3, ours)
    average = by_hand(theirs, decay, epochs=3)
    ema.copy_to(ours.model)
    assert equal(weights(ours.model), weights(average.module))


@pytest.mark.parametrize("cut", [None, 4])
def test_from_the_start_the_average_is_that_of_a_copy_made_before(
    make_learner: Make, tmp_path: Path, cut: int | None
) -> None:
    ours, theirs = normed(make_learner()), normed(make_learner())
    if cut is not None:
        run = Runner([EMA(0.9, from_start=True), Checkpoint(tmp_path)])
        run.on("after_step", lambda run: run.token.cancel("fit"), when=lambda run: run.steps == cut)
        run.fit(3, ours)
        ours = normed(make_learner())
    ema = EMA(0.9, from_start=True)
    Runner([ema, Checkpoint(tmp_path)]).fit(3, ours, resume="auto")
    average = copy.deepcopy(theirs.model)
    for _ in range(3):
        for x, y in theirs.data.train_dl:
            theirs.loss_func(theirs.model(x), y).backward()
            theirs.opt.step()
            theirs.opt.zero_grad()
            with torch.no_grad():
                for mean, weight in zip(
                    average.parameters(), theirs.model.parameters(), strict=True
                ):
                    mean.lerp_(weight, 0.1)
    ema.copy_to(ours.model)
    for mean, expected in zip(ours.model.parameters(), average.parameters(), strict=True):
        assert torch.allclose(mean, expected, atol=1e-7)


def test_buffers_can_be_averaged_too(make_learner: Make) -> None:
    ours, theirs = normed(make_learner()), normed(make_learner())
    ema = EMA(0.9, buffers=True)
    Runner(ema).fit(3, ours)
    average = by_hand(theirs, 0.9, epochs=3, buffers=True)
    ema.copy_to(ours.model)
    assert torch.equal(ours.model[1].running_mean, average.module[1].running_mean)
    assert torch.equal(ours.model[0].weight, average.module[0].weight)
    assert ours.model[1].num_batches_tracked == 9


def test_the_weights_that_are_trained_stay_the_same(make_learner: Make) -> None:
    plain, averaged = normed(make_learner()), normed(make_learner())
    Runner().fit(3, plain)
    Runner(EMA(0.9)).fit(3, averaged)
    assert equal(weights(plain.model), weights(averaged.model))


def test_the_validation_uses_the_averages(make_learner: Make) -> None:
    ours, theirs = normed(make_learner()), normed(make_learner())
    run = Runner(EMA(0.9))
    losses: list[Tensor] = []
    run.on("after_loss", lambda run: losses.append(run.loss.clone()), during="validate")
    run.fit(2, ours)
    average = by_hand(theirs, 0.9, epochs=2).eval()
    with torch.no_grad():
        expected = [theirs.loss_func(average(x), y) for x, y in theirs.data.valid_dl]
    assert torch.equal(torch.stack(losses[2:]), torch.stack(expected))


def test_validation_and_prediction_after_the_fit_use_the_averages(make_learner: Make) -> None:
    ours, theirs = normed(make_learner()), normed(make_learner())
    run = Runner(EMA(0.9))
    run.fit(2, ours)
    trained = weights(ours.model)
    average = by_hand(theirs, 0.9, epochs=2).eval()
    with torch.no_grad():
        expected = torch.cat([average(x) for x, _ in theirs.data.valid_dl])
    assert torch.equal(run.predict(ours, ours.data.valid_dl), expected)
    assert equal(weights(ours.model), trained)
    run.validate(ours)
    assert equal(weights(ours.model), trained)


def test_another_model_is_left_alone(make_learner: Make) -> None:
    run = Runner(EMA(0.9))
    run.fit(1, normed(make_learner()))
    other = make_learner()
    expected = torch.cat([other.model(x) for x, _ in other.data.valid_dl])
    assert torch.equal(run.predict(other, other.data.valid_dl), expected)


def test_the_averages_can_be_kept_out_of_the_validation(make_learner: Make) -> None:
    learner = normed(make_learner())
    run = Runner(EMA(0.5, use_in_validation=False))
    held: list[dict[str, Tensor]] = []
    run.on("after_train", lambda run: held.append(weights(run.model)))
    run.on("begin_validate", lambda run: held.append(weights(run.model)), priority=-900)
    run.fit(1, learner)
    assert equal(held[0], held[1])


def test_the_weights_come_back_before_anyone_looks(make_learner: Make) -> None:
    learner = normed(make_learner())
    run = Runner(EMA(0.5))
    held: list[dict[str, Tensor]] = []
    for event in ("after_train", "begin_validate", "after_validate"):
        run.on(event, lambda run: held.append(weights(run.model)), priority=80)
    run.fit(1, learner)
    assert not equal(held[0], held[1])
    assert equal(held[0], held[2])


@pytest.mark.parametrize("scope", ["batch", "validate", "epoch", "fit"])
def test_the_weights_come_back_after_a_cancellation(make_learner: Make, scope: str) -> None:
    learner = normed(make_learner())
    run = Runner(EMA(0.5))
    trained: list[dict[str, Tensor]] = []
    run.on("after_train", lambda run: trained.append(weights(run.model)))
    run.on("after_loss", lambda run: run.token.cancel(scope), during="validate")
    run.fit(1, learner)
    assert equal(weights(learner.model), trained[0])


def test_the_weights_come_back_after_a_failure(make_learner: Make) -> None:
    learner = normed(make_learner())
    run = Runner(EMA(0.5))
    trained: list[dict[str, Tensor]] = []
    run.on("after_train", lambda run: trained.append(weights(run.model)))
    run.on("after_loss", lambda run: 1 / 0, during="validate")
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert equal(weights(learner.model), trained[0])


def test_a_validation_that_never_began_changes_nothing(make_learner: Make) -> None:
    learner = normed(make_learner())
    run = Runner(EMA(0.5))
    run.on("begin_validate", lambda run: run.token.cancel("validate"), priority=500)
    trained: list[dict[str, Tensor]] = []
    run.on("after_train", lambda run: trained.append(weights(run.model)))
    run.fit(1, learner)
    assert equal(weights(learner.model), trained[0])


def test_nothing_makes_the_host_wait(
    make_learner: Make, no_sync: AbstractContextManager[None]
) -> None:
    learner = normed(make_learner())
    with no_sync:
        assert Runner(EMA(0.9)).fit(2, learner).steps == 6


def test_with_every_some_steps_are_passed_over(learner: Learner) -> None:
    ema = EMA(0.0, every=2)
    run = Runner(ema)
    after: list[Tensor] = []
    run.on("after_step", lambda run: after.append(run.model.weight.detach().clone()))
    run.fit(1, learner)
    assert ema.updates == 1
    ema.copy_to(learner.model)
    assert torch.equal(learner.model.weight, after[1])


def test_a_second_fit_starts_over(make_learner: Make) -> None:
    ema = EMA(0.9)
    run = Runner(ema)
    run.fit(1, normed(make_learner()))
    ours, theirs = normed(make_learner()), normed(make_learner())
    run.fit(2, ours)
    average = by_hand(theirs, 0.9, epochs=2)
    ema.copy_to(ours.model)
    assert equal(weights(ours.model), weights(average.module))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("where", ["train", "validate", "epoch"])
def test_a_resumed_fit_ends_with_the_same_averages(
    make_learner: Make, tmp_path: Path, where: str, every: int
) -> None:
    def interrupt(run: Runner) -> None:
        if (run.epoch, run.phase, run.batch_index) == (1, where, 1):
            run.token.cancel("fit")

    whole, expected = normed(make_learner()), EMA(0.9, every=every)
    losses: list[list[float]] = [[], []]
    uninterrupted = Runner(expected)
    uninterrupted.on("after_loss", lambda run: losses[0].append(run.loss.item()), during="validate")
    uninterrupted.fit(3, whole)

    first = Runner([EMA(0.9, every=every), Checkpoint(tmp_path)])
    first.on("after_batch", interrupt)
    first.fit(2 if where == "epoch" else 3, normed(make_learner()))
    learner, ema = normed(make_learner()), EMA(0.9, every=every)
    second = Runner([ema, Checkpoint(tmp_path)])
    second.on("after_loss", lambda run: losses[1].append(run.loss.item()), during="validate")
    second.fit(3, learner, resume="auto")
    assert equal(weights(learner.model), weights(whole.model))
    assert losses[1] == losses[0][-len(losses[1]) :]
    ema.copy_to(learner.model)
    expected.copy_to(whole.model)
    assert equal(weights(learner.model), weights(whole.model))


def test_a_state_saved_in_a_validation_can_be_loaded_outside_of_one(make_learner: Make) -> None:
    learner, ema = normed(make_learner()), EMA(0.5)
    run = Runner(ema)
    saved: list[Any] = []

    @run.on("after_batch", during="validate")
    def save(run: Runner) -> None:
        saved[:] = [weights(run.model), {**ema.state_dict()}]

    run.fit(1, learner)
    trained = weights(learner.model)
    other, fresh = normed(make_learner()), EMA(0.5)
    run = Runner(fresh)

    @run.on("begin_train")
    def load(run: Runner) -> None:
        run.model.load_state_dict(saved[0])
        fresh.load_state_dict(saved[1])
        run.token.cancel("fit")

    run.fit(1, other)
    assert equal(weights(other.model), trained)


def test_a_state_saved_outside_of_a_validation_can_be_loaded_in_one(make_learner: Make) -> None:
    learner, ema = normed(make_learner()), EMA(0.5)
    Runner(ema).fit(1, learner)
    trained, state = weights(learner.model), ema.state_dict()
    other, fresh = normed(make_learner()), EMA(0.5)
    run = Runner(fresh)
    inside: list[dict[str, Tensor]] = []

    @run.on("begin_validate", priority=-900)
    def load(run: Runner) -> None:
        run.model.load_state_dict(trained)
        fresh.load_state_dict(state)
        inside.append(weights(run.model))

    run.fit(1, other)
    assert equal(weights(other.model), trained)
    fresh.copy_to(other.model)
    assert equal(inside[0], weights(other.model))


class Caching(nn.Linear):
    """Has a buffer from its first validation on."""

    def __init__(self) -> None:
        super().__init__(5, 3)
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.cache is None:
            self.cache = torch.full((3,), 2.0)
        return super().forward(x)


def caching(learner: Learner) -> Learner:
    learner.model = Caching()
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    return learner


@pytest.mark.parametrize("buffers", [False, True])
def test_a_buffer_that_appears_later_is_taken_in_as_it_is(
    make_learner: Make, buffers: bool
) -> None:
    learner, ema = caching(make_learner()), EMA(0.7, buffers=buffers)
    assert Runner(ema).fit(2, learner).outcome == "completed"
    learner.model.cache.zero_()
    ema.copy_to(learner.model)
    assert torch.equal(learner.model.cache, torch.full((3,), 2.0))


@pytest.mark.parametrize("buffers", [False, True])
def test_a_buffer_that_is_gone_is_passed_over(make_learner: Make, buffers: bool) -> None:
    learner = caching(make_learner())
    learner.model.cache = torch.zeros(3)
    run = Runner(EMA(buffers=buffers))
    run.on("after_pred", lambda run: setattr(run.model, "cache", None), during="validate")
    assert run.fit(2, learner).outcome == "completed"


def test_without_a_step_there_is_no_average(learner: Learner) -> None:
    ema = EMA()
    run = Runner(ema)
    assert run.validate(learner).outcome == "completed"
    assert run.fit(0, learner).outcome == "completed"
    with pytest.raises(RuntimeError, match="no average yet"):
        ema.copy_to(learner.model)


def test_a_model_without_parameters_is_refused(learner: Learner) -> None:
    learner.model = lambda x: x
    with pytest.raises(TypeError, match=r"nn\.Module"):
        Runner(EMA()).fit(1, learner)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"decay": 1.5}, ValueError), ({"every": 0}, ValueError), ({"every": 1.5}, TypeError)],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        EMA(**arguments)


@pytest.mark.parametrize("change", ["load", "data", "in place"])
def test_weights_that_were_put_in_after_the_fit_are_used_as_they_are(
    make_learner: Make, change: str
) -> None:
    ours, other = normed(make_learner()), normed(make_learner())
    run = Runner(EMA(0.9))
    run.fit(2, ours)
    for own, new in zip(ours.model.parameters(), other.model.parameters(), strict=True):
        if change == "data":
            own.data = new.detach().clone()
        elif change == "in place":
            own.data.copy_(new.data)
    if change == "load":
        ours.model.load_state_dict(other.model.state_dict())
    ours.model.eval()
    with torch.no_grad():
        expected = torch.cat([ours.model(x) for x, _ in ours.data.valid_dl])
    assert torch.equal(run.predict(ours, ours.data.valid_dl), expected)


def test_two_averages_cannot_both_validate(make_learner: Make) -> None:
    other = EMA(0.5)
    other.name = "other"
    with pytest.raises(ValueError, match=r"2 EMAs would validate.*use_in_validation=False"):
        Runner([EMA(0.9), other]).fit(1, make_learner())
    other.use_in_validation = False
    assert Runner([EMA(0.9), other]).fit(1, make_learner()).outcome == "completed"


def test_a_parameter_that_changes_its_shape_cannot_be_averaged(make_learner: Make) -> None:
    learner, run = make_learner(), Runner(EMA(0.9))
    run.on("after_batch", lambda run: setattr(run.model.bias, "data", torch.zeros(1)))
    with pytest.raises(ValueError, match=r"bias has shape \[1\], and its average \[3\]"):
        run.fit(1, learner)
