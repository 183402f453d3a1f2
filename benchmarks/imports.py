"""What does ``import eventtrain`` add to a program that imports torch anyway?

With everything that it exports, as names are imported when they are first asked
for: ``import eventtrain`` alone would show next to nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import eventtrain

from .measure import Group, Options, Spread, Suite, Target

TORCH = "import torch"
BOTH = "import torch; from eventtrain import *"
ADDED = "from eventtrain import *, after import torch"
ALONE = "import eventtrain, after import torch"
EVERYTHING = "from eventtrain import *"
LIMIT_MS = 50.0

_CLOCKED = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
{second}
end = time.perf_counter()
print(middle - start, end - middle)
"""


def run(options: Options) -> Suite:
    """Import in fresh interpreters, alternating with and without eventtrain.

    The target is held against what eventtrain adds within one interpreter: the
    time of ``import torch`` differs from process to process by more than that.
    """
    rounds: dict[str, list[float]] = {TORCH: [], BOTH: [], ADDED: [], ALONE: []}
    _clock(EVERYTHING)  # warms the disk cache and writes the bytecode
    for _ in range(options.pick(11, 1)):
        torch_alone, _ = _clock("")
        torch_first, added = _clock(EVERYTHING)
        rounds[TORCH].append(torch_alone)
        rounds[BOTH].append(torch_first + added)
        rounds[ADDED].append(added)
        rounds[ALONE].append(_clock("import eventtrain")[1])
    group = Group("imports in a fresh interpreter", "ms", rounds)
    added_ms: Spread = group.time(ADDED)
    target = Target(
        "everything that eventtrain exports, added to import torch", added_ms.median, LIMIT_MS, "ms"
    )
    notes = [] if options.quick and target.passed else costliest()
    return Suite([group], [target], notes)


def costliest(count: int = 8) -> list[str]:
    """Return the modules whose import costs most beyond torch's, by ``-X importtime``.

    Times are those of the module itself, without what it imports.
    """
    program = f"import torch, sys; sys.stderr.write('--- torch is there\\n')\n{EVERYTHING}"
    _, _, log = python("-X", "importtime", "-c", program)[1].partition("--- torch is there")
    found: list[tuple[int, str]] = []
    for line in log.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[0].strip().isdigit():
            found.append((int(parts[0]), parts[2].strip()))
    found.sort(reverse=True)
    return [f"-X importtime: {name} {us / 1000:.1f} ms" for us, name in found[:count]]


def _clock(second: str) -> tuple[float, float]:
    first, added = python("-c", _CLOCKED.format(second=second))[0].split()
    return float(first), float(added)


def python(*arguments: str) -> tuple[str, str]:
    """Run this interpreter, able to import the eventtrain that is measured here."""
    path = [str(Path(eventtrain.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    # Without it every interpreter would compile the sources anew, and be timed doing so.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=env
    )
    return done.stdout, done.stderr
