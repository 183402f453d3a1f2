"""Rates, against a clock that only moves when it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from eventtrain import DataBunch, Learner, Runner
from eventtrain.callbacks import Throughput
from eventtrain.priorities import METRICS

Make = Callable[..., Learner]


@pytest.fixture
def slowed(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> Learner:
    """Three training batches of 4, 4 and 2 rows that take 1 s to come and 3 s to compute."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    batches = list(learner.data.train_dl)
    x, y = batches[2]
    batches[2] = (x[:2], y[:2])

    class Slow:
        def __iter__(self) -> Any:
            for batch in batches:
                now[0] += 1
                yield batch

    learner.data = DataBunch(Slow(), list(learner.data.valid_dl))
    learner.model.register_forward_pre_hook(lambda *_: now.__setitem__(0, now[0] + 3))
    return learner


def test_rates_and_the_share_of_waiting_are_written(slowed: Learner) -> None:
    (row,) = Runner(Throughput()).fit(1, slowed).history
    assert row == {
        "epoch": 0,
        "train_samples_per_second": 10 / 12,
        "train_batches_per_second": 3 / 12,
        "train_data_share": 3 / 12,
        "valid_samples_per_second": 8 / 6,
        "valid_batches_per_second": 2 / 6,
        "valid_data_share": 0.0,
    }


def test_what_others_do_in_a_batch_counts_but_is_no_wait(slowed: Learner) -> None:
    run = Runner(Throughput())
    clock = slowed.model  # three seconds a call
    run.on("begin_train", lambda run: clock(torch.zeros(1, 5)), priority=-500)
    run.on("begin_batch", lambda run: clock(torch.zeros(1, 5)), priority=500, during="train")
    run.on("after_batch", lambda run: clock(torch.zeros(1, 5)), priority=-500, during="train")
    (row,) = run.fit(1, slowed).history
    assert row["train_batches_per_second"] == 3 / 30
    assert row["train_data_share"] == 3 / 30


def test_code_of_ones_own_finds_the_rates_when_the_phase_ends(slowed: Learner) -> None:
    seen: list[bool] = []
    run = Runner(Throughput())
    look = lambda run: seen.append("train_data_share" in run.history[-1])  # noqa: E731
    run.on("after_train", look, priority=METRICS - 1)
    run.fit(1, slowed)
    assert seen == [True]


def test_the_first_batches_of_a_phase_may_be_left_out(slowed: Learner) -> None:
    (row,) = Runner(Throughput(skip=1)).fit(1, slowed).history
    assert row["train_samples_per_second"] == 6 / 8
    assert row["train_batches_per_second"] == 2 / 8
    assert row["train_data_share"] == 2 / 8


def test_rows_are_counted_before_anybody_changes_the_batch(slowed: Learner) -> None:
    run = Runner(Throughput())

    @run.on("begin_batch", during="train", priority=100)
    def halve(run: Runner) -> None:
        run.xb, run.yb = run.xb[:1], run.yb[:1]
        run.batch = run.xb, run.yb

    (row,) = run.fit(1, slowed).history
    assert row["train_samples_per_second"] == 10 / 12


def test_a_phase_of_skipped_batches_writes_nothing(slowed: Learner) -> None:
    (row,) = Runner(Throughput(skip=2)).fit(1, slowed).history
    assert "train_batches_per_second" in row
    assert "valid_batches_per_second" not in row


def test_every_epoch_has_its_own_rates(slowed: Learner) -> None:
    rows = Runner(Throughput()).fit(2, slowed).history
    assert [row["train_samples_per_second"] for row in rows] == [10 / 12] * 2


def test_handlers_of_the_phases_end_do_not_count(slowed: Learner) -> None:
    run = Runner(Throughput())
    clock = slowed.model  # three seconds a call
    run.on("after_train", lambda run: clock(torch.zeros(1, 5)), priority=1000)
    (row,) = run.fit(1, slowed).history
    assert row["train_batches_per_second"] == 3 / 12


class Rows:
    """Holds rows where nobody counts them."""

    def __init__(self, x: Any) -> None:
        self.x = x


def test_a_batch_without_tensors_leaves_the_samples_out(slowed: Learner) -> None:
    batches = [(Rows(x), Rows(y)) for x, y in slowed.data.train_dl]
    model, loss = slowed.model, slowed.loss_func
    slowed.data = DataBunch(batches, None)
    slowed.model = lambda rows: model(rows.x)
    slowed.loss_func = lambda pred, rows: loss(pred, rows.x)
    (row,) = Runner(Throughput()).fit(1, slowed).history
    assert "train_samples_per_second" not in row
    assert row["train_batches_per_second"] == 3 / 9


def test_one_batch_without_tensors_among_others_leaves_the_samples_out(slowed: Learner) -> None:
    first, *others = slowed.data.train_dl
    model, loss = slowed.model, slowed.loss_func
    slowed.data = DataBunch([tuple(map(Rows, first)), *others], None)
    slowed.model = lambda rows: model(getattr(rows, "x", rows))
    slowed.loss_func = lambda pred, rows: loss(pred, getattr(rows, "x", rows))
    (row,) = Runner(Throughput()).fit(1, slowed).history
    assert "train_samples_per_second" not in row
    assert row["train_batches_per_second"] == 3 / 9


def test_a_cancelled_phase_counts_the_batches_it_had(slowed: Learner) -> None:
    run = Runner(Throughput())
    run.on("after_batch", lambda run: run.token.cancel("fit"), when=lambda run: run.n_iter == 2)
    (row,) = run.fit(1, slowed).history
    assert row["train_samples_per_second"] == 8 / 8


def test_a_failed_phase_counts_the_batches_it_had(slowed: Learner) -> None:
    run = Runner(Throughput())

    @run.on("after_step")
    def fail(run: Runner) -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        run.fit(1, slowed)
    assert run.history[0]["train_samples_per_second"] == 4 / 4


def test_a_phase_cancelled_before_it_began_writes_nothing(slowed: Learner) -> None:
    run = Runner(Throughput())
    run.on("begin_train", lambda run: run.token.cancel("train"))
    (row,) = run.fit(1, slowed).history
    assert "train_batches_per_second" not in row
    assert "valid_batches_per_second" in row


def test_a_validation_cancelled_before_it_began_has_not_the_rates_of_the_training(
    slowed: Learner,
) -> None:
    run = Runner(Throughput())
    run.on("begin_validate", lambda run: run.token.cancel("validate"))
    (row,) = run.fit(1, slowed).history
    assert "train_batches_per_second" in row
    assert "valid_batches_per_second" not in row


def test_a_validation_alone_has_rates_and_a_prediction_none(slowed: Learner) -> None:
    run = Runner(Throughput())
    assert run.validate(slowed).history[0]["valid_samples_per_second"] == 8 / 6
    run.predict(slowed, slowed.data.valid_dl)
    assert run.history == []


def test_nothing_is_read_and_the_weights_are_the_same(make_learner: Make, no_sync: Any) -> None:
    seen, unseen = make_learner(), make_learner()
    with no_sync:
        Runner(Throughput(skip=1)).fit(2, seen)
    Runner().fit(2, unseen)
    assert torch.equal(seen.model.weight, unseen.model.weight)


def test_a_fit_of_no_epochs_and_no_validation_is_no_trouble(make_learner: Make) -> None:
    run = Runner(Throughput())
    run.fit(0, make_learner())
    assert "valid_data_share" not in run.fit(1, make_learner(valid=0)).history[0]


@pytest.mark.parametrize(("skip", "error"), [(-1, ValueError), (1.5, TypeError)])
def test_a_bad_number_to_skip_is_refused(skip: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="skip"):
        Throughput(skip=skip)
