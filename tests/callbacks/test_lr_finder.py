"""The range test: what it tries, what it says, and that it leaves no trace."""

from __future__ import annotations

import copy
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rates import WithoutRate
from torch import Tensor, nn

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import LRFinder, ParamScheduler, sched_none

Make = Callable[..., Learner]


class WithBuffers(nn.Module):
    """Layers with buffers of every kind, one of which is replaced in every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.register_buffer("unsaved", torch.zeros(8), persistent=False)
        self.register_buffer("replaced", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        self.unsaved += x.detach().mean(0)
        self.replaced = self.replaced + x.detach().mean(0)
        out: Tensor = self.head(x)
        return out


def learner_with_state(optimizer: str = "AdamW", fits: int = 1) -> Learner:
    """A learner in the middle of its life: the optimizer and the buffers hold something."""
    torch.manual_seed(0)
    random.seed(0)
    x, y = torch.randn(24, 5), torch.randint(0, 3, (24,))
    generator = torch.Generator().manual_seed(3)
    train = TensorLoader(x[:16], y[:16], bs=4, shuffle=True, generator=generator)
    data = DataBunch(train, TensorLoader(x[16:], y[16:], bs=4))
    model = WithBuffers()
    options: dict[str, Any] = {"momentum": 0.9} if optimizer == "SGD" else {}
    opt = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01, **options)
    learner = Learner(model, opt, nn.functional.cross_entropy, data)
    for _ in range(fits):
        Runner().fit(1, learner)
    return learner


def everything(learner: Learner) -> dict[str, Any]:
    """A copy of all that a fit might change."""
    model, opt = learner.model, learner.opt
    return copy.deepcopy(
        {
            "parameters": [p.detach() for p in model.parameters()],
            "buffers": dict(model.named_buffers()),
            "gradients": [p.grad for p in model.parameters()],
            "state": [opt.state[p] for p in model.parameters() if p in opt.state],
            "groups": [{k: v for k, v in g.items() if k != "params"} for g in opt.param_groups],
            "random": [torch.get_rng_state(), torch.tensor(random.getstate()[1])],
            "loader": learner.data.train_dl.generator.get_state(),
        }
    )


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def scripted(learner: Learner, losses: list[float]) -> Learner:
    """Make the loss of the n-th training batch what the list says, with gradients of 0."""
    left = iter(losses)
    learner.loss_func = lambda pred, yb: pred.mean() * 0 + next(left)
    return learner


# What it tries


def test_the_rate_rises_by_equal_factors_from_the_first_to_the_last(learner: Learner) -> None:
    finder = LRFinder(1e-4, 1.0, steps=5, stop_factor=math.inf)
    run = Runner(cbs=finder)
    seen: list[float] = []
    run.on("begin_step", lambda run: seen.append(run.opt.param_groups[0]["lr"]))
    run.fit(2, learner)
    assert finder.lrs == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert seen == finder.lrs[:4]  # the last loss is the end of it


def test_losses_are_those_of_a_loop_that_raises_the_rate_itself(make_learner: Make) -> None:
    learner, by_hand = make_learner(10), make_learner(10)
    finder = LRFinder(1e-3, 1.0, steps=10, stop_factor=math.inf, check_every=3)
    Runner(cbs=finder).fit(1, learner)
    expected = []
    for i, (xb, yb) in enumerate(by_hand.data.train_dl):
        by_hand.opt.param_groups[0]["lr"] = 1e-3 * 1000 ** (i / 9)
        loss = by_hand.loss_func(by_hand.model(xb), yb)
        expected.append(loss.item())
        loss.backward()
        by_hand.opt.step()
        by_hand.opt.zero_grad()
    assert finder.losses == pytest.approx(expected, rel=1e-6)


def test_another_schedule_does_not_have_its_way(learner: Learner) -> None:
    run = Runner(cbs=[LRFinder(1e-4, 1e-2, steps=3), ParamScheduler("lr", sched_none(7.0))])
    seen: list[float] = []
    run.on("begin_step", lambda run: seen.append(run.opt.param_groups[0]["lr"]))
    run.fit(1, learner)
    assert seen == pytest.approx([1e-4, 1e-3])


def test_the_fit_ends_through_the_token_when_all_steps_are_done(make_learner: Make) -> None:
    result = Runner(cbs=LRFinder(steps=4, stop_factor=math.inf)).fit(9, make_learner())
    assert (result.outcome, result.reason) == ("cancelled", "the range test is complete")


@pytest.mark.parametrize("epochs", [1, 3])
def test_it_never_validates(epochs: int, make_learner: Make) -> None:
    run = Runner(cbs=LRFinder(steps=3 * epochs, stop_factor=math.inf))
    phases: list[str | None] = []
    run.on("after_pred", lambda run: phases.append(run.phase))
    run.fit(epochs, make_learner())
    assert set(phases) == {"train"}
    assert len(phases) == 3 * epochs


def test_all_groups_get_the_rate(learner: Learner) -> None:
    groups = [{"params": [p], "lr": lr} for p, lr in zip(learner.model.parameters(), (1.0, 2.0))]  # noqa: B905
    learner.opt = torch.optim.SGD(groups)
    run = Runner(cbs=LRFinder(0.1, 1.0, steps=2))
    seen: list[list[float]] = []
    run.on("begin_step", lambda run: seen.append([g["lr"] for g in run.opt.param_groups]))
    run.fit(1, learner)
    assert seen == [[0.1, 0.1]]
    assert [group["lr"] for group in learner.opt.param_groups] == [1.0, 2.0]


# When it stops


@pytest.mark.parametrize("check_every", [1, 2, 7, 100])
def test_the_record_ends_where_the_loss_blew_up_whenever_it_was_looked_at(
    check_every: int, make_learner: Make
) -> None:
    losses = [2.0, 1.0, 3.9, 4.1, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    finder = LRFinder(steps=10, smooth=0.0, stop_factor=4, check_every=check_every)
    Runner(cbs=finder).fit(1, scripted(make_learner(10), losses))
    assert finder.losses == pytest.approx([2.0, 1.0, 3.9, 4.1])
    assert len(finder.lrs) == len(finder.smoothed) == 4


def test_the_fit_is_cancelled_at_the_next_look(make_learner: Make) -> None:
    losses = [1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    finder = LRFinder(steps=8, smooth=0.0, check_every=4)
    result = Runner(cbs=finder).fit(1, scripted(make_learner(8), losses))
    assert result.steps == 3
    assert "blown up" in str(result.reason)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_blown_up(value: float, make_learner: Make) -> None:
    finder = LRFinder(steps=6, check_every=1)
    Runner(cbs=finder).fit(1, scripted(make_learner(6), [3.0, 2.0, 1.5, value, 1.0, 1.0]))
    assert len(finder.losses) == 4
    assert finder.suggestion is not None


def test_negative_losses_have_their_own_way_to_blow_up(make_learner: Make) -> None:
    finder = LRFinder(steps=6, smooth=0.0, check_every=1)
    losses = [0.0, -1.0, -2.0, 3.9, 4.1, 0.0]
    Runner(cbs=finder).fit(1, scripted(make_learner(6), losses))
    assert finder.losses == pytest.approx(losses[:5])


def test_a_loss_changed_in_place_later_is_kept_as_it_was(make_learner: Make) -> None:
    finder = LRFinder(steps=3, check_every=3)
    run = Runner(cbs=finder)
    run.on("after_loss", lambda run: run.loss.detach().mul_(100), priority=-10)
    run.fit(1, scripted(make_learner(3), [3.0, 2.0, 1.0]))
    assert finder.losses == pytest.approx([3.0, 2.0, 1.0])


def test_nothing_is_read_from_the_device_between_two_looks(
    make_learner: Make, no_sync: Any
) -> None:
    run = Runner(cbs=LRFinder(steps=9, check_every=10))
    # Copying and comparing at both ends is once a fit.
    run.on("begin_train", lambda run: no_sync.__enter__(), once=True)
    run.on(
        "after_train", lambda run: no_sync.__exit__(), priority=2000, when=lambda r: r.epoch == 2
    )
    assert run.fit(3, make_learner()).reason == "the range test is complete"


def test_a_fit_too_short_for_the_test_is_refused(learner: Learner) -> None:
    with pytest.raises(ValueError, match="call fit with 34 epochs"):
        Runner(cbs=LRFinder()).fit(1, learner)


def test_a_loader_of_unknown_length_serves_as_well(learner: Learner) -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter(TensorLoader(torch.randn(12, 5), torch.zeros(12).long(), bs=4))

    learner.data = DataBunch(Stream(), None)
    finder = LRFinder(steps=5, stop_factor=math.inf)
    Runner(cbs=finder).fit(2, learner)
    assert len(finder.losses) == 5


def test_a_loader_that_ends_before_the_test_is_warned_of(learner: Learner) -> None:
    batches = list(learner.data.train_dl)
    learner.data = DataBunch(type("Stream", (), {"__iter__": lambda self: iter(batches)})(), None)
    before = copy.deepcopy(learner.model.state_dict())
    finder = LRFinder(steps=8, stop_factor=math.inf)
    with pytest.warns(RuntimeWarning, match="ended after 6 of 8 batches, before max_lr"):
        Runner(cbs=finder).fit(2, learner)
    assert len(finder.losses) == 6
    assert all(torch.equal(t, before[name]) for name, t in learner.model.state_dict().items())


def test_a_loss_that_blew_up_in_the_last_batch_needs_no_warning(learner: Learner) -> None:
    batches = list(learner.data.train_dl)
    learner.data = DataBunch(type("Stream", (), {"__iter__": lambda self: iter(batches)})(), None)
    losses = iter([1.0, 1.0, 100.0])
    learner.loss_func = lambda pred, yb: pred.sum() * 0 + next(losses)
    finder = LRFinder(steps=8, smooth=0)
    assert Runner(cbs=finder).fit(1, learner).outcome == "completed"
    assert finder.losses == [1.0, 1.0, 100.0]


def test_cancelled_batches_are_tried_again(make_learner: Make) -> None:
    finder = LRFinder(1e-3, 1.0, steps=4, stop_factor=math.inf)
    run = Runner(cbs=finder)
    run.on("after_pred", lambda run: run.token.cancel("batch"), when=lambda r: r.batch_index == 1)
    run.fit(2, make_learner())
    assert len(finder.losses) == 4
    assert finder.lrs == pytest.approx([1e-3, 1e-2, 1e-1, 1.0])


# No trace


def test_gradients_of_what_the_optimizer_does_not_step_come_back(learner: Learner) -> None:
    learner.opt = torch.optim.SGD([learner.model.weight], lr=0.1)
    learner.model.bias.grad = torch.ones(3)
    Runner(cbs=LRFinder(steps=2)).fit(1, learner)
    assert torch.equal(learner.model.bias.grad, torch.ones(3))
    assert learner.model.weight.grad is None


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop"])
@pytest.mark.parametrize("fits", [0, 1])
def test_nothing_has_changed_afterwards(optimizer: str, fits: int) -> None:
    learner = learner_with_state(optimizer, fits)
    tensors = [*learner.model.parameters(), *learner.model.buffers()]
    before = everything(learner)
    Runner(cbs=LRFinder(steps=12)).fit(3, learner)
    assert_same(everything(learner), before)
    for old, new in zip(tensors, [*learner.model.parameters(), *learner.model.buffers()]):  # noqa: B905
        assert old is new


def test_the_fit_that_follows_is_the_one_that_there_would_have_been() -> None:
    tested, plain = learner_with_state(), learner_with_state()
    torch.manual_seed(1)
    Runner(cbs=LRFinder(steps=12)).fit(3, tested)
    Runner().fit(2, tested)
    torch.manual_seed(1)
    Runner().fit(2, plain)
    assert_same(everything(tested), everything(plain))


@pytest.mark.parametrize("how", ["cancel", "raise", "raise in begin_fit"])
def test_nothing_has_changed_after_a_test_that_did_not_end_well(how: str) -> None:
    learner = learner_with_state()
    learner.opt.param_groups[0]["own"] = [1, 2]
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = everything(learner)
    run = Runner(cbs=LRFinder(steps=12))

    def spoil(run: Runner) -> None:
        if how == "cancel":
            run.token.cancel("fit", "enough")
            return
        learner.opt.param_groups[0]["stranger"] = 1
        raise ArithmeticError

    event, count = ("begin_fit", 0) if how == "raise in begin_fit" else ("after_backward", 5)
    run.on(event, spoil, when=lambda run: run.n_iter == count)
    if how == "cancel":
        run.fit(3, learner)
    else:
        with pytest.raises(ArithmeticError):
            run.fit(3, learner)
    assert_same(everything(learner), before)


def test_a_rate_that_is_a_tensor_is_still_that_tensor(learner: Learner) -> None:
    rate = torch.tensor(0.1)
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=rate, foreach=False)
    Runner(cbs=LRFinder(steps=3)).fit(1, learner)
    assert learner.opt.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.1)


def test_a_tensor_that_somebody_replaces_by_a_number_comes_back(learner: Learner) -> None:
    rate = torch.tensor(0.1)
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=rate, foreach=False)
    run = Runner(cbs=LRFinder(steps=3))
    run.on("after_step", lambda run: run.opt.param_groups[0].update(lr=0.5))
    run.fit(1, learner)
    assert learner.opt.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.1)


class Centred(nn.Module):
    """Fills a buffer in its first forward pass, and registers another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.register_buffer("center", None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        if self.center is None:
            self.center = out.detach().mean(0)
            self.register_buffer("seen", torch.ones(()))
        return out - self.center


def test_every_module_is_in_the_mode_that_it_was_in() -> None:
    learner = learner_with_state()
    learner.model.eval()
    learner.model.head.train()
    before = [module.training for module in learner.model.modules()]
    Runner(cbs=LRFinder(steps=4)).fit(1, learner)
    assert [module.training for module in learner.model.modules()] == before


def test_an_optimizer_without_a_rate_is_told_before_training(learner: Learner) -> None:
    learner.opt = WithoutRate(learner.model.parameters())
    result: list[int] = []
    run = Runner(cbs=LRFinder(steps=3))
    run.on("begin_batch", lambda run: result.append(run.n_iter))
    with pytest.raises(ValueError, match=r"^LRFinder sets 'lr', but group 0 .*there are: pace"):
        run.fit(1, learner)
    assert result == []


def test_buffers_that_were_not_there_yet_are_gone_again(make_learner: Make) -> None:
    learner = make_learner()
    learner.model = Centred()
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    Runner(LRFinder(steps=3, max_lr=0.1)).fit(1, learner)
    assert learner.model._buffers == {"center": None}


def test_parameters_outside_of_the_model_are_put_back_too(learner: Learner) -> None:
    scale = nn.Parameter(torch.ones(3))
    learner.opt.add_param_group({"params": [scale]})
    cross_entropy = nn.functional.cross_entropy
    learner.loss_func = lambda pred, yb: cross_entropy(pred * scale, yb)
    Runner(cbs=LRFinder(0.1, 1.0, steps=3)).fit(1, learner)
    assert torch.equal(scale.detach(), torch.ones(3))
    assert learner.opt.state == {}


def test_what_the_loss_function_holds_is_put_back_too(learner: Learner) -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.zeros(3))

        def forward(self, pred: Tensor, yb: Tensor) -> Tensor:
            self.centre += pred.detach().mean(0)
            return nn.functional.cross_entropy(pred - self.centre, yb)

    learner.loss_func = Centred()
    Runner(cbs=LRFinder(steps=3)).fit(1, learner)
    assert torch.equal(learner.loss_func.centre, torch.zeros(3))


def test_a_group_that_joins_meanwhile_is_gone_again(learner: Learner) -> None:
    scale = nn.Parameter(torch.ones(3))
    run = Runner(cbs=LRFinder(steps=3))
    group = {"params": [scale]}
    run.on("begin_batch", lambda run: run.opt.add_param_group(group), once=True)
    run.fit(1, learner)
    assert len(learner.opt.param_groups) == 1


def test_a_lazy_model_is_told_to_see_a_batch_first(learner: Learner) -> None:
    learner.model = nn.LazyLinear(3)
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="run a batch"):
        Runner(cbs=LRFinder(steps=3)).fit(1, learner)


def test_validation_and_prediction_are_left_alone(learner: Learner) -> None:
    run = Runner(cbs=[AvgStatsCallback(report=None), LRFinder(steps=3)])
    assert "valid_loss" in run.validate(learner).history[0]
    assert len(run.predict(learner, learner.data.valid_dl)) == 8


def test_a_fit_of_no_epochs_tries_nothing(learner: Learner) -> None:
    finder = LRFinder()
    Runner(cbs=finder).fit(0, learner)
    assert (finder.lrs, finder.losses, finder.suggestion) == ([], [], None)


def test_a_second_test_starts_clean(learner: Learner) -> None:
    finder = LRFinder(steps=3)
    run = Runner(cbs=finder)
    run.fit(1, learner)
    first = finder.lrs, finder.losses
    run.fit(1, learner)
    assert (finder.lrs, finder.losses) == first


# What it says


def test_the_smoothed_loss_is_a_corrected_exponential_average(make_learner: Make) -> None:
    losses = [4.0, 2.0, 3.0, 1.0]
    finder = LRFinder(steps=4, smooth=0.5)
    Runner(cbs=finder).fit(1, scripted(make_learner(4), losses))
    weights = [[0.5 ** (n - i) for i in range(n + 1)] for n in range(4)]
    expected = [sum(w * v for w, v in zip(ws, losses)) / sum(ws) for ws in weights]  # noqa: B905
    assert finder.smoothed == pytest.approx(expected)


def test_suggestions_are_the_steepest_descent_and_a_tenth_of_the_minimums_rate(
    make_learner: Make,
) -> None:
    losses = [5.0, 4.9, 4.5, 3.0, 1.5, 1.2, 1.1, 2.0]
    finder = LRFinder(1e-7, 1.0, steps=8, smooth=0.0)
    Runner(cbs=finder).fit(1, scripted(make_learner(8), losses))
    assert finder.suggestion is not None
    assert finder.suggestion.steepest == pytest.approx(1e-4)  # between 4.5 and 1.5
    assert finder.suggestion.tenth_of_minimum == pytest.approx(1e-2)


def test_the_steepest_descent_may_be_the_last_one(make_learner: Make) -> None:
    finder = LRFinder(1e-4, 1.0, steps=5, smooth=0.0)
    Runner(cbs=finder).fit(1, scripted(make_learner(5), [3.0, 3.0, 3.0, 3.0, 1.0]))
    assert finder.suggestion is not None
    assert finder.suggestion.steepest == pytest.approx(1e-1)


def test_a_loss_that_only_rises_still_has_an_answer(make_learner: Make) -> None:
    finder = LRFinder(1e-3, 1.0, steps=4, smooth=0.0)
    Runner(cbs=finder).fit(1, scripted(make_learner(4), [1.0, 1.1, 1.2, 1.3]))
    assert finder.suggestion == pytest.approx((1e-3, 1e-4))


def test_two_good_batches_are_too_few_for_a_suggestion(make_learner: Make) -> None:
    finder = LRFinder(steps=3, smooth=0.0, check_every=1)
    Runner(cbs=finder).fit(1, scripted(make_learner(), [1.0, 1.0, 9.0]))
    assert finder.suggestion is None


# The drawing


def test_the_drawing_has_a_logarithmic_axis_and_the_suggestions(
    make_learner: Make, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra 'watch')")
    from matplotlib.figure import Figure

    finder = LRFinder(steps=8, smooth=0.0)
    losses = [5.0, 4.9, 4.5, 3.0, 1.5, 1.2, 1.1, 2.0]
    Runner(cbs=finder).fit(1, scripted(make_learner(8), losses))
    ax = Figure().subplots()
    assert finder.plot(ax) is ax
    assert ax.get_xscale() == "log"
    assert finder.suggestion is not None
    marked = [line.get_xdata()[0] for line in ax.lines[2:]]
    assert marked == list(finder.suggestion)
    (point,) = ax.collections
    steepest = finder.suggestion.steepest
    assert point.get_offsets().tolist() == [[steepest, finder.smoothed[finder.lrs.index(steepest)]]]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"use {steepest:.3g}: the loss falls fastest" in texts
    assert list(ax.lines[0].get_ydata()) == finder.losses
    finder.save_plot(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")


def test_without_axes_the_drawing_makes_its_own(learner: Learner) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="needs matplotlib (extra 'watch')")
    pyplot.switch_backend("agg")
    finder = LRFinder(steps=3)
    Runner(cbs=finder).fit(1, learner)
    ax = finder.plot()
    assert ax.get_xlabel() == "learning rate"
    pyplot.close(ax.figure)


def test_a_test_that_blew_up_at_once_can_be_drawn(make_learner: Make, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra 'watch')")
    finder = LRFinder(steps=3, check_every=1)
    Runner(cbs=finder).fit(1, scripted(make_learner(), [math.nan] * 3))
    finder.save_plot(tmp_path / "lr.png")
    assert finder.losses == pytest.approx([math.nan], nan_ok=True)


def test_before_a_test_there_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        LRFinder().plot()


def test_a_missing_matplotlib_is_told_with_the_extra(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder = LRFinder(steps=3)
    Runner(cbs=finder).fit(1, learner)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"eventtrain\[watch\]"):
        finder.save_plot(tmp_path / "lr.png")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"steps": 1}, ValueError),
        ({"steps": 10.0}, TypeError),
        ({"check_every": 0}, ValueError),
        ({"min_lr": 0.0}, ValueError),
        ({"min_lr": 1.0, "max_lr": 1.0}, ValueError),
        ({"max_lr": math.inf}, ValueError),
        ({"stop_factor": 1.0}, ValueError),
        ({"smooth": 1.0}, ValueError),
        ({"smooth": -0.1}, ValueError),
    ],
)
def test_bad_arguments_are_refused(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        LRFinder(**options)
