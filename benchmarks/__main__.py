"""The command line: ``python -m benchmarks [SUITE ...]``."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import SUITES
from .environment import environment
from .measure import Group, Options, Spread, Suite, Target

SCHEMA = 1
"""Raised when a key of the JSON file changes its meaning or goes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites that are named, or all; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    listing = "; ".join(f"{name}: {question}" for name, question in SUITES.items())
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{listing}. All by default.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--quick", action="store_true", help="try it out; figures mean nothing")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers, default 0")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.suites if name not in SUITES]
    if unknown:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    torch.set_num_threads(1)
    options = Options(quick=given.quick, seed=given.seed)
    facts = environment(options)
    print("\n".join(f"{key:>14}  {value}" for key, value in facts.items()))
    suites: dict[str, Suite] = {}
    for name in given.suites or SUITES:
        print(f"\n=== {name}: {SUITES[name]}", flush=True)
        suites[name] = importlib.import_module(f"{__package__}.{name}").run(options)
        print(as_text(suites[name]), flush=True)
    if given.json is not None:
        result = {"schema": SCHEMA, "environment": facts}
        result["suites"] = {name: as_json(suite) for name, suite in suites.items()}
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    missed = any(not target.passed for suite in suites.values() for target in suite.targets)
    return 1 if missed and given.check else 0


def as_text(suite: Suite) -> str:
    """Return the tables of a suite, its notes and its targets."""
    parts = [_table(group) for group in suite.groups]
    parts.append("\n".join(suite.notes))
    parts.append("\n".join(_verdict(target) for target in suite.targets))
    return "\n\n".join(part for part in parts if part)


def as_json(suite: Suite) -> dict[str, Any]:
    """Return a suite as plain data; README.md beside this file documents the keys."""
    return {
        "groups": [
            {
                "title": group.title,
                "unit": group.unit,
                "baseline": group.baseline,
                "variants": {
                    name: {
                        "time": asdict(group.time(name)),
                        "ratio": asdict(group.ratio(name)),
                        "difference": asdict(group.difference(name)),
                        "seconds": seconds,
                    }
                    for name, seconds in group.rounds.items()
                },
            }
            for group in suite.groups
        ],
        "targets": [{**asdict(t), "passed": t.passed} for t in suite.targets],
        "notes": suite.notes,
    }


def _table(group: Group) -> str:
    count = len(next(iter(group.rounds.values())))
    unit = group.unit
    rows = [(f"{group.title} [{count} rounds]", f"{unit}", "min .. max", f"+{unit}", "ratio", "")]
    for name in group.rounds:
        time, ratio, more = group.time(name), group.ratio(name), group.difference(name)
        row = (f"  {name}", _number(time.median), _range(time))
        if name == group.baseline:
            rows.append((*row, "", "1", ""))
        else:
            rows.append((*row, _number(more.median), f"{ratio.median:.3g}", _range(ratio)))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _verdict(target: Target) -> str:
    sign = ">=" if target.at_least else "<="
    verdict = "PASS" if target.passed else "MISS"
    value = f"{_number(target.value)} {target.unit}"
    return f"{verdict}  {target.text}: {value} ({sign} {target.limit:g} {target.unit})"


def _range(spread: Spread) -> str:
    return f"{_number(spread.min)} .. {_number(spread.max)}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    raise SystemExit(main())
