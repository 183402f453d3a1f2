"""Memory and processor time, against what the operating system and torch say."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eventtrain import Learner, Runner
from eventtrain.callbacks import DeviceStats
from eventtrain.priorities import METRICS

Make = Callable[..., Learner]
CUDA = ["cuda_allocated", "cuda_reserved", "cuda_allocated_peak", "cuda_utilization"]


def test_every_epoch_has_a_row(learner: Learner) -> None:
    stats = DeviceStats()
    Runner(stats).fit(2, learner)
    assert [(row["epoch"], row["n_iter"]) for row in stats.rows] == [(0, 3), (1, 6)]


def test_memory_that_is_taken_shows_in_the_next_row(learner: Learner) -> None:
    stats, taken = DeviceStats(), []
    run = Runner(stats)
    size = 64 << 20
    take = lambda run: taken.append(bytearray(b"\1") * size)  # noqa: E731
    run.on("begin_epoch", take, when=lambda run: run.epoch == 1)
    run.fit(2, learner)
    before, after = (row["host_rss"] for row in stats.rows)
    if before is None:
        pytest.skip("neither /proc nor psutil is here")
    assert after - before > size * 0.9
    assert stats.rows[1]["host_rss_peak"] >= after * 0.9


def test_processor_time_counts_from_the_fits_begin(learner: Learner) -> None:
    stats = DeviceStats()
    run = Runner(stats)

    @run.on("begin_epoch", once=True)
    def work(run: Runner) -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    start = time.process_time()
    run.fit(1, learner)
    assert 0.05 <= stats.rows[0]["cpu_seconds"] <= time.process_time() - start


def test_processor_time_in_a_checkpoint_counts_from_the_fits_begin(learner: Learner) -> None:
    stats = DeviceStats()
    start = time.process_time()
    Runner(stats).fit(1, learner)
    spent = stats.state_dict()["cpu_seconds"]
    assert stats.rows[0]["cpu_seconds"] <= spent <= time.process_time() - start


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_known_where_there_is_proc(learner: Learner) -> None:
    stats = DeviceStats()
    Runner(stats).fit(1, learner)
    assert stats.rows[0]["host_rss"] > 1 << 20


def test_without_a_cuda_device_its_numbers_are_none(learner: Learner) -> None:
    stats = DeviceStats()
    Runner(stats).fit(1, learner)
    assert [stats.rows[0][name] for name in CUDA] == [None] * 4


def test_every_nth_batch_may_have_a_row(learner: Learner) -> None:
    stats = DeviceStats(every=2)
    Runner(stats).fit(2, learner)
    assert [row["n_iter"] for row in stats.rows] == [2, 3, 4, 6, 6]


def test_the_history_gets_what_is_known(learner: Learner) -> None:
    history = Runner(DeviceStats(history=True)).fit(1, learner).history
    assert history[0]["cpu_seconds"] > 0
    assert not set(CUDA) & set(history[0])
    assert "n_iter" not in history[0]
    assert Runner(DeviceStats()).fit(1, learner).history == [{"epoch": 0}]


def test_code_of_ones_own_finds_the_numbers_in_the_epochs_row(learner: Learner) -> None:
    known: dict[int, bool] = {}
    run = Runner(DeviceStats(history=True))
    for priority in (METRICS + 1, METRICS - 1):
        look = lambda run, p=priority: known.update({p: "cpu_seconds" in run.history[-1]})  # noqa: E731
        run.on("after_epoch", look, priority=priority)
    run.fit(1, learner)
    assert known == {METRICS + 1: False, METRICS - 1: True}


def test_a_validation_may_come_before_any_fit(learner: Learner) -> None:
    stats = DeviceStats()
    Runner(stats).validate(learner)
    assert [(row["epoch"], row["n_iter"]) for row in stats.rows] == [(None, 0)]


def test_a_plain_function_as_model_is_no_trouble(learner: Learner) -> None:
    model = learner.model
    learner.model = lambda x: model(x)
    stats = DeviceStats()
    Runner(stats).fit(1, learner)
    assert len(stats.rows) == 1


def test_a_validation_alone_adds_a_row_and_a_second_fit_starts_over(learner: Learner) -> None:
    stats = DeviceStats(history=True)
    run = Runner(stats)
    run.fit(2, learner)
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert [row["epoch"] for row in stats.rows] == [0, 1, None]
    run.fit(0, learner)
    assert stats.rows == []


def test_a_cancelled_epoch_has_a_row(learner: Learner) -> None:
    stats = DeviceStats()
    run = Runner(stats)
    run.on("after_batch", lambda run: run.token.cancel("fit"))
    run.fit(2, learner)
    assert [row["n_iter"] for row in stats.rows] == [1]


def test_a_resumed_run_keeps_rows_and_processor_time(learner: Learner) -> None:
    first, second = DeviceStats(), DeviceStats()
    Runner(first).fit(1, learner)
    file = io.BytesIO()
    torch.save({**first.state_dict(), "cpu_seconds": 1000.0}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    run = Runner(second)
    run.on("begin_fit", lambda run: second.load_state_dict(state), priority=-100)
    run.fit(1, learner)
    assert second.rows[0] == first.rows[0]
    assert 1000 <= second.rows[1]["cpu_seconds"] < 1100


def test_nothing_is_read_and_the_weights_are_the_same(make_learner: Make, no_sync: Any) -> None:
    seen, unseen = make_learner(), make_learner()
    with no_sync:
        Runner(DeviceStats(every=1, history=True)).fit(2, seen)
    Runner().fit(2, unseen)
    assert torch.equal(seen.model.weight, unseen.model.weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_allocators_numbers_are_there(learner: Learner) -> None:
    learner.model.cuda()
    stats = DeviceStats()
    Runner(stats).fit(1, learner)
    row = stats.rows[0]
    assert 0 < row["cuda_allocated"] <= row["cuda_allocated_peak"]
    assert row["cuda_reserved"] >= row["cuda_allocated"]


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), ("1", TypeError)])
def test_a_bad_interval_is_refused(every: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="every"):
        DeviceStats(every=every)


def test_stock_is_taken_of_each_validation_within_a_fit(learner: Learner) -> None:
    stats = DeviceStats(history=True)
    result = Runner(stats).fit(steps=5, learn=learner, validate_every=2)
    assert [row["n_iter"] for row in stats.rows] == [2, 4, 5]
    assert [row["cpu_seconds"] for row in result.history] == [r["cpu_seconds"] for r in stats.rows]
