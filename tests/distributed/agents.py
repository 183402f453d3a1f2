"""Start commands side by side, agents of torchrun for one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT, LIMIT = Path(__file__).parents[2], 60.0
Told = list[dict[str, Any]]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def start(commands: list[tuple[list[str], dict[str, str]]], folder: Path, size: int) -> Told:
    """Start processes side by side, and return what each rank has told."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_"))}
    inherited.update(OMP_NUM_THREADS="1", PYTHONWARNINGS="", PYTHONPATH=str(ROOT))
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**inherited, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        for command, variables in commands
    ]
    try:
        said = [process.communicate(timeout=LIMIT)[1] for process in processes]
    except subprocess.TimeoutExpired:
        raise AssertionError("the processes have not ended") from None
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # each has a session of its own
                process.communicate()
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def agents(
    number: int, each: int, program: Path, folder: Path, *arguments: str, restarts: int = 0
) -> Told:
    """Have agents of torchrun start ``each`` ranks side by side; return what these have told."""
    command = ["-m", "torch.distributed.run", "--nnodes", str(number)]
    command += ["--nproc-per-node", str(each), "--rdzv-backend", "c10d", "--rdzv-id", "one"]
    command += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--monitor-interval", "0.1"]
    command += ["--max-restarts", str(restarts), str(program), str(folder), *arguments]
    return start([(command, {})] * number, folder, number * each)
