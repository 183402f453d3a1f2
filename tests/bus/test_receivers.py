from __future__ import annotations

import functools
from typing import Any
from unittest.mock import Mock

import pytest

from eventtrain.bus.receivers import check_receiver, is_same, name_of, reject_flag, source_of

HERE = __name__


def plain(run: Any) -> None: ...


class Plot:
    def draw(self, run: Any) -> None: ...

    def __call__(self, run: Any) -> None: ...


class Forwarding:
    """Answers every attribute with itself, as proxies do."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, run: Any) -> None: ...


def line_of(function: Any) -> int:
    line: int = function.__code__.co_firstlineno
    return line


@pytest.mark.parametrize(
    ("receiver", "name"),
    [
        (plain, "plain"),
        (Plot().draw, "draw"),
        (Plot(), "Plot"),
        (Plot, "Plot"),
        (lambda run: None, "<lambda>"),
        (functools.partial(plain), "plain"),
        (functools.partial(functools.partial(Plot().draw)), "draw"),
        ([].append, "append"),
        (Mock(), "Mock"),
        (Forwarding(), "Forwarding"),
        (5, "int"),
    ],
)
def test_a_handler_goes_by_the_name_of_its_function(receiver: Any, name: str) -> None:
    assert name_of(receiver) == name


@pytest.mark.parametrize(
    ("receiver", "source"),
    [
        (plain, f"{HERE}:{line_of(plain)}"),
        (Plot().draw, f"{HERE}:{line_of(Plot.draw)}"),
        (Plot(), f"{HERE}:{line_of(Plot.__call__)}"),
        (functools.partial(plain), f"{HERE}:{line_of(plain)}"),
        (functools.lru_cache(plain), f"{HERE}:{line_of(plain)}"),
        (Forwarding(), f"{HERE}:{line_of(Forwarding.__call__)}"),
        (print, "builtins"),
        ([].append, "builtins"),
    ],
)
def test_its_source_is_module_and_line_as_far_as_python_knows_them(
    receiver: Any, source: str
) -> None:
    assert source_of(receiver) == source


def test_the_source_of_a_mock_is_its_module() -> None:
    assert source_of(Mock()).startswith("unittest.mock")


def test_a_method_looked_up_twice_is_the_same_receiver() -> None:
    plot, other = Plot(), Plot()
    assert is_same(plot.draw, plot.draw)
    assert not is_same(plot.draw, other.draw)
    assert is_same(plain, plain)


def test_equal_objects_are_two_receivers() -> None:
    one = functools.partial(plain)
    assert is_same(one, one)
    assert not is_same((1, 2), tuple([1, 2]))  # noqa: C409  # a literal would be the same object


@pytest.mark.parametrize("flag", [True, False])
def test_flags_are_rejected_with_the_way_to_cancel(flag: bool) -> None:
    with pytest.raises(TypeError, match=rf"returned {flag}.*run\.token\.cancel"):
        reject_flag(flag)


@pytest.mark.parametrize("value", [None, 0, 1, "", 0.0])
def test_values_that_equal_flags_are_no_flags(value: object) -> None:
    reject_flag(value)


def test_a_receiver_whose_signature_cannot_be_read_is_trusted() -> None:
    check_receiver(dict, "after_loss")


def test_a_mock_is_a_receiver() -> None:
    check_receiver(Mock(), "after_loss")
