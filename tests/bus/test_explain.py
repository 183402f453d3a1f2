from __future__ import annotations

from typing import Any

import pytest

from eventtrain.bus.explain import Explanation, Row, row_of
from eventtrain.bus.handlers import Handler, Options


def plot(run: Any) -> None: ...


def explanation(*options: Options) -> Explanation:
    rows = [
        row_of(Handler("after_loss", plot, each), i, "") for i, each in enumerate(options, start=1)
    ]
    return Explanation(rows)


def test_a_row_spells_out_the_constraints() -> None:
    (row,) = explanation(Options(before=("a", "b"), after=("c",)))
    assert row.constraints == "before a, before b, after c"


def test_a_row_shows_what_is_done_about_errors_unless_they_are_raised() -> None:
    assert [row.on_error for row in explanation(Options(), Options(on_error="disable"))] == [
        "",
        "disable",
    ]


def test_a_row_names_the_sender_it_is_given() -> None:
    assert row_of(Handler("after_loss", plot, Options()), 1, "Runner").sender == "Runner"


def test_it_is_a_sequence_of_rows() -> None:
    rows = explanation(Options(name="a"), Options(name="b"), Options(name="c"))
    assert len(rows) == 3
    assert isinstance(rows[0], Row)
    assert rows[-1].handler == "c"
    assert [row.handler for row in rows[1:]] == ["b", "c"]
    assert [row.handler for row in rows] == ["a", "b", "c"]
    assert rows[1] in rows


def test_as_plain_data_it_has_a_dictionary_for_each_row() -> None:
    first, _ = explanation(Options(name="a", priority=2, every=3), Options()).to_dicts()
    line = plot.__code__.co_firstlineno
    assert first == {
        "event": "after_loss",
        "position": 1,
        "handler": "a",
        "priority": 2,
        "constraints": "",
        "filter": "every=3",
        "on_error": "",
        "source": f"{__name__}:{line}",
        "sender": "",
        "calls": 0,
        "total_ms": None,
    }


def test_printed_it_is_a_table_with_titles_and_aligned_columns() -> None:
    rows = explanation(Options(name="a", priority=100), Options(name="longer", priority=-0.5))
    lines = str(rows).splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["event", "position", "handler", "priority", "source"]
    assert lines[1].split()[:4] == ["after_loss", "1", "a", "100"]
    assert lines[2].split()[:4] == ["after_loss", "2", "longer", "-0.5"]
    assert (
        len(
            {
                line.index(word)
                for line, word in zip(lines, ("priority", "100", "-0.5"), strict=True)
            }
        )
        == 1
    )


def test_columns_in_which_nothing_stands_are_left_out() -> None:
    assert "constraints" not in str(explanation(Options()))
    assert "constraints" in str(explanation(Options(), Options(before=("x",))))


def test_calls_are_shown_even_when_there_were_none() -> None:
    title, row = str(explanation(Options(once=True))).splitlines()
    assert title.split()[-1] == "calls"
    assert row.split()[-1] == "0"


@pytest.mark.parametrize("line", [0, 1])
def test_no_line_ends_in_blanks(line: int) -> None:
    text = str(explanation(Options(every=2), Options())).splitlines()[line]
    assert text == text.rstrip()


def test_without_handlers_it_says_so() -> None:
    assert str(Explanation([])) == "no handlers"


def test_its_repr_is_the_table() -> None:
    rows = explanation(Options())
    assert repr(rows) == str(rows)
