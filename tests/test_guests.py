"""Runs inside of runs: one token, and each cleans up what is its own."""

from __future__ import annotations

from typing import Any

import pytest

from eventtrain import CancellationToken, DataBunch, Learner, Runner


@pytest.fixture
def host() -> Runner:
    return Runner()


def test_a_request_made_inside_of_an_inner_run_ends_the_outer_one(
    host: Runner, learner: Learner
) -> None:
    inner, events = Runner(), []
    inner.on("after_loss", lambda run: run.token.cancel("fit", "enough"), once=True)
    inner.on("after_validate", lambda run: events.append("inner closed"))
    host.on("after_train", lambda run: inner.validate(learner, token=run.token))
    for event in ("after_epoch", "after_fit"):
        host.on(event, lambda run, event=event: events.append(event))
    result = host.fit(3, learner)
    assert (result.outcome, result.reason, result.epochs) == ("cancelled", "enough", 0)
    assert events == ["inner closed", "after_epoch", "after_fit"]


def test_the_inner_result_says_that_it_was_cancelled(host: Runner, learner: Learner) -> None:
    inner = Runner()
    inner.on("after_loss", lambda run: run.token.cancel("fit", "enough"), once=True)
    host.on("after_train", lambda run: inner.validate(learner, token=run.token))
    host.fit(1, learner)
    assert inner.result is not None
    assert (inner.result.outcome, inner.result.reason) == ("cancelled", "enough")


def test_a_request_that_waits_is_not_lost_to_an_inner_run(host: Runner, learner: Learner) -> None:
    inner = Runner()

    def cancel_and_validate(run: Any) -> None:
        run.token.cancel("fit", "before the inner run")
        inner.validate(learner, token=run.token)

    host.on("after_loss", cancel_and_validate, once=True)
    result = host.fit(2, learner)
    assert (result.outcome, result.reason) == ("cancelled", "before the inner run")


def test_an_inner_run_absorbs_what_is_aimed_at_its_own_scopes(
    host: Runner, learner: Learner
) -> None:
    inner = Runner()
    inner.on("begin_batch", lambda run: run.token.cancel("validate", "seen enough"))
    host.on("after_epoch", lambda run: inner.validate(learner, token=run.token))
    assert host.fit(2, learner).outcome == "completed"
    assert inner.result is not None
    assert inner.result.outcome == "cancelled"


def test_requests_after_an_inner_run_tell_handler_event_and_epoch(
    host: Runner, learner: Learner
) -> None:
    inner = Runner()
    host.on("after_train", lambda run: inner.validate(learner, token=run.token))
    host.on("after_epoch", lambda run: run.token.cancel("fit", "x"), name="ender")
    record = host.fit(2, learner).cancellations[-1]
    assert (record.by, record.event, record.epoch) == ("ender", "after_epoch", 0)


def test_a_failure_that_is_caught_between_the_two_is_not_the_outer_runs(
    host: Runner, learner: Learner
) -> None:
    inner, events = Runner(), []
    inner.on("after_loss", lambda run: 1 / 0)

    def try_it(run: Any) -> None:
        with pytest.raises(ZeroDivisionError):
            inner.validate(learner, token=run.token)

    host.on("after_train", try_it)
    host.on("fit_failed", lambda run: events.append("failed"))
    host.on("after_epoch", lambda run: events.append(run.exception))
    assert host.fit(1, learner).outcome == "completed"
    assert events == [None]


def test_a_failure_that_escapes_both_is_told_by_both(host: Runner, learner: Learner) -> None:
    inner, events = Runner(), []
    inner.on("after_loss", lambda run: 1 / 0)
    inner.on("fit_failed", lambda run: events.append("inner"))
    host.on("after_train", lambda run: inner.fit(1, learner_of(learner), token=run.token))
    host.on("fit_failed", lambda run: events.append("outer"))
    with pytest.raises(ZeroDivisionError):
        host.fit(1, learner)
    assert events == ["inner", "outer"]


def learner_of(learner: Learner) -> Learner:
    data = DataBunch(learner.data.train_dl, learner.data.valid_dl)
    return Learner(learner.model, learner.opt, learner.loss_func, data)


def test_a_fit_inside_of_a_closing_event_keeps_the_outcome_of_that_event(
    host: Runner, learner: Learner
) -> None:
    inner, outcomes = Runner(), []

    def validate(run: Any) -> None:
        inner.validate(learner, token=run.token)
        outcomes.append(run.outcome)

    host.on("after_epoch", validate)
    host.fit(1, learner)
    assert outcomes == ["completed"]


def test_a_token_of_the_users_own_is_free_again_after_its_run(
    host: Runner, learner: Learner
) -> None:
    token = CancellationToken()
    host.on("after_loss", lambda run: run.token.cancel("fit", "x"), once=True)
    host.fit(1, learner, token=token)
    assert token.pending is None
    assert host.fit(1, learner, token=token).outcome == "completed"
