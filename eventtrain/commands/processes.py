"""What ``eventtrain doctor`` tells of several processes: backends, environment, ranks, devices."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from ..launch import found_launch

_TOLD = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"),
    *("SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
)
_WAIT = timedelta(seconds=30)


def examine_processes(devices: dict[str, Any]) -> dict[str, Any]:
    """Return what there is for several processes, and of those that were started with this one.

    Args:
        devices: Of this process.
    """
    found: dict[str, Any] = {
        "backends": [],
        "environment": {name: os.environ[name] for name in _TOLD if name in os.environ},
        "started_by": None,
        "rank": 0,
        "world_size": 1,
        "ranks": [],
        "problems": [],
    }
    try:
        launch = found_launch()
    except ValueError as error:
        return {**found, "problems": [str(error)]}
    if launch is not None:
        found.update(started_by=launch.by, rank=launch.rank, world_size=launch.world_size)
    if "error" in devices:
        return found
    from torch import distributed as dist

    if not dist.is_available():
        if launch is not None:
            found["problems"].append("this torch is built without torch.distributed")
        return found
    found["backends"] = [name for name in ("gloo", "nccl", "mpi", "ucc", "xccl") if _has(name)]
    if launch is not None:
        own = {"host": socket.gethostname(), "local_rank": launch.local_rank, **devices}
        try:
            found["ranks"] = _meet(own)
        except (RuntimeError, ValueError) as error:
            line = str(error).strip().partition("\n")[0]
            found["problems"].append(
                f"rank {launch.rank} of {launch.world_size} has not met the others: {line}"
            )
    return found


def _has(backend: str) -> bool:
    from torch import distributed as dist

    return bool(getattr(dist, f"is_{backend}_available", lambda: False)())


def _meet(own: dict[str, Any]) -> list[dict[str, Any]]:
    """Have all processes meet and add up a number; return what each tells, by rank."""
    import torch
    from torch import distributed as dist

    from ..distributed.groups import joined_group

    group = joined_group(_WAIT)
    store: Any = group.connect()
    # As JSON, by the store: what others send is not to be unpickled.
    store.set(f"doctor/{group.rank}", json.dumps(own))
    total = torch.ones(())
    dist.all_reduce(total)
    told = store.multi_get([f"doctor/{rank}" for rank in range(group.world_size)])
    dist.barrier()  # who has the store is not to leave before all have read
    dist.destroy_process_group()
    if total.item() != group.world_size:
        raise RuntimeError(f"a sum over all came to {total.item():g}")
    return [json.loads(text) for text in told]


def process_rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Write it as rows of a table."""
    yield "distributed", ", ".join(found["backends"]) or "not available"
    if found["environment"]:
        yield "environment", " ".join(f"{k}={v}" for k, v in found["environment"].items())
    by = {None: "alone", "torch": "told by RANK", "srun": "told by srun"}[found["started_by"]]
    yield "processes", f"{found['world_size']} ({by})"
    for rank, told in enumerate(found["ranks"]):
        devices = ", ".join(told["cuda"]) or f"cpu, {told['cpu_threads']} threads"
        yield f"rank {rank}", f"{told['host']}, local rank {told['local_rank']}: {devices}"
