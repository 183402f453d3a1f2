"""The log that all ranks read: entries of JSON in a store, numbered without gaps, never changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Protocol

from .paths import Path

FOR_EVER = timedelta(days=365)
"""A store warns of every wait that comes to its end, so this one does not: entries end it."""

Entry = dict[str, Any]
"""What stands in the log. Its ``kind`` is one of:

- ``asked``: a request, with its ``aim`` (a path) and its ``record``; or, without these, a call that
  asks everybody for a sign of life, within ``patience`` seconds, if that is less than usual.
- ``agreed``: the answer to the request before it, with the ``last`` position that is begun.
- ``ended``: all ranks have come to the end of the run. Requests come no more.
- ``over``: all ranks have closed. Nothing comes any more.
- ``failed``: ``ranks`` have failed, as ``message`` says; ``are_silent`` where they do not answer.
  Nothing comes any more.
"""


class Store(Protocol):
    """What is used of a store: methods of ``torch.distributed.Store``, which do what they do there.

    Source: PyTorch's ``TCPStore``.
    """

    timeout: timedelta

    def set_timeout(self, timeout: timedelta, /) -> object: ...  # noqa: D102
    def set(self, key: str, value: str, /) -> object: ...  # noqa: D102
    def get(self, key: str, /) -> bytes: ...  # noqa: D102
    def multi_get(self, keys: list[str], /) -> list[bytes]: ...  # noqa: D102
    def add(self, key: str, amount: int, /) -> int: ...  # noqa: D102
    def check(self, keys: list[str], /) -> bool: ...  # noqa: D102
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...  # noqa: D102
    def delete_key(self, key: str, /) -> bool: ...  # noqa: D102


class Log:
    """One thread's way to the log of one run, and to the answers and counters beside it.

    Args:
        store: A client that no other thread uses: a wait keeps everyone else from it.
        name: Of the run; the same on all ranks, and no other run's that uses this store.
        put_back: Called with the client by ``close``.
    """

    def __init__(
        self, store: Store, name: str, put_back: Callable[[Store], object] = lambda client: None
    ) -> None:
        self._store = store
        self._name = name
        self._put_back = put_back
        self._timeout = store.timeout

    def close(self) -> None:
        """Put back the store's client."""
        self._put_back(self._store)

    def append(self, index: int, entry: Entry) -> None:
        """Write ``entry`` at ``index``, unless an entry stands there: then that one stays.

        That is one step, so there is no gap at which everybody waits if a process ends here.
        """
        key = self._entry_key(index)
        found = self._store.compare_set(key, "", json.dumps(entry))
        # Stores differ in whether the above wakes those who wait. The second time changes nothing.
        self._store.set(key, found.decode())

    def read(self, index: int, timeout: timedelta = FOR_EVER) -> Entry | None:
        """Return the entry at ``index`` once it is there; ``None`` when time has run out."""
        key = self._entry_key(index)
        self._store.set_timeout(timeout)  # get has none of its own; wait before it is a call more
        try:
            return self._entry(key)
        except Exception:  # of the store's own kind; a store that is gone raises here, too
            return self._entry(key) if self._store.check([key]) else None
        finally:
            self._store.set_timeout(self._timeout)

    def _entry(self, key: str) -> Entry:
        entry: Entry = json.loads(self._store.get(key))
        return entry

    def answer(self, index: int, rank: int, position: Path) -> int:
        """Publish where a rank stands; return how many answers there are to all requests."""
        self._store.set(self._answer_key(index, rank), json.dumps(position))
        return self.count("answers")

    def answers(self, index: int, ranks: range) -> list[Path]:
        """Return the positions that were answered to the request at ``index``, all of them."""
        keys = [self._answer_key(index, rank) for rank in ranks]
        return [tuple(json.loads(text)) for text in self._store.multi_get(keys)]

    def silent(self, index: int, ranks: range) -> list[int]:
        """Return the ranks that have not answered, by halves: few are silent among many."""
        if self._store.check([self._answer_key(index, rank) for rank in ranks]):
            return []
        if len(ranks) == 1:
            return list(ranks)
        half = len(ranks) // 2
        return self.silent(index, ranks[:half]) + self.silent(index, ranks[half:])

    def take_back_answer(self, index: int, rank: int) -> None:
        """Remove an answer that nobody will read any more."""
        self._store.delete_key(self._answer_key(index, rank))

    def tell_ends(self, rank: int, ends: Sequence[str]) -> None:
        """Publish the names of a rank's ends of connections."""
        self._store.set(self._ends_key(rank), json.dumps(ends))

    def ends(self, ranks: Iterable[int]) -> set[str]:
        """Return the names that these ranks have published, as far as they have."""
        keys = [key for key in map(self._ends_key, ranks) if self._store.check([key])]
        texts = self._store.multi_get(keys) if keys else []
        return {name for text in texts for name in json.loads(text)}

    def count(self, name: str) -> int:
        """Be counted among those who have come to ``name``; return how many have."""
        return self._store.add(f"{self._name}/{name}", 1)

    def remove(self, length: int, counters: tuple[str, ...], ranks: Iterable[int]) -> None:
        """Remove entries, counters and ends: everybody has read what there was."""
        counted = (f"{self._name}/{name}" for name in counters)
        for key in (*map(self._entry_key, range(length)), *counted, *map(self._ends_key, ranks)):
            self._store.delete_key(key)

    def _entry_key(self, index: int) -> str:
        return f"{self._name}/log/{index}"

    def _ends_key(self, rank: int) -> str:
        return f"{self._name}/ends/{rank}"

    def _answer_key(self, index: int, rank: int) -> str:
        return f"{self._name}/at/{index}/{rank}"
