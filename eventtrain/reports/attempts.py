"""What an event log tells of each attempt at a run, from its first line to its end or a kill."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..events import Event
from .event_lines import DamagedLine, Record, event_of

_MOST = 1000
"""Cancellations that are kept of an attempt, the last ones: accumulation makes one a batch."""


@dataclass
class Spent:
    """Time that was spent in a scope, or between two events.

    Attributes:
        count: How often.
        seconds: How long in all.
        own: Of these, those in no scope inside of it.
    """

    count: int = 0
    seconds: float = 0.0
    own: float = 0.0


@dataclass
class Attempt:
    """A fit, a validation or a prediction, as far as its log goes.

    Attributes:
        kind: The name of its outermost scope.
        about: What its first line tells of it: when it began, from where, on what, with what.
            Empty in logs of earlier versions.
        outcome: How it ended; ``None`` where no closing event tells.
        last: Its last line.
        open_scopes: Those that were open then, outermost first.
        cancellations: Requests, the last of them, with the fields of ``Cancellation``.
        asked: How many there were in all.
        failures: What its exceptions told; two where an outer run goes on after an inner one.
        rows: Rows of the history.
        rates: Pairs of steps and learning rates, where these have changed.
        scopes: Time by scope, ``"train > batch"``.
        between: Time by phase and by the events that it lay between.
        lines: How many lines it has.
        is_followed: Whether another one stands behind it, so that it goes on no more.
    """

    kind: str
    about: Mapping[str, Any] = field(default_factory=dict)
    outcome: str | None = None
    last: Record = field(default_factory=dict)
    open_scopes: tuple[str, ...] = ()
    cancellations: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    rates: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    scopes: dict[str, Spent] = field(default_factory=dict)
    between: dict[tuple[str, str, str], Spent] = field(default_factory=dict)
    lines: int = 0
    is_followed: bool = False

    @property
    def began_at(self) -> float | None:
        """Seconds since the Unix epoch, where the log tells."""
        return number(self.about.get("began_at"))

    @property
    def seconds(self) -> float:
        """From the beginning to the last line."""
        return number(self.last.get("t")) or 0.0

    @property
    def ended_at(self) -> float | None:
        """When the last line was written, in seconds since the Unix epoch."""
        return None if self.began_at is None else self.began_at + self.seconds

    @property
    def resumed(self) -> Mapping[str, Any] | None:
        """From where it went on; ``None`` for one that started at the beginning."""
        found = self.about.get("resumed")
        return found if isinstance(found, Mapping) else None


def attempts_of(lines: Iterable[Record | DamagedLine]) -> tuple[list[Attempt], list[DamagedLine]]:
    """Read a log to its end.

    Returns:
        The attempts, oldest first, and the lines that could not be read and were left out.
    """
    attempts: list[Attempt] = []
    damaged: list[DamagedLine] = []
    reader = _Reader(Attempt(""))  # of nothing yet
    for line in lines:
        if isinstance(line, DamagedLine):
            damaged.append(line)
            continue
        event = event_of(line)
        if not attempts or reader.is_over_at(line, event):
            reader.end()
            reader.attempt.is_followed = True
            reader = _Reader(Attempt(event.scope or line["scope"] or "run"))
            attempts.append(reader.attempt)
        reader.add(line, event)
    reader.end()
    return attempts, damaged


class _Reader:
    """Takes the lines of one attempt, and keeps sums: a log may be longer than memory."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self._open: list[tuple[str, float, Spent]] = []
        self._before: tuple[str, float] | None = None

    def is_over_at(self, line: Record, event: Event) -> bool:
        """Whether a line is the first of another attempt."""
        if isinstance(line.get("run"), Mapping):
            return self.attempt.lines > 0
        if self.attempt.outcome is not None:
            return True
        # A fit in a fit may be an inner run's, but begin_fit is the first line of its own.
        return event.kind == "opening" and event.scope == "fit" and bool(self.attempt.lines)

    def add(self, line: Record, event: Event) -> None:
        attempt = self.attempt
        attempt.lines += 1
        attempt.last = line
        self._note_what_is_told(line)
        self._note_time(line, event)
        attempt.open_scopes = self.open_scopes
        if line["scope"] is None and event.closes_scope:
            attempt.outcome = line["outcome"] or "completed"

    def end(self) -> None:
        """Count the time of scopes that have no closing line, up to the last there is."""
        if self._before is not None:
            self._close_down_to(None, self._before[1])

    def _note_what_is_told(self, line: Record) -> None:
        attempt = self.attempt
        if isinstance(line.get("run"), Mapping):
            attempt.about = line["run"]
        attempt.cancellations += line["cancellations"]
        attempt.asked += len(line["cancellations"])
        del attempt.cancellations[:-_MOST]
        if "exception" in line:
            attempt.failures.append(_failure_of(line))
        if isinstance(line.get("row"), Mapping):
            attempt.rows.append(dict(line["row"]))
        if isinstance(line.get("rates"), Mapping):
            rates = {
                str(k): v for k, each in line["rates"].items() if (v := number(each)) is not None
            }
            attempt.rates.append((int(number(line.get("steps")) or 0), rates))

    def _note_time(self, line: Record, event: Event) -> None:
        now = number(line["t"]) or 0.0
        if self._before is not None:
            phase = next((s for s, _, _ in reversed(self._open) if s not in ("batch", "step")), "")
            key = phase, self._before[0], event.name
            spent = self.attempt.between.setdefault(key, Spent())
            spent.count, spent.seconds = spent.count + 1, spent.seconds + now - self._before[1]
        self._before = event.name, now
        if event.kind != "opening":
            self._close_down_to(line["scope"], now)
            return
        if event.scope in self.open_scopes:
            self._close_down_to(event.scope, now)
            self._close(now)
        self._open.append((event.scope, now, Spent()))

    @property
    def open_scopes(self) -> tuple[str, ...]:
        """Names of the scopes that are open, outermost first."""
        return tuple(scope for scope, _, _ in self._open)

    def _close_down_to(self, scope: str | None, now: float) -> None:
        """Close what is no longer open, as the innermost open scope is another."""
        if scope is not None and scope not in self.open_scopes:
            return
        while self._open and self._open[-1][0] != scope:
            self._close(now)

    def _close(self, now: float) -> None:
        path = " > ".join(self.open_scopes)
        _, start, inside = self._open.pop()
        spent = self.attempt.scopes.setdefault(path, Spent())
        seconds = max(now - start, 0.0)
        spent.count += 1
        spent.seconds += seconds
        spent.own += max(seconds - inside.seconds, 0.0)
        if self._open:
            self._open[-1][2].seconds += seconds


def _failure_of(line: Record) -> dict[str, Any]:
    """Return what a line tells of an exception, and where the run was."""
    told = line.get("failure")
    told = told if isinstance(told, Mapping) else {}
    texts = {name: told.get(name) for name in ("notes", "where", "because")}
    return {
        "exception": str(line["exception"]),
        "type": told.get("type"),
        "message": told.get("message"),
        **{k: list(map(str, v)) if isinstance(v, list) else [] for k, v in texts.items()},
        **{name: line[name] for name in ("event", "scope", "epoch", "batch", "t")},
    }


def number(value: object) -> float | None:
    """Return a finite number as such, and ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
