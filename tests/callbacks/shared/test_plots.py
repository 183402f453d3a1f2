"""One style for all plots."""

from __future__ import annotations

import pytest

from eventtrain.callbacks.shared.plots import saved_figure, tidy

figures = pytest.importorskip("matplotlib.figure", reason="needs matplotlib (extra 'watch')")


def test_a_figure_to_be_saved_is_unknown_to_pyplot() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    assert isinstance(saved_figure("a test", (2, 1)), figures.Figure)
    assert pyplot.get_fignums() == before


def test_a_figure_has_the_size_and_the_dots_that_were_asked_for() -> None:
    figure = saved_figure("a test", (3, 2), dpi=50)
    assert (tuple(figure.get_size_inches()), figure.dpi) == ((3.0, 2.0), 50)


def test_tidy_axes_have_a_grid_and_no_frame_above_and_right() -> None:
    ax = tidy(saved_figure("a test", (2, 1)).add_subplot())
    visible = {side: ax.spines[side].get_visible() for side in ("top", "right", "left", "bottom")}
    assert visible == {"top": False, "right": False, "left": True, "bottom": True}
    assert ax.xaxis.get_gridlines()[0].get_visible()
