"""Packages that eventtrain can do without, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_extra(module: str, *, user: str, extra: str = "watch") -> Any:
    """Import a module of an optional package.

    Args:
        module: Its full name.
        user: Who needs it, for the message.
        extra: The extra of eventtrain that brings it.

    Raises:
        ModuleNotFoundError: It is missing; the message says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = str(error.name or module).partition(".")[0]
        message = f'{user} needs {package}: pip install "eventtrain[{extra}]"'
        raise ModuleNotFoundError(message, name=package) from error
