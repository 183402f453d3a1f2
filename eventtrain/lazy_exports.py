"""Names that a package exports and imports only when they are first asked for.

Listing plugins and saying what is missing must work without torch, and a package
may re-export what needs torch all the same.

The package imports its names for type checkers, under ``if TYPE_CHECKING:``, and
those lines are the list: at run time they are read as text. Source: that a package
states its lazy names once, where type checkers read them, is ``attach_stub`` of
Scientific Python's SPEC 1; that a module may have a ``__getattr__`` is PEP 562.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str,
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` for a package.

    Args:
        package: The package's ``__name__``. Its ``__init__`` is being run, and holds one block
            ``if TYPE_CHECKING:`` of lines ``from .module import name as name``; the
            modules are attributes as well.

    Raises:
        ImportError: The package's source is not there to be read.
    """
    home = _exported(package)
    modules = {module.partition(".")[0] for module in home.values()}

    def getattr_(name: str) -> Any:
        if name in modules:
            return import_module(f"{package}.{name}")
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)  # asked for once
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return getattr_, dir_, sorted(home, key=lambda name: (not name.isupper(), name))


def _exported(package: str) -> Mapping[str, str]:
    """Return the names that type checkers see in a package, each with its module."""
    spec = sys.modules[package].__spec__
    source = getattr(spec and spec.loader, "get_source", lambda _: None)(package)
    if source is None:
        raise ImportError(f"the source of {package} is missing: its exports are read from it")
    return {
        alias.asname or alias.name: str(node.module)
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
