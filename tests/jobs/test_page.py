"""docs/jobs.md: the numbers of lines in its table are those of the programs that they lead to."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "jobs.md"
CELL = re.compile(r"\[(\d+)\]\(([^)]+\.py)\)")
COUNTED = CELL.findall(PAGE.read_text(encoding="utf-8"))


def lines_of_code(text: str) -> int:
    """Count the lines that hold code: no blank lines, comments and docstrings."""
    tree = ast.parse(text)
    told: set[int] = set()
    for node in ast.walk(tree):
        constant = node.value if isinstance(node, ast.Expr) else None
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
            told.update(range(constant.lineno, (constant.end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(number not in told and bool(re.match(r"\s*[^\s#]", line)) for number, line in lines)


@pytest.mark.parametrize(("lines", "path"), COUNTED)
def test_the_table_has_the_number_of_lines_of_each_program(lines: str, path: str) -> None:
    assert int(lines) == lines_of_code((PAGE.parent / path).read_text(encoding="utf-8"))


def test_comments_docstrings_and_blank_lines_are_no_lines_of_code() -> None:
    assert lines_of_code('"""Told.\n\nMore.\n"""\n\n# Why\nx = 1  # one\ny = """a\nb"""\n') == 3
