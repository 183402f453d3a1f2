"""The lines of a log, checked as they are read; a torn one cut off before others follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eventtrain.reports.event_lines import (
    DamagedLine,
    cut_torn_line,
    event_of,
    event_record,
    lines_of,
)


def line(**fields: Any) -> bytes:
    record = {
        "event": "begin_fit", "scope": "fit", "epoch": None, "batch": None, "outcome": None,
        "handlers": [], "cancellations": [], "t": 0.0, **fields,
    }  # fmt: skip
    return f"{json.dumps(record)}\n".encode()


def test_a_whole_line_is_read() -> None:
    assert event_record(line(t=2.5))["t"] == 2.5


@pytest.mark.parametrize(
    "wrong",
    [b"\xff", b"{", b"3", b"[" * 100_000, line(t="soon"), line(declared=3), line(handlers=None)],
    ids=lambda wrong: repr(wrong[:12]),
)
def test_what_is_no_line_of_a_log_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError):
        event_record(wrong)


def test_a_damaged_line_is_given_with_its_number_and_the_others_with_what_they_tell(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    path.write_bytes(line() + b"wrong\n" + line() + line()[:20])
    kinds = [each if isinstance(each, DamagedLine) else each["event"] for each in lines_of(path)]
    assert [kinds[0], kinds[2]] == ["begin_fit"] * 2
    assert [(each.number, each.is_cut) for each in kinds if isinstance(each, DamagedLine)] == [
        (2, False), (4, True)
    ]  # fmt: skip


def test_an_event_of_a_scope_of_ones_own_says_itself_what_it_is() -> None:
    own = {"scope": "evolve", "kind": "opening", "only_after": None}
    event = event_of(event_record(line(event="begin_evolve", declared=own)))
    assert (event.scope, event.kind, event.closes_scope) == ("evolve", "opening", False)


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (b"", b""),
        (b"one\n", b"one\n"),
        (b"one\ntw", b"one\n"),
        (b"torn", b""),
        (b"one\n" + b"x" * 200_000, b"one\n"),
        (b"x" * 200_000 + b"\n" + b"y" * 3, b"x" * 200_000 + b"\n"),
    ],
    ids=["empty", "whole", "torn", "one torn", "long torn", "long line"],
)
def test_a_torn_line_is_cut_off(content: bytes, left: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    cut_torn_line(path)
    assert path.read_bytes() == left


def test_a_file_that_is_not_there_is_made(tmp_path: Path) -> None:
    cut_torn_line(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == b""
