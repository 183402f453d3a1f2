"""How this process was started: alone, or as one of several by ``torchrun``, ``srun`` and the like.

Read from the environment alone, so that commands and buses can tell without importing torch.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import Literal

_NO_STEP_OF_TASKS = 0xFFFFFFF0
"""From here on SLURM numbers steps that are no tasks of ``srun``: batch scripts, login shells."""
_FIRST_PORT, _PORTS, _STEPS = 15_000, 15_000, 16
"""Below the ports that Linux gives to whoever asks for any."""


@dataclass(frozen=True)
class Launch:
    """What the environment tells of a process that is one of several.

    Attributes:
        by: ``"torch"``: torch's own variables, ``RANK`` and others, as ``torchrun`` sets them;
            ``"srun"``: SLURM's.
        rank: Its number among all, from 0.
        world_size: How many there are, two at least.
        local_rank: Its number among those of its machine, from 0.
        address: The host at which the process of rank 0 can be reached; ``None`` if unknown.
        port: A port there for all to meet at; ``None`` if unknown.
    """

    by: Literal["torch", "srun"]
    rank: int
    world_size: int
    local_rank: int
    address: str | None
    port: int | None


def found_launch() -> Launch | None:
    """Return how this process was started, or ``None`` where it is alone.

    ``RANK`` and ``WORLD_SIZE`` go before what SLURM says, so ``RANK=0 WORLD_SIZE=1`` keeps a
    process alone wherever it is.

    Raises:
        ValueError: A variable is no whole number, or the rank is not below the number of processes.
    """
    by: Literal["torch", "srun"] = "torch" if "RANK" in os.environ else "srun"
    names = ("RANK", "WORLD_SIZE") if by == "torch" else ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    if by == "srun" and not _is_task_of_srun():
        return None
    rank, size = _number(names[0], 0), _number(names[1], 1)
    if size <= 1:
        return None
    if rank >= size:
        raise ValueError(
            f"the environment has {names[0]}={rank}, which must be below {names[1]}={size}"
        )
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if by == "srun":
        address, port = address or _first_host(), port or _port_of_job()
    return Launch(
        by,
        rank,
        size,
        found_local_rank(rank),
        address or None,
        _whole("MASTER_PORT", port) if port else None,
    )


def found_local_rank(default: int) -> int:
    """Return the number of this process among those of its machine, or ``default``.

    Raises:
        ValueError: The variable that tells is no whole number.
    """
    if "LOCAL_RANK" not in os.environ and _is_task_of_srun():
        return _number("SLURM_LOCALID", default)
    return _number("LOCAL_RANK", default)


def _is_task_of_srun() -> bool:
    """Whether ``srun`` has started this process, maybe as one of several.

    SLURM gives shells and batch scripts of a job most of the same variables: ``SLURM_NTASKS`` is in
    all of them, and is no sign. A step's own number of tasks is one, unless that step is a shell.
    """
    environment = os.environ
    if "SLURM_PROCID" not in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return False
    # Given by newer versions of SLURM to the shell of salloc.
    if _number("SLURM_STEP_ID", 0) >= _NO_STEP_OF_TASKS:
        return False
    return not _was_typed()


def _was_typed() -> bool:
    """Whether somebody has typed the command into a shell that ``srun --pty`` has started.

    The variables are those of the shell then. Tasks have a terminal in no other case.
    """
    is_shell = "SLURM_PTY_PORT" in os.environ and sys.stdin is not None and sys.stdin.isatty()
    return is_shell and os.environ.get("SLURM_TASK_PID") != str(os.getpid())


def _first_host() -> str | None:
    """Return the first of the step's hosts: ``node07`` of ``node[07-09,12],gpu1``."""
    hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or ""
    # Commas inside of brackets are in the first part's own ranges.
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", hosts)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) or None if first else None


def _port_of_job() -> str | None:
    """Return a port that is the same in all tasks of a step, and another in most other steps."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    number = _number("SLURM_JOB_ID", 0) * _STEPS + _number("SLURM_STEP_ID", 0)
    return str(_FIRST_PORT + number % _PORTS)


def _number(variable: str, default: int) -> int:
    value = os.environ.get(variable)
    return default if value is None else _whole(variable, value)


def _whole(variable: str, value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"the environment has {variable}={value!r}, which must be a whole number")
    return int(value)
