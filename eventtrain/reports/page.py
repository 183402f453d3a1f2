"""The page of a report: text and tables, which need no script, around the places for charts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from .attempts import Attempt, number
from .charts import Chart, columns_of, scope_seconds
from .html_text import bullets, element, escaped, section, table
from .run_facts import RunFacts, plain_json
from .why import grouped, moment, outcome_of, span, summary, who_asked, why

_MOST = 200
"""Rows of a table that are shown; the data of the page has them all."""


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
        section("Numbers", _last_numbers(runs), *_each(runs, _rows)),
        section("Requests to end something", *_each(runs, _requests)),
        section("Failures", *_each(runs, _failures)),
        section("Attempts", *_each(runs, _attempts)),
        section("Where the time went", *_each(runs, _times)),
        section("Checkpoints", *_each(runs, _checkpoints)),
        section("Environment and configuration", _settings(runs)),
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
    """Return what a page has of a run, as plain data."""
    return {
        **why(run),
        "missing": run.missing,
        "rows": run.rows,
        "rows_from": run.rows_from,
        "batches": run.batches,
        "rates": run.rates,
        "scopes": scope_seconds(run),
        "handlers": run.handlers,
        "timing": run.timing,
        "checkpoints": run.checkpoints,
        "about": [attempt.about for attempt in run.attempts],
        "sources": run.sources,
    }


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


def _last_numbers(runs: Sequence[RunFacts]) -> str:
    """Set last numbers side by side, each with the least and the greatest there was."""
    names = list(dict.fromkeys(name for run in runs for name in columns_of(run.rows)))
    rows = []
    for name in names:
        cells: list[Any] = [name]
        for run in runs:
            known = [v for row in run.rows if (v := number(row.get(name))) is not None]
            cells += [known[-1], min(known), max(known)] if known else [None, None, None]
        if any(cell is not None for cell in cells[1:]):
            rows.append(cells)
    kinds = ("last", "least", "greatest")
    several = len(runs) > 1
    titles = [f"{run.name}: {kind}" if several else kind for run in runs for kind in kinds]
    return table(["", *titles], rows) if rows else ""


def _rows(run: RunFacts) -> str:
    names = list(dict.fromkeys(name for row in run.rows for name in row))
    if not names:
        return ""
    rows = [[row.get(name) for name in names] for row in run.rows[-_MOST:]]
    return _folded(f"the last {len(rows)} of {len(run.rows)} rows", table(names, rows))


def _requests(run: RunFacts) -> str:
    rows = [
        (
            moment(number(group["last"].get("time"))),
            group["last"].get("scope"),
            who_asked(group["last"]),
            group["last"].get("reason"),
            group["times"],
            span(group),
            group["last"].get("source"),
        )
        for attempt in run.attempts
        for group in grouped(attempt.cancellations)
    ]
    if not rows:
        return ""
    head = ["when, at last", "scope", "who", "why", "times", "where", "line"]
    asked, kept = (
        sum(attempt.asked for attempt in run.attempts),
        sum(len(attempt.cancellations) for attempt in run.attempts),
    )
    few = element("p", f"Of {asked}, the last {kept} are told.", "faint")
    return table(head, rows[-_MOST:]) + (few if asked > kept else "")


def _failures(run: RunFacts) -> str:
    return "".join(
        _failure(failure)
        for attempts in (run.attempts, *run.ranks.values())
        for attempt in attempts
        for failure in attempt.failures
    )


def _failure(failure: Mapping[str, Any]) -> str:
    parts = [element("p", failure["exception"], "outcome failed")]
    place = _place(failure)
    parts += [element("p", f"in {failure.get('scope') or 'the run'}, {place}")] if place else []
    parts += [element("p", note) for note in failure.get("notes", ())]
    parts += [element("p", f"because of {each}") for each in failure.get("because", ())]
    lines = "\n".join(map(str, failure.get("where", ())))
    return "".join(parts) + (element("pre", lines) if lines else "")


def _attempts(run: RunFacts) -> str:
    ranks = [(0, run.attempts), *run.ranks.items()]
    rows = [
        _attempt(rank, attempt)
        for rank, attempts in ranks
        for attempt in attempts
        if attempt.lines or len(run.attempts) > 1
    ]
    head = ["rank", "what", "began", "went on from", "ended", "seconds", "steps", "last line"]
    return table(head, rows) if rows else ""


def _attempt(rank: int, attempt: Attempt) -> Sequence[Any]:
    told = summary(attempt)
    place = told["resumed"]
    origin = None
    if place is not None:
        origin = f"{place.get('from') or 'the start: no checkpoint'} (epoch {place.get('epoch')}, "
        origin += f"step {place.get('steps')})"
    last = told["last_line"]
    inside = " > ".join(attempt.open_scopes)
    line = " ".join(filter(None, (last["event"], _place(last), inside and f"inside of {inside}")))
    times = told["began_at"], origin, outcome_of(attempt), attempt.seconds
    return rank, attempt.kind, *times, told["steps"], line


def _times(run: RunFacts) -> str:
    parts = []
    scopes = scope_seconds(run)
    if scopes:
        rows = [(path, count, all_, own) for path, (count, all_, own) in scopes.items()]
        head = ["scope", "times", "seconds", "less what lies inside"]
        parts.append(table(head, sorted(rows, key=lambda row: -row[3])))
    between = _between(run.attempts)
    if between:
        head = ["phase", "from", "to", "times", "seconds"]
        parts.append(_folded("from event to event", table(head, between)))
    if run.handlers:
        names = ("event", "handler", "source", "calls", "total_ms", "mean_us")
        handlers = [[row.get(name) for name in names] for row in run.handlers[:_MOST]]
        parts.append(
            _folded("by handler", table([name.replace("_", " ") for name in names], handlers))
        )
    return "".join(parts)


def _between(attempts: Iterable[Attempt]) -> list[Sequence[Any]]:
    found: dict[tuple[str, str, str], tuple[int, float]] = {}
    for attempt in attempts:
        for key, spent in attempt.between.items():
            count, seconds = found.get(key, (0, 0.0))
            found[key] = count + spent.count, seconds + spent.seconds
    largest = sorted(found.items(), key=lambda pair: -pair[1][1])[:20]
    return [(*key, *spent) for key, spent in largest]


def _checkpoints(run: RunFacts) -> str:
    rows = [
        [*map(each.get, ("path", "epoch", "phase", "batch", "steps")), _written(each)]
        for each in run.checkpoints
    ]
    return table(["file", "epoch", "phase", "batch", "steps", "written"], rows) if rows else ""


def _written(record: Mapping[str, Any]) -> str | None:
    return moment(number(record.get("written_at")))


def _settings(runs: Sequence[RunFacts]) -> str:
    """Set environments and configurations side by side; what differs is marked."""
    known = [_flat(run.last_fit.about) if run.last_fit is not None else {} for run in runs]
    names = list(dict.fromkeys(name for each in known for name in each))
    rows = [[name, *(each.get(name, "") for each in known)] for name in names]
    head = ["", *(run.name for run in runs)]
    return table(head, rows, differing=len(runs) > 1) if rows else ""


def _flat(about: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in about.items():
        if not prefix and name in ("format", "began_at", "resumed"):
            continue
        label = str(name) if prefix in ("", "environment", "configuration") else f"{prefix}.{name}"
        if isinstance(value, Mapping):
            found |= _flat(value, label)
        else:
            found[label] = "" if value is None else str(value)
    return found


def _place(what: Mapping[str, Any]) -> str:
    names = (f"{name} {what[name]}" for name in ("epoch", "batch") if what.get(name) is not None)
    return ", ".join(names)


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escaped(title)}</summary>{content}</details>"
