"""What has moved between two records by more than their spread."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .measure import UNITS
from .records import Record
from .tables import number

SETTINGS = (
    "cpu", "cpus", "system", "device", "python", "torch", "torch_threads", "seed", "quick",
)  # fmt: skip
"""What must agree for times, and not just ratios, to be compared, besides the libraries."""

Key = tuple[str, str, str]
"""Suite, title of the group, variant."""


def compared(old: Record, new: Record) -> str:
    """Return a line for whatever has moved.

    A ratio has moved when each record's median lies outside of the other's
    ``min .. max``. Baselines have no ratio: their times are held against each
    other, where both records come from the same machine and versions.
    """
    was, now = _settings(old), _settings(new)
    differing = [
        f"{name} was {was.get(name)}, is {now.get(name)}"
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    ]
    before, after = dict(_variants(old)), dict(_variants(new))
    shared = [key for key in after if key in before]
    both = [key for key in shared if _is_finite(before[key]) and _is_finite(after[key])]
    moved = [line for key in both for line in _moved(key, before[key], after[key], not differing)]
    lines = [*differing]
    if differing:
        lines.append("times are not compared, as they come from different settings; ratios are")
    lines += moved or [f"nothing has moved by more than its spread, of {len(both)} figures"]
    if len(both) < len(shared):
        count = len(shared) - len(both)
        lines.append(f"{count} figures are not compared, as they are not finite")
    lines += _verdicts(old, new)
    for where, keys in (("the old record", before.keys() - after), ("this", after.keys() - before)):
        if keys:
            suites = ", ".join(sorted({suite for suite, _, _ in keys}))
            lines.append(f"{len(keys)} figures are in {where} only ({suites})")
    return "\n".join(lines)


def _settings(record: Record) -> Record:
    facts = record["environment"]
    return {name: facts.get(name) for name in SETTINGS} | facts["libraries"]


def _variants(record: Record) -> Iterator[tuple[Key, Record]]:
    for suite, found in record["suites"].items():
        for group in found["groups"]:
            for name, variant in group["variants"].items():
                is_baseline = name == group["baseline"]
                yield (
                    (suite, group["title"], name),
                    {
                        "spread": variant["time" if is_baseline else "ratio"],
                        "unit": group["unit"] if is_baseline else "x",
                        "version": variant["parameters"].get("version"),
                    },
                )


def _moved(key: Key, before: Record, after: Record, same_machine: bool) -> Iterator[str]:
    new, unit = after["spread"], after["unit"]
    is_ratio = unit == "x"
    if is_ratio != (before["unit"] == "x") or not (is_ratio or same_machine):
        return
    scale = 1 if before["unit"] == unit else UNITS[before["unit"]] / UNITS[unit]
    old = {name: value * scale for name, value in before["spread"].items()}
    if _within(old["median"], new) or _within(new["median"], old):
        return
    verb = "slower" if new["median"] > old["median"] else "faster"
    versions = before["version"], after["version"]
    since = "" if versions[0] == versions[1] else f", version {versions[0]} -> {versions[1]}"
    yield f"{verb}  {' | '.join(key)}: {_text(old)} -> {_text(new)} {unit}{since}"


def _is_finite(figure: Record) -> bool:
    return all(map(math.isfinite, figure["spread"].values()))


def _within(value: float, spread: Record) -> bool:
    return bool(spread["min"] <= value <= spread["max"])


def _text(spread: Record) -> str:
    least, most = number(spread["min"]), number(spread["max"])
    return f"{number(spread['median'])} ({least} .. {most})"


def _verdicts(old: Record, new: Record) -> Iterator[str]:
    before = {
        (suite, target["text"]): target["passed"]
        for suite, found in old["suites"].items()
        for target in found["targets"]
    }
    for suite, found in new["suites"].items():
        for target in found["targets"]:
            if before.get((suite, target["text"]), target["passed"]) != target["passed"]:
                verdict = "is met now" if target["passed"] else "is missed now"
                yield f"target {verdict}: {target['text']}"
