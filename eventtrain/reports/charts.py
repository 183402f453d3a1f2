"""What a report draws: series of numbers, in the form that plotly takes them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .attempts import number
from .row_files import Row
from .run_facts import RunFacts

_PLACE = {"fit", "epoch", "step", "seconds", "outcome"}
_SECONDS = re.compile(r"seconds_(.+)_(data|forward|loss|backward|step|rest)")
_MOST_POINTS, _MOST_BARS = 4000, 20

Trace = dict[str, Any]


@dataclass
class Chart:
    """One picture.

    Attributes:
        title: What it shows.
        x, y: Names of the axes.
        traces: As plotly takes them; ``color`` is the number of a colour, which the page chooses.
        is_bars: Whether they are bars that lie, rather than lines.
        is_log: Whether the vertical axis is logarithmic.
    """

    title: str
    x: str
    y: str
    traces: list[Trace] = field(default_factory=list)
    is_bars: bool = False
    is_log: bool = False


def charts_of(runs: Sequence[RunFacts]) -> list[Chart]:
    """Return the charts of one run, or of several in the same ones; those that show anything."""
    found = [
        *_curves(runs),
        _batch_losses(runs),
        _rates(runs),
        _bars("Time by scope, less what lies inside", runs, _scope_seconds),
        _bars("Time by part of the loop", runs, _part_seconds),
        _bars("Time by handler", runs, _handler_seconds),
    ]
    return [chart for chart in found if any(trace["x"] for trace in chart.traces)]


def text(words: str) -> str:
    """Return words so that plotly shows them as they are: it takes some marks for its own."""
    return html.escape(words, quote=False)


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of what was measured in rows of the history."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in _PLACE and not name.startswith("seconds_")]


def scope_seconds(run: RunFacts) -> dict[str, tuple[int, float, float]]:
    """Return how often each scope was open in all attempts, how long, and how long by itself."""
    found: dict[str, tuple[int, float, float]] = {}
    for attempt in run.attempts:
        for path, spent in attempt.scopes.items():
            count, seconds, own = found.get(path, (0, 0.0, 0.0))
            found[path] = count + spent.count, seconds + spent.seconds, own + spent.own
    return found


def _curves(runs: Sequence[RunFacts]) -> Iterator[Chart]:
    """Yield a chart for each thing that was measured, training and validation in one."""
    by_steps = all("step" in row for run in runs for row in run.rows)
    x = "step" if by_steps else "epoch"
    names = list(dict.fromkeys(name for run in runs for name in columns_of(run.rows)))
    for base, columns in _by_quantity(names).items():
        chart = Chart(base.replace("_", " "), x, base)
        for index, run in enumerate(runs):
            for place, column in enumerate(columns):
                chart.traces += _lines_of(run, column, x, _colour(runs, index, place), place)
        if chart.traces:
            for trace in chart.traces:
                trace["name"] = text(_label(runs, trace.pop("run"), trace["name"]))
            yield chart


def _by_quantity(names: Sequence[str]) -> dict[str, list[str]]:
    """Put ``train_loss``, ``valid_loss`` and ``valid_easy_loss`` together as ``loss``."""
    trained = [name.removeprefix("train_") for name in names if name.startswith("train_")]
    found: dict[str, list[str]] = {}
    for name in names:
        base = re.sub("^(train|valid)_", "", name)
        if base != name and base not in trained:
            base = next((each for each in trained if base.endswith(f"_{each}")), base)
        found.setdefault(base, []).append(name)
    return found


def _lines_of(run: RunFacts, column: str, x: str, colour: int, place: int) -> Iterator[Trace]:
    """Yield a line for each fit that has numbers in a column."""
    fits = dict.fromkeys(row.get("fit", 0) for row in run.rows)
    for fit in fits:
        rows = [row for row in run.rows if row.get("fit", 0) == fit]
        points = [(number(row.get(x)), number(row.get(column))) for row in rows]
        points = [(a, b) for a, b in points if a is not None and (b is not None)]
        if points:
            name = column if len(fits) == 1 else f"{column}, fit {fit}"
            yield {
                "run": run.name,
                "name": name,
                "x": [a for a, _ in points],
                "y": [b for _, b in points],
                "color": colour,
                "dash": "solid" if place == 0 else "dash" if place == 1 else "dot",
            }


def _batch_losses(runs: Sequence[RunFacts]) -> Chart:
    chart = Chart("loss of each training batch", "training batch", "loss")
    for index, run in enumerate(runs):
        rows = [row for row in run.batches if number(row.get("loss")) is not None]
        every = max(1, -(-len(rows) // _MOST_POINTS))
        chosen = list(enumerate(rows))[::every]
        chart.traces.append(
            {
                "name": text(_label(runs, run.name, "loss" if every == 1 else f"every {every}th")),
                "x": [i for i, _ in chosen],
                "y": [row["loss"] for _, row in chosen],
                "color": index,
            }
        )
    return chart


def _rates(runs: Sequence[RunFacts]) -> Chart:
    """Draw learning rates: of each batch where somebody kept them, else where they changed."""
    has_batches = any(name.startswith("lr") for run in runs for row in run.batches for name in row)
    x = "training batch" if has_batches else "step"
    chart = Chart("learning rate", x, "rate")
    for index, run in enumerate(runs):
        for place, (name, points) in enumerate(_rate_points(run, has_batches).items()):
            every = max(1, -(-len(points) // _MOST_POINTS))
            chart.traces.append(
                {
                    "name": text(_label(runs, run.name, name)),
                    "x": [a for a, _ in points[::every]],
                    "y": [b for _, b in points[::every]],
                    "color": _colour(runs, index, place),
                    "shape": "hv",
                }
            )
    return chart


def _rate_points(run: RunFacts, has_batches: bool) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    if has_batches:
        for index, row in enumerate(run.batches):
            for name, value in row.items():
                if name.startswith("lr") and (rate := number(value)) is not None:
                    found.setdefault(name, []).append((index, rate))
        return found
    fits = {fit for fit, _, _ in run.rates}
    for fit, steps, rates in run.rates:
        for name, rate in rates.items():
            label = name if len(fits) == 1 else f"{name}, fit {fit}"
            found.setdefault(label, []).append((steps, rate))
    end = max((number(each.last.get("steps")) or 0 for each in run.attempts), default=0)
    for points in found.values():
        if len(fits) == 1 and points[-1][0] < end:
            points.append((end, points[-1][1]))
    return found


def _bars(title: str, runs: Sequence[RunFacts], seconds_of: Any) -> Chart:
    """Draw the same bars of all runs, the longest of all at the top."""
    chart = Chart(title, "seconds", "", is_bars=True)
    seconds = [seconds_of(run) for run in runs]
    names = dict.fromkeys(name for each in seconds for name in each)
    longest = sorted(names, key=lambda name: -sum(each.get(name, 0.0) for each in seconds))
    shown = longest[:_MOST_BARS][::-1]
    for index, (run, known) in enumerate(zip(runs, seconds, strict=True)):
        bars = [known.get(name, 0.0) for name in shown]
        names_shown = [text(name) for name in shown]
        trace = {"name": text(run.name), "x": bars, "y": names_shown, "color": index}
        chart.traces.append(trace)
    return chart


def _scope_seconds(run: RunFacts) -> dict[str, float]:
    return {path: own for path, (_, _, own) in scope_seconds(run).items()}


def _part_seconds(run: RunFacts) -> dict[str, float]:
    """Sum up what ``Timing`` has measured, of rows of its own or of the history."""
    found: dict[str, float] = {}

    def add(name: str, value: object) -> None:
        seconds = number(value)
        if seconds is not None:
            found[name] = found.get(name, 0.0) + seconds

    for row in run.timing:
        for part in ("data", "forward", "loss", "backward", "step", "rest"):
            add(f"{row.get('phase')}: {part}", row.get(part))
    for row in [] if run.timing else run.rows:
        for name, value in row.items():
            match = _SECONDS.fullmatch(name)
            if match is not None:
                add(f"{match[1]}: {match[2]}", value)
    return found


def _handler_seconds(run: RunFacts) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in run.handlers:
        milliseconds = number(row.get("total_ms"))
        name = f"{row.get('event')}: {row.get('handler')}"
        if milliseconds is not None:
            found[name] = found.get(name, 0.0) + milliseconds / 1000
    return found


def _label(runs: Sequence[RunFacts], run: str, name: str) -> str:
    return name if len(runs) == 1 else f"{run}: {name}"


def _colour(runs: Sequence[RunFacts], index: int, place: int) -> int:
    return place if len(runs) == 1 else index
