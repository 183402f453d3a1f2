"""A package with many plugins, installed for as long as it is measured."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

MODULE = "eventtrain_benchmark_plugins"

_CODE = """
from eventtrain import Callback

class Plugin{number}(Callback):
    def after_loss(self, run):
        pass
"""


@contextmanager
def installed(count: int) -> Generator[list[str], None, None]:
    """Offer plugins with one handler each; yields their names."""
    names = [f"benchmark_{number}" for number in range(count)]
    with TemporaryDirectory() as folder:
        code = "".join(_CODE.format(number=number) for number in range(count))
        Path(folder, f"{MODULE}.py").write_text(code, encoding="utf-8")
        info = Path(folder, f"{MODULE}-1.dist-info")
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        entries = "".join(f"{name} = {MODULE}:Plugin{i}\n" for i, name in enumerate(names))
        text = f"[eventtrain.plugins]\n{entries}"
        (info / "entry_points.txt").write_text(text, encoding="utf-8")
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            yield names
        finally:
            sys.path.remove(folder)
            sys.modules.pop(MODULE, None)
