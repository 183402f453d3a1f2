"""The pages in docs/: every example runs, and every callback has a page."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from eventtrain import callbacks

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "callbacks").glob("*.md"))
OPTIONAL = {"tensorboard": "watch", "pandas": "watch", "matplotlib": "watch", "tqdm": "watch"}


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_of_a_callback_runs(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    (example,) = examples(page)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    missing = re.search(r"eventtrain\[(\w+)\]", done.stderr)
    if missing and any(extra == missing[1] and not find_spec(n) for n, extra in OPTIONAL.items()):
        pytest.skip(f"needs the extra {missing[1]!r}")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_callback_has_a_page_that_shows_it() -> None:
    shown = "".join(text for page in PAGES for text in examples(page))
    assert [name for name in callbacks.__all__ if name not in shown] == []
