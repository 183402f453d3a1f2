"""Names that a package exports and imports only when they are first asked for.

Listing plugins and saying what is missing must work without torch, and a package
may re-export what needs torch all the same.

Source: lazy submodule attributes follow PEP 562 and Scientific Python's SPEC 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str, names: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package.

    Args:
        package: The package's ``__name__``.
        names: For each submodule the names that it gives to the package; the
            submodules are attributes as well.
    """
    home = {name: module for module, exported in names.items() for name in exported}

    def getattr_(name: str) -> Any:
        if name in names:
            return import_module(f"{package}.{name}")
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)  # asked for once
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return getattr_, dir_
