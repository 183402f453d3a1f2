"""Arguments that are checked: what is taken, and what the message says of the rest."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eventtrain import Callback, callbacks
from eventtrain.arguments import absolute_path, flag, real_number, whole_number


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, np.float64(1)])
def test_what_is_no_whole_number_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^every must be a whole number of steps, got "):
        whole_number("every", value, 1, "steps")


def test_a_whole_number_that_is_too_small_is_refused_with_the_least() -> None:
    with pytest.raises(ValueError, match=r"^every must be at least 1, got 0$"):
        whole_number("every", 0, 1)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_a_whole_number_becomes_a_plain_int(value: Any) -> None:
    found = whole_number("every", value, 3)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize("value", [True, False, "1", None, 1j])
def test_what_is_no_number_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^seconds must be a number, got "):
        real_number("seconds", value)


@pytest.mark.parametrize("value", [math.nan, np.float64("nan")])
def test_nan_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^every must be a number of seconds, got nan$"):
        real_number("every", value, "seconds")


@pytest.mark.parametrize("value", [-1, 0.5, math.inf, 10**400, np.float32(2)])
def test_a_number_is_returned_as_it_is(value: Any) -> None:
    assert real_number("priority", value) is value


@pytest.mark.parametrize("value", [None, 3, 0.5, ["log.csv"]])
def test_what_is_no_path_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^path must be a path, got "):
        absolute_path("path", value)


@pytest.mark.parametrize("value", ["log.csv", b"log.csv", Path("log.csv")])
def test_a_path_of_any_kind_becomes_absolute(value: Any) -> None:
    assert absolute_path("path", value) == str(Path.cwd() / "log.csv")


@pytest.mark.parametrize("value", [0, 1, None, "yes", np.True_])
def test_what_is_neither_true_nor_false_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^append must be True or False, got "):
        flag("append", value)


@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_returned(value: bool) -> None:
    assert flag("append", value) is value


NEEDED: dict[str, dict[str, Any]] = {
    "ActivationCheckpointing": {"modules": ["0"]},
    "AvgStatsCallback": {"metrics": None},
    "CSVLogger": {"path": "log.csv"},
    "Checkpoint": {"folder": "checkpoints"},
    "EventLog": {"path": "log.jsonl"},
    "Freeze": {"modules": ["0"]},
    "GradientAccumulation": {"n": 2},
    "GradientClip": {"norm": 1.0},
    "JSONLLogger": {"path": "log.jsonl"},
    "LRScheduler": {"make": None},
    "MaxSteps": {"n": 1},
    "OneCycle": {"max_lr": 0.1},
    "OptunaPruning": {"trial": None},
    "ParamScheduler": {"pname": "lr", "sched_funcs": callbacks.sched_none(0.1)},
    "Seed": {"seed": 0},
    "StopFile": {"path": "stop"},
    "TensorBoard": {"logdir": "logs"},
    "TimeLimit": {"seconds": 1.0},
}


def numbers_and_flags() -> Iterator[tuple[str, str]]:
    for name in callbacks.__all__:
        made = getattr(callbacks, name)
        if isinstance(made, type) and issubclass(made, Callback):
            for argument in inspect.signature(made).parameters.values():
                kinds = {part.strip() for part in str(argument.annotation).split("|")}
                if kinds <= {"bool", "int", "float", "None"}:
                    yield name, argument.name


@pytest.mark.parametrize(("name", "argument"), list(numbers_and_flags()))
def test_a_callback_refuses_a_word_for_a_number_or_a_flag(name: str, argument: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{argument} must be .*got 'yes'"):
        getattr(callbacks, name)(**{**NEEDED.get(name, {}), argument: "yes"})
