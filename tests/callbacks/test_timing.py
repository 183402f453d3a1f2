"""Seconds of each part, against parts that are known to take longer."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from eventtrain import Learner, Runner
from eventtrain.callbacks import Timing

Make = Callable[..., Learner]
PARTS = ["data", "forward", "loss", "backward", "step"]


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def after(self, seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return call(*args, **kwargs)

        return slow


@pytest.fixture
def slowed(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> tuple[Learner, Clock]:
    """A learner whose data take 1 s, forward 2, loss 4, backward 8 and step 16."""
    clock = Clock(monkeypatch)
    batches = list(learner.data.train_dl)

    class Slow:
        def __iter__(self) -> Any:
            for batch in batches:
                clock.now += 1
                yield batch

    learner.data.train_dl = Slow()
    learner.model.register_forward_pre_hook(lambda *_: setattr(clock, "now", clock.now + 2))
    learner.loss_func = clock.after(4, learner.loss_func)
    learner.opt.step = clock.after(16, learner.opt.step)
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", clock.after(8, backward))
    return learner, clock


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_every_part_gets_its_own_seconds(slowed: tuple[Learner, Clock]) -> None:
    timing = Timing()
    run = Runner(timing)
    run.on("after_pred", lambda run: setattr(slowed[1], "now", slowed[1].now + 32))
    run.fit(1, slowed[0])
    train, validate = timing.rows
    assert [train[part] for part in PARTS] == [3, 6, 12, 24, 48]
    assert (train["rest"], train["total"], train["batches"]) == (96, 189, 3)
    assert [validate[part] for part in PARTS] == [0, 4, 8, 0, 0]
    assert (validate["epoch"], validate["phase"], validate["batches"]) == (0, "validate", 2)


def test_what_others_do_in_a_batch_is_in_no_part(slowed: tuple[Learner, Clock]) -> None:
    learner, clock = slowed
    timing = Timing()
    run = Runner(timing)
    batch = ["begin_batch", "after_pred", "after_loss", "after_backward", "begin_step"]
    for priority in (500, -500):
        run.on(
            [*batch, "after_step", "after_batch"],
            clock.after(32, lambda run: None),
            during="train",
            priority=priority,
        )
    run.fit(1, learner)
    row = timing.rows[0]
    assert [row[part] for part in PARTS] == [3, 6, 12, 24, 48]
    assert row["rest"] == 3 * 14 * 32


def test_what_others_do_around_a_phase_does_not_count(slowed: tuple[Learner, Clock]) -> None:
    learner, clock = slowed
    timing = Timing()
    run = Runner(timing)
    run.on("begin_train", clock.after(1000, lambda run: None), priority=-500)
    run.on("after_train", clock.after(1000, lambda run: None), priority=500)
    run.fit(1, learner)
    row = timing.rows[0]
    assert (row["data"], row["rest"], row["total"]) == (3, 0, 93)


def test_an_event_whose_part_has_not_begun_counts_nothing(slowed: tuple[Learner, Clock]) -> None:
    timing = Timing()
    run = Runner(timing)
    run.on("begin_batch", lambda run: run.bus.emit("after_backward", run), during="train")
    run.fit(1, slowed[0])
    assert [timing.rows[0][part] for part in PARTS] == [3, 6, 12, 24, 48]


def test_a_phase_cancelled_before_it_began_has_no_row(slowed: tuple[Learner, Clock]) -> None:
    timing = Timing()
    run = Runner(timing)
    run.on("begin_train", lambda run: run.token.cancel("train"))
    run.fit(1, slowed[0])
    assert [row["phase"] for row in timing.rows] == ["validate"]


def test_what_a_cancelled_batch_did_not_reach_counts_nothing(
    slowed: tuple[Learner, Clock],
) -> None:
    timing = Timing()
    run = Runner(timing)
    run.on("after_pred", lambda run: run.token.cancel("batch"), during="train")
    run.fit(1, slowed[0])
    assert [timing.rows[0][part] for part in PARTS] == [3, 6, 0, 0, 0]


def test_a_cancelled_step_counts_nothing(slowed: tuple[Learner, Clock]) -> None:
    timing = Timing()
    run = Runner(timing)
    run.on("begin_step", lambda run: run.token.cancel("step"))
    run.fit(1, slowed[0])
    assert [timing.rows[0][part] for part in PARTS] == [3, 6, 12, 24, 0]


def test_a_failed_phase_has_its_row(slowed: tuple[Learner, Clock]) -> None:
    timing = Timing()
    run = Runner(timing)

    @run.on("after_backward")
    def fail(run: Runner) -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        run.fit(1, slowed[0])
    (row,) = timing.rows
    assert [row[part] for part in PARTS] == [1, 2, 4, 8, 0]


def test_rows_are_written_to_the_history_where_asked(slowed: tuple[Learner, Clock]) -> None:
    run = Runner(Timing(history=True))
    history = run.fit(1, slowed[0]).history
    assert history[0]["seconds_train_step"] == 48
    assert history[0]["seconds_validate_total"] == 12
    assert Runner(Timing()).fit(1, slowed[0]).history == [{"epoch": 0}]


def test_the_table_sums_over_epochs(slowed: tuple[Learner, Clock]) -> None:
    timing = Timing()
    Runner(timing).fit(2, slowed[0])
    lines = [line.split() for line in timing.table().splitlines()]
    assert ["train", "step", "96.000", "16000.000", "51.6%"] in lines
    assert ["validate", "total", "24.000", "6000.000", "100.0%"] in lines


def test_a_phase_that_took_no_time_has_a_table(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    timing = Timing()
    Runner(timing).fit(1, learner)
    assert timing.table().splitlines()[1].split() == ["train", "data", "0.000", "0.000", "0.0%"]


def test_a_second_fit_starts_over_and_no_epochs_have_no_rows(learner: Learner) -> None:
    timing = Timing()
    run = Runner(timing)
    run.fit(2, learner)
    run.fit(1, learner)
    assert [row["phase"] for row in timing.rows] == ["train", "validate"]
    run.fit(0, learner)
    assert timing.rows == []
    assert timing.table().startswith("phase")


def test_validation_and_prediction_alone_have_rows(learner: Learner) -> None:
    timing = Timing(history=True)
    run = Runner(timing)
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert [(row["epoch"], row["phase"]) for row in timing.rows] == [
        (None, "validate"),
        (None, "predict"),
    ]


def test_a_phase_that_is_resumed_counts_both_halves(
    slowed: tuple[Learner, Clock],
) -> None:
    learner, clock = slowed
    first, second = Timing(), Timing()
    states: list[dict[str, Any]] = []
    run = Runner(first)
    run.on("after_batch", lambda run: states.append(first.state_dict()), priority=-100)
    run.fit(1, learner)
    state = through_a_file(states[0])
    clock.now += 1000
    learner.data.valid_dl = None
    run = Runner(second)
    # A run that resumes loads the state when the whole of begin_train is over.
    run.on("begin_train", lambda run: second.load_state_dict(state), priority=-2000)
    run.fit(1, learner)
    (row,) = second.rows
    assert (row["batches"], row["data"], row["total"]) == (4, 4, 4 * 31)


def test_nothing_is_read_and_the_weights_are_the_same(make_learner: Make, no_sync: Any) -> None:
    seen, unseen = make_learner(), make_learner()
    with no_sync:
        Runner(Timing(cuda=True, history=True)).fit(2, seen)
    Runner().fit(2, unseen)
    assert torch.equal(seen.model.weight, unseen.model.weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_events_time_the_device(make_learner: Make) -> None:
    learner = make_learner()
    learner.model.cuda()
    timing = Timing(cuda=True)
    run = Runner(timing)
    assert run.fit(2, learner).outcome == "completed"
    assert all(row["forward"] > 0 and row["batches"] > 0 for row in timing.rows)
    assert timing._events == []
