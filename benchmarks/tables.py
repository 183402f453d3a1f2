"""A record as text for the terminal, and as Markdown for a README."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eventtrain.text_table import text_table

from .records import Misuse, Record

BEGIN, END = "<!-- results -->", "<!-- /results -->"


def as_text(suite: Record) -> str:
    """Return the tables of a suite, its notes and its targets."""
    parts = [_table(group) for group in suite["groups"]]
    parts.append("\n".join(suite["notes"]))
    parts.append("\n".join(_verdict(target) for target in suite["targets"]))
    return "\n\n".join(part for part in parts if part)


def around_tables(path: Path) -> tuple[str, str]:
    """Return what a file has before and after the marks; nothing where it has no marks.

    Raises:
        Misuse: The file is no text, or has the marks otherwise than as one pair of lines.
    """
    if not path.exists():
        return "", ""
    try:
        old = path.read_text(encoding="utf-8")
    except UnicodeError:
        raise Misuse(f"--markdown {path} is not UTF-8: name a text file") from None
    if BEGIN not in old and END not in old:
        return "", ""
    lines = old.splitlines(keepends=True)
    marks = [index for index, line in enumerate(lines) if line.strip() in (BEGIN, END)]
    if [lines[index].strip() for index in marks] != [BEGIN, END]:
        raise Misuse(f"--markdown {path}: put one line {END} after one {BEGIN}, or have neither")
    first, last = marks
    return "".join(lines[:first]), "".join(lines[last + 1 :])


def write_markdown(path: Path, record: Record) -> None:
    """Write the tables to a file, between its marks where it has them."""
    before, after = around_tables(path)
    text = f"{before}{BEGIN}\n\n{as_markdown(record)}\n\n{END}\n{after}"
    path.write_text(text, encoding="utf-8")


def as_markdown(record: Record) -> str:
    """Return where and when the record was made, its targets and its tables."""
    parts = [_sentence(record)]
    suites = record["suites"]
    rows = [_target_row(target) for suite in suites.values() for target in suite["targets"]]
    parts.append(
        "\n".join(["| target | measured | limit | |", "| --- | ---: | ---: | --- |", *rows])
    )
    for name, suite in suites.items():
        rows = [row for group in suite["groups"] for row in _group_rows(group)]
        head = ["| | median | min .. max | over the baseline |", "| --- | ---: | ---: | ---: |"]
        parts.append(f"`{name}`, {suite['seconds']:.0f} s")
        parts.append("\n".join([*head, *rows]))
        parts += [f"- {note}" for note in suite["notes"]]
    return "\n\n".join(parts)


def number(value: float) -> str:
    """Return a figure with three digits that count."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def target_text(target: Record) -> str:
    """Return what was promised and what was measured."""
    sign = ">=" if target["at_least"] else "<="
    value = f"{number(target['value'])} {target['unit']}"
    return f"{target['text']}: {value} ({sign} {target['limit']:g} {target['unit']})"


def _sentence(record: Record) -> str:
    facts = record["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in facts["libraries"].items() if v is not None)
    whole = "" if record["complete"] else " The run was cut short: some suites are missing."
    quick = " Taken with `--quick`: the figures mean nothing." if facts["quick"] else ""
    load = "unknown" if facts["load"] is None else f"{facts['load']:.1f}"
    return (
        f"Taken {facts['date'][:10]} at commit {facts['commit'] or 'unknown'} "
        f'(eventtrain {facts["eventtrain"]}) on {facts["cpus"]} CPUs, model "{facts["cpu"]}", '
        f"{facts['system']}, {facts['device'] or 'no CUDA device'}; {facts['python']}, torch "
        f"{facts['torch']} with {facts['torch_threads']} thread(s), {versions}; seed "
        f"{facts['seed']}, load {load} at the start, garbage collection {facts['gc']}."
        f"{whole}{quick}"
    )


def _target_row(target: Record) -> str:
    limit = f"at {'least' if target['at_least'] else 'most'} {target['limit']:g} {target['unit']}"
    verdict = "PASS" if target["passed"] else "**MISS**"
    return (
        f"| {target['text']} | {number(target['value'])} {target['unit']} | {limit} | {verdict} |"
    )


def _group_rows(group: Record) -> Iterator[str]:
    yield f"| **{group['title']}, {group['unit']}** | | | |"
    for name, found in group["variants"].items():
        time, ratio = found["time"], found["ratio"]
        over = "1" if name == group["baseline"] else f"{ratio['median']:.3g}"
        yield f"| {name} | {number(time['median'])} | {_range(time)} | {over} |"


def _table(group: Record) -> str:
    variants, unit = group["variants"], group["unit"]
    count = len(variants[group["baseline"]]["seconds"])
    rows = [(f"{group['title']} [{count} rounds]", unit, "min .. max", f"+{unit}", "ratio", "")]
    for name, found in variants.items():
        time, ratio, more = found["time"], found["ratio"], found["difference"]
        row = (f"  {name}", number(time["median"]), _range(time))
        if name == group["baseline"]:
            rows.append((*row, "", "1", ""))
        else:
            over = f"{ratio['median']:.3g}"
            rows.append((*row, number(more["median"]), over, _range(ratio)))
    return text_table(rows, left=1)


def _verdict(target: Record) -> str:
    return f"{'PASS' if target['passed'] else 'MISS'}  {target_text(target)}"


def _range(spread: Record) -> str:
    return f"{number(spread['min'])} .. {number(spread['max'])}"
