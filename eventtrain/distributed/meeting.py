"""Where the processes of one attempt meet, in a store that outlives them.

``torchrun`` starts all ranks again when one is lost, and keeps the store. What the last attempt has
left there has the same keys: a rank that is early would read the addresses of processes that are
gone. The number of restarts does not tell attempts apart, as each agent counts its own.

Source: https://github.com/pytorch/pytorch/issues/135712
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

from torch import distributed as dist

_LOOKS_AGAIN_S = 0.02


def meet(store: Any, rank: int, world_size: int, timeout: timedelta) -> Any:
    """Return the part of a store that only the processes have that call this now.

    Each writes a name that nobody else ever had. Rank 0 answers all that it finds, also those of
    processes that are gone, until as many as there are have heard its own name.

    Args:
        store: A ``torch.distributed.Store`` that all ranks are clients of.
        rank: That of this process.
        world_size: How many there are.
        timeout: How long the others may take to come.

    Raises:
        TimeoutError: Some have not come.
    """
    name = uuid4().hex
    if rank == 0:
        _answer_all(store, name, world_size, timeout)
        return _part(store, name)
    store.set(_here(rank), name)
    try:
        store.wait([_answer(name)], timeout)
    except dist.DistStoreError as error:
        raise TimeoutError(
            f"rank {rank} has waited {timeout} for rank 0, which has not come to where processes "
            "meet: see what rank 0 has printed"
        ) from error
    agreed = store.get(_answer(name)).decode()
    store.add(_heard(agreed), 1)
    return _part(store, agreed)


def _answer_all(store: Any, name: str, world_size: int, timeout: timedelta) -> None:
    answered: dict[int, bytes] = {}
    deadline = time.monotonic() + timeout.total_seconds()
    while store.add(_heard(name), 0) < world_size - 1:
        for rank in range(1, world_size):
            if not store.check([_here(rank)]):
                continue
            if (asks := store.get(_here(rank))) != answered.get(rank):
                store.set(_answer(asks.decode()), name)
                answered[rank] = asks
        if time.monotonic() > deadline:
            come, expected = store.add(_heard(name), 0), world_size - 1
            missing = sorted(set(range(1, world_size)) - set(answered))
            raise TimeoutError(
                f"rank 0 has waited {timeout} for {expected} others to come to where processes "
                f"meet, and {come} have; never seen: ranks {missing}. See what these have printed"
            )
        time.sleep(_LOOKS_AGAIN_S)


def _part(store: Any, name: str) -> Any:
    from torch.distributed.distributed_c10d import PrefixStore  # not in builds without it

    return PrefixStore(f"eventtrain/{name}", store)


def _here(rank: int) -> str:
    return f"eventtrain/here/{rank}"


def _answer(name: str) -> str:
    return f"eventtrain/answer/{name}"


def _heard(name: str) -> str:
    return f"eventtrain/heard/{name}"
