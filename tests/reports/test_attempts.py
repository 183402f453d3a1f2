"""What a log tells of each attempt: its scopes, its time, its end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from eventtrain import EventLog, Learner, Runner
from eventtrain.reports.attempts import Attempt, attempts_of, number

Records = list[dict[str, Any]]


def log_of(learner: Learner, epochs: int = 1) -> Records:
    log = EventLog()
    Runner(log).fit(epochs, learner)
    return log.records


def timed(records: Iterable[dict[str, Any]]) -> Records:
    """The same lines, one second apart."""
    return [{**record, "t": float(index)} for index, record in enumerate(records)]


def only(records: Records) -> Attempt:
    (attempt,), damaged = attempts_of(records)
    assert damaged == []
    return attempt


def test_time_is_counted_from_opening_to_closing(learner: Learner) -> None:
    attempt = only(timed(log_of(learner)))
    scopes = {path: (s.count, s.seconds, s.own) for path, s in attempt.scopes.items()}
    batch = "fit > epoch > train > batch"
    # begin_step to after_step is a second, of seven events between begin_batch and after_batch.
    assert scopes[f"{batch} > step"] == (3, 3.0, 3.0)
    assert scopes[batch] == (3, 18.0, 15.0)
    assert scopes["fit > epoch > train"] == (1, 22.0, 4.0)
    assert scopes["fit > epoch > validate > batch"] == (2, 6.0, 6.0)
    assert sum(own for _, _, own in scopes.values()) == scopes["fit"][1] == attempt.seconds


def test_time_between_events_is_counted_by_phase(learner: Learner) -> None:
    between = only(timed(log_of(learner))).between
    assert between["train", "after_pred", "after_loss"].count == 3
    assert between["validate", "after_pred", "after_loss"].seconds == 2.0
    assert sum(spent.seconds for spent in between.values()) == len(log_of(learner)) - 1


def test_what_has_no_closing_line_counts_up_to_the_last_line(learner: Learner) -> None:
    attempt = only(timed(log_of(learner))[:6])
    assert attempt.open_scopes == ("fit", "epoch", "train", "batch")
    assert attempt.outcome is None
    assert attempt.scopes["fit"].seconds == 5.0
    assert attempt.scopes["fit > epoch > train > batch"].own == 2.0


def test_an_event_that_was_cancelled_leaves_its_scope(learner: Learner) -> None:
    log = EventLog()
    run = Runner(log)
    run.on("begin_step", lambda run: run.token.cancel("step"))
    run.on("begin_validate", lambda run: run.token.cancel("epoch"))
    run.fit(1, learner)
    attempt = only(timed(log.records))
    assert attempt.scopes["fit > epoch > train > batch > step"].count == 3
    assert attempt.scopes["fit > epoch > validate"].count == 1
    assert (attempt.asked, attempt.outcome) == (4, "completed")


def test_a_scope_of_ones_own_is_timed_too(learner: Learner) -> None:
    class Evolving(Runner):
        def training_phase(self) -> None:
            super().training_phase()
            with self.scope.evolve:
                self.emit.begin_evolve()

    log = EventLog()
    run = Evolving(log)
    run.bus.declare_scope("evolve", inside="epoch", is_phase=True)
    run.fit(1, learner)
    assert only(timed(log.records)).scopes["fit > epoch > evolve"].seconds == 1.0


def test_a_run_inside_of_a_run_does_not_end_it(make_learner: Any) -> None:
    outer = EventLog()
    run = Runner(outer)

    def fold(run: Runner) -> None:
        Runner().fit(1, make_learner(), token=run.token)

    run.on("after_epoch", fold)
    run.fit(2, make_learner())
    attempt = only(outer.records)
    assert (attempt.kind, attempt.outcome) == ("fit", "completed")


def test_runs_of_one_log_are_attempts_of_their_own(learner: Learner) -> None:
    log = EventLog()
    run = Runner(log)
    run.fit(1, learner)
    run.predict(learner, learner.data.valid_dl)
    run.fit(1, learner)
    attempts, _ = attempts_of(log.records)
    assert [(each.kind, each.outcome) for each in attempts] == [
        ("fit", "completed"), ("predict", "completed"), ("fit", "completed")
    ]  # fmt: skip


def test_a_log_without_first_lines_is_cut_where_a_fit_begins(learner: Learner) -> None:
    whole = [{k: v for k, v in line.items() if k != "run"} for line in log_of(learner)]
    attempts, _ = attempts_of([*whole[:9], *whole])
    assert [each.outcome for each in attempts] == [None, "completed"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (2.5, 2.5), (True, None), ("3", None), (float("inf"), None), (10**400, None)],
)
def test_a_number_is_finite(value: object, expected: float | None) -> None:
    assert number(value) == expected
