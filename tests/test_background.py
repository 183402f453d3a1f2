"""Handlers that run in a thread of their own, on records of the run."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from eventtrain import Callback, DataBunch, EventBus, Learner, Runner, handler
from eventtrain.record import Record

Make = Callable[..., Learner]
WAIT = 20.0  # seconds, in which what is waited for has come long since


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("eventtrain ")]


class Held:
    """A handler that waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.may_go = threading.Event(), threading.Event()
        self.seen: list[Any] = []

    def __call__(self, record: Any) -> None:
        self.begun.set()
        assert self.may_go.wait(WAIT)
        self.seen.append(record.n_iter)


def test_it_is_called_with_a_record_of_each_event_in_order(learner: Learner) -> None:
    run, found, expected = Runner(), [], []
    run.on("after_loss", lambda r: found.append((r.epoch, r.phase, r.batch_index)), background=True)
    run.on("after_loss", lambda run: expected.append((run.epoch, run.phase, run.batch_index)))
    run.fit(2, learner)
    assert found == expected
    assert len(found) == 10


def test_it_runs_in_one_thread_which_is_gone_after_the_fit(learner: Learner) -> None:
    run, found = Runner(), set()
    run.on("after_batch", lambda record: found.add(threading.get_ident()), background=True)
    for _ in range(2):
        run.fit(1, learner)
        assert threads() == []
    assert len(found) <= 2
    assert threading.get_ident() not in found


def test_the_loop_does_not_wait_for_it(learner: Learner) -> None:
    run, held, ended = Runner(), Held(), []
    run.on("after_loss", held, name="held", background=True)
    run.on("after_epoch", lambda run: ended.append(list(held.seen)))
    run.on("after_epoch", lambda run: held.may_go.set())
    run.fit(1, learner)
    assert ended == [[]]
    assert held.seen == [0, 1, 2, 3, 3]


def test_a_record_is_what_the_run_was_and_not_what_it_is(learner: Learner) -> None:
    run, records, losses = Runner(), [], []
    run.on("after_loss", records.append, name="keep", background=True, during="train")
    run.on("after_loss", lambda run: losses.append(run.loss.item()), during="train")
    run.on("after_loss", lambda run: run.loss.detach().zero_() is None or None, priority=-1)
    run.on("begin_train", lambda run: run.history[-1].update(score=1.0))
    run.on("after_batch", lambda run: run.history[-1].update(score=2.0))
    run.fit(1, learner)
    assert [r.loss.item() for r in records] == losses
    assert not any(r.loss.requires_grad for r in records)
    assert [r.n_iter for r in records] == [0, 1, 2]
    assert [r.row["score"] for r in records] == [1.0, 2.0, 2.0]
    assert {r.event for r in records} == {"after_loss"}
    assert records[0].lrs == (learner.opt.param_groups[0]["lr"],)


def test_tensors_are_copied_where_they_are_asked_for(learner: Learner) -> None:
    run, records = Runner(), []
    run.on(
        "after_loss",
        records.append,
        name="keep",
        background=True,
        tensors=("pred", "batch"),
        once=True,
    )
    run.on("after_loss", lambda run: torch.zero_(run.pred.detach()), priority=-1)
    run.fit(1, learner)
    assert records[0].pred.abs().sum() > 0
    assert not records[0].pred.requires_grad
    assert torch.equal(records[0].batch[0], learner.data.train_ds.x[:4])


def test_what_a_record_lacks_is_an_error_that_says_how_to_ask_for_it(learner: Learner) -> None:
    record = Record({"event": "after_loss", "epoch": 1})
    with pytest.raises(AttributeError, match=r"no 'xb': ask for a copy, tensors=\('xb',\)"):
        _ = record.xb
    with pytest.raises(AttributeError, match=r"which has no 'model'\. It has event, epoch"):
        _ = record.model


def test_a_record_is_frozen() -> None:
    record = Record({"event": "after_loss", "epoch": 1})
    with pytest.raises(AttributeError, match="cannot be set"):
        record.epoch = 2
    assert (record.epoch, repr(record)) == (1, "<Record of after_loss, epoch 1>")


def test_the_filters_are_asked_in_the_loop(learner: Learner) -> None:
    run, found = Runner(), []
    run.on(
        ["begin_batch", "after_batch"],
        lambda r: found.append((r.event, r.batch_index)),
        background=True,
        every=2,
        during="train",
        when=lambda run: run.epoch == 1,
    )
    run.fit(2, learner)
    assert found == [("after_batch", 0), ("after_batch", 1), ("after_batch", 2)]


def test_weights_are_the_same_bit_for_bit(make_learner: Make) -> None:
    plain, watched = make_learner(), make_learner()
    watched.model.load_state_dict(plain.model.state_dict())
    run = Runner()
    options = {"background": True, "tensors": ("pred", "xb", "yb")}
    run.on("after_loss", lambda r: torch.zero_(r.pred) is None or None, **options)
    run.on("after_loss", lambda r: torch.zero_(r.xb) is None or None, **options)
    run.fit(2, watched)
    Runner().fit(2, plain)
    assert torch.equal(plain.model.weight, watched.model.weight)


def test_it_reads_nothing_from_the_device_in_the_loop(learner: Learner, no_sync: Any) -> None:
    run, found = Runner(), []
    run.on("after_loss", lambda r: found.append(r.loss), background=True, tensors="pred")
    for phase in ("train", "validate"):
        run.on(f"begin_{phase}", lambda run: no_sync.__enter__())
        run.on(f"after_{phase}", lambda run: no_sync.__exit__(), priority=1000)
    assert run.fit(1, learner).outcome == "completed"
    assert len(found) == 5


# When there is no room


def test_where_the_queue_is_full_the_loop_waits(learner: Learner) -> None:
    run, held, begun = Runner(), Held(), []
    run.on("after_batch", held, name="held", background=True, queue=1)

    def let_go(run: Any) -> None:
        begun.append(run.batch_index)
        if run.batch_index == 2:  # one runs, one waits, and for the third there is no room
            threading.Timer(0.05, held.may_go.set).start()

    run.on("begin_batch", let_go, during="train")
    run.fit(1, learner)
    assert held.seen == [1, 2, 3, 3, 3]


def test_or_records_are_dropped_and_their_number_is_logged(
    learner: Learner, caplog: pytest.LogCaptureFixture
) -> None:
    run, held = Runner(), Held()
    run.on("after_batch", held, name="held", background=True, queue=1, full="drop", during="train")
    run.on("after_batch", lambda run: held.begun.wait(WAIT) and None, priority=-1)
    run.on("after_train", lambda run: held.may_go.set())
    with caplog.at_level(logging.WARNING, "eventtrain"):
        run.fit(1, learner)
    assert held.seen == [1, 2]
    assert "'held' of event 'after_batch'" in caplog.text
    assert "was not told of 1 events, for which its queue of 1 had no room" in caplog.text


# Errors


def fail(record: Any) -> None:
    if record.n_iter == 1:
        raise KeyError("mine")


def test_an_error_is_raised_at_the_next_closing_event_with_its_own_note(learner: Learner) -> None:
    run, events = Runner(), []
    failed = threading.Event()

    def fails(record: Any) -> None:
        try:
            fail(record)
        except KeyError:
            failed.set()
            raise

    run.on("begin_batch", fails, background=True)
    run.on("after_loss", lambda run: failed.wait(WAIT) and None, when=lambda run: run.n_iter == 1)
    run.on(["after_batch", "fit_failed", "after_fit"], lambda run: events.append(run.n_iter))
    with pytest.raises(KeyError, match="mine") as caught:
        run.fit(1, learner)
    notes = [note for note in caught.value.__notes__ if note.startswith("eventtrain: ")]
    assert len(notes) == 1
    assert "raised in handler 'fails' of event 'begin_batch' (priority 0, " in notes[0]
    assert "in background), epoch 0, batch 1" in notes[0]
    assert run.result is not None
    assert (run.result.outcome, run.result.steps) == ("failed", 2)
    assert threads() == []


def test_an_error_of_the_last_record_is_raised_by_after_fit(learner: Learner) -> None:
    run = Runner()
    run.on("after_epoch", lambda record: 1 / 0, background=True)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert threads() == []


def test_nothing_is_called_after_an_error(learner: Learner) -> None:
    run, found = Runner(), []

    def fails(record: Any) -> None:
        found.append(record.batch_index)
        raise ValueError

    run.on("begin_batch", fails, background=True)
    with pytest.raises(ValueError):
        run.fit(1, learner)
    assert found == [0]


def test_the_next_fit_has_it_called_again(learner: Learner) -> None:
    run, found = Runner(), []

    def fails_once(record: Any) -> None:
        found.append(record.n_iter)
        if len(found) == 1:
            raise ValueError

    run.on("after_batch", fails_once, background=True, during="train")
    with pytest.raises(ValueError):
        run.fit(1, learner)
    del found[1:]
    run.fit(1, learner)
    assert found[1:] == [1, 2, 3]


def test_on_error_warn_warns_and_goes_on(learner: Learner) -> None:
    run = Runner()
    run.on("after_train", fail, background=True, on_error="warn", name="warned")
    run.on("after_batch", fail, background=True, on_error="warn", name="warner", during="train")
    with pytest.warns(RuntimeWarning, match=r"handler 'warner' .*batch 0 failed: KeyError"):
        assert run.fit(1, learner).outcome == "completed"


def test_on_error_disable_logs_and_disconnects(
    learner: Learner, caplog: pytest.LogCaptureFixture
) -> None:
    run = Runner()
    subscription = run.on("after_batch", fail, background=True, on_error="disable")
    with caplog.at_level(logging.ERROR, "eventtrain"):
        assert run.fit(1, learner).outcome == "completed"
    assert "failed and has been disconnected" in caplog.text
    assert subscription.handlers[0].key is None


def test_a_result_that_steers_nothing_is_an_error_as_in_the_loop(learner: Learner) -> None:
    run = Runner()
    run.on("after_batch", lambda record: True, background=True)
    with pytest.raises(TypeError, match="steers nothing here"):
        run.fit(1, learner)


# The end of a run


@pytest.mark.parametrize("event", ["begin_fit", "begin_train", "after_loss", "after_epoch"])
@pytest.mark.parametrize("how", ["cancels", "fails"])
def test_a_run_that_is_cut_short_has_all_records_worked_off(
    learner: Learner, event: str, how: str
) -> None:
    run, found, expected = Runner(), [], []
    run.on("begin_batch", lambda record: found.append(record.batch_index), background=True)
    run.on("begin_batch", lambda run: expected.append(run.batch_index))

    def cut(run: Any) -> None:
        if how == "fails":
            raise ValueError
        run.token.cancel("fit")

    run.on(event, cut)
    if how == "fails":
        with pytest.raises(ValueError):
            run.fit(1, learner)
    else:
        run.fit(1, learner)
    assert found == expected
    assert threads() == []


def test_validation_and_prediction_alone_have_it_worked_off_too(learner: Learner) -> None:
    run, found = Runner(), []
    run.on("after_pred", lambda record: found.append(record.phase), background=True)
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert found == ["validate"] * 2 + ["predict"] * 2
    assert threads() == []


def test_a_handler_that_is_disconnected_has_its_thread_end_with_the_fit(learner: Learner) -> None:
    run, found = Runner(), []
    subscription = run.on("after_batch", lambda r: found.append(r.n_iter), background=True)
    run.on("after_batch", lambda run: subscription.disconnect(), priority=-1, once=True)
    run.fit(1, learner)
    assert found == [1]
    assert threads() == []


def test_leaving_a_loop_over_moments_has_it_worked_off(learner: Learner) -> None:
    run, found = Runner(), []
    run.on("after_batch", lambda record: found.append(record.n_iter), background=True)
    for moment in run.iterate(1, learner):
        if moment.n_iter == 2:
            break
    assert found == [1, 2]
    assert threads() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_calls_it_by_itself(learner: Learner) -> None:
    run, found = Runner(), []
    run.on("after_batch", lambda record: found.append(record.n_iter), background=True)
    told: list[int] = []

    def fork(run: Any) -> None:
        child = os.fork()
        if child == 0:
            found.clear()
            run.bus["after_batch"].send(run)
            os._exit(7 if found == [1] and threads() == [] else 8)
        told.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    run.on("after_loss", fork, when=lambda run: run.n_iter == 1)  # there is a thread by now
    run.fit(1, learner)
    assert told == [7]


# Subscribing


def test_the_table_of_handlers_shows_that_it_is_in_the_background(learner: Learner) -> None:
    run = Runner()
    run.on("after_loss", fail, background=True, priority=5)
    row = next(row for row in run.bus.explain("after_loss") if row.handler == "fail")
    assert row.source.endswith(", in background")
    assert row.priority == 5
    with run.bus.profile() as profile:
        with pytest.raises(KeyError):
            run.fit(1, learner)
    assert "fail" in profile.table()


def test_it_is_a_decorator_too(learner: Learner) -> None:
    run, found = Runner(), []

    @run.on("after_epoch", background=True)
    def note(record: Any) -> None:
        found.append(record.epoch)

    run.fit(2, learner)
    assert found == [0, 1]
    assert callable(note)


def test_a_subscription_ends_all_of_it(learner: Learner) -> None:
    run = Runner()
    before = str(run.bus.explain())
    with run.on("after_batch", fail, background=True):
        assert str(run.bus.explain()) != before
    assert str(run.bus.explain()) == before


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"queue": 0}, ValueError, "queue"),
        ({"queue": True}, TypeError, "queue"),
        ({"full": "lose"}, ValueError, "full must be 'wait' or 'drop', got 'lose'"),
        ({"tensors": ("model",)}, ValueError, "tensors can be of pred, xb, .* got 'model'"),
        ({"weak": True}, ValueError, "held strongly"),
        ({"every": 0}, ValueError, "every"),
    ],
)
def test_wrong_options_are_errors(options: Any, error: type[Exception], says: str) -> None:
    run = Runner()
    before = str(run.bus.explain())
    with pytest.raises(error, match=says):
        run.on("after_batch", fail, background=True, **options)
    assert str(run.bus.explain()) == before


@pytest.mark.parametrize("option", [{"queue": 5}, {"full": "drop"}, {"tensors": "pred"}])
def test_its_options_are_errors_without_it(option: Any) -> None:
    with pytest.raises(TypeError, match="of handlers in the background: background=True"):
        Runner().on("after_batch", fail, **option)


def test_what_cannot_be_a_handler_is_an_error() -> None:
    async def later(record: Any) -> None:
        pass

    for bad in (later, lambda: None, 3):
        with pytest.raises(TypeError):
            Runner().on("after_batch", bad, background=True)


def test_an_empty_loader_is_the_error_that_it_is(learner: Learner) -> None:
    run = Runner()
    run.on("begin_train", lambda record: None, background=True)
    learner.data = DataBunch([], None)
    with pytest.raises(Exception, match="gave no batch"):
        run.fit(1, learner)
    assert threads() == []


def test_a_record_has_the_rates_of_several_optimizers(learner: Learner) -> None:
    parameters = list(learner.model.parameters())
    learner.opt = {
        "a": torch.optim.SGD(parameters[:1], lr=0.1),
        "b": torch.optim.SGD(parameters[1:], lr=0.2),
    }

    class Both(Runner):
        def one_batch(self) -> None:
            self.pred = self.learn.call_model(self.xb)
            self.emit.after_pred()
            self.loss = self.learn.compute_loss(self.pred, self.yb)
            self.emit.after_loss()

    run, found = Both(), []
    run.on("after_loss", lambda record: found.append(record.lrs), background=True, once=True)
    run.fit(1, learner)
    assert found == [(0.1, 0.2)]


# Methods of callbacks


class Writer(Callback):
    """Keeps what it is given, and in which thread."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.threads: set[str] = set()

    @handler(background=True, during="train", tensors="pred", priority=3)
    def after_loss(self, record: Any) -> None:
        self.threads.add(threading.current_thread().name)
        self.seen.append((record.event, record.n_iter, len(record.pred)))


def test_a_method_of_a_callback_may_run_in_the_background(learner: Learner) -> None:
    run = Runner(Writer())
    for _ in range(2):
        run.fit(1, learner)
        assert threads() == []
    assert run.writer.seen == [("after_loss", n, 4) for n in range(3)] * 2
    assert run.writer.threads == {"eventtrain writer"}
    row = next(row for row in run.bus.explain("after_loss") if row.handler == "writer")
    assert row.source.endswith(", in background")
    assert row.priority == 3


def test_one_method_may_serve_several_events(learner: Learner) -> None:
    class Both(Callback):
        def __init__(self) -> None:
            self.seen: list[str] = []

        @handler(["begin_epoch", "after_train"], background=True)
        def note(self, record: Any) -> None:
            self.seen.append(record.event)

        @handler("after_validate", background=True)
        def note_too(self) -> None:
            self.seen.append("too")

    run = Runner(Both())
    run.fit(1, learner)
    assert sorted(run.both.seen) == ["after_train", "begin_epoch", "too"]


def test_a_method_that_overrides_one_keeps_its_options(learner: Learner) -> None:
    class More(Writer):
        @handler(queue=2)
        def after_loss(self, record: Any) -> None:
            super().after_loss(record)

    run = Runner(More())
    run.fit(1, learner)
    assert run.more.seen == [("after_loss", n, 4) for n in range(3)]


def test_a_method_that_overrides_one_may_go_back_into_the_loop(learner: Learner) -> None:
    class Here(Writer):
        @handler(background=False)
        def after_loss(self, run: Any) -> None:
            self.seen.append(run)

    run = Runner(Here())
    run.fit(1, learner)
    assert run.here.seen == [run] * 3


def test_an_error_of_a_method_is_raised_with_its_note(learner: Learner) -> None:
    class Fails(Callback):
        @handler(background=True)
        def after_epoch(self, record: Any) -> None:
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        Runner(Fails()).fit(1, learner)
    assert any("handler 'fails' of event 'after_epoch'" in note for note in caught.value.__notes__)
    assert threads() == []


def test_the_thread_of_a_method_ends_with_a_run_that_is_cut(learner: Learner) -> None:
    run = Runner(Writer())
    run.on("after_loss", lambda run: 1 / 0, priority=-1)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert run.writer.seen == [("after_loss", 0, 4)]
    assert threads() == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"background": 1}, "background"),
        ({"background": True, "queue": 0}, "queue"),
        ({"full": "lose"}, "full must be"),
        ({"background": True, "tensors": "model"}, "tensors can be of"),
    ],
)
def test_wrong_options_of_a_method_are_errors_where_it_is_decorated(
    options: Any, says: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        handler(**options)


def test_its_options_on_a_method_in_the_loop_are_an_error() -> None:
    class Odd(Callback):
        @handler(queue=5)
        def after_loss(self, run: Any) -> None:
            pass

    with pytest.raises(TypeError, match="queue is an option of handlers in the background"):
        Runner(Odd())


def test_with_background_turned_off_its_options_do_nothing(learner: Learner) -> None:
    run, found = Runner(), []
    run.on("after_epoch", found.append, name="keep", background=False, queue=5, tensors="pred")
    run.fit(1, learner)
    assert found == [run]


def test_one_callback_class_in_two_runners_has_a_thread_in_each(make_learner: Make) -> None:
    inner, outer = Runner(Writer()), Runner(Writer())
    outer.on("after_train", lambda run: inner.fit(1, make_learner()) and None)
    outer.fit(1, make_learner())
    assert len(inner.writer.seen) == len(outer.writer.seen) == 3
    assert threads() == []


def test_callbacks_of_a_bus_that_runners_share_hear_their_own(make_learner: Make) -> None:
    bus = EventBus()
    one, other = Runner(Writer(), bus=bus), Runner(Writer(), bus=bus)
    one.fit(1, make_learner())
    assert (len(one.writer.seen), len(other.writer.seen)) == (3, 0)
