"""What a run found, as plain data: the JSON file, which README.md beside this file documents."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .measure import UNITS, Group, Suite

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
    if not _is_whole(record):
        raise Misuse(f"{path} is no whole record: {remedy}")
    return dict(record)


@dataclass(frozen=True)
class _Each:
    """Stands in ``_SHAPE`` for a dictionary whose values are alike, whatever its keys."""

    value: Any


_NUMBER = (int, float)
_SPREAD = dict.fromkeys(("median", "min", "max"), _NUMBER)
_FACTS = ("eventtrain", "commit", "python", "torch", "cpu", "cpus", "system", "device",
          "torch_threads", "gc", "seed", "quick")  # fmt: skip
_GROUP = {
    "title": str,
    "unit": str,
    "baseline": str,
    "variants": _Each(
        {
            **dict.fromkeys(("time", "ratio", "difference"), _SPREAD),
            "seconds": [_NUMBER],
            "parameters": dict,
        }
    ),
}
_TARGET = {
    "text": str, "value": _NUMBER, "limit": _NUMBER, "unit": str, "at_least": bool, "passed": bool,
}  # fmt: skip
_SHAPE = {
    "complete": bool,
    "environment": {
        **dict.fromkeys(_FACTS, object),
        "date": str,
        "libraries": dict,
        "load": (*_NUMBER, type(None)),
    },
    "suites": _Each({"seconds": _NUMBER, "groups": [_GROUP], "targets": [_TARGET], "notes": [str]}),
}


def _is_whole(record: Record) -> bool:
    return _fits(record, _SHAPE) and all(
        group["unit"] in UNITS
        and group["baseline"] in group["variants"]
        and all(variant["seconds"] for variant in group["variants"].values())
        for suite in record["suites"].values()
        for group in suite["groups"]
    )


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            key in value and _fits(value[key], inner) for key, inner in shape.items()
        )
    if isinstance(shape, _Each):
        return isinstance(value, dict) and all(_fits(v, shape.value) for v in value.values())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(v, shape[0]) for v in value)
    return isinstance(value, shape)


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
