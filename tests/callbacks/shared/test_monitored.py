"""One number of each epoch, and what is better."""

from __future__ import annotations

from fractions import Fraction
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eventtrain.callbacks import Checkpoint, EarlyStopping, ReduceLROnPlateau
from eventtrain.callbacks.shared.monitored import Monitored


class OneRow:
    """A run at the end of its first epoch."""

    epoch = 0

    def __init__(self, row: dict[str, Any], outcome: str = "completed") -> None:
        self.history = [{"epoch": 0, **row}]
        self.outcome = outcome


def read(row: dict[str, Any], outcome: str = "completed", is_cut_short: bool = False) -> Any:
    run: Any = OneRow(row, outcome)
    return Monitored("key", user="X").read(run, is_cut_short=is_cut_short)


@pytest.mark.parametrize("value", [0.5, torch.tensor([0.5]), np.float32(0.5), Fraction(1, 2)])
def test_any_kind_of_number_can_be_monitored(value: Any) -> None:
    number = read({"key": value})
    assert (number, type(number)) == (0.5, float)


@pytest.mark.parametrize("value", ["abc", None, torch.tensor([1.0, 2.0]), [1.0]])
def test_what_is_no_number_cannot_be_monitored(value: Any) -> None:
    with pytest.raises(TypeError, match="X monitors 'key', which must be a number") as caught:
        read({"key": value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [EarlyStopping, ReduceLROnPlateau, lambda key, **mode: Checkpoint("x", monitor=key, **mode)],
)
def test_a_key_that_is_called_as_what_should_grow_must_have_its_mode_said(make: Any) -> None:
    for key in ("valid_accuracy", "valid_MulticlassAccuracy", "valid_acc", "easy/f1_score", "mAP"):
        with pytest.raises(ValueError, match=rf"monitors '{key}'.*mode='max' takes the largest"):
            make(key)
        assert make(key, mode="max").monitored.mode == "max"
        assert make(key, mode="min").monitored.mode == "min"


@pytest.mark.parametrize(
    "key", ["valid_loss", "accuracy_loss", "valid_kl", "accumulated", "bitmap"]
)
def test_of_other_keys_the_smallest_is_best(key: str) -> None:
    assert Monitored(key, user="X").mode == "min"


def test_a_missing_key_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"X monitors 'key'.* \(there are: 'a', 'b'\)"):
        read({"a": 1.0, "b": 2.0})


def test_a_missing_key_is_told_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="there are: none"):
        read({})


@pytest.mark.parametrize("row", [{}, {"key": None}])
@pytest.mark.parametrize(("outcome", "is_cut_short"), [("cancelled", False), ("completed", True)])
def test_an_epoch_that_was_cut_short_may_lack_the_number(
    row: Any, outcome: str, is_cut_short: bool
) -> None:
    assert read(row, outcome, is_cut_short) is None


def test_an_epoch_that_was_cut_short_may_have_the_number() -> None:
    assert read({"key": 0.5}, "cancelled", is_cut_short=True) == 0.5


@pytest.mark.parametrize(
    ("mode", "value", "best", "min_delta", "expected"),
    [
        ("min", 0.5, None, 0.0, True),
        ("min", 0.5, 1.0, 0.0, True),
        ("min", 1.0, 1.0, 0.0, False),
        ("max", 1.5, 1.0, 0.0, True),
        ("max", 0.5, 1.0, 0.0, False),
        ("min", 0.5, 1.0, 0.5, False),
        ("min", 0.25, 1.0, 0.5, True),
        ("min", nan, None, 0.0, False),
        ("max", nan, 1.0, 0.0, False),
        ("min", 1.0, inf, 0.0, True),
    ],
)
def test_better_is_what_differs_by_more_than_min_delta_in_the_right_direction(
    mode: Any, value: float, best: float | None, min_delta: float, expected: bool
) -> None:
    assert Monitored("key", mode, user="X").is_better(value, best, min_delta) is expected


@pytest.mark.parametrize(("mode", "expected"), [("min", ["b", "d"]), ("max", ["c", "a"])])
def test_the_best_come_first_and_what_is_no_number_not_at_all(
    mode: Any, expected: list[str]
) -> None:
    values = {"a": 2.0, "b": 1.0, "c": 3.0, "d": 1.0, "e": nan, "f": None}
    assert Monitored("key", mode, user="X").best_of(values, 2, values.get) == expected


@pytest.mark.parametrize(
    ("key", "mode", "error", "message"),
    [
        (3, "min", TypeError, "monitor must be a key of run.history's rows, got 3"),
        (None, "min", TypeError, "monitor must be a key"),
        ("key", "best", ValueError, "mode must be 'min' or 'max', got 'best'"),
        ("key", "", ValueError, "mode must be"),
    ],
)
def test_bad_arguments_are_refused(
    key: Any, mode: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Monitored(key, mode, user="X")


@pytest.mark.parametrize("kind", [Checkpoint, EarlyStopping, ReduceLROnPlateau])
def test_key_and_mode_can_be_read_from_the_callback(kind: Any, tmp_path: Path) -> None:
    folder = [tmp_path] if kind is Checkpoint else []
    callback = kind(*folder, monitor="valid_accuracy", mode="max")
    assert (callback.monitor, callback.mode) == ("valid_accuracy", "max")


def test_a_checkpoint_that_monitors_nothing_says_so(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path).monitor is None
