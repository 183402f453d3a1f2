"""What a process knows of the group of processes that it trains in; the group is torch's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from threading import current_thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import distributed as dist

from ..bus.running import HandlerThread, running_handler
from ..launch import Launch, found_launch, found_local_rank
from .meeting import meet

if TYPE_CHECKING:
    from .log import Store

_runs = count()
"""The runs that this process has taken part in: as many on every rank, so it can name them."""


class Clients:
    """Clients of the default group's store, kept from run to run.

    Connecting may take long: torch asks the name server how the store's address is called.
    """

    def __init__(self) -> None:
        self._store: Any = None
        self._idle: list[Store] = []
        self._lent: dict[int, object] = {}  # by the id of the client: for which store
        self._mark = object()
        self._named: tuple[object, str] = (None, "")

    def name(self) -> str:
        """Return a name that all ranks of the group have, and none that used its store before."""
        store: Any = dist.distributed_c10d._get_default_store()
        if self._named[0] is not store:
            names: list[Any] = [uuid4().hex]
            dist.broadcast_object_list(names, src=0)
            self._named = store, names[0]
        return self._named[1]

    def take(self) -> Store:
        """Return one that nobody uses."""
        store: Any = dist.distributed_c10d._get_default_store()
        if store is not self._store:  # another group
            self._store, self._idle, self._mark = store, [], object()
        client = self._idle.pop() if self._idle else store.clone()
        self._lent[id(client)] = self._mark
        return client

    def put_back(self, client: Store) -> None:
        """Keep one, if it is of the store that there is now."""
        if self._lent.pop(id(client), None) is self._mark:
            self._idle.append(client)


_clients = Clients()


@dataclass(frozen=True)
class Group:
    """Which of how many processes this one is.

    Attributes:
        rank: Its number among all, from 0.
        world_size: How many there are.
        local_rank: Its number among those of its machine, from 0.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_zero(self) -> bool:
        """Whether it is the one that speaks for all."""
        return self.rank == 0

    @property
    def is_local_zero(self) -> bool:
        """Whether it is the one that speaks for its machine."""
        return self.local_rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return self.world_size == 1

    def connect(self) -> Store:
        """Return a client of the group's store that nobody else uses: a thread needs its own.

        Under ``torchrun`` that store is its agent's, which outlives the processes.
        """
        return _clients.take()

    def put_back(self, client: Store) -> None:
        """Take a client that is not in use any more, for the next who connects."""
        _clients.put_back(client)

    def store_ports(self) -> frozenset[int]:
        """Return where the group's store is served, if that is a TCP port."""
        store: Any = dist.distributed_c10d._get_default_store()
        while hasattr(store, "underlying_store"):
            store = store.underlying_store
        port = getattr(store, "port", None)
        return frozenset(() if port is None else (port,))

    def name_of_next_run(self) -> str:
        """Return a name that the next run has on all ranks, and no attempt before this one had.

        Raises:
            RuntimeError: A handler that not all ranks run begins one.
        """
        require_all_ranks("a run with Distributed")
        return f"eventtrain/{_clients.name()}/{next(_runs)}"


ALONE = Group()
"""A process that has no others beside it."""


def require_all_ranks(what: str) -> None:
    """Refuse what all ranks must do together where a handler calls it that not all of them run.

    Raises:
        RuntimeError: Such a handler is running, or one in the background, whose calls come at any
            time between those of the loop; and there are several processes: the others would never
            come, and this one would wait for them.
    """
    thread, handler = current_thread(), running_handler()
    if isinstance(thread, HandlerThread) and not found_group().is_alone:
        raise RuntimeError(
            f"{thread.handler.describe()} runs in the background, beside the loop, and calls "
            f"{what}, which all ranks must do together, one thing after the other: do that in a "
            "handler without background=True"
        )
    if handler is None or handler.options.ranks == "all" or found_group().is_alone:
        return
    raise RuntimeError(
        f"{handler.describe()} has ranks={handler.options.ranks!r} and calls {what}, which all "
        "ranks must do together: give that handler ranks='all', and let it write or print "
        "where run.is_zero"
    )


def found_group() -> Group:
    """Return the group that this process is in, by torch's default group, else by how it started.

    Raises:
        ValueError: A variable of the environment that tells of it is no such number.
    """
    if dist.is_available() and dist.is_initialized():
        rank, size = dist.get_rank(), dist.get_world_size()
        return Group(rank, size, found_local_rank(rank))
    launch = found_launch() if dist.is_available() else None
    return ALONE if launch is None else Group(launch.rank, launch.world_size, launch.local_rank)


def joined_group(timeout: timedelta | None = None) -> Group:
    """Return the group that this process is in, and have torch make it where it has others.

    Its backends are NCCL for tensors on CUDA, where there is such a device, and gloo for others.

    Args:
        timeout: How long the others may take to come, and a collective later; torch's by default.

    Raises:
        ValueError: Nothing says where the processes meet, or a variable of the environment is no
            such number.
    """
    group = found_group()
    if group.is_alone or dist.is_initialized():
        return group
    has_cuda = torch.cuda.is_available() and dist.is_nccl_available()
    if has_cuda:
        torch.cuda.set_device(group.local_rank % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if has_cuda else "gloo"
    launch = found_launch()
    assert launch is not None  # or it would be alone
    meeting = _meeting_point(launch)
    if launch.by == "torch":  # torch reads the environment, as only there it is said whose store
        from torch.distributed.rendezvous import rendezvous  # not in builds without it

        limit = timeout or dist.default_pg_timeout
        store, rank, size = next(rendezvous("env://", timeout=limit))
        store = meet(store, rank, size, limit)
        dist.init_process_group(backend, None, timeout, size, rank, store)
    else:
        dist.init_process_group(
            backend, meeting, timeout, world_size=group.world_size, rank=group.rank
        )
    return group


def _meeting_point(launch: Launch) -> str:
    missing = [
        variable
        for variable, value in (("MASTER_ADDR", launch.address), ("MASTER_PORT", launch.port))
        if value is None
    ]
    if not missing:
        host = f"[{launch.address}]" if ":" in str(launch.address) else launch.address
        return f"tcp://{host}:{launch.port}"
    said = "RANK and WORLD_SIZE say" if launch.by == "torch" else "SLURM says"
    raise ValueError(
        f"{said} that this is rank {launch.rank} of {launch.world_size}, but "
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: start the "
        "processes with torchrun, or set them"
    )
