"""Two processes that train together, started by torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..interpreters import environment_of, module_beside
from ..measure import Options
from ..peers.registry import Peer

SIZE = 2
TIMEOUT = 900.0
"""Seconds that the ranks may take."""


@dataclass(frozen=True)
class Told:
    """What ranks have told.

    Attributes:
        found: What rank 0 has written; empty where there is nothing.
        problem: Why that is so, or how they ended after it; ``""`` where all is well.
    """

    found: dict[str, Any]
    problem: str = ""


def interpreter_of(peer: Peer) -> str | None:
    """Return the interpreter that has a framework; ``None`` where it is not installed."""
    python = os.environ.get(peer.variable)
    return python or (None if peer.version is None else sys.executable)


def start(who: str, options: Options, python: str = sys.executable) -> Told:
    """Have all ranks measure, and return what they tell when they have ended."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        file = Path(folder) / "found.json"
        code = _run([str(file), who, str(options.seed), str(options.quick)], python, said)
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if code == 0:
            return Told(found)
        said.seek(0)
        errors = [line for line in said.read().splitlines() if "Error" in line and ": " in line]
        why = f"its processes ended with {code}: {errors[0].strip() if errors else 'no error'}"
        if code is None:
            why = f"its processes had not ended after {TIMEOUT:g} s"
        return Told(found, f"told all, and then {why}" if found else why)


def _run(arguments: list[str], python: str, said: Any) -> int | None:
    """Return the exit code of torchrun, ``None`` if it had to be ended."""
    folder, module = module_beside(__file__, "worker")
    command = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(SIZE)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", module]
    process = subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        env=environment_of(folder),
        start_new_session=True,  # so that all that it starts can be ended with it
    )
    try:
        return process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:  # after Ctrl-C as well
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
