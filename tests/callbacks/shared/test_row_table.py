"""The table of rows, without a notebook around it."""

from __future__ import annotations

import torch

from eventtrain.callbacks.shared.row_table import SHOWN, RowTable


def test_a_text_in_a_cell_is_no_markup() -> None:
    table = RowTable()
    table.add({"epoch": 0, "<script>": "<b> & co"})
    html = table._repr_html_()
    assert "<th>&lt;script&gt;</th>" in html and "<td>&lt;b&gt; &amp; co</td>" in html


def test_what_is_neither_number_nor_text_is_left_out() -> None:
    table = RowTable()
    table.add({"epoch": 0, "loss": 0.5, "grads": torch.ones(3), "rates": [0.1]})
    assert repr(table).split() == ["epoch", "loss", "0", "0.5000"]


def test_a_row_in_which_nothing_was_measured_is_none() -> None:
    table = RowTable()
    table.add({"epoch": 0, "step": 3}, seconds=1.0)
    table.draw()  # would need a notebook


def test_a_row_without_a_column_has_an_empty_cell_there() -> None:
    table = RowTable()
    table.add({"epoch": 0, "a": 1.0}, seconds=2.0)
    table.add({"epoch": 1, "b": 3.0}, seconds=4.0)
    titles, first, second = repr(table).splitlines()
    assert titles.split() == ["epoch", "a", "b", "seconds"]
    assert first.split() == ["0", "1.0000", "2.0000"]
    assert second.split() == ["1", "3.0000", "4.0000"]


def test_seconds_of_the_rows_own_stand() -> None:
    table = RowTable()
    table.add({"epoch": 0, "seconds": 7}, seconds=2.0)
    assert repr(table).split() == ["epoch", "seconds", "0", "7"]


def test_the_first_of_many_rows_are_counted_alone() -> None:
    table = RowTable()
    for epoch in range(SHOWN + 5):
        table.add({"epoch": epoch, "loss": 1.0})
    folded, _, *rows = repr(table).splitlines()
    assert folded == "5 rows before these are in run.history"
    assert len(rows) == SHOWN and rows[0].split()[0] == "5"
