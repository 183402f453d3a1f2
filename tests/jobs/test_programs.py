"""Short programs run to their ends as their docstrings say, and so do those beside them."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest
from test_page import FOLDER, PROGRAMS
from tests_of_jobs import needs
from torchvision_operators import import_torchvision

PEERS = sorted((Path(__file__).parent / "peers").glob("*.py"))
LONG = ("causal_lm", "ppo", "reinforce", "timm")
"""What takes long: the tests of these jobs have the same functions do less."""
SHORT = [path for path in [*PROGRAMS, *PEERS] if not path.name.startswith(LONG)]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def imported(text: str) -> list[str]:
    """Return the packages that a program imports."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return sorted({name.partition(".")[0] for name in found})


def arguments(text: str, folder: Path) -> list[str]:
    """Return what a program is to be called with; one beside another is called as that is."""
    job = re.search(r"The job of examples/jobs/(\w+\.py)", text)
    said = re.search(r"``python \w+\.py (\S+)``", read(FOLDER / job[1]) if job else text)
    return [said[1].replace("FOLDER", str(folder))] if said else []


@pytest.mark.filterwarnings("ignore")  # of other packages
@pytest.mark.parametrize("path", SHORT, ids=lambda path: path.name)
def test_a_program_runs_to_its_end(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = read(path)
    needs(*imported(text))
    if path.name.startswith("detector") and not import_torchvision():
        pytest.skip("needs torchvision with operators for this torch")
    monkeypatch.setattr(sys, "argv", [str(path), *arguments(text, tmp_path / "folder")])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
