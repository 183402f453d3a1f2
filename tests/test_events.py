from __future__ import annotations

import dataclasses
import re
from itertools import pairwise
from typing import get_args

import pytest

from eventtrain import Runner, TrainEvalCallback
from eventtrain.events import (
    ALWAYS,
    EVENTS,
    PHASES,
    SCOPE_SPECS,
    SCOPES,
    Event,
    EventName,
    PhaseName,
    ScopeName,
    ScopeSpec,
    Vocabulary,
    event_names,
)
from eventtrain.loop import Loop

BY_NAME = {event.name: event for event in EVENTS}


def rank(name: str) -> int:
    """The place of an event in the table."""
    return event_names().index(name)


def test_no_name_stands_twice_in_the_table() -> None:
    assert len(BY_NAME) == len(EVENTS)


def test_the_names_for_type_checkers_are_those_of_the_tables() -> None:
    assert get_args(EventName) == event_names()
    assert get_args(ScopeName) == SCOPES
    assert get_args(PhaseName) == PHASES


def test_every_name_is_a_public_identifier() -> None:
    assert all(name.isidentifier() and not name.startswith("_") for name in BY_NAME)


def test_every_event_belongs_to_a_scope() -> None:
    assert {event.scope for event in EVENTS} == set(SCOPES)


def test_the_phases_are_scopes() -> None:
    assert set(PHASES) < set(SCOPES)


@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_is_opened_by_one_event_of_its_name(scope: str) -> None:
    assert [e.name for e in EVENTS if e.scope == scope and e.kind == "opening"] == [
        f"begin_{scope}"
    ]


@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_tells_that_it_was_cancelled(scope: str) -> None:
    assert BY_NAME[f"after_cancel_{scope}"].kind == "closing"
    assert BY_NAME[f"after_cancel_{scope}"].scope == scope


@pytest.mark.parametrize("scope", [scope for scope in SCOPES if scope != "step"])
def test_every_scope_but_the_step_is_closed_by_an_event_of_its_name(scope: str) -> None:
    assert BY_NAME[f"after_{scope}"].kind == "closing"
    assert BY_NAME[f"after_{scope}"].scope == scope


def test_the_step_has_ended_at_a_point_of_the_batch() -> None:
    assert (BY_NAME["after_step"].scope, BY_NAME["after_step"].kind) == ("batch", "point")


@pytest.mark.parametrize("scope", SCOPES)
def test_of_two_events_that_close_a_scope_none_takes_the_place_of_the_other(scope: str) -> None:
    closing = [e for e in EVENTS if e.scope == scope and (e.closes_scope or e.only_after)]
    assert len(closing) == len({event.only_after for event in closing})


def test_a_row_is_told_of_after_all_else_in_its_epoch_and_closes_no_scope() -> None:
    assert BY_NAME["after_row"].kind == "closing"
    assert not BY_NAME["after_row"].closes_scope
    assert rank("after_row") == rank("after_epoch") + 1


def test_the_failure_of_a_fit_is_a_closing_event_of_the_fit() -> None:
    assert (BY_NAME["fit_failed"].scope, BY_NAME["fit_failed"].kind) == ("fit", "closing")


@pytest.mark.parametrize("scope", [scope for scope in SCOPES if scope != "step"])
def test_opening_cancelling_and_closing_stand_in_this_order(scope: str) -> None:
    names = [f"begin_{scope}", f"after_cancel_{scope}", f"after_{scope}"]
    assert sorted(names, key=rank) == names


def test_the_events_of_a_batch_stand_in_the_order_in_which_they_fire() -> None:
    names = ["begin_batch", "after_pred", "after_loss", "after_backward", "begin_step",
             "after_step", "after_batch"]  # fmt: skip
    assert sorted(names, key=rank) == names


@pytest.mark.parametrize(
    ("outer", "inner"),
    [*pairwise(("fit", "epoch", "train", "batch", "step")), ("epoch", "validate")],
)
def test_an_inner_scope_opens_after_the_outer_one_and_closes_before_it(
    outer: str, inner: str
) -> None:
    assert rank(f"begin_{outer}") < rank(f"begin_{inner}")
    assert rank(f"after_{inner}") < rank(f"after_{outer}")


def test_every_event_has_a_meaning_for_people() -> None:
    assert all(event.meaning and event.meaning == event.meaning.strip() for event in EVENTS)


def test_no_event_lists_a_field_that_is_always_valid() -> None:
    assert not any(set(event.fields) & set(ALWAYS) for event in EVENTS)


def test_every_field_that_an_event_lists_is_one_of_the_run() -> None:
    listed = {field for event in EVENTS for field in event.fields} | set(ALWAYS)
    assert [field for field in sorted(listed) if not hasattr(Runner, field)] == []


def test_every_phase_of_the_table_has_its_mode_set_when_it_begins() -> None:
    assert [phase for phase in PHASES if f"begin_{phase}" not in vars(TrainEvalCallback)] == []


def test_the_loop_says_in_its_docstring_every_event_of_a_fit_that_goes_well() -> None:
    shown = re.findall(r"\b(?:begin|after)_\w+", str(Loop.__doc__).partition("Every ``with")[0])
    fires = [e.name for e in EVENTS if e.only_after is None and e.scope != "predict"]
    assert sorted(shown) == sorted(fires)


def test_the_loss_is_valid_only_where_it_has_been_computed() -> None:
    with_loss = {event.name for event in EVENTS if "loss" in event.fields}
    assert with_loss == {
        "after_loss", "after_backward", "begin_step", "after_cancel_step", "after_step"
    }  # fmt: skip


def test_names_come_in_the_order_of_the_events_given() -> None:
    events = [Event("b", "", "point", (), ""), Event("a", "", "point", (), "")]
    assert event_names(events) == ("b", "a")


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EVENTS[0].name = "other"  # type: ignore[misc]


def test_every_scope_lies_in_one_that_stands_before_it() -> None:
    for index, spec in enumerate(SCOPE_SPECS):
        assert set(spec.parents) <= set(SCOPES[:index]), spec.name


def test_an_event_that_needs_an_outcome_closes_a_scope() -> None:
    assert all(event.kind == "closing" for event in EVENTS if event.only_after is not None)


def test_what_lies_around_a_scope_comes_outermost_first() -> None:
    assert Vocabulary().around("step") == [
        "fit", "epoch", "train", "validate", "predict", "batch"
    ]  # fmt: skip
    assert Vocabulary().around("fit") == []


def test_children_are_the_scopes_right_inside() -> None:
    assert Vocabulary().children("epoch") == ["train", "validate"]


def test_a_phase_that_is_added_may_hold_batches() -> None:
    vocabulary = Vocabulary()
    vocabulary.add(ScopeSpec("calibrate", ("epoch",), is_phase=True))
    assert "batch" in vocabulary.children("calibrate")
    assert vocabulary.phases == (*PHASES, "calibrate")


def test_the_vocabularies_of_two_buses_are_apart() -> None:
    Vocabulary().add(ScopeSpec("calibrate", ("epoch",)))
    assert "calibrate" not in Vocabulary().scopes
