"""The figures of README.md: overhead against step time, cost against handlers and ranks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from eventtrain.callbacks.shared.plots import tidy

from .emit import BOUND, FOR
from .libraries import BLINKER, PLUGGY, PSYGNAL, PSYGNAL_FAST
from .records import Record

INLINE = "h0(run); h1(run); ... (inline)"
LINES = {
    BLINKER: ("blinker send", "tab:orange", "s"),
    PLUGGY: ("pluggy hook", "tab:green", "^"),
    PSYGNAL: ("psygnal emit", "tab:red", "D"),
    PSYGNAL_FAST: ("psygnal emit_fast", "tab:pink", "v"),
    BOUND: ("eventtrain emit", "tab:blue", "o"),
    FOR: ("bare for", "0.35", "x"),
    INLINE: ("calls written one by one", "0.7", "+"),
}
COLOURS = {0: "0.55", 1: "tab:cyan", 10: "tab:blue", 100: "tab:purple"}
MARKERS = {"cpu": "o", "cuda": "s", "meta": "^"}
LEAST = 0.1
"""Per cent below which a step's own variation hides the overhead."""
GAP = 30
"""Steps that are so many times as short or as long as all others are told at the edge."""


def draw(record: Record, folder: Path) -> list[Path]:
    """Draw what the record has figures for; return the files, PNG.

    Args:
        record: Drawn is what it has of the suites ``emit``, ``loop``, ``gpu`` and ``agreement``.
        folder: Is made if it is not there.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "handlers.png": (_draw_handlers, list(_emissions(record))),
        "overhead.png": (_draw_overhead, list(_overheads(record))),
        "ranks.png": (_draw_ranks, list(_answers(record))),
    }
    drawn = []
    for name, (function, points) in found.items():
        if points:
            function(points, folder / name, _origin(record))
            drawn.append(folder / name)
    return drawn


def _emissions(record: Record) -> Iterator[Record]:
    """Yield how long one emission takes, for every library and number of handlers."""
    for group in record["suites"].get("emit", {"groups": []})["groups"]:
        for name, variant in group["variants"].items():
            if variant["parameters"] and name in LINES:
                yield {"line": name, "handlers": variant["parameters"]["handlers"],
                       **variant["time"]}  # fmt: skip


def _overheads(record: Record) -> Iterator[Record]:
    """Yield what the Runner adds to a step, in per cent, for every step on the wall clock."""
    for suite in ("loop", "gpu"):
        for group in record["suites"].get(suite, {"groups": []})["groups"]:
            if group["title"].endswith(("CUDA events", "host until all is queued")):
                continue
            base = group["variants"][group["baseline"]]["seconds"]
            step = sorted(base)[len(base) // 2]
            for variant in group["variants"].values():
                parameters = variant["parameters"]
                # In the loop suite the loop written by hand calls the handlers too.
                is_alike = suite == "gpu" or parameters.get("handlers") == 0
                if parameters.get("loop") == "Runner" and is_alike:
                    ratio = {key: 100 * (value - 1) for key, value in variant["ratio"].items()}
                    yield {**ratio, "step": step, **parameters}


def _answers(record: Record) -> Iterator[Record]:
    """Yield how long ranks took to agree, for every number of them."""
    for group in record["suites"].get("agreement", {"groups": []})["groups"]:
        for variant in group["variants"].values():
            if "ranks" in variant["parameters"]:
                yield {**variant["time"], **variant["parameters"]}


def _origin(record: Record) -> str:
    facts = record["environment"]
    quick = ", --quick: means nothing" if facts["quick"] else ""
    where = f"{facts['cpu']}, {facts['device'] or 'no GPU'}"
    return f"{where}; {facts['python']}, torch {facts['torch']}; {facts['date'][:10]}{quick}"


def _axes(title: str, x: str, y: str, origin: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=12, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    tidy(axes)
    figure.supxlabel(origin, fontsize=7, color="0.4", x=0.99, ha="right")
    return figure, axes


def _draw_handlers(points: list[Record], path: Path, origin: str) -> None:
    figure, axes = _axes(
        "One emission: time against handlers, each of which does nothing",
        "handlers on the event", "time of one emission, ns (median, min to max)", origin,
    )  # fmt: skip
    for line, (label, colour, marker) in LINES.items():
        row = sorted((p for p in points if p["line"] == line and p["handlers"]),
                     key=lambda p: p["handlers"])  # fmt: skip
        if not row:
            continue
        x = [p["handlers"] for p in row]
        axes.plot(x, [p["median"] for p in row], color=colour, marker=marker, label=label, ms=5)
        axes.fill_between(x, [p["min"] for p in row], [p["max"] for p in row],
                          color=colour, alpha=0.12, linewidth=0)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    counts = sorted({p["handlers"] for p in points if p["handlers"]})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def _draw_overhead(points: list[Record], path: Path, origin: str) -> None:
    figure, axes = _axes(
        "What the Runner and idle handlers add to a step, against the step's time",
        "step time of the loop written by hand, without handlers, ms",
        "added time, % of the step (median, min to max)", origin,
    )  # fmt: skip
    inside, shorter, longer = _apart(points)
    for point in inside:
        count, x = point["handlers"], 1000 * point["step"]
        low, middle, high = (max(point[key], LEAST) for key in ("min", "median", "max"))
        colour = COLOURS.get(count, "0.2")
        fill = colour if point["median"] >= LEAST else "none"
        axes.vlines(x, low, high, color=colour, alpha=0.3, linewidth=1.5)
        axes.plot(x, middle, MARKERS.get(point["device"], "o"), color=colour,
                  markerfacecolor=fill, ms=6)  # fmt: skip
    for limit, text in ((3, "3 %: target of launch-bound steps"),
                        (1, "1 %: target of compute-bound steps")):  # fmt: skip
        axes.axhline(limit, color="0.5", linewidth=0.8, linestyle="--")
        axes.annotate(text, (0.01, limit), xycoords=("axes fraction", "data"), fontsize=7,
                      color="0.4", ha="left", va="bottom")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    _tell_outside(axes, shorter, longer)
    _legend(axes, inside)
    figure.savefig(path, dpi=100)


def _apart(points: list[Record]) -> tuple[list[Record], list[Record], list[Record]]:
    """Return the points of most steps, and those of much shorter and much longer ones."""
    runs: list[list[Record]] = []
    for point in sorted(points, key=lambda point: point["step"]):
        if runs and point["step"] < GAP * runs[-1][-1]["step"]:
            runs[-1].append(point)
        else:
            runs.append([point])
    largest = max(runs, key=len)
    at = runs.index(largest)
    return largest, [*chain(*runs[:at])], [*chain(*runs[at + 1 :])]


def _tell_outside(axes: Any, shorter: list[Record], longer: list[Record]) -> None:
    """Say in words what stands beyond an edge, with an arrow that points there."""
    left, right = "\N{LEFTWARDS ARROW} {}", "{} \N{RIGHTWARDS ARROW}"
    for points, edge, arrow, side in (
        (shorter, 0.01, left, "left"),
        (longer, 0.99, right, "right"),
    ):
        lines = [
            arrow.format(f"{point['median']:+.3g} % of a step of {1000 * point['step']:.2g} ms, "
                         f"{point['handlers']} handlers")
            for point in points
        ]  # fmt: skip
        axes.text(edge, 0.02, "\n".join(lines), transform=axes.transAxes, fontsize=7, color="0.3",
                  ha=side, va="bottom")  # fmt: skip


def _draw_ranks(points: list[Record], path: Path, origin: str) -> None:
    figure, axes = _axes(
        "From a request of one rank to the last one out of its loop, in one process",
        "ranks", "time, ms (median, min to max)", origin,
    )  # fmt: skip
    x, middle, low, high = (
        [point[key] for point in points] for key in ("ranks", "median", "min", "max")
    )
    axes.plot(x, middle, color="tab:blue", marker="o", ms=5)
    axes.fill_between(x, low, high, color="tab:blue", alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(x, [str(ranks) for ranks in x])
    axes.yaxis.set_major_formatter("{x:g}")
    figure.savefig(path, dpi=100)


def _legend(axes: Any, points: list[Record]) -> None:
    from matplotlib.lines import Line2D

    def mark(label: str, colour: str, marker: str, fill: str) -> Line2D:
        return Line2D([], [], linestyle="", color=colour, marker=marker,
                      markerfacecolor=fill, label=label)  # fmt: skip

    marks = [
        mark(f"{count} handler{'s' * (count != 1)} an event", colour, "o", colour)
        for count, colour in COLOURS.items()
        if any(point["handlers"] == count for point in points)
    ]
    marks += [
        mark(f"on {device}", "0.2", marker, "0.2")
        for device, marker in MARKERS.items()
        if any(point["device"] == device for point in points)
    ]
    if any(point["median"] < LEAST for point in points):
        marks.append(mark(f"below {LEAST} %, within the noise", "0.2", "o", "none"))
    axes.legend(handles=marks, frameon=False, fontsize=8, loc="upper right")
