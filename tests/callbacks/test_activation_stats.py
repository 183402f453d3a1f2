"""Activations, against the same modules called by hand."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from eventtrain import DataBunch, Learner, Runner
from eventtrain.callbacks import ActivationStats

Make = Callable[..., Learner]


def with_relu(learner: Learner) -> Learner:
    torch.manual_seed(1)
    learner.model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    return learner


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def by_hand(learner: Learner, epochs: int) -> list[torch.Tensor]:
    """Train, and return the activations of the ReLU."""
    linear, relu, last = learner.model
    seen = []
    for _ in range(epochs):
        for xb, yb in learner.data.train_dl:
            seen.append(relu(linear(xb)))
            learner.loss_func(last(seen[-1]), yb).backward()
            learner.opt.step()
            learner.opt.zero_grad()
    return seen


def test_the_numbers_are_those_of_activations_computed_by_hand(make_learner: Make) -> None:
    stats = ActivationStats(near_zero=0.0)
    learner, other = with_relu(make_learner()), with_relu(make_learner())
    Runner(stats).fit(2, learner)
    expected = by_hand(other, 2)
    assert stats.names == ["0", "1", "2"]
    assert stats.steps == [0, 1, 2, 3, 4, 5]
    assert stats.values("1") == pytest.approx([a.mean().item() for a in expected])
    std = [a.var(correction=0).sqrt().item() for a in expected]
    assert stats.values("1", "std") == pytest.approx(std)
    zeros = [(a == 0).float().mean().item() for a in expected]
    assert stats.values("1", "zeros") == pytest.approx(zeros)
    assert torch.equal(learner.model[0].weight, other.model[0].weight)


def test_negative_values_are_near_zero_by_their_size(make_learner: Make) -> None:
    stats, learner, other = ActivationStats(["0"], near_zero=0.5), make_learner(), make_learner()
    Runner(stats).fit(1, with_relu(learner))
    linear = with_relu(other).model[0]
    values = linear(next(iter(other.data.train_dl))[0])
    expected = ((values >= -0.5) & (values <= 0.5)).float().mean().item()
    assert 0 < expected < (values <= 0.5).float().mean().item()
    assert stats.values("0", "zeros")[0] == pytest.approx(expected)


def test_half_precision_is_measured_in_float32(learner: Learner) -> None:
    model, stats = with_relu(learner).model.bfloat16(), ActivationStats(["0"])
    dl = [(xb.bfloat16(), yb) for xb, yb in learner.data.train_dl]
    values = model[0](dl[0][0]).double()
    Runner(stats).fit(1, Learner(model, learner.opt, learner.loss_func, DataBunch(dl)))
    assert stats.values("0")[0] == pytest.approx(values.mean().item(), rel=1e-4)
    assert stats.values("0", "std")[0] == pytest.approx(values.std(correction=0).item(), rel=1e-4)


def test_nothing_is_read_in_a_batch(learner: Learner, no_sync: Any) -> None:
    stats = ActivationStats(bins=8)
    run = Runner(stats)
    run.on("begin_train", lambda run: no_sync.__enter__())
    run.on("after_train", lambda run: no_sync.__exit__(), priority=2000)
    run.fit(1, with_relu(learner))
    assert len(stats.values("1")) == 3


def test_histograms_hold_every_value_the_outliers_at_the_ends(make_learner: Make) -> None:
    stats = ActivationStats(["1"], bins=4, limits=(0.0, 0.4))
    Runner(stats).fit(1, with_relu(make_learner()))
    counts = stats.histogram("1")
    assert counts.shape == (3, 4)
    values = by_hand(with_relu(make_learner()), 1)[0].flatten()
    edges = [-math.inf, 0.1, 0.2, 0.3, math.inf]
    expected = [((values >= a) & (values < b)).sum().item() for a, b in pairwise(edges)]
    assert counts[0].tolist() == expected
    assert values.max() > 0.4


@pytest.mark.parametrize(
    "choose",
    [
        lambda model: ["1"],
        lambda model: [model[1]],
        lambda model: model[1],
        lambda model: "1",
        lambda model: lambda name, module: isinstance(module, nn.ReLU),
    ],
    ids=["name", "module", "bare module", "bare name", "function"],
)
def test_modules_can_be_chosen(choose: Callable[..., Any], learner: Learner) -> None:
    learner = with_relu(learner)
    stats = ActivationStats(choose(learner.model))
    Runner(stats).fit(1, learner)
    assert stats.names == ["1"]


def test_a_module_with_children_can_be_chosen(learner: Learner) -> None:
    learner = with_relu(learner)
    stats = ActivationStats([learner.model])
    Runner(stats).fit(1, learner)
    assert stats.names == [""]


def test_a_module_that_is_not_there_is_told_and_leaves_no_hook(learner: Learner) -> None:
    learner = with_relu(learner)
    with pytest.raises(ValueError, match=r"'relu'.*0, 1, 2"):
        Runner(ActivationStats(["1", "relu"])).fit(1, learner)
    assert hooks(learner.model) == 0


def test_hooks_are_there_while_training_only(learner: Learner) -> None:
    learner, counts = with_relu(learner), []
    run = Runner(ActivationStats())
    for event in ("begin_fit", "after_pred", "after_train", "after_epoch"):
        run.on(event, lambda run: counts.append((run.phase, hooks(run.model))))
    run.fit(1, learner)
    assert counts == [
        (None, 0),
        *[("train", 3)] * 3,
        ("train", 0),
        *[("validate", 0)] * 2,
        ("validate", 0),
    ]


@pytest.mark.parametrize("event", ["begin_batch", "after_pred", "after_backward"])
@pytest.mark.parametrize("scope", ["batch", "train", "epoch", "fit"])
def test_no_hook_is_left_after_a_cancellation(scope: str, event: str, learner: Learner) -> None:
    learner = with_relu(learner)
    run = Runner(ActivationStats())
    run.on(event, lambda run: run.token.cancel(scope), during="train")
    run.fit(2, learner)
    assert hooks(learner.model) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_a_failure(error: type[BaseException], learner: Learner) -> None:
    learner = with_relu(learner)
    stats = ActivationStats()
    run = Runner(stats)

    @run.on("after_loss", when=lambda run: run.batch_index == 1)
    def fail(run: Runner) -> None:
        raise error("gone")

    with pytest.raises(error, match="gone"):
        run.fit(1, learner)
    assert hooks(learner.model) == 0
    assert len(stats.values("1")) == 2


def test_every_nth_batch_may_be_measured(learner: Learner) -> None:
    stats = ActivationStats(every=2)
    Runner(stats).fit(2, with_relu(learner))
    assert stats.steps == [0, 2, 4]


def test_calls_outside_of_the_loops_forward_pass_do_not_count(learner: Learner) -> None:
    learner = with_relu(learner)
    plain, busy = ActivationStats(), ActivationStats()
    Runner(plain).fit(1, learner)
    learner = with_relu(learner)
    run = Runner(busy)
    run.on("after_loss", lambda run: run.model(run.xb * 100).detach(), during="train")
    run.fit(1, learner)
    assert busy.values("1") == plain.values("1")


def test_a_module_called_twice_gives_the_mean_of_its_calls(learner: Learner) -> None:
    relu = nn.ReLU()
    torch.manual_seed(1)
    first, second = nn.Linear(5, 8), nn.Linear(8, 3)
    learner.model = nn.Sequential(first, relu, second, relu)
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.0)
    stats = ActivationStats([relu])
    Runner(stats).fit(1, learner)
    xb = next(iter(learner.data.train_dl))[0]
    a = relu(first(xb))
    expected = (a.mean() + relu(second(a)).mean()) / 2
    assert stats.values("1")[0] == pytest.approx(expected.item())


def test_tuples_count_by_their_first_tensor_and_others_are_left_out(learner: Learner) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 4)
            self.words = nn.Identity()
            self.last = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.words("not a tensor")
            self.words(torch.ones(2, dtype=torch.int64))
            self.words(torch.ones(0))
            return self.last(self.lstm(x)[0])

    learner.model = Odd()
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    stats = ActivationStats()
    Runner(stats).fit(1, learner)
    assert stats.names == ["lstm", "last"]


def test_a_module_that_is_not_called_leaves_a_gap(learner: Learner) -> None:
    learner = with_relu(learner)
    stats = ActivationStats(bins=3)
    run = Runner(stats)

    @run.on("after_batch", once=True)
    def leave_it_out(run: Runner) -> None:
        linear, _, last = run.model
        run.model.forward = lambda x: last(linear(x))

    run.fit(1, learner)
    assert [math.isnan(value) for value in stats.values("1")] == [False, True, True]
    assert stats.histogram("1").shape == (3, 3)


def test_a_second_fit_starts_over_and_other_runs_measure_nothing(learner: Learner) -> None:
    stats, learner = ActivationStats(), with_relu(learner)
    run = Runner(stats)
    run.fit(2, learner)
    run.fit(1, learner)
    assert stats.steps == [0, 1, 2]
    run.fit(0, learner)
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert stats.steps == [] and stats.names == []


def test_a_plain_function_as_model_has_no_modules(learner: Learner) -> None:
    model = learner.model
    learner.model = lambda x: model(x)
    stats = ActivationStats()
    Runner(stats).fit(1, learner)
    assert stats.names == []


def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one(make_learner: Make) -> None:
    whole = ActivationStats(bins=4)
    Runner(whole).fit(2, with_relu(make_learner()))
    first, second = ActivationStats(bins=4), ActivationStats(bins=4)
    learner = with_relu(make_learner())
    Runner(first).fit(1, learner)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    run = Runner(second)
    run.on("begin_train", lambda run: second.load_state_dict(state), priority=-100)
    run.fit(1, learner)
    assert second.values("1", "std") == whole.values("1", "std")
    assert torch.equal(second.histogram("1"), whole.histogram("1"))


def test_the_picture_has_a_line_a_module(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib (extra 'watch')")
    matplotlib.use("agg")
    stats = ActivationStats()
    Runner(stats).fit(1, with_relu(learner))
    axes = stats.plot()
    try:
        assert [len(ax.lines) for ax in axes] == [3, 3, 3]
        assert list(axes[2].lines[1].get_ydata()) == stats.values("1", "zeros")
    finally:
        sys.modules["matplotlib.pyplot"].close(axes[0].figure)


def test_what_was_not_measured_is_an_error(learner: Learner) -> None:
    stats = ActivationStats()
    Runner(stats).fit(1, with_relu(learner))
    with pytest.raises(KeyError, match="missing"):
        stats.values("missing")
    with pytest.raises(ValueError, match="'max'"):
        stats.values("1", "max")
    with pytest.raises(ValueError, match="bins=40"):
        stats.histogram("1")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"every": 0}, ValueError),
        ({"every": 1.5}, TypeError),
        ({"bins": 0}, ValueError),
        ({"near_zero": -1}, ValueError),
        ({"limits": (1.0, 1.0)}, ValueError),
        ({"limits": (-math.inf, math.inf)}, ValueError),
        ({"limits": ("0", "1")}, TypeError),
        ({"limits": 3}, TypeError),
        ({"limits": (0.0,)}, TypeError),
        ({"modules": 3}, TypeError),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        ActivationStats(**options)
