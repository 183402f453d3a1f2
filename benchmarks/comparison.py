"""What has moved between two records by more than their spread."""

from __future__ import annotations

from collections.abc import Iterator

from .records import Record
from .tables import number

SETTINGS = ("cpu", "cpus", "system", "device", "python", "torch", "torch_threads", "quick")
"""What must agree for times, and not just ratios, to be compared."""

Key = tuple[str, str, str]
"""Suite, title of the group, variant."""


def compared(old: Record, new: Record) -> str:
    """Return a line for whatever has moved.

    A ratio has moved when each record's median lies outside of the other's
    ``min .. max``. Baselines have no ratio: their times are held against each
    other, where both records come from the same machine and versions.
    """
    differing = [
        f"{name} was {old['environment'].get(name)}, is {new['environment'].get(name)}"
        for name in SETTINGS
        if old["environment"].get(name) != new["environment"].get(name)
    ]
    before, after = dict(_variants(old)), dict(_variants(new))
    both = [key for key in after if key in before]
    moved = [line for key in both for line in _moved(key, before[key], after[key], not differing)]
    lines = [*differing]
    if differing:
        lines.append("times are not compared, as they come from different settings; ratios are")
    lines += moved or [f"nothing has moved by more than its spread, of {len(both)} figures"]
    lines += _verdicts(old, new)
    for where, keys in (("the old record", before.keys() - after), ("this", after.keys() - before)):
        if keys:
            suites = ", ".join(sorted({suite for suite, _, _ in keys}))
            lines.append(f"{len(keys)} figures are in {where} only ({suites})")
    return "\n".join(lines)


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
                    },
                )


def _moved(key: Key, before: Record, after: Record, same_machine: bool) -> Iterator[str]:
    old, new, unit = before["spread"], after["spread"], after["unit"]
    if before["unit"] != unit or (unit != "x" and not same_machine):
        return
    if _within(old["median"], new) or _within(new["median"], old):
        return
    verb = "slower" if new["median"] > old["median"] else "faster"
    yield f"{verb}  {' | '.join(key)}: {_text(old)} -> {_text(new)} {unit}"


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
