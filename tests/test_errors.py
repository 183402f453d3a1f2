from __future__ import annotations

import pickle

import pytest

from eventtrain import errors
from eventtrain.errors import (
    CallbackError,
    DataError,
    EmptyLoaderError,
    EventTrainError,
    OrderError,
    PluginError,
    RemoteError,
    ScopeNotOpenError,
    UnknownEventError,
    combine_errors,
    did_you_mean,
)


def raised(error: BaseException) -> BaseException:
    """Return ``error`` with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (UnknownEventError, KeyError),
        (OrderError, ValueError),
        (ScopeNotOpenError, RuntimeError),
        (CallbackError, TypeError),
        (PluginError, RuntimeError),
        (RemoteError, RuntimeError),
        (DataError, ValueError),
        (EmptyLoaderError, DataError),
    ],
)
def test_every_error_can_be_caught_by_its_base_and_by_the_builtin_closest_to_it(
    kind: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(kind, EventTrainError)
    assert issubclass(kind, builtin)


def test_every_exception_of_the_module_derives_from_its_base() -> None:
    own = [
        each for each in vars(errors).values() if getattr(each, "__module__", "") == errors.__name__
    ]
    kinds = [each for each in own if isinstance(each, type)]
    assert len(kinds) >= 8
    assert all(issubclass(kind, EventTrainError) for kind in kinds)


def test_an_unknown_event_prints_its_sentence_without_quotes() -> None:
    assert str(UnknownEventError("the bus declares no event 'x'.")) == (
        "the bus declares no event 'x'."
    )


def test_a_scope_that_is_not_open_comes_with_those_that_are() -> None:
    error = ScopeNotOpenError("step", ["fit", "epoch"])
    assert (error.scope, error.open_scopes) == ("step", ("fit", "epoch"))
    assert "'step'" in str(error)
    assert "open now: fit > epoch" in str(error)


def test_when_no_scope_is_open_the_message_says_so() -> None:
    assert "no scope is open" in str(ScopeNotOpenError("step", []))


def test_a_near_name_is_suggested() -> None:
    assert did_you_mean("after_los", ["begin_fit", "after_loss"]) == " Did you mean 'after_loss'?"


def test_nothing_is_suggested_for_a_name_that_resembles_none() -> None:
    assert did_you_mean("zzz", ["begin_fit", "after_loss"]) == ""


def test_a_hint_can_be_asked_for_anything() -> None:
    assert did_you_mean(5, iter(["begin_fit"])) == ""  # type: ignore[arg-type]


def test_a_single_error_is_combined_to_itself() -> None:
    error = raised(ValueError("one"))
    assert combine_errors([error]) is error
    assert not hasattr(error, "__notes__")


def test_of_several_errors_the_first_is_kept_and_the_others_are_its_notes() -> None:
    first, second, third = map(raised, (ValueError("one"), KeyError("two"), OSError("three")))
    assert combine_errors([first, second, third]) is first
    assert len(first.__notes__) == 2
    assert "KeyError: 'two'" in first.__notes__[0]
    assert "OSError: three" in first.__notes__[1]


def test_the_notes_hold_tracebacks() -> None:
    first, second = raised(ValueError("one")), raised(KeyError("two"))
    combine_errors([first, second])
    assert "Traceback" in first.__notes__[0]
    assert "in raised" in first.__notes__[0]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_one_that_nothing_may_swallow_outranks_the_first(kind: type[BaseException]) -> None:
    first, second = raised(ValueError("one")), raised(kind())
    assert combine_errors([first, second]) is second
    assert "ValueError: one" in second.__notes__[0]


def test_of_two_that_nothing_may_swallow_the_first_wins() -> None:
    first, second = raised(SystemExit(1)), raised(KeyboardInterrupt())
    assert combine_errors([first, second]) is first


def test_an_error_raised_twice_is_no_note_of_its_own() -> None:
    error = raised(ValueError("one"))
    assert combine_errors([error, error]) is error
    assert not hasattr(error, "__notes__")


def test_a_scope_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ScopeNotOpenError("batch", ("fit", "epoch"))))
    assert (error.scope, error.open_scopes) == ("batch", ("fit", "epoch"))
    assert "fit > epoch" in str(error)


def test_an_error_of_another_rank_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(RemoteError("rank 3 failed: no luck", [3])))
    assert (str(error), error.ranks) == ("rank 3 failed: no luck", (3,))


def test_a_scope_error_with_nothing_open_says_how_to_cancel_beforehand() -> None:
    assert "fit(..., token=)" in str(ScopeNotOpenError("fit", ()))
