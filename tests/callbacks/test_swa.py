"""Stochastic weight averaging against the recipe in torch's documentation."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from eventtrain import CheckpointError, DataBunch, Learner, Runner
from eventtrain.callbacks import (
    SWA,
    BatchTransform,
    Checkpoint,
    EarlyStopping,
    Freeze,
    GradientAccumulation,
    MixedPrecision,
    Mixup,
    ParamScheduler,
    sched_lin,
)
from eventtrain.checkpoint_files import list_checkpoints

Make = Callable[..., Learner]


def normed(learner: Learner) -> Learner:
    torch.manual_seed(1)
    learner.model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1, momentum=0.9)
    return learner


def by_hand(learner: Learner, epochs: int, start: int, lr: float | None) -> nn.Module:
    average = AveragedModel(learner.model)
    schedule = None if lr is None else SWALR(learner.opt, swa_lr=lr, anneal_epochs=2)
    for epoch in range(epochs):
        learner.model.train()
        for x, y in learner.data.train_dl:
            learner.loss_func(learner.model(x), y).backward()
            learner.opt.step()
            learner.opt.zero_grad()
        if epoch >= start:
            average.update_parameters(learner.model)
            if schedule is not None:
                schedule.step()
    update_bn(learner.data.train_dl, average)
    return average.module


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, yours = weights(one), weights(other)
    return all(torch.equal(mine[key], yours[key]) for key in mine)


@pytest.mark.parametrize("lr", [None, 0.02])
@pytest.mark.parametrize(("start", "epoch"), [(0.5, 3), (2, 2), (0.6, 4), (0.0, 0)])
def test_the_model_becomes_that_of_the_recipe(
    make_learner: Make, start: float, epoch: int, lr: float | None
) -> None:
    ours, theirs = normed(make_learner()), normed(make_learner())
    Runner(SWA(start, lr, anneal_epochs=2)).fit(6, ours)
    assert equal(ours.model, by_hand(theirs, 6, epoch, lr))


def test_the_rate_moves_and_is_put_back(make_learner: Make) -> None:
    learner = normed(make_learner())
    groups, step = set(learner.opt.param_groups[0]), learner.opt.step
    run = Runner(SWA(1, 0.02, anneal_epochs=2, anneal_strategy="linear"))
    rates: list[float] = []
    run.on("begin_epoch", lambda run: rates.append(run.opt.param_groups[0]["lr"]))
    run.fit(5, learner)
    assert rates == pytest.approx([0.1, 0.1, 0.06, 0.02, 0.02])
    assert learner.opt.param_groups[0]["lr"] == 0.1
    assert set(learner.opt.param_groups[0]) == groups
    assert learner.opt.step == step


@pytest.mark.parametrize("rate", [torch.tensor(0.1), torch.tensor([0.1])])
def test_a_rate_that_is_a_tensor_is_put_back_into_that_tensor(
    make_learner: Make, rate: Tensor
) -> None:
    learner = normed(make_learner())
    learner.opt = torch.optim.Adam(learner.model.parameters(), lr=rate, foreach=False)
    groups = set(learner.opt.param_groups[0])
    rates: list[float] = []
    run = Runner(SWA(0, 0.5, anneal_epochs=1))
    run.on("begin_epoch", lambda run: rates.append(float(run.opt.param_groups[0]["lr"])))
    run.fit(3, learner)
    assert rates == pytest.approx([0.1, 0.5, 0.5])
    assert learner.opt.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.1)
    assert set(learner.opt.param_groups[0]) == groups


@pytest.mark.parametrize("after", [3, 9, 10])
def test_a_rate_that_is_a_tensor_survives_a_checkpoint(
    make_learner: Make, tmp_path: Path, after: int
) -> None:
    def make() -> Learner:
        learner = normed(make_learner())
        rate = torch.tensor(0.01)
        learner.opt = torch.optim.Adam(learner.model.parameters(), lr=rate, foreach=False)
        return learner

    def callbacks() -> list[Any]:
        return [SWA(2, 0.02, anneal_epochs=2), Checkpoint(tmp_path)]

    whole, learner = make(), make()
    Runner(SWA(2, 0.02, anneal_epochs=2)).fit(5, whole)
    first = Runner(callbacks())
    stop = {"when": lambda run: run.in_train and run.n_iter == after}
    first.on("after_batch", lambda run: run.token.cancel("fit"), **stop)
    first.fit(5, make())
    Runner(callbacks()).fit(5, learner, resume="auto")
    assert equal(learner.model, whole.model)
    assert learner.opt.param_groups[0]["lr"].item() == pytest.approx(0.01)


@pytest.mark.parametrize("ending", ["cancel", "fail"])
def test_a_fit_that_does_not_complete_keeps_its_weights_and_rates(
    make_learner: Make, ending: str
) -> None:
    learner, swa = normed(make_learner()), SWA(0, 0.02)
    run = Runner(swa)

    @run.on("after_loss", during="train")
    def end(run: Runner) -> None:
        if run.epoch == 2:
            held.update(weights(run.model))
            if ending == "fail":
                raise OSError("disk")
            run.token.cancel("fit")

    held: dict[str, Tensor] = {}
    if ending == "fail":
        with pytest.raises(OSError, match="disk"):
            run.fit(4, learner)
    else:
        run.fit(4, learner)
    assert all(torch.equal(tensor, held[key]) for key, tensor in weights(learner.model).items())
    assert learner.opt.param_groups[0]["lr"] == 0.1
    assert swa.averaged_model is not None and swa.averaged_model.n_averaged == 2


def test_a_buffer_may_appear_after_the_last_average(make_learner: Make) -> None:
    learner, swa = make_learner(), SWA(start=0, update_bn=False)
    learner.model.register_buffer("cache", None, persistent=False)
    run = Runner(swa)

    # Such as a mask that is made when the model predicts.
    @run.on("after_epoch", priority=-80)
    def fill(run: Runner) -> None:
        run.model.cache = torch.ones(3)

    run.fit(1, learner)
    assert swa.averaged_model is not None
    assert equal(learner.model, swa.averaged_model.module)
    assert torch.equal(learner.model.cache, torch.ones(3))


def test_a_model_with_other_parameters_cannot_get_the_average(make_learner: Make) -> None:
    swa = SWA(start=0)
    Runner(swa).fit(1, make_learner())
    with pytest.raises(KeyError, match=r"no average of more\.weight, more\.bias"):
        swa.copy_to(nn.ModuleDict({"more": nn.Linear(5, 3)}))


def test_the_average_need_not_be_loaded(make_learner: Make) -> None:
    ours, plain, theirs = (normed(make_learner()) for _ in range(3))
    swa = SWA(1, load=False)
    Runner(swa).fit(3, ours)
    Runner().fit(3, plain)
    assert equal(ours.model, plain.model)
    swa.copy_to(ours.model)
    expected = by_hand(theirs, 3, 1, None)
    assert torch.equal(ours.model[0].weight, expected[0].weight)


def test_batch_statistics_are_measured_only_if_wanted(make_learner: Make) -> None:
    ours, plain = normed(make_learner()), normed(make_learner())
    Runner(SWA(1, update_bn=False)).fit(3, ours)
    Runner().fit(3, plain)
    assert torch.equal(ours.model[1].running_mean, plain.model[1].running_mean)


def two_norms(learner: Learner) -> Learner:
    torch.manual_seed(1)
    layers = [nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)]
    learner.model = nn.Sequential(*layers, nn.Linear(4, 3))
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    return learner


def test_batch_normalization_that_was_frozen_keeps_its_statistics(make_learner: Make) -> None:
    learner = two_norms(make_learner())
    Runner([Freeze("1", until_epoch=None), SWA(1)]).fit(3, learner)
    assert torch.equal(learner.model[1].running_mean, torch.zeros(4))
    assert torch.equal(learner.model[1].running_var, torch.ones(4))


def test_statistics_behind_frozen_batch_normalization_are_those_of_its_output(
    make_learner: Make,
) -> None:
    learner = two_norms(make_learner())
    Runner([Freeze("1", until_epoch=None), SWA(1)]).fit(3, learner)
    model = learner.model.eval()
    with torch.no_grad():
        variances = [model[:3](x).var(0) for x, _ in learner.data.train_dl]
    assert torch.allclose(model[3].running_var, torch.stack(variances).mean(0), atol=1e-6)


def test_batch_normalization_that_was_let_in_is_measured(make_learner: Make) -> None:
    learner = two_norms(make_learner())
    Runner([Freeze("1", until_epoch=2), SWA(1)]).fit(3, learner)
    assert not torch.equal(learner.model[1].running_mean, torch.zeros(4))


@pytest.mark.parametrize("is_training", [True, False])
def test_measuring_leaves_every_mode_as_it_was(make_learner: Make, is_training: bool) -> None:
    plain, learner = two_norms(make_learner()), two_norms(make_learner())
    modes = []
    for each, callbacks in ((plain, []), (learner, [SWA(1)])):
        run = Runner([Freeze("1", until_epoch=None), *callbacks])
        run.on("after_fit", lambda run: run.model.train(is_training), priority=0)
        run.fit(3, each)
        modes.append([module.training for module in each.model.modules()])
    assert modes[0] == modes[1]


def test_which_batch_normalization_was_frozen_survives_a_checkpoint(
    make_learner: Make, tmp_path: Path
) -> None:
    def callbacks() -> list[Any]:
        return [Freeze("1", until_epoch=None), SWA(1), Checkpoint(tmp_path)]

    first = Runner(callbacks())
    first.on("after_epoch", lambda run: run.token.cancel("fit"), when=lambda run: run.epoch == 2)
    first.fit(3, two_norms(make_learner()))
    learner = two_norms(make_learner())
    Runner(callbacks()).fit(3, learner, resume="auto")
    assert torch.equal(learner.model[1].running_mean, torch.zeros(4))


@pytest.mark.parametrize("swa_first", [True, False])
def test_the_average_has_the_last_word_over_the_best_weights(
    make_learner: Make, swa_first: bool
) -> None:
    ours, theirs = normed(make_learner()), normed(make_learner())
    callbacks = [SWA(1), EarlyStopping("score", patience=9)]
    run = Runner(callbacks if swa_first else callbacks[::-1])
    run.on("after_epoch", lambda run: run.history[-1].update(score=run.epoch))  # the first is best
    run.fit(4, ours)
    assert equal(ours.model, by_hand(theirs, 4, 1, None))


def test_epochs_without_a_step_are_left_out(make_learner: Make) -> None:
    swa = SWA(0, 0.02)
    run = Runner(swa)
    run.on("begin_train", lambda run: run.token.cancel("train") if run.epoch == 0 else None)
    run.fit(3, normed(make_learner()))
    assert swa.averaged_model is not None and swa.averaged_model.n_averaged == 2


@pytest.mark.parametrize("ending", ["cancel", "fail"])
def test_an_epoch_that_did_not_end_is_left_out(make_learner: Make, ending: str) -> None:
    swa = SWA(0)
    run = Runner(swa)

    @run.on("after_step", when=lambda run: (run.epoch, run.batch_index) == (1, 1))
    def end(run: Runner) -> None:
        if ending == "fail":
            raise OSError("disk")
        run.token.cancel("epoch")

    with pytest.raises(OSError, match="disk") if ending == "fail" else nullcontext():
        run.fit(3, normed(make_learner()))
    assert swa.averaged_model is not None
    assert swa.averaged_model.n_averaged == (1 if ending == "fail" else 2)


def test_a_second_fit_starts_over(make_learner: Make) -> None:
    run = Runner(SWA(0.5, 0.02, anneal_epochs=2))
    run.fit(2, normed(make_learner()))
    ours, theirs = normed(make_learner()), normed(make_learner())
    run.fit(4, ours)
    assert equal(ours.model, by_hand(theirs, 4, 2, 0.02))


@pytest.mark.parametrize("event", ["after_batch", "after_epoch"])
@pytest.mark.parametrize("after", [3, 6, 8, 9, 10, 12])
def test_a_resumed_fit_ends_with_the_same_model(
    make_learner: Make, tmp_path: Path, after: int, event: str
) -> None:
    whole = normed(make_learner())
    Runner(SWA(2, 0.02, anneal_epochs=2)).fit(5, whole)
    first = Runner([SWA(2, 0.02, anneal_epochs=2), Checkpoint(tmp_path)])

    @first.on(event)
    def end(run: Runner) -> None:
        if run.n_iter == after and (event == "after_epoch" or run.in_train):
            run.token.cancel("fit")

    first.fit(5, normed(make_learner()))
    learner = normed(make_learner())
    Runner([SWA(2, 0.02, anneal_epochs=2), Checkpoint(tmp_path)]).fit(5, learner, resume="auto")
    assert equal(learner.model, whole.model)
    assert learner.opt.param_groups[0]["lr"] == 0.1


def test_validation_prediction_and_no_epochs_are_fine(make_learner: Make) -> None:
    run, learner = Runner(SWA(0, 0.02)), normed(make_learner())
    assert run.fit(0, learner).outcome == "completed"
    assert run.validate(learner).outcome == "completed"
    assert len(run.predict(learner, learner.data.valid_dl)) == 8


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"start": 1.0}, ValueError),
        ({"start": -1}, ValueError),
        ({"start": "75%"}, TypeError),
        ({"anneal_strategy": "exp"}, ValueError),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        SWA(**arguments)


def norm_of(learner: Learner) -> Any:
    return next(m for m in learner.model.modules() if isinstance(m, nn.BatchNorm1d))


class Endless:
    """Gives the same batches for ever."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        while True:
            yield from self.batches


def test_an_endless_loader_is_read_for_as_many_batches_as_the_last_epoch_had(
    make_learner: Make,
) -> None:
    ours, theirs = normed(make_learner()), normed(make_learner())
    ours.data.train_dl = Endless(list(ours.data.train_dl))
    run = Runner(SWA(1))
    run.on("after_batch", lambda run: run.token.cancel("train"), when=is_third_batch)
    run.fit(3, ours)
    assert equal(ours.model, by_hand(theirs, 3, 1, None))


def is_third_batch(run: Runner) -> bool:
    return run.phase == "train" and run.batch_index == 2


class Named(nn.Module):
    """Takes a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.layers(batch["x"])


def named(learner: Learner) -> Learner:
    """A learner whose batches are no tensors and no pairs."""
    torch.manual_seed(1)
    learner.model = Named()
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    learner.loss_func = lambda pred, batch: nn.functional.cross_entropy(pred, batch["y"])
    for name in ("train_dl", "valid_dl"):
        batches = [{"x": x, "y": y} for x, y in getattr(learner.data, name)]
        setattr(learner.data, name, batches)
    return learner


def means_by_hand(learner: Learner, change: Callable[[Tensor], Tensor]) -> Tensor:
    """What the first normalization sees in a pass over the training data, as a mean."""
    first = next(m for m in learner.model.modules() if isinstance(m, nn.Linear))
    inputs = [b["x"] if isinstance(b, dict) else b[0] for b in learner.data.train_dl]
    with torch.no_grad():
        return torch.stack([first(change(x)).mean(0) for x in inputs]).mean(0)


def test_batches_of_any_form_are_measured(make_learner: Make) -> None:
    learner = named(make_learner())
    assert Runner(SWA(1)).fit(3, learner).outcome == "completed"
    expected = means_by_hand(learner, lambda x: x)
    assert torch.allclose(norm_of(learner).running_mean, expected, atol=1e-6)


def doubled(x: Tensor) -> Tensor:
    return x * 2


def in_mode(run: Runner) -> None:
    if run.in_train:
        run.xb = doubled(run.xb)


def in_phase(run: Runner) -> None:
    run.xb = doubled(run.xb)


@pytest.mark.parametrize("how", ["callback", "in_mode", "in_phase", "always"])
def test_batches_are_measured_as_training_transforms_them(make_learner: Make, how: str) -> None:
    learner = normed(make_learner())
    run = Runner([SWA(1), BatchTransform(x=doubled)] if how == "callback" else SWA(1))
    if how == "in_mode":
        run.on("begin_batch", in_mode)
    elif how != "callback":
        run.on("begin_batch", in_phase, during="train" if how == "in_phase" else None)
    run.fit(3, learner)
    expected = means_by_hand(learner, doubled)
    assert torch.allclose(norm_of(learner).running_mean, expected, atol=1e-6)


def test_the_model_is_measured_in_the_precision_of_the_training(make_learner: Make) -> None:
    learner, dtypes = normed(make_learner()), set()
    learner.model[0].register_forward_hook(lambda *args: dtypes.add(args[-1].dtype))
    Runner([SWA(1), MixedPrecision()]).fit(3, learner)
    assert dtypes == {torch.bfloat16}


def test_measuring_leaves_counters_rates_and_fields_alone(make_learner: Make) -> None:
    learner = normed(make_learner())
    run = Runner([SWA(1), ParamScheduler("lr", sched_lin(0.1, 0.0))])
    held: list[Any] = []
    fields = ("n_iter", "steps", "phase", "in_train")
    for priority in (-40, -60):
        run.on(
            "after_fit",
            lambda run: held.append(
                [*(getattr(run, name) for name in fields), run.opt.param_groups[0]["lr"]]
            ),
            priority=priority,
        )
    run.fit(3, learner)
    assert held[0] == held[1]


@pytest.mark.parametrize("ending", ["fail", "model", "predict", "epoch", "fit"])
def test_statistics_that_could_not_be_measured_stay_as_they_were(
    make_learner: Make, ending: str
) -> None:
    learner, held = normed(make_learner()), {}
    run = Runner(SWA(1))
    run.on("after_epoch", lambda run: held.update(weights(run.model)))

    @run.on("begin_batch")
    def interfere(run: Runner) -> None:
        if "predict" in run.token.open_scopes and run.batch_index == 1:
            if ending in ("predict", "fit", "epoch"):
                run.token.cancel(ending)
            if ending == "fail":
                raise OSError("disk")
            if ending == "model":
                run.xb = run.xb[:, :2]

    failing = ending in ("fail", "model")
    with pytest.raises((OSError, RuntimeError)) if failing else nullcontext():
        run.fit(3, learner)
    norm = norm_of(learner)
    assert norm.momentum == 0.1
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(norm, name), held[f"1.{name}"])


def test_normalization_that_no_batch_gets_to_keeps_its_statistics(make_learner: Make) -> None:
    learner = normed(make_learner())
    learner.model.unused = nn.BatchNorm1d(4)
    learner.model.unused.running_mean.fill_(7)
    learner.model.forward = lambda x: learner.model[2](learner.model[1](learner.model[0](x)))
    Runner(SWA(1)).fit(2, learner)
    assert torch.equal(learner.model.unused.running_mean, torch.full((4,), 7.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda learner: setattr(learner.data, "train_dl", iter([])), "read only once"),
        (lambda learner: setattr(learner, "model", lambda x: x), "needs an nn.Module"),
    ],
)
def test_what_cannot_work_is_refused_as_the_fit_begins(
    make_learner: Make, change: Any, message: str
) -> None:
    learner = normed(make_learner())
    change(learner)
    with pytest.raises((TypeError, ValueError), match=message):
        Runner(SWA(0)).fit(1, learner)


def test_a_runner_that_calls_the_model_in_its_own_way_is_refused(make_learner: Make) -> None:
    class Own(Runner):
        def one_batch(self) -> None:
            super().one_batch()

    with pytest.raises(ValueError, match=r"one_batch of its own.*update_bn=False"):
        Own(SWA(0)).fit(1, normed(make_learner()))
    assert Own(SWA(0, update_bn=False)).fit(1, normed(make_learner())).outcome == "completed"


@pytest.mark.parametrize("start", [3, 7])
def test_a_start_behind_the_last_epoch_is_refused(make_learner: Make, start: int) -> None:
    with pytest.raises(ValueError, match=rf"start={start}.* this fit has 3"):
        Runner(SWA(start)).fit(3, make_learner())


@pytest.mark.parametrize("rates", [[0.1], [0.1, 0.2, 0.3]])
def test_another_number_of_rates_than_of_groups_is_refused(make_learner: Make, rates: Any) -> None:
    learner = make_learner()
    learner.opt = torch.optim.SGD([{"params": [p]} for p in learner.model.parameters()], lr=0.1)
    with pytest.raises(ValueError, match=f"{len(rates)} rates for 2 parameter groups"):
        Runner(SWA(0, rates)).fit(1, learner)


ONE_BATCH = DataBunch([0], None)


def first_epoch(start: float, epochs: int) -> int:
    """Read the first epoch to be averaged from the state."""
    swa = SWA(start)
    run = Runner(swa)
    run.on("begin_fit", lambda run: run.token.cancel("fit"), priority=-900)
    model = nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    run.fit(epochs, Learner(model, opt, nn.functional.mse_loss, ONE_BATCH))
    return int(swa.state_dict()["first"])


@settings(max_examples=60)
@given(epochs=st.integers(1, 30), hundredths=st.integers(0, 99))
def test_a_start_that_is_a_share_is_exact(epochs: int, hundredths: int) -> None:
    exact = math.ceil(Fraction(hundredths, 100) * epochs)
    assert first_epoch(hundredths / 100, epochs) == min(exact, epochs - 1)


@settings(max_examples=60)
@given(epochs=st.integers(1, 30), data=st.data())
def test_a_share_of_so_many_epochs_is_that_epoch(epochs: int, data: Any) -> None:
    epoch = data.draw(st.integers(0, epochs - 1))
    assert first_epoch(epoch / epochs, epochs) == epoch


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_short_fit_averages_its_last_epoch(make_learner: Make, epochs: int) -> None:
    swa = SWA()
    Runner(swa).fit(epochs, normed(make_learner()))
    assert swa.averaged_model is not None and swa.averaged_model.n_averaged == 1


def test_a_group_that_is_added_takes_part(make_learner: Make) -> None:
    learner, run = make_learner(), Runner(SWA(0, 0.5, anneal_epochs=1))
    bias = learner.model.bias
    learner.opt = torch.optim.SGD([learner.model.weight], lr=0.1)
    add = {"params": [bias], "lr": 0.2}
    run.on("begin_epoch", lambda run: run.opt.add_param_group(add), when=lambda run: run.epoch == 1)
    rates: list[list[float]] = []
    run.on("begin_epoch", lambda run: rates.append([g["lr"] for g in run.opt.param_groups]))
    run.fit(4, learner)
    assert [each[0] for each in rates] == pytest.approx([0.1, 0.5, 0.5, 0.5])
    assert [each[1] for each in rates[1:]] == pytest.approx([0.2, 0.5, 0.5])
    assert [group["lr"] for group in learner.opt.param_groups] == [0.1, 0.2]


def test_a_group_that_is_added_and_has_no_rate_is_an_error(make_learner: Make) -> None:
    learner, run = make_learner(), Runner(SWA(0, [0.5]))
    learner.opt = torch.optim.SGD([learner.model.weight], lr=0.1)
    add = {"params": [learner.model.bias]}
    run.on("begin_epoch", lambda run: run.opt.add_param_group(add), when=lambda run: run.epoch == 1)
    with pytest.raises(ValueError, match=r"1 rates.* 2 parameter groups since one was added"):
        run.fit(4, learner)


@pytest.mark.parametrize("start", [0.5, 2])
def test_an_average_that_would_begin_elsewhere_is_not_gone_on_with(
    make_learner: Make, tmp_path: Path, start: float
) -> None:
    first = Runner([SWA(0.5), Checkpoint(tmp_path)])
    first.fit(4, normed(make_learner()))
    run, learner = Runner([SWA(start), Checkpoint(tmp_path)]), normed(make_learner())
    if start == 2:
        assert run.fit(8, learner, resume="auto").outcome == "completed"
        assert run.swa.averaged_model.n_averaged == 6
        return
    before = weights(learner.model)
    with pytest.raises(CheckpointError, match=r"from epoch 2 on.*start=0\.5 is epoch 4.*start=2"):
        run.fit(8, learner, resume="auto")
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(learner.model).items())


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model_is_measured_too(make_learner: Make, whole: bool) -> None:
    ours, theirs = normed(make_learner()), normed(make_learner())
    if whole:
        ours.model = torch.compile(ours.model, backend="eager")
    else:
        part = torch.compile(ours.model[:2], backend="eager")
        ours.model = nn.Sequential(part, ours.model[2])
    Runner(SWA(1)).fit(3, ours)
    expected = norm_of(by_hand_learner(theirs))
    assert torch.equal(norm_of(ours).running_mean, expected.running_mean)
    assert torch.equal(norm_of(ours).running_var, expected.running_var)


def by_hand_learner(learner: Learner) -> Learner:
    learner.model = by_hand(learner, 3, 1, None)
    return learner


def test_normalization_that_is_used_twice_weighs_all_it_sees_alike(make_learner: Make) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.norm(x) * 3))

    def learner_of(learner: Learner) -> Learner:
        torch.manual_seed(1)
        learner.model = Twice()
        learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
        return learner

    ours, theirs = learner_of(make_learner()), learner_of(make_learner())
    Runner(SWA(1)).fit(3, ours)
    assert equal(ours.model, by_hand(theirs, 3, 1, None))


@pytest.mark.parametrize("event", ["begin_batch", "after_batch"])
def test_a_handler_that_ends_the_training_of_an_epoch_ends_the_measuring(
    make_learner: Make, event: str
) -> None:
    ours, theirs = normed(make_learner(train=4)), normed(make_learner(train=4))
    ours.data.train_dl = list(ours.data.train_dl)
    theirs.data.train_dl = ours.data.train_dl[: 2 if event == "begin_batch" else 3]
    run = Runner(SWA(1))
    run.on(event, lambda run: run.token.cancel("train"), when=is_third)
    assert run.fit(3, ours).outcome == "completed"
    assert equal(ours.model, by_hand(theirs, 3, 1, None))


def is_third(run: Runner) -> bool:
    return run.phase in ("train", "predict") and run.batch_index == 2


def test_measuring_leaves_no_checkpoint(make_learner: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, every_seconds=1e-9, keep_last=99)
    run = Runner([SWA(1), checkpoint])
    run.on("begin_batch", lambda run: run.token.cancel("batch"), when=is_measured)
    run.fit(2, normed(make_learner()))
    records = list_checkpoints(tmp_path)
    assert {record.phase for record in records} <= {None, "train"} and records[-1].phase is None


def is_measured(run: Runner) -> bool:
    return "predict" in run.token.open_scopes and run.batch_index == 1


@pytest.mark.parametrize("callback", [lambda: Mixup(0.4), lambda: GradientAccumulation(2)])
def test_measuring_leaves_the_loss_function_alone(make_learner: Make, callback: Any) -> None:
    learner = normed(make_learner())
    loss_func = learner.loss_func
    assert Runner([callback(), SWA(1)]).fit(2, learner).outcome == "completed"
    assert learner.loss_func is loss_func
