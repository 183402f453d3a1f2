"""What the tests of the jobs share."""

from __future__ import annotations

import importlib.util

import pytest
from torchvision_operators import import_torchvision


def needs(*packages: str) -> None:
    """Skip the module that calls this where a package is not installed."""
    missing = [each for each in packages if importlib.util.find_spec(each) is None]
    if missing:
        pytest.skip(
            f"needs {', '.join(missing)}: pip install -e '.[jobs]'", allow_module_level=True
        )
    import_torchvision()
