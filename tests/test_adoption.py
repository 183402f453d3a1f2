from __future__ import annotations

import pytest

from eventtrain import AvgStatsCallback, Callback, Runner
from eventtrain.callbacks import EarlyStopping


class Counter(Callback):
    pass


class Better(Counter):
    pass


def test_a_callback_is_found_by_its_class() -> None:
    averages = AvgStatsCallback()
    assert Runner([Counter(), averages])[AvgStatsCallback] is averages


def test_it_is_found_by_a_class_that_its_own_is_made_from() -> None:
    better = Better()
    assert Runner(better)[Counter] is better


def test_where_there_is_none_the_error_names_what_there_is() -> None:
    with pytest.raises(LookupError, match=r"of the class EarlyStopping: there are .*counter"):
        Runner(Counter())[EarlyStopping]


def test_where_there_are_several_the_error_names_them() -> None:
    with pytest.raises(LookupError, match="2 are: counter, better; take one by its name"):
        Runner([Counter(), Better()])[Counter]


def test_anything_but_a_class_is_refused() -> None:
    with pytest.raises(TypeError, match="takes the class of a callback"):
        Runner(Counter())["counter"]  # type: ignore[index]
