"""Several optimizers by name: what is refused, and training against loops written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from eventtrain import (
    AvgStatsCallback,
    CheckpointError,
    DataBunch,
    Learner,
    Runner,
    TensorLoader,
    load_checkpoint,
)
from eventtrain.callbacks import (
    EMA,
    SWA,
    Checkpoint,
    Freeze,
    GradientAccumulation,
    GradientClip,
    GradStats,
    History,
    LRFinder,
    LRScheduler,
    MaxSteps,
    MixedPrecision,
    OneCycle,
    ParamScheduler,
    Recorder,
    ReduceLROnPlateau,
    TerminateOnNaN,
    sched_lin,
)
from eventtrain.checkpoints.files import list_checkpoints, write_checkpoint


class Gan(nn.Module):
    """A maker and a judge."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.maker = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 5))
        self.judge = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))


def judged(gan: Gan, rows: Tensor, target: float) -> Tensor:
    logits = gan.judge(rows)
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def loss_of_judge(gan: Gan, xb: Tensor) -> Tensor:
    return judged(gan, xb, 1.0) + judged(gan, gan.maker(xb.flip(0)).detach(), 0.0)


def loss_of_maker(gan: Gan, xb: Tensor) -> Tensor:
    return judged(gan, gan.maker(xb.flip(0)), 1.0)


class GanRunner(Runner):
    """Steps the judge, then the maker, whose backward pass leaves gradients to the judge."""

    def one_batch(self) -> None:
        self.emit.after_pred()
        self.loss = loss_of_judge(self.model, self.xb)
        self.emit.after_loss()
        if not self.in_train:
            return
        self.opt["d"].zero_grad()
        self.loss.backward()
        self.emit.after_backward()
        self.optimizer_step("d")
        with self.autocast():
            loss = loss_of_maker(self.model, self.xb)
        self.scaled(loss).backward()
        self.optimizer_step("g")

    def autocast(self) -> Any:
        precision = getattr(self, "mixed_precision", None)
        return torch.autocast("cpu", enabled=False) if precision is None else precision.autocast()

    def scaled(self, loss: Tensor) -> Tensor:
        precision = getattr(self, "mixed_precision", None)
        return loss if precision is None else precision.scale(loss)


def optimizers(gan: Gan) -> dict[str, torch.optim.Optimizer]:
    return {
        "g": torch.optim.Adam(gan.maker.parameters(), lr=0.01, betas=(0.5, 0.9)),
        "d": torch.optim.SGD(gan.judge.parameters(), lr=0.1, momentum=0.9),
    }


def data(batches: int = 4) -> DataBunch:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * batches, 5, generator=generator)
    loader = TensorLoader(x, torch.zeros(len(x)), bs=4)
    return DataBunch(loader, TensorLoader(x[:8], torch.zeros(len(x[:8])), bs=4))


def learner(opt: Callable[[Gan], Any] = optimizers, batches: int = 4) -> Learner:
    gan = Gan()
    return Learner(gan, opt(gan), lambda pred, yb: pred, data(batches))


def by_hand(
    epochs: int,
    each: Callable[[str, int], None] = lambda name, step: None,
    before: Callable[[str, Any], None] = lambda name, opt: None,
    made: Callable[[dict[str, Any]], None] = lambda opts: None,
) -> Gan:
    """Train as people write it; ``before`` and ``each`` are called around the steps."""
    gan = Gan()
    opts, count = optimizers(gan), 0
    made(opts)
    for _ in range(epochs):
        for x, _y in data().train_dl:
            for name, loss in (("d", loss_of_judge), ("g", loss_of_maker)):
                opts[name].zero_grad()
                loss(gan, x).backward()
                before(name, opts[name])
                opts[name].step()
                each(name, count)
            count += 1
    return gan


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(own, theirs) for own, theirs in pairs)


def rates(learn: Learner) -> dict[str, float]:
    return {name: opt.param_groups[0]["lr"] for name, opt in learn.opt.items()}


# The step


def test_two_players_are_those_of_a_loop_by_hand() -> None:
    learn = learner()
    result = GanRunner(AvgStatsCallback()).fit(3, learn)
    assert same(learn.model, by_hand(3))
    assert result.steps == 24


def test_a_step_zeroes_its_own_gradients_and_leaves_those_of_the_other() -> None:
    learn, run, seen = learner(), GanRunner(), []

    def left(run: Any) -> dict[str, bool]:
        return {
            name: any(p.grad is not None for p in part.parameters())
            for name, part in (("g", run.model.maker), ("d", run.model.judge))
        }

    run.on("begin_step", lambda run: seen.append((run.stepping, left(run))))
    run.on("after_batch", lambda run: seen.append(("end", left(run))), during="train")
    run.on("after_batch", lambda run: run.token.cancel("fit"), during="train")
    run.fit(1, learn)
    assert seen == [
        ("d", {"g": False, "d": True}),
        ("g", {"g": True, "d": True}),
        ("end", {"g": False, "d": True}),
    ]


def test_a_step_of_one_that_is_cancelled_keeps_its_gradients() -> None:
    learn, run = learner(), GanRunner()
    run.on("begin_step", lambda run: run.token.cancel("step"), when=lambda run: run.stepping == "g")
    result = run.fit(1, learn)
    assert result.steps == 4
    assert same(learn.model.maker, Gan().maker)
    assert learn.model.maker[0].weight.grad is not None
    assert not same(learn.model.judge, Gan().judge)


class Wrong(Runner):
    name: str | None = "dd"

    def one_batch(self) -> None:
        self.optimizer_step(self.name)


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("dd", ValueError, r"no optimizer 'dd' .* has 'g' and 'd'\. Did you mean 'd'\?"),
        (None, TypeError, r"'g' and 'd', .*not told which one steps.*optimizer_step\('g'\)"),
    ],
)
def test_a_wrong_or_a_missing_name_is_an_error_before_the_step_begins(
    name: str | None, kind: type[Exception], text: str
) -> None:
    run, began = Wrong(), []
    run.name = name
    run.on("begin_step", lambda run: began.append(1))
    with pytest.raises(kind, match=text):
        run.fit(1, learner())
    assert began == []


def test_a_name_for_one_that_has_none_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no optimizer 'dd': the Learner has one, SGD, without"):
        Wrong().fit(1, learner(lambda gan: torch.optim.SGD(gan.parameters(), lr=0.1)))


def test_a_loop_that_steps_nobody_by_name_is_refused_before_the_fit_begins() -> None:
    run, began = Runner(), []
    run.on("begin_fit", lambda run: began.append(1))
    with pytest.raises(TypeError, match=r"nobody says which steps when: make a Runner of yours"):
        run.fit(1, learner())
    assert began == []


def test_an_optimizer_that_is_put_into_the_mapping_steps_from_then_on() -> None:
    learn, run = learner(), GanRunner()

    def exchange(run: Any) -> None:
        run.opt["g"] = torch.optim.SGD(run.model.maker.parameters(), lr=0.0)

    run.on("begin_fit", exchange)
    run.fit(1, learn)
    assert same(learn.model.maker, Gan().maker)


# What a learner takes


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda gan: {}, ValueError, "an empty mapping"),
        (lambda gan: {1: sgd(gan.parameters())}, TypeError, "is a text, got 1"),
        (lambda gan: {"g": torch.optim.SGD}, TypeError, "the class SGD: pass an instance"),
        (lambda gan: {"g": gan.maker}, TypeError, "'g'.* must be an optimizer, got a Sequential"),
        (lambda gan: {"g": None}, TypeError, "'g'.* must be an optimizer, got a NoneType"),
        (
            lambda gan: {"g": ExponentialLR(sgd(gan.parameters()), 0.9)},
            TypeError,
            r"the scheduler ExponentialLR.*LRScheduler\(\.\.\., optimizer='g'\)",
        ),
        (
            lambda gan: {"g": sgd(gan.maker.parameters()), "d": sgd(nn.Linear(1, 1).parameters())},
            ValueError,
            r"opt\['d'\], SGD has 2 parameters, and none of them is one of Gan",
        ),
        (
            lambda gan: {"g": sgd(gan.parameters()), "d": sgd(gan.judge.parameters())},
            ValueError,
            "parameter judge.0.weight is in two optimizers, 'g' and 'd'",
        ),
        (
            lambda gan: {"g": sgd, "d": sgd},
            TypeError,
            r"say for which part .*\{\"g\": \(\"maker\", lambda params.*are maker, judge",
        ),
        (lambda gan: {"g": ("makr", sgd), "d": ("judge", sgd)}, ValueError, "'makr'.*'maker'"),
        (
            lambda gan: {"g": ("maker", 3), "d": ("judge", sgd)},
            TypeError,
            "got 3: .'maker', la",
        ),
        (
            lambda gan: {"g": torch.optim.LBFGS(gan.parameters())},
            TypeError,
            "LBFGS, which takes its steps with a closure",
        ),
    ],
)
def test_what_is_no_set_of_optimizers_is_refused_when_the_learner_is_made(
    make: Callable[[Gan], Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        learner(make)


def test_factories_get_the_parameters_of_their_parts() -> None:
    learn = learner(
        lambda gan: {
            "g": ("maker", lambda params: torch.optim.Adam(params, lr=0.01, betas=(0.5, 0.9))),
            "d": ("judge", lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)),
        }
    )
    GanRunner().fit(2, learn)
    assert same(learn.model, by_hand(2))
    assert isinstance(learn.opt["g"], torch.optim.Adam)


def test_the_only_one_of_a_mapping_gets_all_parameters_from_a_factory() -> None:
    learn, run = learner(lambda gan: {"d": sgd}), Wrong()
    run.name = "d"
    run.fit(1, learn)
    assert len(learn.opt["d"].param_groups[0]["params"]) == 8


def test_a_factory_that_makes_no_optimizer_is_named() -> None:
    learn = learner(lambda gan: {"g": ("maker", lambda params: 3), "d": ("judge", sgd)})
    with pytest.raises(TypeError, match=r"opt\['g'\] of the Learner .* and returned 3"):
        GanRunner().fit(1, learn)


def test_the_text_of_a_learner_names_its_optimizers() -> None:
    assert repr(learner()) == "<Learner: Gan with 'g': Adam, 'd': SGD>"


# Callbacks that are for one of them


def test_each_has_a_scheduler_of_its_own() -> None:
    schedulers: dict[str, Any] = {}

    def made(opts: dict[str, Any]) -> None:
        schedulers["g"] = ExponentialLR(opts["g"], 0.9)
        schedulers["d"] = OneCycleLR(opts["d"], 0.2, total_steps=12)

    def step(name: str, count: int) -> None:
        if name == "g" or count < 11:
            schedulers[name].step()

    learn = learner()
    run = GanRunner(
        [
            LRScheduler(lambda opt: ExponentialLR(opt, 0.9), optimizer="g"),
            OneCycle(0.2, optimizer="d"),
        ]
    )
    run.fit(3, learn)
    assert same(learn.model, by_hand(3, step, made=made))
    assert run.lr_scheduler_g.scheduler.last_epoch == 12
    assert run.one_cycle_d.scheduler.optimizer is learn.opt["d"]


def test_a_scheduler_by_epochs_and_a_plateau_move_the_rates_of_their_own() -> None:
    learn = learner()
    run = GanRunner(
        [
            AvgStatsCallback(),
            LRScheduler(lambda opt: ExponentialLR(opt, 0.5), "epoch", optimizer="g"),
            ReduceLROnPlateau("train_loss", patience=0, threshold=1e9, optimizer="d"),
        ]
    )
    run.fit(2, learn)
    assert rates(learn) == pytest.approx({"g": 0.0025, "d": 0.001})  # no loss is that good


def test_a_schedule_sets_the_field_of_its_own() -> None:
    learn = learner()
    run = GanRunner(
        [
            ParamScheduler("lr", sched_lin(0.1, 0.5), optimizer="d"),
            ParamScheduler("momentum", sched_lin(0.5, 0.5), optimizer="g"),
        ]
    )
    run.fit(1, learn)
    assert rates(learn) == pytest.approx({"g": 0.01, "d": 0.4})
    assert learn.opt["g"].param_groups[0]["betas"] == (0.5, 0.9)
    assert run.param_scheduler_lr_d.optimizer == "d"


def test_each_is_clipped_by_itself() -> None:
    learn = learner()
    run = GanRunner([GradientClip(0.01, optimizer="d"), GradientClip(value=0.001, optimizer="g")])
    run.fit(2, learn)

    def clip(name: str, opt: Any) -> None:
        params = opt.param_groups[0]["params"]
        if name == "d":
            clip_grad_norm_(params, 0.01)
        else:
            nn.utils.clip_grad_value_(params, 0.001)

    assert same(learn.model, by_hand(2, before=clip))
    both = learner()
    GanRunner(GradientClip(0.01)).fit(2, both)
    norm = lambda name, opt: clip_grad_norm_(opt.param_groups[0]["params"], 0.01)  # noqa: E731
    assert same(both.model, by_hand(2, before=norm))


def fp16_by_hand(epochs: int, scaler: GradScaler) -> Gan:
    gan = Gan()
    opts = optimizers(gan)
    for _ in range(epochs):
        for x, _y in data().train_dl:
            for name, loss_of in (("d", loss_of_judge), ("g", loss_of_maker)):
                with torch.autocast("cpu", torch.float16):
                    loss = loss_of(gan, x)
                opts[name].zero_grad()
                scaler.scale(loss).backward()
                scaler.step(opts[name])
            scaler.update()
    return gan


@pytest.mark.parametrize("scale", [1024.0, 2.0**24])
def test_float16_judges_the_gradients_of_each_and_adapts_the_scale_once(scale: float) -> None:
    learn, own = learner(), GradScaler("cpu", init_scale=scale, growth_interval=5)
    result = GanRunner(MixedPrecision("fp16", own)).fit(4, learn)
    theirs = GradScaler("cpu", init_scale=scale, growth_interval=5)
    assert same(learn.model, fp16_by_hand(4, theirs))
    assert own.state_dict() == theirs.state_dict()
    overflows = sum(each.reason == "overflow" for each in result.cancellations)
    assert result.steps == 32 - overflows
    assert (overflows > 0) == (scale > 1024)


def test_gradients_are_measured_for_the_one_that_steps() -> None:
    learn, stats = learner(), GradStats(every=2, history=True)
    run = GanRunner(stats)
    run.fit(1, learn)
    rows = stats.to_dicts()
    assert [row["optimizer"] for row in rows] == ["d", "g", "d", "g"]
    assert all(name.startswith("judge") for name in stats._read()[0]["names"])
    assert all(name.startswith("maker") for name in stats._read()[1]["names"])
    norms = [row["norm"] for row in rows if row["optimizer"] == "g"]
    assert run.history[-1]["grad_norm_g"] == pytest.approx(sum(norms) / 2)
    assert "grad_norm" not in run.history[-1]


def test_readings_bear_the_names() -> None:
    learn, recorder, history = learner(), Recorder(["lr", "d.momentum"]), History(batches=True)
    run = GanRunner([recorder, history, ParamScheduler("lr", sched_lin(1.0, 0.0), optimizer="d")])
    run.fit(1, learn)
    assert recorder.fields == ("g.lr", "d.lr", "d.momentum")
    assert recorder.lrs == [0.01] * 4
    assert recorder.values("d.lr") == pytest.approx([1.0, 0.75, 0.5, 0.25])
    rows = history.to_dicts("batches")
    assert [row["lr_d"] for row in rows] == recorder.values("d.lr")
    assert rows[0]["lr_g"] == 0.01
    with pytest.raises(ValueError, match=r"Adam and SGD has no field 'g\.momentum'"):
        GanRunner(Recorder("g.momentum")).fit(1, learn)


def test_an_average_follows_the_steps_of_the_one_that_is_named() -> None:
    learn, ema = learner(), EMA(0.5, optimizer="g")
    GanRunner(ema).fit(1, learn)
    assert ema.updates == 4


def test_the_range_test_tries_the_rates_of_one_and_leaves_no_trace() -> None:
    learn, finder = learner(), LRFinder(0.1, 0.4, steps=3, optimizer="d")
    GanRunner().fit(1, learn)
    before = copy.deepcopy([learn.model.state_dict(), [o.state_dict() for o in learn.opt.values()]])
    GanRunner(finder).fit(1, learn)
    assert finder.lrs == pytest.approx([0.1, 0.2, 0.4])
    after = [learn.model.state_dict(), [o.state_dict() for o in learn.opt.values()]]
    assert str(before) == str(after)


def test_a_limit_counts_the_steps_of_all() -> None:
    learn = learner()
    assert GanRunner(MaxSteps(3)).fit(1, learn).steps == 3


def test_others_need_no_name() -> None:
    learn = learner()
    GanRunner([TerminateOnNaN(1), Freeze("maker.0", None), SWA(0, update_bn=False)]).fit(2, learn)
    assert same(learn.model.maker[0], Gan().maker[0])
    assert not same(learn.model.maker[2], Gan().maker[2])


@pytest.mark.parametrize(
    ("callback", "kind", "text"),
    [
        (lambda: GradientAccumulation(2), TypeError, "'g' and 'd': it weights run.loss"),
        (lambda: SWA(0, lr=0.1), TypeError, "one rate to move to. Leave lr out"),
        (
            lambda: OneCycle(0.1),
            TypeError,
            r"is for one .*OneCycle\(\.\.\., optimizer='g'",
        ),
        (lambda: LRScheduler(lambda opt: ExponentialLR(opt, 0.9)), TypeError, "say which"),
        (lambda: ReduceLROnPlateau(), TypeError, "say which"),
        (lambda: ParamScheduler("lr", sched_lin(0, 1)), TypeError, "say which"),
        (lambda: EMA(), TypeError, "say which"),
        (lambda: LRFinder(steps=2), TypeError, "say which"),
        (lambda: EMA(optimizer="gg"), ValueError, r"EMA\(optimizer='gg'\).*Did you mean 'g'\?"),
        (lambda: GradientClip(1.0, optimizer="x"), ValueError, "no optimizer 'x'"),
        (
            lambda: [OneCycle(0.1, optimizer="g"), MaxSteps(4)],
            ValueError,
            r"ends after 4 steps of all of them\. Pass OneCycle\(\.\.\., total_steps=\)",
        ),
    ],
)
def test_a_callback_that_cannot_know_which_one_says_so_when_the_fit_begins(
    callback: Callable[[], Any], kind: type[Exception], text: str
) -> None:
    learn = learner()
    with pytest.raises(kind, match=text):
        GanRunner(callback()).fit(1, learn)
    assert same(learn.model, Gan())


def test_a_name_where_there_is_one_without_is_refused() -> None:
    learn = learner(lambda gan: sgd(gan.parameters()))
    with pytest.raises(ValueError, match="the Learner has one, SGD, without a name"):
        Runner(OneCycle(0.1, optimizer="g")).fit(1, learn)


def test_the_name_of_an_optimizer_is_a_text() -> None:
    for make in (lambda name: GradientClip(1.0, optimizer=name), lambda name: EMA(optimizer=name)):
        with pytest.raises(TypeError, match="optimizer must be the name of one"):
            make(0)


class AtOnce(Runner):
    """One loss for both, whose gradients are no numbers in one of the two."""

    def one_batch(self) -> None:
        self.emit.after_pred()
        self.loss = judged(self.model, self.model.maker(self.xb), 1.0)
        self.emit.after_loss()
        if not self.in_train:
            return
        self.loss.backward()
        self.model.judge[0].weight.grad[0, 0] = torch.inf
        self.emit.after_backward()
        self.optimizer_step("d")
        self.optimizer_step("g")


def test_an_overflow_in_one_leaves_the_gradients_of_the_other() -> None:
    learn = learner(batches=1)
    result = AtOnce(MixedPrecision("fp16", GradScaler("cpu", init_scale=4.0))).fit(1, learn)
    assert result.steps == 1
    assert same(learn.model.judge, Gan().judge)
    assert not same(learn.model.maker, Gan().maker)


# Checkpoints


def callbacks(folder: Path, precision: str | None) -> list[Any]:
    scaler = GradScaler("cpu", init_scale=2.0**20, growth_interval=5)
    return [
        Checkpoint(folder, every_steps=1, keep_last=99),
        LRScheduler(lambda opt: ExponentialLR(opt, 0.9), optimizer="g"),
        OneCycle(0.2, optimizer="d"),
        EMA(0.5, optimizer="g"),
        GradStats(),
        Recorder(),
        GradientClip(0.1, optimizer="d"),
        *([] if precision is None else [MixedPrecision(precision, scaler)]),
    ]


@pytest.mark.parametrize("precision", [None, "fp16"])
@pytest.mark.parametrize(
    ("event", "at", "stepping"),
    [("after_batch", 2, None), ("begin_step", 3, "g"), ("begin_step", 3, "d"),
     ("after_step", 3, "d"), ("after_loss", 3, None), ("after_epoch", 1, None)],
)  # fmt: skip
def test_a_fit_goes_on_bit_for_bit_wherever_it_was_ended(
    event: str, at: int, stepping: str | None, precision: str | None, tmp_path: Path
) -> None:
    whole, ended, resumed = learner(), learner(), learner()
    GanRunner(callbacks(tmp_path / "whole", precision)).fit(2, whole)
    run, calls = GanRunner(callbacks(tmp_path / "cut", precision)), []

    def stop(run: Any) -> None:
        calls.append(1)
        if len(calls) == at:
            run.token.cancel("fit", "enough")

    is_meant = (lambda run: True) if stepping is None else (lambda run: run.stepping == stepping)
    run.on(event, stop, when=is_meant, during="train" if event != "after_epoch" else None)
    assert run.fit(2, ended).outcome == "cancelled"
    assert not same(ended.model, whole.model)
    again = GanRunner(callbacks(tmp_path / "cut", precision))
    again.fit(2, resumed, resume="auto")
    assert same(resumed.model, whole.model)
    assert rates(resumed) == rates(whole)


class Waiting(GanRunner):
    """Steps the judge in every other batch, and has its gradients wait in between."""

    def one_batch(self) -> None:
        self.emit.after_pred()
        self.loss = loss_of_judge(self.model, self.xb)
        self.emit.after_loss()
        if not self.in_train:
            return
        self.loss.backward()
        self.emit.after_backward()
        if self.n_iter % 2:
            self.optimizer_step("d")
        loss = loss_of_maker(self.model, self.xb)
        maker = list(self.model.maker.parameters())
        for p, grad in zip(maker, torch.autograd.grad(loss, maker), strict=True):
            p.grad = grad
        self.optimizer_step("g")


def test_gradients_that_wait_for_the_other_are_kept_when_a_batch_is_cut(tmp_path: Path) -> None:
    whole, ended, resumed = learner(), learner(), learner()
    Waiting().fit(2, whole)
    run = Waiting(Checkpoint(tmp_path))
    run.on("after_loss", lambda run: (run.n_iter == 1 and run.token.cancel("fit")) or None)
    run.fit(2, ended)
    assert ended.model.judge[0].weight.grad is not None
    found = load_checkpoint(run.checkpoint.last)
    assert found["position"] == {"epoch": 0, "phase": "train", "batch": 1}
    Waiting(Checkpoint(tmp_path)).fit(2, resumed, resume="auto")
    assert same(resumed.model, whole.model)


def test_a_checkpoint_has_the_state_of_each_by_its_name(tmp_path: Path) -> None:
    learn, run = learner(), GanRunner(Checkpoint(tmp_path))
    run.fit(1, learn)
    found = load_checkpoint(run.checkpoint.last)
    assert found["opt_class"] == {"g": "Adam", "d": "SGD"}
    other = learner()
    other.opt["d"].load_state_dict(found["opt"]["d"])
    buffer = learn.opt["d"].state[learn.model.judge[0].weight]["momentum_buffer"]
    assert torch.equal(other.opt["d"].state[other.model.judge[0].weight]["momentum_buffer"], buffer)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda gan: {"g": optimizers(gan)["g"], "judge": optimizers(gan)["d"]},
            "it has 'g', 'd', and this run has 'g', 'judge'",
        ),
        (
            lambda gan: {"g": optimizers(gan)["g"]},
            "it has 'g', 'd', and this run has 'g'",
        ),
        (
            lambda gan: torch.optim.SGD(gan.parameters()),
            "it has 'g', 'd', and this run has one without a name",
        ),
        (
            lambda gan: {"g": optimizers(gan)["g"], "d": torch.optim.Adam(gan.judge.parameters())},
            r"\(optimizer 'd'\) is of another optimizer: SGD, and this run has Adam",
        ),
        (
            lambda gan: {
                "g": torch.optim.Adam(gan.judge.parameters()),
                "d": torch.optim.SGD(gan.maker.parameters(), lr=0.1),
            },
            r"\(optimizer 'g'\).* group 0 of Adam has 'maker.0.bias'.*'judge.0.bias'",
        ),
    ],
)
def test_a_checkpoint_of_other_optimizers_is_refused_before_anything_changes(
    make: Callable[[Gan], Any], text: str, tmp_path: Path
) -> None:
    GanRunner(Checkpoint(tmp_path)).fit(1, learner())
    learn, run = learner(make), GanRunner(Checkpoint(tmp_path))
    run.on("begin_fit", lambda run: pytest.fail("it has begun"))
    with pytest.raises(CheckpointError, match=text):
        run.fit(2, learn, resume="auto")
    assert same(learn.model, Gan())


def test_a_checkpoint_of_one_is_refused_by_several(tmp_path: Path) -> None:
    alone = learner(lambda gan: sgd(gan.parameters()))

    class One(Runner):
        def one_batch(self) -> None:
            if self.in_train:
                loss_of_judge(self.model, self.xb).backward()
                self.optimizer_step()

    One(Checkpoint(tmp_path)).fit(1, alone)
    with pytest.raises(CheckpointError, match="has one without a name, and this run has 'g', 'd'"):
        GanRunner(Checkpoint(tmp_path)).fit(2, learner(), resume="auto")


def test_the_order_of_the_mapping_does_not_matter_to_a_checkpoint(tmp_path: Path) -> None:
    whole, resumed = learner(), learner(lambda gan: dict(reversed(optimizers(gan).items())))
    GanRunner().fit(2, whole)
    GanRunner(Checkpoint(tmp_path)).fit(1, learner())
    GanRunner(Checkpoint(tmp_path)).fit(2, resumed, resume="auto")
    assert same(resumed.model, whole.model)


def test_a_handler_that_changes_the_learner_leaves_it_known_which_one_steps() -> None:
    learn, run, seen = learner(), GanRunner(GradientClip(0.01, optimizer="d")), []

    def change(run: Any) -> None:
        run.learn.loss_func = run.loss_func

    run.on("begin_step", change)
    run.on("after_step", lambda run: seen.append(run.stepping))
    run.fit(1, learn)
    assert seen == ["d", "g"] * 4


def test_another_run_within_a_step_leaves_it_known_which_one_steps() -> None:
    learn, run, seen = learner(), GanRunner(), []

    def look(run: Any) -> None:
        GanRunner().validate(learn)

    run.on("begin_step", look)
    run.on("after_step", lambda run: seen.append(run.stepping))
    run.fit(1, learn)
    assert seen == ["d", "g"] * 4
    assert "steppers" not in vars(learn)


def test_a_fit_by_steps_counts_those_of_all_and_ends_with_the_batch() -> None:
    learn = learner()
    assert GanRunner(AvgStatsCallback()).fit(steps=6, learn=learn).steps == 6
    assert GanRunner().fit(steps=3, learn=learn, validate_every=2).steps == 4


@pytest.mark.parametrize("every", [1, 2])
def test_measures_of_a_row_bear_the_names(every: int) -> None:
    run = GanRunner(GradStats(every, history=True))
    result = run.fit(1, learner(), validate_every=4)
    assert [set(row) >= {"grad_norm_g", "grad_norm_d"} for row in result.history] == [True, True]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["opt"].pop("g"),
        lambda content: content["parameters"].pop("d"),
        lambda content: content.update(parameters=[]),
        lambda content: content["opt_class"].update(g=3),
        lambda content: content["opt"].update(g=[1]),
        lambda content: content["opt"]["g"].update(param_groups=[{}]),
        lambda content: content["parameters"].update(d=[[{"name": "judge.0.weight"}]]),
        lambda content: content["parameters"].update(d=[]),
    ],
)
def test_a_damaged_checkpoint_of_several_is_refused_before_anything_changes(
    change: Callable[[Any], object], tmp_path: Path
) -> None:
    run = GanRunner(Checkpoint(tmp_path))
    run.fit(1, learner())
    content = load_checkpoint(run.checkpoint.last)
    change(content)
    write_checkpoint(list_checkpoints(tmp_path)[-1], content)
    learn, again = learner(), GanRunner(Checkpoint(tmp_path))
    again.on("begin_fit", lambda run: pytest.fail("it has begun"))
    with pytest.raises(CheckpointError):
        again.fit(2, learn, resume="auto")
    assert same(learn.model, Gan())
