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


ROWS = [CELL.findall(line) for line in PAGE.read_text(encoding="utf-8").splitlines()]
TOGETHER = [row for row in ROWS if len(row) > 1]
FOLDER = PAGE.parents[1] / "examples" / "jobs"
PROGRAMS = [
    path for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")
]
PLAYERS = {"gan.py", "tbptt.py"}
"""Programs that do something else with a batch than to call a model, compute a loss and step."""


@pytest.mark.parametrize("row", TOGETHER, ids=lambda row: Path(row[0][1]).stem)
def test_no_program_is_longer_than_the_same_job_elsewhere(row: list[tuple[str, str]]) -> None:
    own, *others = (int(lines) for lines, _ in row)
    assert own <= min(others)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_every_program_has_a_row(path: Path) -> None:
    assert f"../examples/jobs/{path.name}" in {own for row in ROWS for _, own in row[:1]}


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
