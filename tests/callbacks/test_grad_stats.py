"""Norms of gradients, against torch's own clipping function."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from eventtrain import DataBunch, Learner, Runner
from eventtrain.callbacks import GradientClip, GradStats

Make = Callable[..., Learner]


def by_hand(learner: Learner, epochs: int) -> list[dict[str, Any]]:
    """Train, and measure by other means."""
    rows = []
    parameters = list(learner.model.parameters())
    for _ in range(epochs):
        for xb, yb in learner.data.train_dl:
            learner.loss_func(learner.model(xb), yb).backward()
            every = torch.cat([p.grad.flatten() for p in parameters])
            total = nn.utils.clip_grad_norm_(parameters, math.inf)
            rows.append(
                {
                    "norm": total.item(),
                    "max": every.abs().max().item(),
                    "zeros": (every == 0).double().mean().item(),
                    "weight": parameters[0].grad.norm().item(),
                }
            )
            learner.opt.step()
            learner.opt.zero_grad()
    return rows


def with_relu(learner: Learner) -> Learner:
    """A model some of whose gradients are 0."""
    torch.manual_seed(1)
    learner.model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    return learner


def test_the_numbers_are_those_of_other_means(make_learner: Make) -> None:
    stats = GradStats()
    learner, other = with_relu(make_learner()), with_relu(make_learner())
    Runner(stats).fit(2, learner)
    expected = by_hand(other, 2)
    for row, own in zip(stats.to_dicts(), expected, strict=True):
        for name in ("norm", "max", "zeros"):
            assert row[name] == pytest.approx(own[name], rel=1e-5)
    assert expected[0]["zeros"] > 0
    assert stats.values("0.weight") == pytest.approx([r["weight"] for r in expected], rel=1e-5)
    assert torch.equal(learner.model[0].weight, other.model[0].weight)


def test_rows_say_where_they_were_measured(learner: Learner) -> None:
    stats = GradStats(every=2)
    Runner(stats).fit(2, learner)
    assert [(row["epoch"], row["step"]) for row in stats.to_dicts()] == [(0, 0), (0, 2), (1, 4)]


def test_nothing_is_read_in_a_batch(learner: Learner, no_sync: Any) -> None:
    run = Runner(GradStats(history=True))
    run.on("begin_train", lambda run: no_sync.__enter__())
    run.on("after_train", lambda run: no_sync.__exit__(), priority=1000)
    history = run.fit(1, learner).history
    assert history[0]["grad_norm"] > 0


def test_it_measures_after_unscaling_and_before_clipping(learner: Learner) -> None:
    stats, seen = GradStats(), []
    run = Runner(stats)

    @run.on("begin_step", priority=90)
    def unscale(run: Runner) -> None:
        for parameter in run.model.parameters():
            parameter.grad.fill_(2.0)
        seen.append(True)

    run.on("begin_step", lambda run: run.opt.zero_grad(), priority=-50)
    run.fit(1, learner)
    assert [row["max"] for row in stats.to_dicts()] == [2.0] * 3
    assert stats.to_dicts()[0]["norm"] == pytest.approx(2 * math.sqrt(18))


def test_a_step_that_is_cancelled_before_is_not_measured(learner: Learner) -> None:
    stats = GradStats()
    run = Runner(stats)
    cancel = lambda run: run.token.cancel("step")  # noqa: E731
    run.on("begin_step", cancel, priority=100, when=lambda run: run.batch_index == 1)
    run.fit(1, learner)
    assert len(stats.to_dicts()) == 2


def test_a_parameter_without_gradient_is_left_out(learner: Learner) -> None:
    learner.model.bias.requires_grad_(False)
    stats = GradStats()
    run = Runner(stats)
    run.on("after_step", lambda run: run.model.bias.requires_grad_(True), once=True)
    run.fit(1, learner)
    assert stats.names == ["weight", "bias"]
    first, *later = stats.values("bias", "norm")
    assert math.isnan(first) and not any(map(math.isnan, later))


def test_the_history_gets_mean_and_maximum(make_learner: Make) -> None:
    history = Runner(GradStats(history=True)).fit(1, make_learner()).history
    norms = [row["norm"] for row in by_hand(make_learner(), 1)]
    assert history[0]["grad_norm"] == pytest.approx(sum(norms) / 3, rel=1e-5)
    assert history[0]["grad_norm_max"] == pytest.approx(max(norms), rel=1e-5)
    assert Runner(GradStats()).fit(1, make_learner()).history == [{"epoch": 0}]


def test_every_epoch_of_the_history_has_its_own_mean(make_learner: Make) -> None:
    history = Runner(GradStats(history=True)).fit(2, make_learner()).history
    norms = [row["norm"] for row in by_hand(make_learner(), 2)]
    means = [sum(norms[:3]) / 3, sum(norms[3:]) / 3]
    assert [row["grad_norm"] for row in history] == pytest.approx(means, rel=1e-5)


def test_it_measures_before_a_clip_that_was_given_first(make_learner: Make) -> None:
    clipped, plain = GradStats(), GradStats()
    Runner([GradientClip(norm=1e-3), clipped]).fit(1, make_learner())
    Runner(plain).fit(1, make_learner())
    assert clipped.to_dicts()[0]["norm"] == plain.to_dicts()[0]["norm"] > 1e-3


def test_a_gradient_that_is_not_finite_shows(learner: Learner) -> None:
    stats = GradStats(history=True)
    run = Runner(stats)

    @run.on("after_backward", when=lambda run: run.batch_index == 1)
    def spoil(run: Runner) -> None:
        run.model.bias.grad[0] = math.nan

    history = run.fit(1, learner).history
    finite = [math.isfinite(row["norm"]) for row in stats.to_dicts()]
    assert finite[:2] == [True, False]
    assert math.isnan(history[0]["grad_norm_max"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_measured_in_float32_or_better(
    dtype: torch.dtype, learner: Learner
) -> None:
    stats = GradStats()
    run = Runner(stats)
    weight = nn.Parameter(torch.zeros(300, 300, dtype=dtype))
    weight.grad = torch.full_like(weight, 300.0)
    learner.model.register_parameter("big", weight)
    run.fit(1, learner)
    # In float16 the sum of the squares would be infinite.
    assert stats.values("big")[0] == pytest.approx(300 * 300, rel=1e-3)


def test_sparse_gradients_count_absent_values_as_zeros() -> None:
    model = nn.EmbeddingBag(10, 2, mode="sum", sparse=True)
    batch = torch.tensor([[1, 1]]), torch.zeros(1, 2)
    loss = nn.functional.mse_loss
    learner = Learner(
        model, torch.optim.SGD(model.parameters(), lr=0.1), loss, DataBunch([batch], None)
    )
    dense = nn.EmbeddingBag(10, 2, mode="sum", _weight=model.weight.detach().clone())
    loss(dense(batch[0]), batch[1]).backward()
    stats = GradStats()
    Runner(stats).fit(1, learner)
    (row,) = stats.to_dicts()
    assert row["norm"] == pytest.approx(dense.weight.grad.norm().item())
    assert row["zeros"] == pytest.approx(0.9)


def test_a_plain_function_as_model_has_the_optimizers_parameters(learner: Learner) -> None:
    model = learner.model
    learner.model = lambda x: model(x)
    stats = GradStats()
    Runner(stats).fit(1, learner)
    assert stats.names == ["group0.0", "group0.1"]


def test_a_failed_fit_leaves_what_there_was(learner: Learner) -> None:
    stats = GradStats()
    run = Runner(stats)

    @run.on("after_step")
    def fail(run: Runner) -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        run.fit(1, learner)
    assert len(stats.to_dicts()) == 1


def test_a_second_fit_starts_over_and_other_runs_measure_nothing(learner: Learner) -> None:
    stats = GradStats(history=True)
    run = Runner(stats)
    run.fit(2, learner)
    run.fit(1, learner)
    assert len(stats.to_dicts()) == 3
    run.fit(0, learner)
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert stats.to_dicts() == []


def test_a_run_resumed_in_an_epoch_measures_the_same_steps(make_learner: Make) -> None:
    whole = GradStats(every=2)
    Runner(whole).fit(2, make_learner())
    first, second, learner = GradStats(every=2), GradStats(every=2), make_learner()
    Runner(first).fit(1, learner)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    run = Runner(second)
    run.on("begin_train", lambda run: second.load_state_dict(state), priority=-100)
    run.fit(1, learner)
    assert [r["norm"] for r in second.to_dicts()] == [r["norm"] for r in whole.to_dicts()]


def test_what_was_not_measured_is_an_error(learner: Learner) -> None:
    stats = GradStats()
    Runner(stats).fit(1, learner)
    with pytest.raises(KeyError, match="missing"):
        stats.values("missing")
    with pytest.raises(ValueError, match="'mean'"):
        stats.values("weight", "mean")


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (2.0, TypeError)])
def test_a_bad_interval_is_refused(every: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="every"):
        GradStats(every=every)


def test_each_validation_within_a_fit_has_the_norms_of_the_steps_before_it(
    learner: Learner,
) -> None:
    stats, norms = GradStats(history=True), []
    run = Runner(stats)

    @run.on("begin_step", priority=-1)
    def note(run: Runner) -> None:
        squares = [p.grad.square().sum() for p in run.model.parameters()]
        norms.append(float(sum(squares)) ** 0.5)

    result = run.fit(steps=5, learn=learner, validate_every=2)
    groups = [norms[:2], norms[2:4], norms[4:]]
    found = [row["grad_norm"] for row in result.history]
    assert found == pytest.approx([sum(group) / len(group) for group in groups])
