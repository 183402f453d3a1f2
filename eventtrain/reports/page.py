"""The page of a report: text and tables, which need no script, around the places for charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from .charts import Chart, scope_seconds
from .html_text import bullets, element, escaped, section, table
from .page_parts import (
    attempts_of,
    checkpoints_of,
    failures_of,
    last_numbers_of,
    requests_of,
    rows_of,
    settings_of,
    times_of,
)
from .run_facts import RunFacts, plain_json
from .why import why

_MOST_POINTS = 20_000


def page_of(runs: Sequence[RunFacts], charts: Sequence[Chart], library: str) -> str:
    """Return the page.

    Args:
        runs: One, or several that are set side by side.
        charts: What is drawn of them.
        library: Plotly's script, compressed with gzip and written in base64.
    """
    told = [why(run) for run in runs]
    title = "Run report: " + ", ".join(run.name for run in runs)
    body = [
        element("h1", title),
        f'<div class="cards">{"".join(map(_card, told, runs))}</div>',
        section("Curves", _places(charts)) if charts else "",
        section("Numbers", last_numbers_of(runs), *_each(runs, rows_of)),
        section("Requests to end something", *_each(runs, requests_of)),
        section("Failures", *_each(runs, failures_of)),
        section("Attempts", *_each(runs, attempts_of)),
        section("Where the time went", *_each(runs, times_of)),
        section("Checkpoints", *_each(runs, checkpoints_of)),
        section("Environment and configuration", settings_of(runs)),
        section("What is missing", *_each(runs, lambda run: bullets(run.missing))),
        section("Notes", *_each(runs, lambda run: bullets(run.notes))),
        section("Read from", *_each(runs, lambda run: bullets(run.sources))),
    ]
    data = {"format": 1, "runs": [data_of(run) for run in runs]}
    scripts = [
        _embedded("eventtrain-report", "application/json", plain_json(data)),
        _embedded("eventtrain-charts", "application/json", plain_json(list(map(asdict, charts)))),
        _embedded("eventtrain-library", "text/plain", library),
        f"<script>{_asset('page.js')}</script>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in (*body, *scripts) if part)
        + "\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _embedded(name: str, kind: str, content: str) -> str:
    """Return data for the script, which cannot end the element that it stands in."""
    safe = content.replace("<", "\\u003c")
    return f'<script id="{name}" type="{kind}">{safe}</script>'


def data_of(run: RunFacts) -> dict[str, Any]:
    """Return what a page has of a run, as plain data; of more than 20,000 batches every so many."""
    return {
        **why(run),
        "missing": run.missing,
        "rows": run.rows,
        "rows_from": run.rows_from,
        "batches": _thinned(run.batches),
        "rates": _thinned(run.rates),
        "scopes": scope_seconds(run),
        "handlers": run.handlers,
        "timing": run.timing,
        "checkpoints": run.checkpoints,
        "about": [attempt.about for attempt in run.attempts],
        "settings": run.settings,
        "sources": run.sources,
    }


def _thinned(points: list[Any]) -> list[Any]:
    """Return every so many of them: a page is to open, whatever the run was long."""
    return points[:: max(1, -(-len(points) // _MOST_POINTS))]


def _each(runs: Sequence[RunFacts], part: Any) -> Iterator[str]:
    """Yield a part of each run, under its name where there are several."""
    for run in runs:
        content = part(run)
        if content and content != bullets(()):
            yield (element("h3", run.name) if len(runs) > 1 else "") + content


def _card(told: Mapping[str, Any], run: RunFacts) -> str:
    known = [(name, told[name]) for name in ("who", "why", "where", "when") if told[name]]
    steps = run.last_fit.last.get("steps") if run.last_fit is not None else None
    counts = [("row", len(run.rows)), ("step", steps), ("attempt", len(run.attempts))]
    known_counts = [(value, name) for name, value in counts if value is not None]
    shown = ", ".join(f"{value} {name}{'' if value == 1 else 's'}" for value, name in known_counts)
    return (
        f'<div class="card">{element("h3", told["run"])}'
        f"{element('p', told['outcome'], 'outcome ' + str(told['outcome']))}"
        f"{element('p', told['sentence'])}"
        f"{table([], known) if known else ''}{element('p', shown, 'faint')}</div>"
    )


def _places(charts: Sequence[Chart]) -> str:
    places = (
        f'<div class="chart">{element("h3", chart.title)}'
        f'<div class="plot" id="chart-{index}"></div></div>'
        for index, chart in enumerate(charts)
    )
    return f'<div class="charts">{"".join(places)}</div>'
