"""Limits in time; no test depends on how fast the machine is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from eventtrain import CancellationToken, Learner, Runner
from eventtrain.callbacks import TimeLimit


class Endless:
    """A loader that never ends, of unknown length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in count():
            yield torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)


@pytest.fixture
def endless(learner: Learner) -> Learner:
    learner.data.train_dl = Endless()
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.0)
    return learner


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the clock tells, in seconds, to be changed at will."""
    seconds = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    return seconds


def alive() -> int:
    """Count the timers that may still fire; the thread of one called off takes a moment to end."""
    timers = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
    return sum(not timer.finished.is_set() for timer in timers)


def test_the_fit_ends_when_its_time_is_up(endless: Learner) -> None:
    result = Runner(TimeLimit(0.05)).fit(1, endless)
    assert (result.outcome, result.reason) == ("cancelled", "the fit has used up its 0.05 s")
    assert result.seconds >= 0.05


def test_another_scope_can_be_limited_every_time_it_opens(endless: Learner) -> None:
    result = Runner(TimeLimit(0.02, scope="train")).fit(3, endless)
    assert (result.outcome, result.epochs) == ("completed", 3)
    assert [each.scope for each in result.cancellations] == ["train"] * 3


def test_a_validation_alone_can_be_limited(endless: Learner) -> None:
    endless.data.valid_dl = Endless()
    assert Runner(TimeLimit(0.02, scope="validate")).validate(endless).outcome == "cancelled"


def test_a_prediction_can_be_limited(endless: Learner) -> None:
    run = Runner(TimeLimit(0.02, scope="predict"))
    run.predict(endless, Endless())
    assert run.result is not None and run.result.outcome == "cancelled"


def test_a_fit_that_is_done_in_time_completes_and_leaves_no_timer(learner: Learner) -> None:
    before = alive()
    limit = TimeLimit(1000)
    # A token of one's own does not end its timers with the fit.
    result = Runner(limit).fit(2, learner, token=CancellationToken())
    assert result.outcome == "completed"
    assert alive() == before


def test_no_timer_is_left_after_a_failure(learner: Learner) -> None:
    before = alive()
    run = Runner(TimeLimit(1000, scope="epoch"))
    run.on("after_loss", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner, token=CancellationToken())
    assert alive() == before


def test_the_elapsed_time_stands_still_after_the_fit(learner: Learner) -> None:
    limit = TimeLimit(1000)
    Runner(limit).fit(1, learner)
    assert limit.elapsed == limit.elapsed > 0


def test_what_others_do_as_the_scope_opens_counts_and_as_it_closes_does_not(
    learner: Learner, now: list[float]
) -> None:
    limit = TimeLimit(1000)
    run = Runner(limit)
    run.on("begin_fit", lambda run: now.append(now.pop() + 5), priority=500)
    run.on("after_fit", lambda run: now.append(now.pop() + 7), priority=500)
    run.fit(1, learner)
    assert limit.elapsed == 5


def test_the_time_of_a_fit_goes_on_when_an_inner_scope_closes(
    learner: Learner, now: list[float]
) -> None:
    limit = TimeLimit(1000)
    run = Runner(limit)
    run.on("after_epoch", lambda run: now.append(now.pop() + 5))
    run.fit(2, learner)
    assert limit.elapsed == 10


def test_a_resumed_fit_leaves_no_timer(learner: Learner) -> None:
    before = alive()
    limit = TimeLimit(1000)
    run = Runner(limit)
    run.on("begin_fit", lambda run: limit.load_state_dict({"elapsed": 900.0}))
    run.fit(1, learner, token=CancellationToken())
    assert alive() == before


def test_a_resumed_fit_has_the_time_that_was_left(endless: Learner) -> None:
    limit = TimeLimit(1000)
    run = Runner(limit)
    # Only a thousandth of a second is left, and the loader never ends by itself.
    run.on("begin_fit", lambda run: limit.load_state_dict({"elapsed": 999.999}))
    assert run.fit(1, endless).reason == "the fit has used up its 1000 s"


def test_the_seconds_of_a_scope_that_is_not_open_are_not_taken(learner: Learner) -> None:
    limit = TimeLimit(1000, scope="epoch")
    limit.load_state_dict({"elapsed": 900.0})
    assert limit.elapsed == 0
    elapsed: list[float] = []
    run = Runner(limit)

    @run.on("begin_fit")
    def load(run: Runner) -> None:
        limit.load_state_dict({"elapsed": 900.0})
        elapsed.append(limit.elapsed)

    run.fit(1, learner)
    assert elapsed == [0]


def test_time_that_was_used_up_before_ends_a_resumed_fit(endless: Learner) -> None:
    limit = TimeLimit(5)
    run = Runner(limit)
    run.on("begin_fit", lambda run: limit.load_state_dict({"elapsed": 6.0}))
    assert run.fit(1, endless).outcome == "cancelled"


def test_a_second_fit_has_all_its_time(learner: Learner) -> None:
    limit = TimeLimit(1000)
    run = Runner(limit)
    subscription = run.on("begin_fit", lambda run: limit.load_state_dict({"elapsed": 900.0}))
    run.fit(1, learner)
    assert limit.state_dict()["elapsed"] >= 900
    subscription.disconnect()
    run.fit(1, learner)
    assert limit.state_dict()["elapsed"] < 900


def test_a_fit_without_epochs_completes(learner: Learner) -> None:
    assert Runner(TimeLimit(1000)).fit(0, learner).outcome == "completed"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0,), ValueError),
        ((float("inf"),), ValueError),
        (("1h",), TypeError),
        ((1, "batch"), ValueError),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error, match=str(arguments[-1])):
        TimeLimit(*arguments)
