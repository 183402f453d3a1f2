"""A fit that one steps through, against the same fit by ``fit``."""

from __future__ import annotations

import contextvars
import gc
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eventtrain import AvgStatsCallback, Learner, Runner, UnknownEventError
from eventtrain.callbacks import EMA, Checkpoint, GradientAccumulation, MixedPrecision
from eventtrain.events import EVENTS
from eventtrain.stepping import PLACES

Make = Callable[..., Learner]


def trace(run: Runner) -> list[Any]:
    """What happens on a run, event by event."""
    found: list[Any] = []
    for event in EVENTS:
        run.on(
            event.name,
            lambda run, name=event.name: found.append(
                (name, run.epoch, run.batch_index, run.outcome, torch.is_grad_enabled())
            ),
        )
    return found


def alike(make_learner: Make) -> Callable[[], Learner]:
    """Make learners with the same weights, dropout and an order that is drawn."""
    torch.manual_seed(0)
    start = make_learner().model.state_dict()

    def make() -> Learner:
        torch.manual_seed(1)
        learn = make_learner()
        learn.model.load_state_dict(start)
        learn.model = torch.nn.Sequential(torch.nn.Dropout(0.3), learn.model)
        learn.data.train_dl.shuffle = True
        return learn

    return make


def weights(learn: Learner) -> list[torch.Tensor]:
    return [p.detach().clone() for p in learn.model.parameters()]


def equal(one: Learner, other: Learner) -> bool:
    return all(map(torch.equal, weights(one), weights(other)))


@pytest.mark.parametrize("at", PLACES)
def test_it_is_the_fit_that_fit_is_to_the_bit_and_event_by_event(
    make_learner: Make, at: str
) -> None:
    def kit() -> list[Any]:
        callbacks = [MixedPrecision("bf16"), GradientAccumulation(2), EMA(0.9)]
        return [AvgStatsCallback(report=None), *callbacks]

    make = alike(make_learner)
    plain, stepped = make(), make()
    one, other = Runner(kit()), Runner(kit())
    expected, found = trace(one), trace(other)
    torch.manual_seed(2)
    result = one.fit(2, plain)
    torch.manual_seed(2)
    count = sum(1 for _ in other.iterate(2, stepped, at=at))
    assert found == expected
    assert count == sum(name == at for name, *_ in expected)
    assert equal(plain, stepped)
    assert other.result is not None
    assert (other.result.outcome, other.result.history) == ("completed", result.history)


def test_each_moment_is_the_run_where_the_event_has_fired(learner: Learner) -> None:
    run, found = Runner(), []
    for moment in run.iterate(1, learner):
        assert moment is run
        assert moment.loss is not None
        found.append((moment.phase, moment.batch_index, moment.n_iter))
    assert found == [("train", i, i + 1) for i in range(3)] + [("validate", i, 3) for i in (0, 1)]


def test_all_handlers_of_the_event_have_run(learner: Learner) -> None:
    run, found = Runner(), []
    run.on("after_batch", lambda run: found.append("handler"), priority=-1e9)
    for _ in run.iterate(1, learner, during="train"):
        found.append("body")
    assert found[:2] == ["handler", "body"]
    assert found.count("body") == 3


def test_all_of_it_runs_in_the_callers_thread_and_context(learner: Learner) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    run, found = Runner(), []
    run.on("after_loss", lambda run: found.append((threading.get_ident(), variable.get())))
    run.on("after_epoch", lambda run: variable.set("set by a handler"))
    variable.set("of the caller")
    for _ in run.iterate(1, learner):
        pass
    assert set(found) == {(threading.get_ident(), "of the caller")}
    assert variable.get() == "set by a handler"


def test_the_body_has_the_gradient_mode_of_its_surroundings(learner: Learner) -> None:
    run = Runner()
    within: list[bool] = []
    run.on("after_loss", lambda run: within.append(torch.is_grad_enabled()), during="validate")
    assert [torch.is_grad_enabled() for _ in run.iterate(1, learner, during="validate")] == [
        True
    ] * 2
    assert within == [False, False]
    moments = run.iterate(1, learner, during="validate")
    next(moments)
    assert torch.is_grad_enabled()
    moments.close()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("leave", ["break", "close", "with", "collected"])
@pytest.mark.parametrize("at", ["begin_fit", "begin_train", "after_batch", "after_validate"])
def test_leaving_the_loop_ends_the_fit_as_a_cancellation(
    make_learner: Make, leave: str, at: str
) -> None:
    def leave_at(run: Runner, learn: Learner) -> None:
        if leave == "break":
            for _ in run.iterate(2, learn, at=at):
                break
        elif leave == "with":
            with run.iterate(2, learn, at=at) as moments:
                next(moments)
        else:
            moments = run.iterate(2, learn, at=at)
            next(moments)
            if leave == "close":
                moments.close()
                assert list(moments) == []
            else:
                circle: list[Any] = [moments]
                circle.append(circle)
                del moments, circle
                gc.collect()

    run, expected = Runner(), Runner()
    found, by_hand = trace(run), trace(expected)
    leave_at(run, make_learner())
    expected.on(at, lambda run: run.token.cancel("fit", "by hand"), priority=-1, once=True)
    expected.fit(2, make_learner())
    assert run.result is not None
    assert (run.result.outcome, run.is_running) == ("cancelled", False)
    assert run.result.reason == "the loop over run.iterate(...) was left"
    # A handler cancels before the scope of the event is closed, and so in its batch.
    assert [name for name, *_ in found] == [name for name, *_ in by_hand]
    assert found[-1][0] == "after_fit"


def test_an_exception_of_the_body_is_the_callers_and_the_fit_is_cancelled(learner: Learner) -> None:
    run = Runner()
    found = trace(run)
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        for _ in run.iterate(2, learner):
            raise error
    assert caught.value is error
    assert run.result is not None
    assert run.result.outcome == "cancelled"
    assert "fit_failed" not in [name for name, *_ in found]


def test_an_exception_of_a_handler_fails_the_fit_where_the_loop_asks_for_the_next_moment(
    learner: Learner,
) -> None:
    run = Runner()
    run.on("after_loss", lambda run: 1 / 0 if run.batch_index else None, during="train")  # type: ignore[arg-type, return-value]
    seen = []
    with pytest.raises(ZeroDivisionError) as caught:
        seen += [moment.batch_index for moment in run.iterate(1, learner)]
    assert seen == []
    assert "handler '<lambda>' of event 'after_loss'" in caught.value.__notes__[0]
    assert run.result is not None
    assert run.result.outcome == "failed"


def test_its_traceback_has_the_lines_of_the_loop(learner: Learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError) as caught:
        list(run.iterate(1, learner))
    lines = [frame.line for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "self.all_batches(self.data.train_dl)" in lines
    assert "emit.after_loss()" in lines


def test_what_a_closing_event_raises_comes_out_of_a_with_block(learner: Learner) -> None:
    run = Runner()
    run.on("after_fit", lambda run: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError), run.iterate(1, learner) as moments:
        next(moments)


@pytest.mark.parametrize(
    ("scope", "batches"), [("train", [0, 0, 1] * 2), ("epoch", [0, 0]), ("fit", [0])]
)
def test_the_body_may_cancel(learner: Learner, scope: str, batches: list[int]) -> None:
    run, found = Runner(), []
    for moment in run.iterate(2, learner):
        found.append(moment.batch_index)
        if moment.in_train:
            moment.token.cancel(scope, "by the body")
    assert found == batches
    assert run.result is not None
    assert run.result.outcome == ("cancelled" if scope == "fit" else "completed")


def test_a_scope_that_is_cancelled_by_a_handler_has_no_moment(learner: Learner) -> None:
    run = Runner()
    run.on("after_batch", lambda run: run.token.cancel("train"), during="train", every=2)
    found = [moment.batch_index for moment in run.iterate(1, learner, during="train")]
    assert found == [0]


def test_the_body_has_the_signal_handlers_of_its_surroundings(learner: Learner) -> None:
    run, within = Runner(), []
    run.on("after_loss", lambda run: within.append(signal.getsignal(signal.SIGINT)))
    before = signal.getsignal(signal.SIGINT)
    for _ in run.iterate(1, learner):
        assert signal.getsignal(signal.SIGINT) is before
    assert before not in within
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_the_body_is_raised_there_and_ends_the_fit(learner: Learner) -> None:
    run = Runner()
    with pytest.raises(KeyboardInterrupt):
        for _ in run.iterate(2, learner):
            signal.raise_signal(signal.SIGINT)
    assert run.result is not None
    assert (run.result.outcome, run.result.steps) == ("cancelled", 1)


def test_ctrl_c_in_the_fit_closes_it_and_is_raised_by_the_loop(learner: Learner) -> None:
    run = Runner()
    found = trace(run)
    run.on("after_loss", lambda run: signal.raise_signal(signal.SIGINT), once=True)
    with pytest.raises(KeyboardInterrupt):
        for _ in run.iterate(2, learner):
            pass
    assert found[-1][0] == "after_fit"
    assert run.result is not None
    assert run.result.reason == "SIGINT"


def test_a_fit_that_was_left_goes_on_from_its_checkpoint(
    make_learner: Make, tmp_path: Path
) -> None:
    make = alike(make_learner)
    plain = make()
    Runner().fit(2, plain)
    left = make()
    for moment in Runner(Checkpoint(tmp_path)).iterate(2, left):
        if moment.n_iter == 4:
            break
    resumed = make()
    epochs = [m.epoch for m in Runner(Checkpoint(tmp_path)).iterate(2, resumed, resume="auto")]
    assert epochs == [1] * 4
    assert equal(plain, resumed)


def test_the_handler_that_it_subscribes_is_gone_in_the_end(learner: Learner) -> None:
    run = Runner()
    before = run.bus.explain()
    for _ in run.iterate(1, learner):
        assert "iterate" in str(run.bus.explain("after_batch"))
    assert str(run.bus.explain()) == str(before)


def test_an_event_that_there_is_not_is_an_error_with_the_one_that_was_meant(
    learner: Learner,
) -> None:
    with pytest.raises(UnknownEventError, match="after_batch"):
        Runner().iterate(1, learner, at="after_bach")


@pytest.mark.parametrize("at", ["after_loss", "begin_batch", "after_fit", "fit_failed"])
def test_an_event_where_it_cannot_stand_still_is_an_error(learner: Learner, at: str) -> None:
    with pytest.raises(ValueError, match=f"can stand still at begin_fit, .*and not at {at}"):
        Runner().iterate(1, learner, at=at)


def test_arguments_that_fit_does_not_take_are_an_error_at_once(learner: Learner) -> None:
    with pytest.raises(TypeError, match="larn"):
        Runner().iterate(1, larn=learner)


def test_two_of_them_on_one_runner_are_an_error(learner: Learner) -> None:
    run = Runner()
    first, second = run.iterate(1, learner), run.iterate(1, learner)
    next(first)
    for begin in (
        lambda: next(second),
        lambda: run.iterate(1, learner),
        lambda: run.fit(1, learner),
    ):
        with pytest.raises(RuntimeError, match="running already"):
            begin()
    assert len(list(first)) == 4


def test_one_inside_of_a_fit_is_an_error(learner: Learner) -> None:
    run = Runner()
    run.on("after_batch", lambda run: run.iterate(1, learner))
    with pytest.raises(RuntimeError, match="running already: inside a handler"):
        run.fit(1, learner)


def test_another_runner_may_train_in_the_body(make_learner: Make) -> None:
    make = alike(make_learner)
    plain, stepped = make(), make()
    Runner().fit(1, plain)
    run, state = Runner(), torch.get_rng_state()
    torch.manual_seed(1)
    stepped = make()
    for _ in run.iterate(1, stepped):
        state = torch.get_rng_state()
        assert Runner().fit(1, make_learner()).outcome == "completed"
        torch.set_rng_state(state)
    assert equal(plain, stepped)


def test_a_loop_of_ones_own_is_an_error_and_a_batch_of_ones_own_is_not(learner: Learner) -> None:
    class Epochs(Runner):
        def one_epoch(self, epoch: int) -> None:
            super().one_epoch(epoch)

    class Batches(Runner):
        def one_batch(self) -> None:
            super().one_batch()

    with pytest.raises(TypeError, match="Epochs has a one_epoch of its own: subscribe a handler"):
        Epochs().iterate(1, learner)
    assert len(list(Batches().iterate(1, learner))) == 5


def test_one_that_is_never_begun_does_nothing(learner: Learner) -> None:
    run = Runner()
    run.iterate(1, learner)
    moments = run.iterate(1, learner)
    moments.close()
    assert run.result is None


def test_a_fit_by_steps_with_validations_within_is_the_same(make_learner: Make) -> None:
    make = alike(make_learner)
    plain, stepped = make(), make()
    one, other = Runner(AvgStatsCallback(report=None)), Runner(AvgStatsCallback(report=None))
    expected, found = trace(one), trace(other)
    options = {"steps": 7, "validate_every": 2}
    torch.manual_seed(2)
    result = one.fit(learn=plain, **options)
    torch.manual_seed(2)
    moments = [m.n_iter for m in other.iterate(learn=stepped, **options) if m.in_train]
    assert found == expected
    assert equal(plain, stepped)
    assert other.result is not None
    assert other.result.history == result.history
    assert moments == list(range(1, 8))


def test_a_scope_that_is_cancelled_behind_its_back_has_no_moment(learner: Learner) -> None:
    run, found = Runner(), []

    def cancel_last(run: Runner) -> None:
        """Cancel after the handler by which the fit stands still."""
        run.on(
            "after_batch", lambda run: run.token.cancel("train"), priority=float("-inf"), once=True
        )

    run.on("begin_train", cancel_last)
    for moment in run.iterate(1, learner):
        found.append((moment.phase, moment.batch_index))
    assert found == [("validate", 0), ("validate", 1)]
