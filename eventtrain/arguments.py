"""Checks of arguments that many classes share; the message names the argument."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any


def whole_number(name: str, value: Any, least: int, unit: str | None = None) -> int:
    """Return ``value`` as an ``int`` if it is a whole number of at least ``least``.

    NumPy's integers are whole numbers too; ``True`` and ``False`` are none.

    Args:
        name: What the argument is called.
        value: What was passed.
        least: The smallest that is taken.
        unit: What is counted, for the message: ``"batches"``.

    Raises:
        TypeError, ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number{_of(unit)}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def real_number(name: str, value: Any, unit: str | None = None) -> float:
    """Return ``value``, an ``int`` or a ``float`` or what NumPy has for them, if it is not nan.

    Args:
        name: What the argument is called.
        value: What was passed.
        unit: What is counted, for the message: ``"seconds"``.

    Raises:
        TypeError, ValueError: It is not; ``True`` and ``False`` are no numbers.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number{_of(unit)}, got {value!r}")
    if value != value:  # not math.isnan, which overflows on a large int
        raise ValueError(f"{name} must be a number{_of(unit)}, got nan")
    return value  # type: ignore[return-value]


def absolute_path(name: str, value: Any) -> str:
    """Return the absolute path of ``value``, as it is now: a handler may change the folder.

    Raises:
        TypeError: It is no path.
    """
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {value!r}")
    return os.path.abspath(os.fsdecode(value))


def flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is ``True`` or ``False``.

    Raises:
        TypeError: It is something else, which is seldom meant as one of them.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def _of(unit: str | None) -> str:
    return "" if unit is None else f" of {unit}"


def takes_one_argument(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with one argument, as far as it tells."""
    try:
        inspect.signature(function).bind(object())
    except TypeError:
        return False
    except ValueError:  # a builtin that does not tell
        return True
    return True


def optimizer_name(value: Any) -> str | None:
    """Return the name of one of several optimizers, ``None`` for the one that is alone.

    Raises:
        TypeError: It is neither a text nor ``None``.
    """
    if not (value is None or (isinstance(value, str) and value)):
        raise TypeError(
            f"optimizer must be the name of one of the Learner's several optimizers, got {value!r}"
        )
    return value
