"""What type checkers say of a user's file: the errors it marks, and no others."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("user_code.py")
ROOT = PROGRAM.parents[2]
MARKED = [
    number
    for number, line in enumerate(PROGRAM.read_text().splitlines(), 1)
    if line.endswith("# error")
]


def printed_by(*command: str) -> str:
    """What a type checker prints, whether it has found errors or none."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.mark.slow
def test_mypy_finds_the_errors_of_a_users_file_and_no_others(tmp_path: Path) -> None:
    if find_spec("mypy") is None:
        pytest.skip("needs mypy: pip install -e '.[test]'")
    settings = tmp_path / "mypy.ini"
    settings.write_text("[mypy]\nstrict = True\n")
    said = printed_by(
        *(sys.executable, "-m", "mypy", "--config-file", str(settings), "--no-error-summary"),
        *("--cache-dir", str(ROOT / ".mypy_cache"), str(PROGRAM)),
    )
    found = {int(line) for line in re.findall(r"user_code\.py:(\d+): error:", said)}
    assert found == set(MARKED), "\n".join(re.findall(r".*: error: .{80}", said))


@pytest.mark.slow
def test_pyright_finds_the_errors_of_a_users_file_and_no_others() -> None:
    pyright = shutil.which("basedpyright") or shutil.which("pyright")
    beside = Path(sys.executable).with_name("basedpyright")
    if pyright is None and not beside.exists():
        pytest.skip("needs basedpyright: pip install -e '.[dev]'")
    said = printed_by(
        *(pyright or str(beside), "--outputjson", "--pythonpath", sys.executable, str(PROGRAM))
    )
    found = [
        each["range"]["start"]["line"] + 1
        for each in json.loads(said)["generalDiagnostics"]
        if each["severity"] == "error"
    ]
    assert set(found) == set(MARKED), said
