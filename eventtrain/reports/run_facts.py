"""What is known of a run, put together: its attempts joined, and what is missing said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..host_reading import to_host
from .about import FORMAT, about_cancellation
from .about_run import about_run
from .attempts import Attempt, attempts_of, number
from .row_files import Row
from .run_folder import RunFolder, read_run_folder

_PREFERRED = ("JSONLLogger", "CSVLogger", "EventLog", "eventtrain train")
"""Whose rows of a folder are taken: the first that has any. What resumes tells no epoch twice."""

_TIME_BY_HANDLER = "time by handler"


@dataclass
class RunFacts:
    """What is known of one run.

    Attributes:
        name: What it is called.
        attempts: Its fits, and validations and predictions alone, oldest first; of rank 0.
        ranks: The same of the other ranks.
        rows: Rows of the history, each with the number of its ``fit``.
        rows_from: Who told the rows.
        batches: A row for each training batch, where somebody kept them.
        rates: Number of the fit, steps, and the learning rates from there on.
        ends: How fits ended, as others than the event log tell.
        handlers: What a profile has measured of handlers.
        timing: Rows of ``Timing``.
        checkpoints: Their records, oldest first.
        settings: What ``eventtrain train`` was told.
        sources: What all this was read from.
        notes: What was damaged or is left out.
        missing: What is not known, and what would have told it.
        untold: The same, of what matters for why it stopped.
    """

    name: str
    attempts: list[Attempt] = field(default_factory=list)
    ranks: dict[int, list[Attempt]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    rows_from: str = ""
    batches: list[Row] = field(default_factory=list)
    rates: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    ends: list[Row] = field(default_factory=list)
    handlers: list[Row] = field(default_factory=list)
    timing: list[Row] = field(default_factory=list)
    checkpoints: list[Row] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)

    def take_profile(self, handlers: list[Row]) -> None:
        """Have the time of handlers be what a profile tells of it."""
        self.handlers = handlers
        self.missing = [each for each in self.missing if not each.startswith(_TIME_BY_HANDLER)]

    @property
    def last_fit(self) -> Attempt | None:
        """The last attempt that was a fit; the last of all where there was none."""
        fits = [each for each in self.attempts if each.kind == "fit"]
        return next(reversed(fits or self.attempts), None)


def facts_of_folder(path: Path) -> RunFacts:
    """Return what a run has left in a folder; see ``read_run_folder``.

    Raises:
        DataError: There is nothing of a run, or of several.
    """
    left = read_run_folder(path)
    facts = RunFacts(str(path), sources=left.sources, notes=left.notes, ends=left.ends)
    facts.handlers, facts.settings = left.handlers, left.settings
    _take_attempts(facts, left)
    known = {**left.rows, "EventLog": _joined(facts)}
    _take_rows(facts, {name: known.get(name, []) for name in _PREFERRED})
    _take_checkpoints(facts, left)
    _note_what_is_missing(facts)
    return facts


def facts_of_run(run: Any, name: str) -> RunFacts:
    """Return what a runner and its callbacks know, and what they have written.

    Args:
        run: The ``Runner``; in a run, or after one.
        name: What it is to be called.
    """
    parts: dict[str, Any] = {}
    for callback in run.cbs:
        for part, value in callback.report_parts().items():
            parts.setdefault(part, value)
    facts = RunFacts(name, sources=["the runner"])
    facts.timing, facts.batches = parts.get("timing", []), parts.get("batches", [])
    lines = parts.get("events")
    if lines is not None:
        facts.attempts, damaged = attempts_of(lines)
        facts.notes += [f"event log: line {each.number} is damaged" for each in damaged]
    else:
        facts.attempts = _attempt_of(run)
    logged = _joined(facts)
    # The row that is being told of is not in the log yet.
    known = {"History": parts.get("rows", []), "run.history": _numbered(_history_of(run))}
    _take_rows(facts, {**known, "EventLog": logged})
    _take_checkpoints(facts, RunFolder(Path(), checkpoints=parts.get("checkpoints", [])))
    _note_what_is_missing(facts)
    return facts


def _attempt_of(run: Any) -> list[Attempt]:
    """Tell of the run that goes on, or of the last one, without a log."""
    result = run.result
    if run.is_running:
        about = about_run(run, 0.0)
        del about["began_at"]
        asked = [about_cancellation(each) for each in run.token.history]
        return [Attempt("fit", about, cancellations=asked, asked=len(asked))]
    if result is None:
        return []
    asked = [about_cancellation(each) for each in result.cancellations]
    last = {"t": result.seconds, "steps": result.steps}
    attempt = Attempt("fit", {}, result.outcome, last, (), asked, len(asked))
    if result.outcome == "failed":
        attempt.failures = [{"exception": str(result.reason)}]
    return [attempt]


def _history_of(run: Any) -> list[Row]:
    rows = run.history if run.is_running or run.result is None else run.result.history
    return [dict(to_host(row)) for row in rows]


def _numbered(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [{"fit": 0, **row} for row in rows]


def _take_attempts(facts: RunFacts, left: RunFolder) -> None:
    """Have the first rank speak for all."""
    ranks = sorted(left.attempts)
    facts.attempts = left.attempts[ranks[0]] if ranks else []
    facts.ranks = {rank: left.attempts[rank] for rank in ranks[1:]}
    if ranks and ranks[0]:
        facts.notes.append(f"there is no log of rank 0: the one of rank {ranks[0]} stands for it")
    environment = facts.attempts[-1].about.get("environment") if facts.attempts else None
    size = environment.get("world_size", 1) if isinstance(environment, Mapping) else 1
    if isinstance(size, int) and len(ranks) < size:
        facts.notes.append(f"there are event logs of {len(ranks)} of {size} ranks")
    formats = (each.about.get("format", FORMAT) for each in facts.attempts)
    newer = sorted({str(each) for each in formats} - {str(FORMAT)})
    if newer:
        facts.notes.append(
            f"the event log is of another version (format {', '.join(newer)[:100]}, and this "
            f"one knows {FORMAT}): what is new in it is left out"
        )


def _joined(facts: RunFacts) -> list[Row]:
    """Join the rows and rates of attempts: what was behind the place of a resumption is dropped."""
    rows: list[Row] = []
    fit = -1
    for attempt in facts.attempts:
        if attempt.kind != "fit":
            continue
        place = attempt.resumed
        if place is None or fit < 0:
            fit += 1
        else:
            rows = [row for row in rows if row["fit"] < fit or _is_before(row, place)]
            steps = number(place.get("steps")) or 0
            facts.rates = [each for each in facts.rates if each[0] < fit or each[1] < steps]
        rows += [{"fit": fit, **row} for row in attempt.rows]
        facts.rates += [(fit, steps, rates) for steps, rates in attempt.rates]
    return rows


def _is_before(row: Row, place: Mapping[str, Any]) -> bool:
    """Whether a row was complete at the place from which a run went on."""
    step, steps = number(row.get("step")), number(place.get("steps"))
    if step is not None and steps is not None:
        return step <= steps
    epoch, from_epoch = number(row.get("epoch")), number(place.get("epoch"))
    return epoch is None or from_epoch is None or epoch < from_epoch


def _take_rows(facts: RunFacts, known: Mapping[str, list[Row]]) -> None:
    for source, rows in known.items():
        if rows:
            facts.rows, facts.rows_from = _numbered(rows), source
            return


def _take_checkpoints(facts: RunFacts, left: RunFolder) -> None:
    for record in left.checkpoints:
        place = {"epoch": record.epoch, "phase": record.phase, "batch": record.batch}
        try:
            written = record.path.stat().st_mtime
        except OSError:
            written = None
        facts.checkpoints.append(
            {"path": str(record.path), **place, "steps": record.steps, "written_at": written}
            | {"metrics": record.metrics}
        )


def _note_what_is_missing(facts: RunFacts) -> None:
    """Say what is not known, and which callback would have told."""
    has_log = any(each.lines for each in facts.attempts)
    has_seconds = any(name.startswith("seconds_") for row in facts.rows for name in row)
    profile = "with run.bus.profile() as p: ..., then p.to_json('RUN/profile.json')"
    facts.untold += [
        f"{what}: {who}"
        for is_there, what, who in (
            (has_log, "what happened when, who asked for what, where it failed", "EventLog(path)"),
            (facts.rows, "losses and metrics", "AvgStatsCallback(), with JSONLLogger(path)"),
            (facts.checkpoints, "a place to go on from", "Checkpoint('RUN/checkpoints')"),
        )
        if not is_there
    ]
    facts.missing += facts.untold + [
        f"{what}: {who}"
        for is_there, what, who in (
            (facts.batches, "losses of single batches", "History(batches=True), in run.report()"),
            (facts.rates or facts.batches, "learning rates", "EventLog(path)"),
            (facts.handlers, _TIME_BY_HANDLER, profile),
            (
                facts.timing or has_seconds,
                "waiting for data, forward, backward, step",
                "Timing(history=True)",
            ),
        )
        if not is_there
    ]


def named_apart(runs: list[RunFacts]) -> list[RunFacts]:
    """Have runs of one name have several: what is set side by side must be told apart."""
    names = [run.name for run in runs]
    for index, run in enumerate(runs):
        if names.count(run.name) > 1:
            run.name = f"{run.name} ({index + 1})"
    return runs


def plain_json(content: Any) -> str:
    """Return content as strict JSON, where numbers that are not finite are ``null``."""
    return json.dumps(_finite(content), allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
