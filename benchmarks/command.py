"""The command line of ``eventtrain bench`` and of ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from . import SUITES
from .arguments import check, is_there, parser
from .records import Misuse, as_json, load, new_record
from .tables import as_text, target_text, write_markdown

_INTERRUPTED = 128 + signal.SIGINT
_PLUGIN_VARIABLES = ("EVENTTRAIN_PLUGINS", "EVENTTRAIN_DISABLE_PLUGINS")


def main(arguments: Sequence[str], program: str) -> int:
    """Run the suites that are named, or all; return the exit code.

    Args:
        arguments: Those of the command line.
        program: What the command is called, for help and errors.
    """
    try:
        given = parser(program).parse_args(arguments)
        check(given)
        old = None if given.compare is None else load(given.compare)
        record, code = _measured(given, program) if given.read is None else (load(given.read), 0)
        _show(given, record, old)
    except SystemExit as stop:  # argparse ends so, after help and after misuse
        return int(stop.code or 0)
    except Misuse as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before or after the suites
        return _INTERRUPTED
    return code or (_missed(record, program) if given.check else 0)


def _missed(record: dict[str, Any], program: str) -> int:
    """Name the targets that are missed; return the exit code."""
    missed = [
        target
        for suite in record["suites"].values()
        for target in suite["targets"]
        if not target["passed"]
    ]
    for target in missed:
        print(f"{program}: missed: {target_text(target)}", file=sys.stderr)
    return 1 if missed else 0


def _drop_plugins(program: str) -> None:
    """Keep the plugins that the environment asks for out of the figures, the workers' too."""
    for name in _PLUGIN_VARIABLES:
        if os.environ.pop(name, None):
            print(f"{program}: {name} is ignored: it would change the figures", file=sys.stderr)


def _measured(given: argparse.Namespace, program: str) -> tuple[dict[str, Any], int]:
    """Run the suites and print what they find.

    Returns:
        The record, and the exit code when Ctrl-C has cut it short or a suite has failed, else 0.
    """
    import torch

    from .environment import environment
    from .measure import Options

    _drop_plugins(program)
    torch.set_num_threads(given.threads)
    options = Options(quick=given.quick, seed=given.seed, device=given.device)
    facts = environment(options)
    print("\n".join(f"{key:>14}  {value}" for key, value in facts.items()))
    record, code = new_record(facts), 0
    try:
        names = dict.fromkeys(given.suites or SUITES)  # each once
        for failure in _run(names, options, record["suites"]):
            print(f"{program}: {failure}", file=sys.stderr)
            code = 3
        record["complete"] = code == 0
    except KeyboardInterrupt:
        print(f"interrupted; finished: {', '.join(record['suites']) or 'nothing'}", file=sys.stderr)
        code = _INTERRUPTED
    finally:
        if given.json is not None:
            given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record, code


def _run(names: Iterable[str], options: Any, found: dict[str, Any]) -> Iterator[str]:
    """Run the suites; yield a line for each that fails, after which the others still run."""
    for name in names:
        if not is_there(name):
            print(f"\n=== {name}: left out, it is not part of this installation", flush=True)
            continue
        print(f"\n=== {name}: {SUITES[name]}", flush=True)
        start = time.perf_counter()
        try:
            suite = importlib.import_module(f".{name}", __package__).run(options)
        except Exception as error:
            traceback.print_exc()
            yield f"{name} failed: {type(error).__name__}: {error}"
            continue
        suite.seconds = time.perf_counter() - start
        found[name] = as_json(suite)
        _print_suite(name, found[name])


def _print_suite(name: str, suite: dict[str, Any]) -> None:
    print(f"{as_text(suite)}\n\n{name} took {suite['seconds']:.0f} s", flush=True)


def _show(given: argparse.Namespace, record: dict[str, Any], old: dict[str, Any] | None) -> None:
    """Write and print what else was asked for; where that is nothing, what was read."""
    if given.read is not None and not (old or given.markdown or given.plot):
        for name, suite in record["suites"].items():
            print(f"\n=== {name}: {SUITES.get(name, 'a suite of another version')}")
            _print_suite(name, suite)
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
