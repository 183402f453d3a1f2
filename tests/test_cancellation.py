"""The token and its scopes, on their own and in a loop of one's own."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from contextlib import suppress

import pytest

from eventtrain import CancellationToken, EventBus, Scope, ScopeNotOpenError
from eventtrain.cancellation import Cancellation, Request, Unwind


def nest(token: CancellationToken, *names: str) -> list[Scope]:
    return [Scope(token, name) for name in names]


def test_a_scope_without_a_request_completes() -> None:
    token = CancellationToken()
    with Scope(token, "fit") as scope:
        pass
    assert scope.outcome == "completed"


def test_a_request_is_delivered_at_the_next_checkpoint_and_not_before() -> None:
    token = CancellationToken()
    reached = []
    with Scope(token, "fit") as scope:
        token.cancel(reason="enough")
        reached.append("after cancel")
        token.check()
        reached.append("after check")
    assert reached == ["after cancel"]
    assert scope.outcome == "cancelled"


def test_a_scope_absorbs_its_own_cancellation_and_the_outer_one_goes_on() -> None:
    token = CancellationToken()
    outer, inner = nest(token, "fit", "epoch")
    with outer:
        with inner:
            token.cancel("epoch")
            token.check()
        went_on = True
    assert went_on
    assert (outer.outcome, inner.outcome) == ("completed", "cancelled")
    assert token.pending is None


def test_scopes_inside_the_cancelled_one_are_left_without_absorbing() -> None:
    token = CancellationToken()
    outer, inner = nest(token, "epoch", "batch")
    fired: list[str] = []
    inner.on_cancelled = lambda: fired.append("inner cancelled")
    inner.on_closed = lambda: fired.append("inner closing")
    outer.on_cancelled = lambda: fired.append("outer cancelled")
    outer.on_closed = lambda: fired.append("outer closing")
    with outer, inner:
        token.cancel("epoch")
        token.check()
    assert fired == ["inner closing", "outer cancelled", "outer closing"]


@pytest.mark.parametrize("requests", [("batch", "fit"), ("fit", "batch")])
def test_the_outermost_request_wins(requests: tuple[str, str]) -> None:
    token = CancellationToken()
    fit, epoch, batch = nest(token, "fit", "epoch", "batch")
    with fit:
        with epoch:
            with batch:
                for scope in requests:
                    token.cancel(scope)
                token.check()
            pytest.fail("the batch absorbed a cancellation of the fit")
    assert [s.outcome for s in (fit, epoch, batch)] == ["cancelled"] * 3
    assert [c.scope for c in token.history] == list(requests)


def test_the_innermost_scope_of_a_name_is_the_one_cancelled() -> None:
    token = CancellationToken()
    outer, inner = nest(token, "batch", "batch")
    with outer:
        with inner:
            token.cancel("batch")
            token.check()
        went_on = True
    assert went_on
    assert (outer.outcome, inner.outcome) == ("completed", "cancelled")


def test_leaving_a_scope_is_its_last_checkpoint() -> None:
    token = CancellationToken()
    with Scope(token, "train") as scope:
        token.cancel("train")
    assert scope.outcome == "cancelled"


def test_a_request_made_while_a_scope_closes_takes_effect_outside_of_it() -> None:
    token = CancellationToken()
    outer, inner = nest(token, "train", "batch")
    inner.on_closed = lambda: token.cancel("train")
    with outer:
        with inner:
            pass
        pytest.fail("the loop went on after the request")
    assert (outer.outcome, inner.outcome) == ("cancelled", "completed")


def test_a_scope_that_is_closing_cannot_be_cancelled() -> None:
    token = CancellationToken()
    outer, inner = nest(token, "fit", "batch")
    inner.on_closed = lambda: token.cancel("batch")
    with pytest.raises(ScopeNotOpenError), outer, inner:
        pass


def test_cancelling_a_scope_that_is_not_open_names_those_that_are() -> None:
    token = CancellationToken()
    fit, epoch = nest(token, "fit", "epoch")
    with fit, epoch, pytest.raises(ScopeNotOpenError, match=r"fit > epoch") as caught:
        token.cancel("batch")
    assert caught.value.scope == "batch"
    assert caught.value.open_scopes == ("fit", "epoch")


def test_a_refused_request_leaves_no_trace() -> None:
    token = CancellationToken()
    with Scope(token, "fit") as scope, pytest.raises(ScopeNotOpenError):
        token.cancel("batch")
    assert scope.outcome == "completed"
    assert token.history == []


def test_a_fit_can_be_cancelled_before_it_begins() -> None:
    token = CancellationToken()
    token.cancel(reason="changed my mind")
    assert token.cancelled
    assert [c.reason for c in token.history] == ["changed my mind"]


def test_no_other_scope_can_be_cancelled_before_it_begins() -> None:
    with pytest.raises(ScopeNotOpenError, match="no scope is open"):
        CancellationToken().cancel("epoch")


def test_a_request_from_before_is_delivered_in_the_outermost_scope() -> None:
    token = CancellationToken()
    fit, epoch = nest(token, "fit", "epoch")
    token.cancel()
    with fit:
        with epoch:
            token.check()
        pytest.fail("the epoch absorbed it")
    assert fit.outcome == "cancelled"


def test_a_finished_token_accepts_no_request() -> None:
    token = CancellationToken()
    token.finish()
    with pytest.raises(ScopeNotOpenError):
        token.cancel()


def test_an_open_scope_cannot_be_entered_again() -> None:
    scope = Scope(CancellationToken(), "batch")
    with scope, pytest.raises(RuntimeError, match="'batch' is open already"):
        scope.__enter__()


def test_a_scope_can_be_used_again() -> None:
    token = CancellationToken()
    scope = Scope(token, "batch")
    outcomes = []
    with Scope(token, "fit"):
        for cancelled in (True, False):
            with scope:
                if cancelled:
                    token.cancel("batch")
                    token.check()
            outcomes.append(scope.outcome)
    assert outcomes == ["cancelled", "completed"]


def test_except_exception_does_not_eat_a_cancellation() -> None:
    token = CancellationToken()
    with Scope(token, "fit") as scope:
        try:
            token.cancel()
            token.check()
        except Exception:
            pytest.fail("a cancellation was caught as an Exception")
    assert scope.outcome == "cancelled"


def test_a_swallowed_cancellation_is_delivered_at_the_next_checkpoint() -> None:
    token = CancellationToken()
    with Scope(token, "fit") as scope:
        token.cancel()
        with suppress(Unwind):
            token.check()
        token.check()
        pytest.fail("the request was lost")
    assert scope.outcome == "cancelled"


def test_a_failure_outranks_a_pending_request() -> None:
    token = CancellationToken()
    with pytest.raises(ValueError), Scope(token, "fit") as scope:
        token.cancel()
        raise ValueError
    assert scope.outcome == "failed"
    assert token.pending is None


def test_the_outcome_can_be_read_while_a_scope_closes_and_not_afterwards() -> None:
    token = CancellationToken()
    seen = []
    scope = Scope(token, "fit")
    scope.on_closed = lambda: seen.append((token.outcome, token.scope))
    with scope:
        assert (token.outcome, token.scope) == (None, "fit")
    assert seen == [("completed", None)]
    assert token.outcome is None


@pytest.mark.parametrize("inner_ends", ["completed", "cancelled"])
def test_a_scope_opened_while_another_closes_leaves_that_ones_outcome_readable(
    inner_ends: str,
) -> None:
    token = CancellationToken()
    fit, train, step = (Scope(token, name) for name in ("fit", "train", "step"))
    seen: list[str | None] = []

    def flush() -> None:
        with step:
            if inner_ends == "cancelled":
                token.cancel("step")
        seen.append(token.outcome)

    train.on_closed = flush
    step.on_closed = lambda: seen.append(token.outcome)
    with fit, train:
        pass
    assert seen == [inner_ends, "completed"]
    assert token.outcome is None


def test_failed_fires_once_in_the_first_scope_left() -> None:
    token = CancellationToken()
    fit, epoch = nest(token, "fit", "epoch")
    fired = []
    for scope in (fit, epoch):
        scope.on_failed = lambda name=scope.name: fired.append(f"failed at {name}")
        scope.on_closed = lambda name=scope.name: fired.append(f"{name} closed")
    with pytest.raises(ValueError), fit, epoch:
        raise ValueError
    assert fired == ["failed at epoch", "epoch closed", "fit closed"]


def test_an_error_while_closing_is_announced_by_the_next_scope_out() -> None:
    token = CancellationToken()
    fit, epoch = nest(token, "fit", "epoch")
    fired = []

    def fail() -> None:
        raise ValueError("while closing")

    epoch.on_closed = fail
    fit.on_failed = lambda: fired.append(str(token.exception))
    with pytest.raises(ValueError), fit, epoch:
        pass
    assert fired == ["while closing"]


def test_the_original_failure_stays_the_main_one_and_the_other_is_its_note() -> None:
    token = CancellationToken()
    scope = Scope(token, "fit")

    def fail() -> None:
        raise KeyError("in the closing event")

    scope.on_closed = fail
    with pytest.raises(ValueError, match="original") as caught, scope:
        raise ValueError("original")
    assert any("in the closing event" in note for note in caught.value.__notes__)


def test_a_keyboard_interrupt_while_closing_is_never_swallowed() -> None:
    token = CancellationToken()
    scope = Scope(token, "fit")

    def interrupt() -> None:
        raise KeyboardInterrupt

    scope.on_closed = interrupt
    with pytest.raises(KeyboardInterrupt) as caught, scope:
        raise ValueError("original")
    assert any("original" in note for note in caught.value.__notes__)


def test_an_error_while_a_cancellation_unwinds_outranks_it() -> None:
    token = CancellationToken()
    fit, epoch = nest(token, "fit", "epoch")

    def fail() -> None:
        raise ValueError("while closing")

    epoch.on_closed = fail
    with pytest.raises(ValueError) as caught, fit, epoch:
        token.cancel("fit")
        token.check()
    assert fit.outcome == "failed"
    assert caught.value.__context__ is None
    assert token.pending is None


def test_a_scope_passes_on_the_cancellation_of_another_token() -> None:
    outer, inner = CancellationToken(), CancellationToken()
    reached = []
    with Scope(outer, "fit") as scope:
        with Scope(inner, "fit") as foreign:
            outer.cancel("fit")
            outer.check()
        reached.append("after the inner loop")
    assert reached == []
    assert (scope.outcome, foreign.outcome) == ("cancelled", "cancelled")


def test_a_record_says_who_where_and_when() -> None:
    bus, token = EventBus(), CancellationToken()

    class Loop:
        epoch = 3
        batch_index = 17

    loop = Loop()
    emit, scope = bus.bind(loop, token)

    @bus.on("after_loss")
    def plateau(_: object) -> None:
        token.cancel("fit", "no progress")

    before = time.time()
    with scope.fit:
        emit.after_loss()
    (record,) = token.history
    assert (record.scope, record.reason, record.by) == ("fit", "no progress", "plateau")
    assert (record.event, record.epoch, record.batch) == ("after_loss", 3, 17)
    assert before <= record.time <= time.time()


def test_a_request_from_outside_of_handlers_names_the_function() -> None:
    token = CancellationToken()
    token.cancel()
    assert "test_a_request_from_outside_of_handlers" in token.history[0].by


def test_a_request_from_another_thread_names_the_thread() -> None:
    token = CancellationToken()
    with Scope(token, "fit") as scope:
        thread = threading.Thread(target=token.cancel, name="watchdog")
        thread.start()
        thread.join()
        token.check()
    assert scope.outcome == "cancelled"
    assert "watchdog" in token.history[0].by


def test_a_request_that_comes_just_as_its_scope_closes_lapses() -> None:
    token = CancellationToken()
    fit, batch = nest(token, "fit", "batch")
    with fit:
        with batch:
            pass
        # What another thread leaves behind when it loses that race.
        record = Cancellation("batch", "", "another thread", None, None, None, 0.0)
        token.grant(Request(record, batch))
        token.check()
        went_on = True
    assert went_on
    assert fit.outcome == "completed"


def test_a_request_is_of_the_line_that_made_it() -> None:
    token = CancellationToken()
    with Scope(token, "fit"):
        token.cancel("fit")
        line = sys._getframe().f_lineno - 1
    assert token.history[0].source == f"{__file__}:{line}"


def test_a_timer_asks_in_the_name_of_the_line_that_set_it() -> None:
    token = CancellationToken()
    with Scope(token, "fit"):
        token.cancel_after(0).join()
        line = sys._getframe().f_lineno - 1
    assert token.history[0].source == f"{__file__}:{line}"


def test_a_signal_has_no_line() -> None:
    token = CancellationToken()
    with Scope(token, "fit"):
        token.interrupt("SIGTERM")
    assert token.history[0].source is None


def test_a_token_that_follows_another_tells_the_line_that_asked_that() -> None:
    parent = CancellationToken()
    child = CancellationToken.linked(parent)
    parent.cancel("fit")
    assert child.history[0].source == parent.history[0].source is not None


def test_the_line_tells_no_two_requests_apart() -> None:
    one = Cancellation("fit", "", "me", None, None, None, 0.0, source="a.py:1")
    assert one == Cancellation("fit", "", "me", None, None, None, 0.0, source="b.py:2")


def test_what_others_have_to_agree_on_is_on_record_when_it_is_accepted() -> None:
    token = CancellationToken()
    asked: list[Request] = []
    token.agree = asked.append
    with Scope(token, "fit") as scope:
        token.cancel("fit", "enough")
        assert (token.history, token.pending) == ([], None)
        token.accept(asked[0])
        assert token.history == [asked[0].cancellation]
        token.check()
    assert scope.outcome == "cancelled"


def test_what_all_ask_for_together_is_not_agreed_on() -> None:
    token = CancellationToken()
    token.agree = lambda request: pytest.fail("there was nothing to agree on")
    with Scope(token, "fit") as scope:
        token.cancel("fit", everywhere=True)
        assert token.pending is not None
    assert scope.outcome == "cancelled"


def test_what_is_accepted_is_granted_by_whom_the_token_names() -> None:
    token = CancellationToken()
    granted: list[Request] = []
    token.grant_by = granted.append
    with Scope(token, "fit") as scope:
        token.cancel("fit")
        assert [c.scope for c in token.history] == ["fit"]
        assert token.pending is None
        token.grant(granted[0])
    assert scope.outcome == "cancelled"


def test_a_request_from_before_an_agreement_is_handed_over_to_it() -> None:
    token = CancellationToken()
    token.cancel("fit", "too early")
    request = token.agree_by(lambda request: None)
    assert request is not None and request.cancellation.reason == "too early"
    assert (token.pending, token.history, token.accepted) == (None, [], 0)
    with Scope(token, "fit") as scope:
        pass
    assert scope.outcome == "completed"


def test_where_nothing_is_pending_nothing_is_handed_over() -> None:
    token = CancellationToken()
    with Scope(token, "fit"), Scope(token, "epoch"):
        token.cancel("epoch", "absorbed")
    assert token.agree_by(lambda request: None) is None
    assert [record.reason for record in token.history] == ["absorbed"]


def test_cancel_after_cancels_when_the_time_has_passed() -> None:
    token = CancellationToken()
    with Scope(token, "fit") as scope:
        token.cancel_after(0.01, reason="slow").join()
        token.check()
        pytest.fail("the timer did not cancel")
    assert scope.outcome == "cancelled"
    assert (token.history[0].by, token.history[0].reason) == ("timer", "slow")


def test_a_timer_that_finds_its_scope_closed_does_nothing() -> None:
    token = CancellationToken()
    with Scope(token, "fit"):
        token.cancel_after(0.01, "batch").join()
        token.check()
    assert token.history == []


def test_a_timer_can_be_called_off() -> None:
    token = CancellationToken()
    timer = token.cancel_after(0.05)
    timer.cancel()
    timer.join()
    assert token.history == []


def test_finishing_a_token_stops_its_timers() -> None:
    token = CancellationToken()
    timer = token.cancel_after(60)
    token.finish()
    timer.join(5)
    assert not timer.is_alive()


def test_a_timer_does_not_keep_its_token_alive() -> None:
    token = CancellationToken()
    timer = token.cancel_after(60)
    reference = weakref.ref(token)
    del token
    gc.collect()
    assert reference() is None
    timer.cancel()


def test_a_timer_that_is_over_is_let_go() -> None:
    token = CancellationToken()
    timer = token.cancel_after(60)
    timer.cancel()
    timer.join()
    gone = weakref.ref(timer)
    del timer
    token.cancel_after(60).cancel()
    gc.collect()
    assert gone() is None


def test_a_time_limit_longer_than_a_thread_can_wait_is_no_error() -> None:
    timer = CancellationToken().cancel_after(1e12)
    timer.cancel()
    assert timer.interval <= threading.TIMEOUT_MAX  # its thread fails of more


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_cancel_after_refuses_impossible_times(seconds: float) -> None:
    with pytest.raises(ValueError, match="cancel_after needs seconds"):
        CancellationToken().cancel_after(seconds)


def test_a_linked_token_follows_any_of_its_parents() -> None:
    first, second = CancellationToken(), CancellationToken()
    child = CancellationToken.linked(first, second)
    with Scope(child, "fit") as scope:
        second.cancel(reason="stop everything")
        child.check()
    assert scope.outcome == "cancelled"
    assert child.history[0].reason == "stop everything"


def test_cancelling_a_linked_token_leaves_its_parent_alone() -> None:
    parent = CancellationToken()
    CancellationToken.linked(parent).cancel()
    assert not parent.cancelled


def test_a_token_linked_to_a_cancelled_parent_is_cancelled_from_the_start() -> None:
    parent = CancellationToken()
    parent.cancel(reason="over")
    assert CancellationToken.linked(parent).cancelled


def test_a_parent_can_be_cancelled_when_its_child_has_finished() -> None:
    parent = CancellationToken()
    child = CancellationToken.linked(parent)
    child.finish()
    parent.cancel()
    assert child.history == []


def test_a_parent_does_not_keep_its_children_alive() -> None:
    parent = CancellationToken()
    child = weakref.ref(CancellationToken.linked(parent))
    gc.collect()
    assert child() is None


def test_many_threads_may_cancel_at_once() -> None:
    token = CancellationToken()
    fit, epoch = nest(token, "fit", "epoch")
    with fit:
        with epoch:
            scopes = ["fit", "epoch"] * 8
            threads = [threading.Thread(target=token.cancel, args=(s,)) for s in scopes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            token.check()
        pytest.fail("a cancellation of the fit was lost")
    assert len(token.history) == 16
    assert fit.outcome == "cancelled"


def test_the_history_of_a_run_of_many_cancellations_stays_bounded() -> None:
    token = CancellationToken()
    fit, step = Scope(token, "fit"), Scope(token, "step")
    with fit:
        for number in range(45_000):
            with step:
                token.cancel("step", str(number))
    assert token.accepted == 45_000
    assert 10_000 <= len(token.history) < 20_000
    assert [record.reason for record in token.history[-2:]] == ["44998", "44999"]
    assert [record.reason for record in token.accepted_since(44_998)] == ["44998", "44999"]
    assert token.accepted_since(0) == token.history
    assert token.accepted_since(45_000) == []
