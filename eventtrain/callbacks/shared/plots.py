"""How the kit draws: one style, and matplotlib imported where something is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .extras import import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAINT, MAIN, SECOND, THIRD = "#9ecae1", "#08519c", "#e6550d", "#31a354"
"""Colours: what every batch had, what it comes to, what is held against it, one more."""
SEVERAL = (SECOND, THIRD, "#756bb1", "#636363")
"""Colours of several that are held against it."""
MARKERS = ("o", "s", "^", "D")
"""Tell apart what has the same colour."""


def shown_figure(user: str, size: tuple[float, float]) -> Any:
    """Return a new figure of pyplot, which a notebook shows.

    Args:
        user: Who draws, for the message where matplotlib is missing.
        size: Width and height in inches.
    """
    pyplot = import_extra("matplotlib.pyplot", user=user)
    return pyplot.figure(figsize=size, layout="constrained")


def saved_figure(user: str, size: tuple[float, float], dpi: int = 120) -> Any:
    """Return a new figure that is the caller's alone: pyplot would keep it, or look for a screen.

    Args:
        user: As for ``shown_figure``.
        size: As for ``shown_figure``.
        dpi: Dots per inch.
    """
    figures = import_extra("matplotlib.figure", user=user)
    return figures.Figure(figsize=size, dpi=dpi, layout="constrained")


def tidy(ax: Axes, which: str = "major") -> Axes:
    """Give axes the grid and the frame of all plots, and return them.

    Args:
        ax: The axes.
        which: The grid lines to draw: ``"major"`` (default), or ``"both"`` on logarithmic axes.
    """
    ax.grid(alpha=0.25, which=which, linewidth=0.5)  # type: ignore[arg-type]
    ax.spines[["top", "right"]].set_visible(False)
    return ax
