"""docs/architecture.md: what it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eventtrain"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
CODE = {" ".join(text.split()) for text in re.findall(r"`([^`]+)`", PROSE)}
NAMED = sorted(text for text in CODE if re.fullmatch(r"[\w/.]+\.py: [\w.]+", text))
PATHS = sorted(text for text in CODE if re.fullmatch(r"[\w/.]+(\.py|\.md|/)", text))


def file_of(path: str) -> Path:
    return ROOT / path if (ROOT / path).exists() else PACKAGE / path


def names_in(file: Path) -> set[str]:
    """Functions, classes, their methods and annotated or assigned names of a file."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            found.update(prefix + t.id for t in targets if isinstance(t, ast.Name))

    collect(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return found


@pytest.mark.parametrize("named", NAMED)
def test_every_name_on_the_page_is_in_its_file(named: str) -> None:
    path, _, name = named.partition(": ")
    assert name in names_in(file_of(path))


@pytest.mark.parametrize("path", PATHS)
def test_every_path_on_the_page_is_there(path: str) -> None:
    pattern = path.replace("NAME", "*")
    folders = (ROOT, PACKAGE)
    assert any(file_of(path).exists() or list(folder.glob(pattern)) for folder in folders)


def test_the_page_names_many_files_and_functions() -> None:
    assert len(NAMED) > 60


def test_the_rooms_of_the_picture_are_those_of_the_house() -> None:
    from test_architecture import FLOORS

    picture = PAGE.split("```text\n")[1].split("```")[0]
    rooms = re.findall(r"[a-z_]+(?:/[a-z_]+)*", " ".join(line[:32] for line in picture.split("\n")))
    drawn = {room.replace("/", ".") for room in rooms}
    packages = {floor for floor in FLOORS if "." not in floor}
    beneath = {"lazy_exports", "atomic_file", "submodules", "discriminative"}
    re_exports = {"profiling", "checkpoint_files"}
    assert packages - drawn <= beneath | re_exports
    assert drawn <= set(FLOORS) | {"eventtrain"}
