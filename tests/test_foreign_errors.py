"""Exceptions that do not behave: nothing of theirs takes their place, and everything closes."""

from __future__ import annotations

import dataclasses
import traceback
from typing import Any

import pytest

from eventtrain import EventLog, Learner, Runner
from eventtrain.callbacks import JSONLLogger

CLOSING = ["fit_failed", "after_batch", "after_train", "after_epoch", "after_fit"]


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int = 7


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class NoNotes(Exception):
    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes")


class StrangeNotes(Exception):
    __notes__ = 5


class NotesOfOthers(Exception):
    def __init__(self) -> None:
        super().__init__("x")
        self.__notes__ = [Mute()]


class Touchy(BaseException):
    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError(f"{name} is not to be set")


class Empty(Exception):
    def __len__(self) -> int:
        return 0


KINDS = [Frozen, Mute, NoNotes, StrangeNotes, NotesOfOthers, Touchy, Empty]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event", ["begin_fit", "after_loss", "begin_step", "after_epoch"])
def test_the_very_exception_arrives_and_all_that_was_begun_is_closed(
    kind: type[BaseException], event: str, learner: Learner
) -> None:
    raised, run, seen = kind(), Runner(), []

    def fail(run: Any) -> None:
        raise raised

    run.on(event, fail, once=True)
    for name in CLOSING:
        run.on(name, lambda run, name=name: seen.append(name))
    with pytest.raises(kind) as caught:
        run.fit(2, learner)
    assert caught.value is raised
    assert "fail" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    expected = {"begin_fit": {0, 4}, "after_loss": set(range(5)), "begin_step": set(range(5)),
                "after_epoch": {0, 2, 3, 4}}[event]  # fmt: skip
    assert {CLOSING.index(name) for name in seen} >= expected
    assert seen.count("after_fit") == 1
    assert run.result is not None
    assert run.result.outcome == "failed"
    assert str(run.result.reason).startswith(kind.__name__)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_of_two_in_closing_handlers_one_arrives_and_the_others_run(
    first: type[BaseException], second: type[BaseException], learner: Learner
) -> None:
    run, seen = Runner(), []

    def raise_it(kind: type[BaseException]) -> Any:
        def fail(run: Any) -> None:
            raise kind()

        return fail

    run.on("after_epoch", raise_it(first), name="first", priority=2)
    run.on("after_epoch", raise_it(second), name="second", priority=1)
    run.on("after_epoch", lambda run: seen.append("third"))
    run.on("after_fit", lambda run: seen.append("closed"))
    with pytest.raises((first, second)):
        run.fit(1, learner)
    assert seen == ["third", "closed"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_closing_handler_raises_does_not_take_the_place_of_a_failure(
    kind: type[BaseException], learner: Learner
) -> None:
    raised, run = kind(), Runner()

    def fail(run: Any) -> None:
        raise raised

    run.on("after_loss", fail)
    run.on("after_batch", lambda run: 1 / 0)
    with pytest.raises(kind) as caught:
        run.fit(1, learner)
    assert caught.value is raised


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["predict", "validate_now", "profile", "transaction"])
def test_nothing_around_the_users_code_takes_its_place(
    kind: type[BaseException], how: str, learner: Learner
) -> None:
    raised, run = kind(), Runner()

    def fail(*arguments: Any) -> None:
        raise raised

    run.on("after_pred", fail, during="validate" if how == "validate_now" else None)
    with pytest.raises(kind) as caught:
        if how == "predict":
            run.predict(learner, learner.data.valid_dl)
        elif how == "validate_now":
            run.fit(1, learner, validate_every=1)
        else:
            with getattr(run.bus, how)():
                run.fit(1, learner)
    assert caught.value is raised


@pytest.mark.parametrize("kind", KINDS)
def test_logs_of_the_run_tell_of_it(kind: type[BaseException], learner: Learner, tmp_path) -> None:
    def fail(run: Any) -> None:
        raise kind()

    run = Runner([EventLog(), JSONLLogger(tmp_path / "log.jsonl")])
    run.on("after_loss", fail)
    with pytest.raises(kind):
        run.fit(1, learner)
    told = [record["exception"] for record in run.event_log.records if "exception" in record]
    assert [text.partition(":")[0] for text in told] == [kind.__name__]
    assert kind.__name__ in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, Exception)])
@pytest.mark.parametrize("on_error", ["warn", "disable"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_guarded_handler_is_guarded_from_it(
    kind: type[Exception], on_error: Any, learner: Learner
) -> None:
    def fail(run: Any) -> None:
        raise kind()

    run = Runner()
    run.on("after_loss", fail, on_error=on_error)
    assert run.fit(1, learner).outcome == "completed"


def test_a_note_that_is_refused_goes_to_the_log(
    learner: Learner, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(run: Any) -> None:
        raise Frozen

    run = Runner()
    run.on("after_loss", fail, name="breaker")
    with pytest.raises(Frozen):
        run.fit(1, learner)
    assert "raised in handler 'breaker' of event 'after_loss'" in caplog.text


def test_a_sender_whose_fields_cannot_be_read_does_not_hide_the_error() -> None:
    from eventtrain import EventBus

    class Sender:
        @property
        def epoch(self) -> int:
            raise RuntimeError("no epoch")

    bus = EventBus()
    bus.on("after_loss", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bus.emit("after_loss", Sender())
