"""Checks of option values that several commands share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def positive(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuse numbers that are not positive; ``None`` stands for an option left out."""
    import click

    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter(f"{value} is not a positive number.")
    return value
