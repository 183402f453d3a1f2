"""Why a run stopped, from what it has left: after its end, a crash or a kill."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .attempts import Attempt, number
from .run_facts import RunFacts

_REQUESTS, _ROWS = 20, 3
"""How many of the last ones are told."""


def why(facts: RunFacts) -> dict[str, Any]:
    """Return why a run stopped, as plain data.

    Returns:
        ``outcome`` is ``"completed"``, ``"cancelled"``, ``"failed"``; ``"killed"`` where no
        closing event was written, ``"running"`` where the process is still there, and
        ``"unknown"`` where nothing tells. ``sentence`` says it in words; ``who``, ``why``,
        ``where`` and ``when`` are ``None`` where nobody told. ``cancellations`` (those alike
        together), ``failures``, ``rows`` (the last three), ``attempts``, ``ranks``,
        ``checkpoint``, ``notes`` and ``missing`` are what it rests on.
    """
    attempt = facts.last_fit
    outcome = _outcome(facts, attempt)
    told = _told_by(attempt, outcome) if attempt is not None else {}
    end = facts.ends[-1] if facts.ends else {}
    if attempt is None and end.get("reason") is not None:
        told["why"] = str(end["reason"])
    return {
        "run": facts.name,
        "outcome": outcome,
        "sentence": _sentence(facts, attempt, outcome),
        **{name: told.get(name) for name in ("who", "why", "where", "when")},
        "cancellations": grouped(attempt.cancellations)[-_REQUESTS:] if attempt is not None else [],
        "asked": attempt.asked if attempt is not None else 0,
        "failures": attempt.failures if attempt is not None else [],
        "rows": facts.rows[-_ROWS:],
        "attempts": [summary(each) for each in facts.attempts],
        "ranks": {
            str(rank): summary(attempts[-1]) for rank, attempts in facts.ranks.items() if attempts
        },
        "checkpoint": facts.checkpoints[-1] if facts.checkpoints else None,
        "notes": facts.notes,
        "missing": facts.untold,
    }


def summary(attempt: Attempt) -> dict[str, Any]:
    """Return how an attempt went, as plain data."""
    last = attempt.last
    return {
        "kind": attempt.kind,
        "outcome": outcome_of(attempt),
        "began_at": moment(attempt.began_at),
        "ended_at": moment(attempt.ended_at),
        "seconds": attempt.seconds,
        "resumed": attempt.resumed,
        "steps": last.get("steps"),
        "last_line": {name: last.get(name) for name in ("event", "epoch", "batch")},
        "open_scopes": list(attempt.open_scopes),
        "failures": [each["exception"] for each in attempt.failures],
    }


def outcome_of(attempt: Attempt) -> str:
    """Say how an attempt ended: what its log says, else ``"running"`` or ``"killed"``."""
    if attempt.outcome is not None:
        return attempt.outcome
    if not attempt.lines:
        return "running"  # of a runner that is asked while it runs
    return "running" if not attempt.is_followed and _is_alive(attempt) else "killed"


def moment(seconds: float | None) -> str | None:
    """Write a time down as people here read it."""
    if seconds is None:
        return None
    with suppress(OverflowError, ValueError, OSError):
        return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))
    return None


def _is_alive(attempt: Attempt) -> bool:
    """Whether the process that wrote the log is there still, as far as this machine can tell."""
    about = attempt.about.get("environment")
    if not isinstance(about, Mapping) or about.get("host") != socket.gethostname():
        return False
    pid, began = about.get("pid"), attempt.began_at
    if type(pid) is not int or pid <= 0 or began is None or os.name == "nt":
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        return False
    # Numbers are used again: one that was started later is another.
    with suppress(OSError):
        return Path(f"/proc/{pid}").stat().st_mtime <= began + 1
    return True


def _outcome(facts: RunFacts, attempt: Attempt | None) -> str:
    if attempt is not None:
        return outcome_of(attempt)
    return str(facts.ends[-1].get("outcome")) if facts.ends else "unknown"


def _told_by(attempt: Attempt, outcome: str) -> dict[str, Any]:
    """Return who ended an attempt, why, where and when."""
    if outcome == "failed" and attempt.failures:
        failure = attempt.failures[-1]
        notes = "; ".join(map(str, failure.get("notes", ())))
        lines = failure.get("where") or [None]
        place = place_of(failure) if "epoch" in failure else None
        when = None
        if attempt.began_at is not None:
            when = attempt.began_at + (number(failure.get("t")) or 0.0)
        where = ", ".join(str(each) for each in (lines[-1], place) if each)
        return {
            "who": notes.removeprefix("eventtrain: ") or None,
            "why": failure["exception"],
            "where": where or None,
            "when": moment(when),
        }
    ending = [each for each in attempt.cancellations if each.get("scope") == attempt.kind]
    if outcome != "cancelled" or not ending:
        return {}
    asked = ending[-1] if attempt.asked > len(attempt.cancellations) else ending[0]
    where = ", ".join(str(each) for each in (asked.get("source"), place_of(asked)) if each)
    return {
        "who": who_asked(asked),
        "why": str(asked.get("reason") or "(no reason was given)"),
        "where": where or None,
        "when": moment(number(asked.get("time"))),
    }


def grouped(cancellations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put together requests that differ in nothing but their place and time.

    Returns:
        ``times``, the ``first`` and the ``last`` of each kind, by when the last one was made.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for each in cancellations:
        names = ("scope", "reason", "by", "event", "rank", "source")
        key = tuple(str(each.get(name)) for name in names)
        group = found.pop(key, {"times": 0, "first": each})
        found[key] = {**group, "times": group["times"] + 1, "last": each}
    return list(found.values())


def span(group: Mapping[str, Any]) -> str:
    """Say where the requests of a group were made."""
    ends = dict.fromkeys(place_of(group[name]) or "" for name in ("first", "last"))
    return " to ".join(filter(None, ends))


def who_asked(asked: Mapping[str, Any]) -> str:
    """Say who asked for a cancellation."""
    event, rank = asked.get("event"), asked.get("rank")
    handler = f", in {event}" if event else ""
    return f"{asked.get('by')}{handler}" + (f", on rank {rank}" if rank is not None else "")


def place_of(what: Mapping[str, Any]) -> str | None:
    """Say in which epoch and batch something was; ``None`` where it was in none."""
    names = [f"{name} {what[name]}" for name in ("epoch", "batch") if what.get(name) is not None]
    return ", ".join(names) or None


def _sentence(facts: RunFacts, attempt: Attempt | None, outcome: str) -> str:
    if attempt is None:
        if facts.ends:
            return f"{outcome} ({facts.rows_from or 'a file'} tells, and no event log)"
        return "nothing here tells how the run ended"
    steps = attempt.last.get("steps")
    far = f"after {attempt.seconds:.1f} s" + (f" and {steps} steps" if steps is not None else "")
    if outcome in ("completed", "cancelled", "failed"):
        return f"{outcome} {far}"
    if not attempt.lines:
        return "the run goes on"
    place = place_of(attempt.last)
    last = f"the last line is {attempt.last['event']}" + (f" of {place}" if place else "")
    scopes = " > ".join(attempt.open_scopes)
    inside = f", inside of {scopes}" if scopes else ""
    at = f", at {moment(attempt.ended_at)}" if attempt.ended_at is not None else ""
    if outcome == "running":
        return f"its process is still there; {last}{at}"
    return f"no closing events: the process was killed or crashed {far}; {last}{at}{inside}"
