"""Packages that may be missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventtrain.callbacks.shared.extras import import_extra


def test_a_missing_package_is_told_with_its_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r'X needs nowhere: pip .*"eventtrain\[watch\]"'):
        import_extra("nowhere.at.all", user="X")


def test_a_package_that_the_module_misses_is_the_one_that_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "needs_another.py").write_text("import nowhere.at.all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="X needs nowhere: pip"):
        import_extra("needs_another", user="X")
