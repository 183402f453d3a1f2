"""Halves of a generator around a block."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from eventtrain.around import around


@dataclass(frozen=True)
class Frozen(Exception):
    code: int = 1


@around
def noting(seen: list[str], swallowed: type[BaseException] | tuple[()] = ()) -> Iterator[str]:
    seen.append("before")
    try:
        yield "given"
    except swallowed:
        seen.append("swallowed")
    finally:
        seen.append("after")


def test_the_halves_run_before_and_after_the_block_which_is_given_what_is_yielded() -> None:
    seen: list[str] = []
    with noting(seen) as given:
        seen.append(given)
    assert seen == ["before", "given", "after"]


@pytest.mark.parametrize(
    "error", [ValueError("x"), Frozen(), StopIteration(3), RuntimeError("x"), KeyboardInterrupt()]
)
def test_an_exception_passes_as_it_is_and_leads_to_where_it_was_raised(
    error: BaseException,
) -> None:
    seen: list[str] = []
    with pytest.raises(type(error)) as caught:
        with noting(seen):
            raise error
    assert caught.value is error
    assert seen == ["before", "after"]
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert "noting" not in frames and frames[-1] == traceback.extract_stack()[-1].name


def test_what_the_generator_takes_goes_no_further() -> None:
    seen: list[str] = []
    with noting(seen, ValueError):
        raise ValueError
    assert seen == ["before", "swallowed", "after"]


def test_another_exception_of_the_generator_takes_the_place_of_the_first() -> None:
    @around
    def translating() -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise KeyError("other") from error

    with pytest.raises(KeyError) as caught:
        with translating():
            raise ValueError("one")
    assert isinstance(caught.value.__cause__, ValueError)
