"""The parts of a report that are text and tables: each of one run, or of several side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .attempts import Attempt, number
from .charts import columns_of, scope_seconds
from .html_text import element, escaped, table
from .run_facts import RunFacts
from .why import grouped, moment, outcome_of, place_of, span, summary, who_asked

_MOST = 200
"""Rows of a table that are shown; the data of the page has them all."""


def last_numbers_of(runs: Sequence[RunFacts]) -> str:
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


def rows_of(run: RunFacts) -> str:
    """Show the rows of the history, folded."""
    names = list(dict.fromkeys(name for row in run.rows for name in row))
    if not names:
        return ""
    rows = [[row.get(name) for name in names] for row in run.rows[-_MOST:]]
    return _folded(f"the last {len(rows)} of {len(run.rows)} rows", table(names, rows))


def requests_of(run: RunFacts) -> str:
    """Show who asked for the end of what, why and where; requests that are alike in one line."""
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


def failures_of(run: RunFacts) -> str:
    """Show the exceptions of all attempts and ranks, with the lines that they came through."""
    return "".join(
        _failure(failure)
        for attempts in (run.attempts, *run.ranks.values())
        for attempt in attempts
        for failure in attempt.failures
    )


def _failure(failure: Mapping[str, Any]) -> str:
    parts = [element("p", failure["exception"], "outcome failed")]
    place = place_of(failure)
    parts += [element("p", f"in {failure.get('scope') or 'the run'}, {place}")] if place else []
    parts += [element("p", note) for note in failure.get("notes", ())]
    parts += [element("p", f"because of {each}") for each in failure.get("because", ())]
    lines = "\n".join(map(str, failure.get("where", ())))
    return "".join(parts) + (element("pre", lines) if lines else "")


def attempts_of(run: RunFacts) -> str:
    """Show each attempt: when it began, from where it went on, how it ended."""
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
    line = " ".join(filter(None, (last["event"], place_of(last), inside and f"inside of {inside}")))
    times = told["began_at"], origin, outcome_of(attempt), attempt.seconds
    return rank, attempt.kind, *times, told["steps"], line


def times_of(run: RunFacts) -> str:
    """Show the time by scope, from event to event, and by handler."""
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


def checkpoints_of(run: RunFacts) -> str:
    """Show the checkpoints."""
    rows = [
        [*map(each.get, ("path", "epoch", "phase", "batch", "steps")), _written(each)]
        for each in run.checkpoints
    ]
    return table(["file", "epoch", "phase", "batch", "steps", "written"], rows) if rows else ""


def _written(record: Mapping[str, Any]) -> str | None:
    return moment(number(record.get("written_at")))


def settings_of(runs: Sequence[RunFacts]) -> str:
    """Set environments and configurations side by side; what differs is marked."""
    known = [_settings(run) for run in runs]
    names = list(dict.fromkeys(name for each in known for name in each))
    rows = [[name, *(each.get(name, "") for each in known)] for name in names]
    head = ["", *(run.name for run in runs)]
    return table(head, rows, differing=len(runs) > 1) if rows else ""


def _settings(run: RunFacts) -> dict[str, str]:
    about = run.last_fit.about if run.last_fit is not None else {}
    return _flat({**about, **({"config": run.settings} if run.settings else {})})


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


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escaped(title)}</summary>{content}</details>"
