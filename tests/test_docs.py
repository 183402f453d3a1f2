"""The pages in docs/: every example runs, and every callback has a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eventtrain import callbacks

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "callbacks").glob("*.md"))


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_of_a_callback_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    monkeypatch.chdir(tmp_path)
    (example,) = examples(page)
    try:
        # In this process: importing torch takes longer than most of them.
        exec(compile(example, str(page), "exec"), {"__name__": "__main__"})
    except ModuleNotFoundError as error:
        if "eventtrain[" not in str(error):
            raise
        pytest.skip(str(error))
    assert list(tmp_path.iterdir()) == []


def test_every_callback_has_a_page_that_shows_it() -> None:
    shown = "".join(text for page in PAGES for text in examples(page))
    assert [name for name in callbacks.__all__ if name not in shown] == []
