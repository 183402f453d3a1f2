"""What a run found, as plain data: the JSON file, which README.md beside this file documents."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .measure import Group, Suite

SCHEMA = 2
"""Raised when a key of the JSON file changes its meaning or goes."""

Record = dict[str, Any]


class Misuse(Exception):
    """A command line that cannot be followed; the message says what to do instead."""


def new_record(environment: dict[str, Any]) -> Record:
    """Return a record without any suite."""
    return {"schema": SCHEMA, "complete": False, "environment": environment, "suites": {}}


def load(path: Path) -> Record:
    """Read a record.

    Raises:
        Misuse: There is no such file, or it holds something else.
    """
    remedy = "name a file that --json wrote"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Misuse(f"there is no file {path}: {remedy}") from None
    except OSError as error:
        raise Misuse(f"{path} cannot be read ({error.strerror}): {remedy}") from None
    except ValueError:  # undecodable bytes too
        raise Misuse(f"{path} is not JSON: {remedy}") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        found = "no schema" if schema is None else f"schema {schema}"
        raise Misuse(
            f"{path} has {found}, and this version reads schema {SCHEMA}: measure anew with --json"
        )
    if not {"complete", "environment", "suites"} <= set(record):
        raise Misuse(f"{path} is no whole record: {remedy}")
    return dict(record)


def as_json(suite: Suite) -> Record:
    """Return a suite as plain data."""
    return {
        "seconds": suite.seconds,
        "groups": [_group(group) for group in suite.groups],
        "targets": [{**asdict(target), "passed": target.passed} for target in suite.targets],
        "notes": suite.notes,
    }


def _group(group: Group) -> Record:
    return {
        "title": group.title,
        "unit": group.unit,
        "baseline": group.baseline,
        "variants": {
            name: {
                "time": asdict(group.time(name)),
                "ratio": asdict(group.ratio(name)),
                "difference": asdict(group.difference(name)),
                "seconds": seconds,
                "parameters": group.parameters.get(name, {}),
            }
            for name, seconds in group.rounds.items()
        },
    }
