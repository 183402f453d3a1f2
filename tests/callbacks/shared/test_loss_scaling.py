"""float16 where a batch has more than one loss, backward pass or optimizer, against torch's way."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.checkpoint import checkpoint

from eventtrain import DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import GradientClip, MixedPrecision

Batch = Callable[[Runner], None]
SEED = torch.Generator().manual_seed(0)
BATCHES = [
    (torch.randn(4, 5, generator=SEED), torch.randint(0, 3, (4,), generator=SEED)) for _ in range(4)
]


def learner_of(opt: Callable[..., Any] = torch.optim.SGD) -> Learner:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    data = DataBunch(BATCHES, None)
    return Learner(model, opt(model.parameters(), lr=0.1), cross_entropy, data)


def fit(learner: Learner, one_batch: Batch | None = None, **handlers: Batch) -> MixedPrecision:
    """Fit for two epochs in float16 with a batch and handlers of one's own."""
    methods = {} if one_batch is None else {"one_batch": one_batch}
    precision = MixedPrecision("fp16", GradScaler("cpu", growth_interval=3))
    run = type("Own", (Runner,), methods)(precision)
    for event, function in handlers.items():
        run.on(event, function, during="train")
    run.fit(2, learner)
    return precision


def by_hand(
    learner: Learner,
    losses: Callable[[nn.Module, Tensor, Tensor], list[Tensor]],
    scaler: GradScaler | None = None,
) -> None:
    """Train as torch's documentation does, with a backward pass for each loss."""
    scaler = scaler or GradScaler("cpu", growth_interval=3)
    for x, y in BATCHES * 2:
        with torch.autocast("cpu", torch.float16):
            parts = losses(learner.model, x, y)
        for part in parts:
            scaler.scale(part).backward(retain_graph=True)
        scaler.step(learner.opt)
        scaler.update()
        learner.opt.zero_grad()


def assert_same(ours: Learner, theirs: Learner) -> None:
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)


def flat(pred: Tensor) -> Tensor:
    return pred.float().square().mean()


def two_losses(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    pred = model(x)
    return [cross_entropy(pred, y), flat(pred)]


def second_in_a_handler(run: Runner) -> None:
    run.mixed_precision.scale(flat(run.pred)).backward(retain_graph=True)


def keep_graph(run: Runner) -> None:
    self: Any = run
    self.pred = self.model(self.xb)
    self.emit.after_pred()
    self.loss = self.loss_func(self.pred, self.yb)
    self.emit.after_loss()
    self.loss.backward(retain_graph=True)
    self.emit.after_backward()
    self.optimizer_step()


def two_in_a_batch(run: Runner) -> None:
    run.pred = run.model(run.xb)
    run.emit.after_pred()
    run.loss = run.loss_func(run.pred, run.yb)
    other = flat(run.pred)
    run.emit.after_loss()
    run.loss.backward(retain_graph=True)
    run.mixed_precision.scale(other).backward()
    run.emit.after_backward()
    run.optimizer_step()


def announced_twice(run: Runner) -> None:
    run.pred = run.model(run.xb)
    run.emit.after_pred()
    first, second = run.loss_func(run.pred, run.yb), flat(run.pred)
    for run.loss in (first, second):
        run.emit.after_loss()
        run.loss.backward(retain_graph=True)
        run.emit.after_backward()
    run.optimizer_step()


@pytest.mark.parametrize("one_batch", [two_in_a_batch, announced_twice])
def test_two_losses_in_a_batch_are_those_of_a_loop_by_hand(one_batch: Batch) -> None:
    ours, theirs = learner_of(), learner_of()
    fit(ours, one_batch)
    by_hand(theirs, two_losses)
    assert_same(ours, theirs)


def test_a_loss_of_a_handler_is_that_of_a_loop_by_hand() -> None:
    ours, theirs = learner_of(), learner_of()
    fit(ours, keep_graph, after_backward=second_in_a_handler)
    by_hand(theirs, two_losses)
    assert_same(ours, theirs)


def test_a_loss_that_a_handler_sets_is_scaled_like_the_loops_own() -> None:
    def doubled(run: Runner) -> None:
        run.loss = run.loss * 2 + flat(run.pred)

    ours, theirs = learner_of(), learner_of()
    fit(ours, after_loss=doubled)
    by_hand(theirs, lambda m, x, y: [cross_entropy(m(x), y) * 2 + flat(m(x))])
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    assert all(torch.allclose(own, other, atol=1e-3) for own, other in pairs)


def test_a_loss_that_a_handler_has_scaled_is_not_scaled_again() -> None:
    def scaled(run: Runner) -> None:
        run.loss = run.mixed_precision.scale(run.loss)

    ours, theirs = learner_of(), learner_of()
    fit(ours, after_loss=scaled)
    by_hand(theirs, lambda model, x, y: [cross_entropy(model(x), y)])
    assert_same(ours, theirs)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_of_the_callback_has_nothing_to_do_with_its_original(
    copied: Callable[[MixedPrecision], MixedPrecision],
) -> None:
    original = MixedPrecision("fp16")
    Runner(original).fit(1, learner_of())
    second = copied(original)
    ours, theirs = learner_of(), learner_of()
    Runner(second).fit(1, ours)
    Runner(MixedPrecision("fp16")).fit(1, theirs)
    assert second.scaler is not original.scaler
    assert_same(ours, theirs)


def test_a_gradient_penalty_is_that_of_a_loop_by_hand() -> None:
    def penalised(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        pred = model(x)
        (slope,) = torch.autograd.grad(pred.float().sum(), x, create_graph=True)
        return cross_entropy(pred, y) + slope.square().sum()

    def one_batch(run: Runner) -> None:
        run.loss = penalised(run.model, run.xb, run.yb)
        run.emit.after_loss()
        run.loss.backward()
        run.optimizer_step()

    ours, theirs = learner_of(), learner_of()
    fit(ours, one_batch)
    by_hand(theirs, lambda *batch: [penalised(*batch)])
    assert_same(ours, theirs)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_backward_pass_within_that_of_the_loss_counts_as_scaled() -> None:
    class Checkpointed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x.detach().requires_grad_(), use_reentrant=True)

    ours, theirs = learner_of(), learner_of()
    for learner in (ours, theirs):
        learner.model = Checkpointed(*learner.model)
    fit(ours)
    by_hand(theirs, lambda model, x, y: [cross_entropy(model(x), y)])
    assert_same(ours, theirs)


def test_gradients_that_were_dropped_need_no_scale() -> None:
    def attack(run: Runner) -> None:
        image = run.xb.clone().requires_grad_()
        run.loss_func(run.model(image).float(), run.yb).backward()
        run.xb = (run.xb + 0.1 * image.grad.sign()).detach()
        run.opt.zero_grad()

    def attacked(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
        image = x.clone().requires_grad_()
        with torch.autocast("cpu", enabled=False):
            with torch.autocast("cpu", torch.float16):
                pred = model(image)
            (slope,) = torch.autograd.grad(cross_entropy(pred.float(), y), image)
        return [cross_entropy(model((x + 0.1 * slope.sign()).detach()), y)]

    ours, theirs = learner_of(), learner_of()
    fit(ours, begin_batch=attack)
    by_hand(theirs, attacked)
    assert_same(ours, theirs)


def in_after_backward(run: Runner) -> None:
    sum(p.square().sum() for p in run.model.parameters()).backward()


def a_part_before_it_is_scaled(run: Runner) -> None:
    run.loss.backward(retain_graph=True)


def a_local_name(run: Runner) -> None:
    run.pred = run.model(run.xb)
    run.emit.after_pred()
    run.loss = loss = run.loss_func(run.pred, run.yb)
    run.emit.after_loss()
    loss.backward()
    run.emit.after_backward()
    run.optimizer_step()


def a_second_one(run: Runner) -> None:
    run.pred = run.model(run.xb)
    run.emit.after_pred()
    run.loss = run.loss_func(run.pred, run.yb)
    other = flat(run.pred)
    run.emit.after_loss()
    run.loss.backward(retain_graph=True)
    other.backward()
    run.emit.after_backward()
    run.optimizer_step()


def gradients_by_hand(run: Runner) -> None:
    run.pred = run.model(run.xb)
    run.emit.after_pred()
    run.loss = loss = run.loss_func(run.pred, run.yb)
    run.emit.after_loss()
    parameters = list(run.model.parameters())
    for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = slope
    run.optimizer_step()


def no_event(run: Runner) -> None:
    run.loss = run.loss_func(run.model(run.xb), run.yb)
    run.loss.backward()
    run.optimizer_step()


def only_after_pred(run: Runner) -> None:
    run.pred = run.model(run.xb)
    run.emit.after_pred()
    run.loss = run.loss_func(run.pred, run.yb)
    run.loss.backward()
    run.optimizer_step()


def steps_for_itself(run: Runner) -> None:
    run.pred = run.model(run.xb)
    run.emit.after_pred()
    run.loss = run.loss_func(run.pred, run.yb)
    run.emit.after_loss()
    run.loss.backward()
    run.opt.step()
    run.opt.zero_grad()


def divides_for_itself(run: Runner) -> None:
    run.mixed_precision.scaler.unscale_(run.opt)


@pytest.mark.parametrize(
    ("batch", "event", "message"),
    [
        (in_after_backward, "after_backward", r"mixed_precision\.scale\(loss\)\.backward\(\)"),
        (a_part_before_it_is_scaled, "after_loss", r"mixed_precision\.scale\(loss\)\.backward"),
        (a_local_name, None, r"Call backward\(\) on run\.loss"),
        (a_second_one, None, r"mixed_precision\.scale\(loss\)\.backward\(\) for any further"),
        (gradients_by_hand, None, r"comes from a loss that was not scaled"),
        (no_event, None, r"emit\.after_pred\(\).*emit\.after_loss\(\)"),
        (only_after_pred, None, r"emit\.after_loss\(\)"),
        (steps_for_itself, None, r"SGD\.step\(\) would apply.*run\.optimizer_step\(\)"),
        (divides_for_itself, "after_backward", r"unscale_\(SGD\) was called already.*GradientClip"),
    ],
)
def test_a_batch_that_would_step_wrongly_is_refused(
    batch: Batch, event: str | None, message: str
) -> None:
    learner = learner_of()
    before = copy.deepcopy(learner.model.state_dict())
    with pytest.raises(RuntimeError, match=message):
        if event is None:
            fit(learner, batch)
        else:
            fit(learner, keep_graph, **{event: batch})
    after = learner.model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("batch", [no_event, only_after_pred])
def test_a_step_inside_of_autocast_is_refused_in_bfloat16_too(batch: Batch) -> None:
    run = type("Own", (Runner,), {"one_batch": batch})(MixedPrecision("bf16"))
    with pytest.raises(RuntimeError, match=r"emit\.after_loss\(\)"):
        run.fit(1, learner_of())


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("way", ["step", "optimizer"])
def test_another_optimizer_is_not_stepped_inside_of_autocast_either(name: str, way: str) -> None:
    """Autocast keeps its copies of the weights for all its calls: they would be the old ones."""

    def one_batch(run: Any) -> None:
        run.pred = run.model(run.xb)
        other = torch.optim.SGD(run.model[0].parameters(), lr=0.1)
        run.mixed_precision.scale(run.loss_func(run.pred, run.yb)).backward()
        run.mixed_precision.step(other) if way == "step" else other.step()

    run = type("Own", (Runner,), {"one_batch": one_batch})(MixedPrecision(name))
    with pytest.raises(RuntimeError, match=r"while autocast is on.*emit\.after_loss\(\)"):
        run.fit(1, learner_of())


def test_a_backward_pass_that_is_announced_inside_of_autocast_is_refused() -> None:
    def one_batch(run: Any) -> None:
        run.loss = run.loss_func(run.model(run.xb), run.yb)
        run.loss.backward()
        run.emit.after_backward()

    run = type("Own", (Runner,), {"one_batch": one_batch})(MixedPrecision("bf16"))
    with pytest.raises(RuntimeError, match="while autocast is on"):
        run.fit(1, learner_of())


class Gan(nn.Module):
    """Two players, neither of which is called through the whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.maker = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 5))
        self.judge = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))


def judged(gan: Gan, rows: Tensor, target: float) -> Tensor:
    logits = gan.judge(rows)
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


ROUNDS = 2


def loss_of_the_judge(run: Runner) -> Tensor:
    fake = run.model.maker(run.xb.flip(0)).detach()
    return judged(run.model, run.xb, 1.0) + judged(run.model, fake, 0.0)


def gan_batch(run: Runner, step: Callable[[Runner], None]) -> None:
    precision = run.mixed_precision
    run.emit.after_pred()
    run.loss = loss_of_the_judge(run)
    run.judge_opt.zero_grad()
    run.emit.after_loss()
    run.loss.backward()
    run.emit.after_backward()
    step(run)
    for _ in range(ROUNDS - 1):
        with precision.autocast():
            loss = loss_of_the_judge(run)
        run.judge_opt.zero_grad()
        precision.scale(loss).backward()
        step(run)
    with precision.autocast():
        loss = judged(run.model, run.model.maker(run.xb.flip(0)), 1.0)
    precision.scale(loss).backward()
    run.optimizer_step()


def gan_run(name: str, step: Callable[[Runner], None]) -> tuple[Any, Learner]:
    model = Gan()
    learner = Learner(
        model,
        torch.optim.SGD(model.maker.parameters(), lr=0.1),
        binary_cross_entropy_with_logits,
        DataBunch(TensorLoader(torch.cat([x for x, _ in BATCHES]), torch.zeros(16), bs=4), None),
    )
    scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=5) if name == "fp16" else None
    run = type("Own", (Runner,), {"one_batch": lambda run: gan_batch(run, step)})(
        MixedPrecision(name, scaler)
    )
    run.judge_opt = torch.optim.SGD(model.judge.parameters(), lr=0.1)
    return run, learner


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_two_players_with_an_optimizer_each_are_those_of_a_loop_by_hand(name: str) -> None:
    run, learner = gan_run(name, lambda run: run.mixed_precision.step(run.judge_opt))
    run.fit(2, learner)
    gan, scaler = Gan(), GradScaler("cpu", 1024.0, growth_interval=5, enabled=name == "fp16")
    dtype = torch.float16 if name == "fp16" else torch.bfloat16
    maker_opt = torch.optim.SGD(gan.maker.parameters(), lr=0.1)
    judge_opt = torch.optim.SGD(gan.judge.parameters(), lr=0.1)
    for x, _ in BATCHES * 2:
        for _ in range(ROUNDS):
            with torch.autocast("cpu", dtype):
                fake = gan.maker(x.flip(0)).detach()
                loss = judged(gan, x, 1.0) + judged(gan, fake, 0.0)
            judge_opt.zero_grad()
            scaler.scale(loss).backward()
            scale = scaler.get_scale()
            for parameter in gan.judge.parameters():
                parameter.grad.div_(scale)
            judge_opt.step()
        with torch.autocast("cpu", dtype):
            loss = judged(gan, gan.maker(x.flip(0)), 1.0)
        scaler.scale(loss).backward()
        scaler.step(maker_opt)
        scaler.update()
        maker_opt.zero_grad()
    pairs = zip(learner.model.parameters(), gan.parameters(), strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)


def test_an_optimizer_of_ones_own_is_not_stepped_with_scaled_gradients() -> None:
    run, learner = gan_run("fp16", lambda run: run.judge_opt.step())
    with pytest.raises(RuntimeError, match=r"run\.mixed_precision\.step\(optimizer\)"):
        run.fit(1, learner)


def test_the_scaler_itself_may_step_another_optimizer() -> None:
    def torchs_way(run: Any) -> None:
        run.mixed_precision.scaler.step(run.judge_opt)
        run.mixed_precision.scaler.update()

    run, learner = gan_run("fp16", torchs_way)
    assert run.fit(1, learner).steps == 4


def test_an_overflow_of_another_optimizer_skips_its_step_and_lowers_the_scale() -> None:
    def overflowing(run: Any) -> None:
        next(run.model.judge.parameters()).grad.fill_(torch.inf)
        run.mixed_precision.step(run.judge_opt)

    run, learner = gan_run("fp16", overflowing)
    before = copy.deepcopy(learner.model.judge.state_dict())
    run.fit(1, learner)
    after = learner.model.judge.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert run.mixed_precision.scaler.get_scale() < 65536


@pytest.mark.parametrize("event", ["after_backward", "begin_step"])
def test_gradients_that_a_fit_leaves_have_no_scale(event: str) -> None:
    learner, plain = learner_of(), learner_of()
    for each, cbs in ((learner, MixedPrecision("fp16")), (plain, None)):
        run = Runner(cbs)
        run.on(event, lambda run: run.token.cancel("fit"))
        run.fit(1, each)
    for own, other in zip(learner.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad, atol=1e-2)


def test_gradients_that_wait_when_a_fit_begins_are_gone_on_with() -> None:
    ours, theirs = learner_of(), learner_of()
    for learner in (ours, theirs):
        for parameter in learner.model.parameters():
            parameter.grad = torch.ones_like(parameter)
    fit(ours)
    scaler = GradScaler("cpu", growth_interval=3)
    scaler.scale(torch.zeros(()))
    for parameter in theirs.model.parameters():
        parameter.grad.mul_(scaler.get_scale())
    by_hand(theirs, lambda model, x, y: [cross_entropy(model(x), y)], scaler)
    assert_same(ours, theirs)


def test_no_hook_stays_after_a_fit_however_it_ends(
    learner: Learner, fit_however_it_ends: Callable[[Runner, Learner], None]
) -> None:
    fit_however_it_ends(Runner(MixedPrecision("fp16")), learner)
    assert not any(p._post_accumulate_grad_hooks for p in learner.model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in learner.model.modules())
    assert not import_module("torch.optim.optimizer")._global_optimizer_pre_hooks


def test_parameters_that_are_trained_later_and_a_loss_without_any_do_not_matter() -> None:
    learner = learner_of()
    for parameter in learner.model.parameters():
        parameter.requires_grad_(False)

    def unfreeze(run: Runner) -> None:
        for parameter in run.model.parameters():
            parameter.requires_grad_(True)

    run = Runner([MixedPrecision("fp16"), GradientClip(1.0)])
    run.on("begin_batch", unfreeze)
    assert run.fit(1, learner).steps == 4


def test_a_scaler_that_is_switched_off_scales_and_refuses_nothing() -> None:
    learner, plain = learner_of(), learner_of()
    Runner(MixedPrecision("fp16", GradScaler("cpu", enabled=False))).fit(1, learner)
    for x, y in BATCHES:
        with torch.autocast("cpu", torch.float16):
            loss = cross_entropy(plain.model(x), y)
        loss.backward()
        plain.opt.step()
        plain.opt.zero_grad()
    assert_same(learner, plain)


def test_there_is_no_scale_before_a_fit() -> None:
    with pytest.raises(RuntimeError, match="before a fit"):
        MixedPrecision("fp16").scale(torch.ones(()))
    loss = torch.ones(())
    assert MixedPrecision("bf16").scale(loss) is loss


def test_a_scaler_is_one() -> None:
    with pytest.raises(TypeError, match=r"torch\.amp\.GradScaler"):
        MixedPrecision("fp16", scaler=65536.0)


class Exact(nn.Linear):
    """In single precision under autocast too, so that a scale changes no bit."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


class WithoutPrecision:
    """What ``run.mixed_precision`` would do if there were none."""

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def step(self, opt: Any) -> None:
        opt.step()


def loss_of(run: Any) -> Tensor:
    return run.model(run.xb).square().mean()


ACTIONS: dict[str, Callable[[Any], object]] = {
    "the loss": lambda run: run.loss.backward(retain_graph=True),
    "one more": lambda run: run.precision.scale(loss_of(run)).backward(),
    "unscaled": lambda run: loss_of(run).backward(),
    "announced": lambda run: run.emit.after_backward(),
    "probed": lambda run: torch.autograd.grad(loss_of(run), list(run.model.parameters())),
    "dropped": lambda run: run.opt.zero_grad(),
    "zeroed": lambda run: run.opt.zero_grad(set_to_none=False),
    "stepped": lambda run: run.optimizer_step(),
    "stepped alone": lambda run: run.opt.step(),
    "stepped as another": lambda run: run.precision.step(run.opt),
}


class Programmed(Runner):
    program: tuple[list[str], ...] = ()

    def one_batch(self) -> None:
        self.pred = self.model(self.xb)
        self.emit.after_pred()
        self.loss = self.pred.square().sum()
        self.emit.after_loss()
        for action in self.program[self.batch_index % len(self.program)]:
            ACTIONS[action](self)


def weights_after(program: tuple[list[str], ...], cbs: list[MixedPrecision]) -> Tensor | None:
    torch.manual_seed(2)
    model = Exact(5, 3)
    run = Programmed(cbs)
    run.program = program
    run.precision = cbs[0] if cbs else WithoutPrecision()
    opt = torch.optim.SGD(model.parameters(), lr=2.0**-6)
    try:
        run.fit(1, Learner(model, opt, flat, DataBunch(BATCHES, None)))
    except RuntimeError:
        return None
    return model.weight.detach()


@settings(max_examples=150)
@given(st.lists(st.lists(st.sampled_from(list(ACTIONS)), max_size=6), min_size=1, max_size=3))
def test_whatever_a_batch_does_the_weights_are_right_or_there_is_an_error(
    program: list[list[str]],
) -> None:
    scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    scaled = weights_after(tuple(program), [MixedPrecision("fp16", scaler)])
    expected = weights_after(tuple(program), [])
    assert scaled is None or (expected is not None and torch.equal(scaled, expected))


@pytest.mark.parametrize(
    "program",
    [
        ["the loss", "announced", "stepped"],
        ["the loss", "one more", "announced", "stepped"],
        ["unscaled", "dropped", "the loss", "announced", "stepped"],
        ["probed", "the loss", "announced", "stepped"],
        ["the loss", "announced"],
        ["one more", "stepped as another", "dropped", "the loss", "announced", "stepped"],
    ],
    ids=" ".join,
)
def test_programs_that_scale_as_they_should_are_let_through(program: list[str]) -> None:
    scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    scaled = weights_after((program, ["the loss", "stepped"]), [MixedPrecision("fp16", scaler)])
    expected = weights_after((program, ["the loss", "stepped"]), [])
    assert scaled is not None and expected is not None and torch.equal(scaled, expected)
