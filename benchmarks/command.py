"""The command line of ``eventtrain bench`` and of ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import SUITES
from .records import Misuse, as_json, load, new_record
from .tables import around_tables, as_text, write_markdown

_EPILOG = """exit codes: 0; 1 with --check, when a target is missed; 2 for misuse; 130 after Ctrl-C,
with what was found until then in the file of --json"""


def main(arguments: Sequence[str], program: str) -> int:
    """Run the suites that are named, or all; return the exit code.

    Args:
        arguments: Those of the command line.
        program: What the command is called, for help and errors.
    """
    parser = _parser(program)
    try:
        given = parser.parse_args(arguments)
        _check(given)
        old = None if given.compare is None else load(given.compare)
        record = _measured(given) if given.read is None else load(given.read)
        _show(given, record, old)
    except SystemExit as stop:  # argparse ends so, after help and after misuse
        return int(stop.code or 0)
    except Misuse as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    if not record["complete"] and given.read is None:
        return 128 + signal.SIGINT
    targets = [target for suite in record["suites"].values() for target in suite["targets"]]
    return 1 if given.check and not all(target["passed"] for target in targets) else 0


def _parser(program: str) -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:<9} {question}" for name, question in SUITES.items())
    parser = argparse.ArgumentParser(
        prog=program,
        description=f"Measure what dispatch costs, beside loops written by hand.\n\n{listing}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("suites", nargs="*", metavar="SUITE", help="what to measure; everything by default")
    add("--json", type=Path, metavar="FILE", help="write everything there, every round included")
    add("--markdown", type=Path, metavar="FILE", help="write the tables there; where FILE has "
        "the lines <!-- results --> and <!-- /results -->, between them")  # fmt: skip
    add("--plot", type=Path, metavar="DIR", help="draw the figures there, as PNG")
    add("--compare", type=Path, metavar="OLD.json", help="print what has moved by more than its "
        "spread since that file was written")  # fmt: skip
    add("--from", dest="read", type=Path, metavar="FILE", help="measure nothing: take the figures "
        "from a file that --json wrote")  # fmt: skip
    add("--quick", action="store_true", help="try it out; the figures mean nothing")
    add("--check", action="store_true", help="exit with 1 when a target is missed")
    add("--device", metavar="NAME", help="where the gpu suite runs: cuda, cpu or meta; by default "
        "CUDA where there is any, else the CPU and meta")  # fmt: skip
    add("--seed", type=int, default=0, help="of all random numbers, default 0")
    add("--threads", type=int, default=1, help="of torch, default 1")
    return parser


def _check(given: argparse.Namespace) -> None:
    """Refuse what cannot be done, before anything is measured."""
    unknown = [name for name in given.suites if name not in SUITES]
    if unknown:
        raise Misuse(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    absent = [name for name in given.suites if not _is_there(name)]
    if absent:
        raise Misuse(f"suite {', '.join(absent)} is not part of this installation")
    if given.read is not None and (given.suites or given.json or given.quick):
        raise Misuse("--from measures nothing: leave out suites, --json and --quick")
    if given.threads < 1:
        raise Misuse(f"--threads must be 1 or more, got {given.threads}")
    if given.plot is not None and find_spec("matplotlib") is None:
        raise Misuse('--plot needs matplotlib: pip install "eventtrain[bench]"')
    if given.plot is not None and given.plot.exists() and not given.plot.is_dir():
        raise Misuse(f"--plot {given.plot} is no folder: name a folder, which is made if need be")
    for option, path in (("--json", given.json), ("--markdown", given.markdown)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise Misuse(f"{option} {path} cannot be written: name a file in a folder that exists")
    if given.markdown is not None:
        around_tables(given.markdown)
    if given.device is not None:
        _check_device(given.device)


def _check_device(name: str) -> None:
    import torch

    from .steps import CASES

    try:
        device = torch.device(name)
        if device.type not in CASES:
            raise RuntimeError
        torch.empty(1, device=device).zero_()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise Misuse(
            f"--device {name} cannot be used here; cpu and meta can always, cuda where torch "
            "finds a GPU"
        ) from None


def _is_there(name: str) -> bool:
    return find_spec(f".{name}", __package__) is not None


def _measured(given: argparse.Namespace) -> dict[str, Any]:
    """Run the suites, print what they find, and return the record, which Ctrl-C cuts short."""
    import torch

    from .environment import environment
    from .measure import Options

    torch.set_num_threads(given.threads)
    options = Options(quick=given.quick, seed=given.seed, device=given.device)
    facts = environment(options)
    print("\n".join(f"{key:>14}  {value}" for key, value in facts.items()))
    record = new_record(facts)
    try:
        _run(given.suites or SUITES, options, record["suites"])
        record["complete"] = True
    except KeyboardInterrupt:
        print(f"interrupted; finished: {', '.join(record['suites']) or 'nothing'}", file=sys.stderr)
    finally:  # also when a suite has failed: the others took minutes
        if given.json is not None:
            given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _run(names: Iterable[str], options: Any, found: dict[str, Any]) -> None:
    for name in names:
        if not _is_there(name):
            print(f"\n=== {name}: left out, it is not part of this installation", flush=True)
            continue
        print(f"\n=== {name}: {SUITES[name]}", flush=True)
        start = time.perf_counter()
        suite = importlib.import_module(f".{name}", __package__).run(options)
        suite.seconds = time.perf_counter() - start
        found[name] = as_json(suite)
        print(as_text(found[name]), flush=True)
        print(f"\n{name} took {suite.seconds:.0f} s", flush=True)


def _show(given: argparse.Namespace, record: dict[str, Any], old: dict[str, Any] | None) -> None:
    """Write and print what else was asked for."""
    if old is not None:
        from .comparison import compared

        print(f"\n=== since {given.compare}\n{compared(old, record)}")
    if given.markdown is not None:
        write_markdown(given.markdown, record)
        print(f"tables: {given.markdown}")
    if given.plot is not None:
        from .figures import draw

        for path in draw(record, given.plot):
            print(f"figure: {path}")
