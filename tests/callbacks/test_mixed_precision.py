"""Mixed precision against loops written by hand with torch.autocast and GradScaler."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from eventtrain import Learner, Runner
from eventtrain.callbacks import Checkpoint, GradientAccumulation, GradientClip, MixedPrecision

Make = Callable[..., Learner]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]


def deep(learner: Learner, device: str = "cpu") -> Learner:
    """A learner whose model does more than one matrix product."""
    torch.manual_seed(1)
    learner.model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).to(device)
    learner.opt = torch.optim.AdamW(learner.model.parameters(), lr=0.01)
    return learner


def by_hand(
    learner: Learner,
    dtype: torch.dtype,
    scaler: GradScaler | None = None,
    epochs: int = 2,
    norm: float | None = None,
) -> int:
    """Train as torch's documentation does; return the number of steps that were taken."""
    taken: list[int] = []
    learner.opt.register_step_post_hook(lambda *_: taken.append(1))
    device = learner.model[0].weight.device
    for _ in range(epochs):
        for x, y in learner.data.train_dl:
            with torch.autocast(device.type, dtype):
                loss = learner.loss_func(learner.model(x.to(device)), y.to(device))
            if scaler is None:
                loss.backward()
                learner.opt.step()
            else:
                scaler.scale(loss).backward()
                scaler.unscale_(learner.opt)
                if norm is not None:
                    nn.utils.clip_grad_norm_(learner.model.parameters(), norm)
                scaler.step(learner.opt)
                scaler.update()
            learner.opt.zero_grad()
    return len(taken)


def same(ours: Learner, theirs: Learner) -> bool:
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    return all(torch.equal(own, other) for own, other in pairs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["bf16", torch.bfloat16])
def test_bfloat16_is_that_of_a_loop_by_hand(make_learner: Make, name: object, device: str) -> None:
    ours, theirs, plain = (deep(make_learner(), device) for _ in range(3))
    Runner(MixedPrecision(name)).fit(2, ours)
    by_hand(theirs, torch.bfloat16)
    Runner().fit(2, plain)
    assert same(ours, theirs)
    assert not same(ours, plain)


@pytest.mark.parametrize("device", DEVICES)
def test_float16_is_that_of_a_loop_by_hand(make_learner: Make, device: str) -> None:
    ours, theirs = deep(make_learner(), device), deep(make_learner(), device)
    precision = MixedPrecision("fp16")
    Runner(precision).fit(2, ours)
    scaler = GradScaler(device)
    by_hand(theirs, torch.float16, scaler)
    assert same(ours, theirs)
    assert precision.scaler is not None
    assert precision.scaler.state_dict() == scaler.state_dict()


@pytest.mark.parametrize("device", DEVICES)
def test_overflowing_steps_are_cancelled_as_a_scaler_skips_them(
    make_learner: Make, device: str
) -> None:
    ours, theirs = (deep(make_learner(train=8), device) for _ in range(2))
    own = GradScaler(device, init_scale=2.0**24, growth_interval=3)
    run = Runner(MixedPrecision("fp16", scaler=own))
    result = run.fit(3, ours)
    scaler = GradScaler(device, init_scale=2.0**24, growth_interval=3)
    steps = by_hand(theirs, torch.float16, scaler, epochs=3)
    overflows = [each for each in result.cancellations if each.reason == "overflow"]
    assert len(overflows) >= 2
    assert result.steps == steps == 24 - len(overflows)
    assert own.state_dict() == scaler.state_dict()
    assert same(ours, theirs)


def test_gradients_are_clipped_after_they_are_unscaled(make_learner: Make) -> None:
    ours, theirs = deep(make_learner()), deep(make_learner())
    ours.opt = torch.optim.SGD(ours.model.parameters(), lr=1.0)
    theirs.opt = torch.optim.SGD(theirs.model.parameters(), lr=1.0)
    Runner([GradientClip(norm=0.01), MixedPrecision("fp16")]).fit(2, ours)
    by_hand(theirs, torch.float16, GradScaler("cpu"), norm=0.01)
    assert same(ours, theirs)


def test_everybody_sees_the_loss_as_it_is_and_runs_outside_of_autocast(learner: Learner) -> None:
    run = Runner(MixedPrecision("fp16"))
    seen: list[tuple[str, bool]] = []
    losses: dict[str, list[float]] = {"after_loss": [], "after_backward": [], "after_batch": []}
    for event in ("begin_batch", "after_pred", *losses, "begin_step", "after_step"):
        for priority in (900, -900):

            def look(run: Runner, event: str = event) -> None:
                seen.append((event, torch.is_autocast_enabled("cpu")))
                if event in losses:
                    losses[event].append(run.loss.item())

            run.on(event, look, priority=priority, during="train")
    run.fit(1, learner)
    assert {event for event, _ in seen} == {
        "begin_batch", "after_pred", "after_loss", "after_backward", "begin_step", "after_step",
        "after_batch",
    }  # fmt: skip
    assert not any(is_on for _, is_on in seen)
    assert losses["after_loss"] == losses["after_backward"] == losses["after_batch"]
    assert max(losses["after_loss"]) < 10


def test_the_model_computes_in_half_precision_in_every_phase(learner: Learner) -> None:
    run = Runner(MixedPrecision())
    dtypes: set[tuple[str | None, torch.dtype]] = set()
    run.on("after_pred", lambda run: dtypes.add((run.phase, run.pred.dtype)))
    run.fit(1, learner)
    run.predict(learner, learner.data.valid_dl)
    half = torch.bfloat16
    assert dtypes == {("train", half), ("validate", half), ("predict", half)}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("event", ["after_pred", "after_loss", "after_backward", "begin_step"])
@pytest.mark.parametrize("scope", ["batch", "fit"])
@pytest.mark.parametrize("priority", [1, 950])
def test_a_cancellation_anywhere_leaves_no_autocast(
    learner: Learner, event: str, scope: str, priority: int
) -> None:
    run = Runner(MixedPrecision("fp16"))
    run.on(event, lambda run: run.token.cancel(scope), priority=priority)
    in_batch: list[bool] = []
    run.on("after_batch", lambda run: in_batch.append(torch.is_autocast_enabled("cpu")))
    run.fit(1, learner)
    assert in_batch and not any(in_batch)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("where", ["model", "loss"])
def test_a_failure_leaves_no_autocast(learner: Learner, where: str) -> None:
    def fail(*_: object) -> None:
        raise OSError("broken")

    if where == "loss":
        learner.loss_func = fail
    else:
        learner.model.forward = fail
    with pytest.raises(OSError, match="broken"):
        Runner(MixedPrecision()).fit(1, learner)
    assert not torch.is_autocast_enabled("cpu")


def test_bfloat16_does_not_make_the_host_wait(
    learner: Learner, no_sync: AbstractContextManager[None]
) -> None:
    with no_sync:
        assert Runner(MixedPrecision()).fit(1, learner).steps == 3


def test_a_step_that_others_cancel_leaves_gradients_that_fit(make_learner: Make) -> None:
    """Gradients of cancelled steps stay and add up, whatever the scale."""
    ours, theirs = deep(make_learner()), deep(make_learner())
    scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    run = Runner(MixedPrecision("fp16", scaler=scaler))
    run.on("begin_step", lambda run: run.token.cancel("step") if run.batch_index < 2 else None)
    gradients: list[torch.Tensor] = []
    run.on("begin_step", lambda run: gradients.append(run.model[0].weight.grad.clone()), priority=1)
    assert run.fit(1, ours).steps == 1
    for x, y in theirs.data.train_dl:
        with torch.autocast("cpu", torch.float16):
            loss = theirs.loss_func(theirs.model(x), y)
        (loss * 1024).backward()
    expected = theirs.model[0].weight.grad / 1024
    assert torch.allclose(gradients[-1], expected, atol=1e-4)


def test_a_fit_that_is_cancelled_between_unscaling_and_step_can_be_followed(
    learner: Learner,
) -> None:
    run = Runner(MixedPrecision("fp16", scaler=GradScaler("cpu")))
    cancelling = run.on("begin_step", lambda run: run.token.cancel("fit"))
    run.fit(1, learner)
    cancelling.disconnect()
    assert run.fit(1, learner).steps == 3


def test_a_batch_without_any_gradient_needs_no_scaler(learner: Learner) -> None:
    run = Runner(MixedPrecision("fp16"))
    run.on("after_backward", lambda run: run.model.zero_grad())
    before = learner.model.weight.detach().clone()
    assert run.fit(1, learner).outcome == "completed"
    assert torch.equal(learner.model.weight, before)


@pytest.mark.parametrize("accumulation_first", [True, False])
def test_it_goes_together_with_accumulation_in_any_order(
    make_learner: Make, accumulation_first: bool
) -> None:
    ours, theirs = deep(make_learner(train=4)), deep(make_learner(train=4))
    callbacks = [MixedPrecision("fp16"), GradientAccumulation(2)]
    run = Runner(callbacks[::-1] if accumulation_first else callbacks)
    shown: list[float] = []
    for event in ("after_loss", "after_backward"):
        run.on(event, lambda run: shown.append(run.loss.item()), during="train")
    assert run.fit(2, ours).steps == 4
    scaler, true = GradScaler("cpu"), []
    for _ in range(2):
        for index, (x, y) in enumerate(theirs.data.train_dl):
            with torch.autocast("cpu", torch.float16):
                loss = theirs.loss_func(theirs.model(x), y)
            true += [loss.item()] * 2
            scaler.scale(loss * 0.5).backward()
            if index % 2 == 1:
                scaler.step(theirs.opt)
                scaler.update()
                theirs.opt.zero_grad()
    assert same(ours, theirs)
    assert shown == true


def test_an_optimizer_without_groups_has_the_models_gradients_unscaled(
    make_learner: Make,
) -> None:
    class Own:
        """Steps as plain SGD does."""

        def __init__(self, model: nn.Module) -> None:
            self.model = model

        @torch.no_grad()
        def step(self) -> None:
            for parameter in self.model.parameters():
                parameter.add_(parameter.grad, alpha=-0.1)

        def zero_grad(self) -> None:
            self.model.zero_grad()

    ours, theirs = deep(make_learner()), deep(make_learner())
    ours.opt = Own(ours.model)
    theirs.opt = torch.optim.SGD(theirs.model.parameters(), lr=0.1)
    assert Runner(MixedPrecision("fp16")).fit(2, ours).steps == 6
    by_hand(theirs, torch.float16, GradScaler("cpu"))
    assert same(ours, theirs)


class Zeroing(torch.optim.SGD):
    """An optimizer that keeps gradients and fills them with zeros."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none=False)


@pytest.mark.parametrize("accumulation_first", [True, False])
def test_an_overflow_drops_the_group_where_gradients_are_filled_with_zeros(
    make_learner: Make, accumulation_first: bool
) -> None:
    learner = deep(make_learner(train=8))
    learner.opt = Zeroing(learner.model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-50)
    callbacks = [MixedPrecision("fp16", scaler), GradientAccumulation(4)]
    run = Runner(callbacks[::-1] if accumulation_first else callbacks)
    stepped: list[int | None] = []
    run.on("after_step", lambda run: stepped.append(run.batch_index))
    run.fit(1, learner)
    assert stepped == [7]


def test_an_overflow_drops_the_whole_group(make_learner: Make) -> None:
    learner = deep(make_learner(train=4))
    precision = MixedPrecision("fp16", scaler=GradScaler("cpu", init_scale=2.0**60))
    run = Runner([precision, GradientAccumulation(2)])
    shares: list[float] = []

    @run.on("after_loss", priority=-1005, during="train")
    def share(run: Runner) -> None:
        shares.append(run.loss.item() / precision.scaler.get_scale())

    true: list[float] = []
    run.on("after_loss", lambda run: true.append(run.loss.item()), during="train")
    result = run.fit(1, learner)
    reasons = [each.reason for each in result.cancellations]
    assert reasons == ["accumulating", "overflow", "accumulating", "overflow"]
    assert shares == pytest.approx([loss / 2 for loss in true])
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def test_a_resumed_fit_goes_on_with_the_scale(make_learner: Make, tmp_path: Path) -> None:
    def precision() -> MixedPrecision:
        return MixedPrecision("fp16", GradScaler("cpu", init_scale=2.0**24, growth_interval=3))

    whole = deep(make_learner(train=8))
    uninterrupted = precision()
    Runner(uninterrupted).fit(2, whole)
    first = Runner([precision(), Checkpoint(tmp_path, every_steps=1)])
    first.on("after_batch", lambda run: run.token.cancel("fit") if run.n_iter == 11 else None)
    first.fit(2, deep(make_learner(train=8)))
    learner, resumed = deep(make_learner(train=8)), precision()
    Runner([resumed, Checkpoint(tmp_path)]).fit(2, learner, resume="auto")
    assert same(learner, whole)
    assert resumed.scaler.state_dict() == uninterrupted.scaler.state_dict()


def test_a_resumed_fit_may_begin_with_a_step(make_learner: Make, tmp_path: Path) -> None:
    """A group is stepped after the batches when the loader's length is unknown."""

    def unsized() -> Learner:
        learner = deep(make_learner(train=3))
        batches = list(learner.data.train_dl)
        learner.data.train_dl = type("Unsized", (), {"__iter__": lambda self: iter(batches)})()
        return learner

    def callbacks() -> list[Any]:
        return [MixedPrecision("fp16"), GradientAccumulation(2), Checkpoint(tmp_path)]

    whole = unsized()
    Runner(callbacks()[:2]).fit(2, whole)
    first = Runner(callbacks())
    first.on("after_batch", lambda run: run.token.cancel("fit") if run.n_iter == 3 else None)
    first.fit(2, unsized())
    learner = unsized()
    Runner(callbacks()).fit(2, learner, resume="auto")
    assert same(learner, whole)


def test_a_state_of_the_other_precision_is_refused(learner: Learner) -> None:
    scaled, plain = MixedPrecision("fp16"), MixedPrecision("bf16")
    Runner(scaled).fit(1, learner)
    with pytest.raises(ValueError, match="precision"):
        plain.load_state_dict(scaled.state_dict())


def test_a_second_fit_starts_with_a_new_scale(learner: Learner) -> None:
    precision = MixedPrecision("fp16")
    run = Runner(precision)
    run.fit(1, learner)
    first = precision.scaler
    run.fit(1, learner)
    assert precision.scaler is not first


def test_validation_and_prediction_alone_need_no_fit(learner: Learner) -> None:
    run = Runner(MixedPrecision("fp16"))
    assert run.validate(learner).outcome == "completed"
    assert len(run.predict(learner, learner.data.valid_dl)) == 8
    assert run.fit(0, learner).outcome == "completed"


@pytest.mark.parametrize("dtype", ["float8", torch.float32, None])
def test_other_types_are_refused(dtype: object) -> None:
    with pytest.raises(ValueError, match="dtype"):
        MixedPrecision(dtype)
