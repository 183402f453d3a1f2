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


LINES = PAGE.read_text(encoding="utf-8").splitlines()
ROWS = [[CELL.findall(cell) for cell in line.split("|")[2:-1]] for line in LINES]
TABLE = [row for row in ROWS if row and row[0]]
FOLDER = PAGE.parents[1] / "examples" / "jobs"
PROGRAMS = [
    path for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")
]
PLAYERS = {"gan.py", "tbptt.py"}
"""Programs that do something else with a batch than to call a model, compute a loss and step."""


@pytest.mark.parametrize("row", TABLE, ids=lambda row: Path(row[0][0][1]).stem)
def test_no_program_is_longer_than_with_another_framework(row: list[list[tuple[str, str]]]) -> None:
    (own,), *others, _ = row  # the last is a loop by hand
    assert all(int(own[0]) <= int(lines) for cell in others for lines, _ in cell)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_every_program_has_a_row(path: Path) -> None:
    assert f"../examples/jobs/{path.name}" in {row[0][0][1] for row in TABLE}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_programs_touch_no_private_name_and_few_do_otherwise_with_a_batch(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    read = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    read += [
        part
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for each in node.names
        for part in [*(node.module or "").split("."), each.name]
    ]
    assert [name for name in read if re.match(r"_(?!_)", name)] == []
    made = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert ("one_batch" in made) == (path.name in PLAYERS)
