"""What ranks tell each other through their store, where a collective could wait for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from .log import Store

FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05


class NoExchange:
    """That of a process that is alone: it hears itself."""

    def __call__(self, text: str) -> list[str]:
        """Return what each rank has said."""
        return [text]

    def for_thread(self) -> NoExchange:
        """Return one for another thread."""
        return self

    def close(self) -> None:
        """Do nothing."""


NO_EXCHANGE = NoExchange()


class Exchange(NoExchange):
    """Every rank says something, and hears what all have said.

    All ranks call the same methods in the same order. Who waits looks now and then whether that
    is in vain, so that nobody waits for a rank that has failed.

    Args:
        connect: Makes a client of the store, which this alone uses.
        name: The same on all ranks, and nobody else's on that store.
        rank, world_size: Of this process, and of how many.
        watch: Called when a wait begins; what it returns is called while it lasts, and raises
            where there is nothing to wait for any more.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        name: str,
        *,
        rank: int,
        world_size: int,
        watch: Callable[[], Callable[[], object]],
    ) -> None:
        self._connect, self._name = connect, name
        self._rank, self._world_size, self._watch = rank, world_size, watch
        self._store: Store | None = None
        self._count = 0
        self._others: list[Exchange] = []

    def __call__(self, text: str) -> list[str]:
        """Say ``text``; return what each rank has said, by rank, once all have.

        Raises:
            RemoteError: Another rank has failed, or does not answer.
        """
        if self._store is None:
            self._store = self._connect()
        store, self._count = self._store, self._count + 1
        store.set(self._key(self._count), text)
        said = self._prefix(self._count)
        if store.add(f"{said}/count", 1) == self._world_size:
            store.set(f"{said}/all", "")
        self._wait_for(f"{said}/all")
        texts = store.multi_get([f"{said}/{rank}" for rank in range(self._world_size)])
        self._forget(self._count - 1)  # to have said this, all have read that
        return [each.decode() for each in texts]

    def for_thread(self) -> Exchange:
        """Return another one, for a thread of its own; all ranks ask for as many."""
        other = Exchange(
            self._connect,
            f"{self._name}.{len(self._others) + 1}",
            rank=self._rank,
            world_size=self._world_size,
            watch=self._watch,
        )
        self._others.append(other)
        return other

    def close(self) -> None:
        """Let go of the store, those for threads too; the last rank to do so clears it."""
        for other in self._others:
            other.close()
        store, self._store = self._store, None
        if store is None:
            return
        with suppress(Exception):  # of the store's own kind: it may be gone
            closed = f"{self._name}/closed"
            if store.add(closed, 1) == self._world_size:
                said = self._prefix(self._count)
                ranks = [f"{said}/{rank}" for rank in range(self._world_size)]
                for key in (*ranks, f"{said}/count", f"{said}/all", closed):
                    store.delete_key(key)

    def _wait_for(self, key: str) -> None:
        assert self._store is not None
        pause, check = FIRST_PAUSE, self._watch()
        while not self._store.check([key]):
            check()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _forget(self, count: int) -> None:
        """Remove what was said before, which all have read."""
        if not count or self._store is None:
            return
        self._store.delete_key(self._key(count))
        if self._rank == 0:
            for each in ("count", "all"):
                self._store.delete_key(f"{self._prefix(count)}/{each}")

    def _prefix(self, count: int) -> str:
        return f"{self._name}/said/{count}"

    def _key(self, count: int) -> str:
        return f"{self._prefix(count)}/{self._rank}"
