"""Tables as text."""

from __future__ import annotations

from eventtrain.text_table import table_line, text_table

ROWS = [["name", "kind", "ms"], ["a", "", "1.5"], ["longer", "", "20.25"]]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert text_table(ROWS) == "name    kind  ms\na             1.5\nlonger        20.25"


def test_numbers_stand_to_the_right_of_their_columns() -> None:
    assert text_table(ROWS, left=2).splitlines() == [
        "name    kind     ms",
        "a               1.5",
        "longer        20.25",
    ]


def test_columns_with_nothing_but_a_title_can_be_left_out() -> None:
    lines = text_table(ROWS, left=2, drop_empty=True).splitlines()
    assert lines == ["name       ms", "a         1.5", "longer  20.25"]


def test_no_line_ends_in_space() -> None:
    assert text_table([["a", "long"], ["b", ""]]) == "a  long\nb"


def test_a_table_without_rows_is_empty() -> None:
    assert text_table([]) == ""


def test_a_line_alone_takes_widths_that_are_known() -> None:
    assert table_line(["loss", "0.5"], [6, 7], left=1) == "loss        0.5"


def test_a_cell_that_is_wider_than_its_column_is_whole() -> None:
    assert table_line(["longer", "x"], [3, 3], left=0) == "longer    x"
