"""What each rank has cancelled for itself, compared at the end of every training phase.

Batches and steps are left at once, without asking the others, so every rank must do so alike:
gradients are averaged batch by batch, and a step that one rank leaves out is one that its weights
lack from then on.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import DesyncError
from .groups import Group

NAMED = 16
"""How many of the places are told to the others; of all there is a sum."""
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05


class Tallies:
    """Counts on this rank, and compares with the others through their store.

    Not by a collective: where ranks differ, one may be in a collective that another is not in.

    Args:
        group: This rank's.
        name: Of the run, the same on all ranks.
        lost_after: Seconds that a rank which has cancelled a batch waits for the others to do so.
        check: Called while it waits; raises if another rank has failed.
    """

    def __init__(
        self, group: Group, name: str, lost_after: float, check: Callable[[], object]
    ) -> None:
        self._group = group
        self._name = name
        self._lost_after = lost_after
        self._check = check
        self._store: Any = group.connect()
        self._phases = 0
        self._end = 0.0
        self._begin()

    def _begin(self) -> None:
        self._counts = {"batch": 0, "step": 0}
        self._places: list[str] = []
        self._sum = 0

    def count(self, scope: str, place: str) -> None:
        """Count a scope that was cancelled.

        Args:
            scope: ``"batch"`` or ``"step"``.
            place: Where, as ``", epoch 0, batch 2"``.
        """
        self._counts[scope] += 1
        self._sum = zlib.crc32(f"{scope}{place}".encode(), self._sum)
        if len(self._places) < NAMED:
            self._places.append(f"{scope}{place}")

    def meet(self, place: str) -> None:
        """Wait for the others to have cancelled the same batch of training.

        Before the next one: there it would wait in a collective with a rank that is still in
        this one.

        Args:
            place: Where, as ``", epoch 0, batch 2"``.

        Raises:
            DesyncError: Another rank has not cancelled it, or not within ``lost_after``.
            RemoteError: Another rank has failed.
        """
        prefix, rank = f"{self._name}/left/{self._phases}", self._group.rank
        number, place = self._counts["batch"], place.removeprefix(", ")
        keys = [f"{prefix}/{number}/{each}" for each in range(self._group.world_size)]
        self._store.set(keys[rank], place)
        self._store.delete_key(f"{prefix}/{number - 2}/{rank}")  # all have read that
        for _ in self._until_there(keys):
            is_late_by_now = time.monotonic() > self._end
            late = [each for each, key in enumerate(keys) if not self._store.check([key])]
            ended = [each for each in late if self._store.check([self._tally_key(each)])]
            # Asked again: who has come to the end in between had cancelled the batch before.
            beyond = [each for each in ended if not self._store.check([keys[each]])]
            if beyond or (late and is_late_by_now):
                why = "" if beyond else f" for {self._lost_after:g} s"
                raise DesyncError(
                    f"rank {rank} has cancelled the batch at {place}, and {_ranks(late)} not done "
                    f"so{why}. {_REMEDY}",
                    late,
                )
        places = [text.decode() for text in self._store.multi_get(keys)]
        others = [each for each, other in enumerate(places) if other != places[0]]
        if others:
            raise DesyncError(
                f"rank 0 has cancelled the batch at {places[0]}, and rank {others[0]} that at "
                f"{places[others[0]]}. {_REMEDY}",
                others,
            )

    def compare(self, steps: int, check: Callable[[], object] | None = None) -> None:
        """See that all ranks have cancelled the same since the last time; waits for them.

        Args:
            steps: Optimizer steps taken in this run.
            check: Called while it waits, in the place of the usual one.

        Raises:
            DesyncError: They have not.
            RemoteError: Another rank has failed.
        """
        own = {"steps": steps, "sum": self._sum, **self._counts, "places": self._places}
        rank = self._group.rank
        keys = [self._tally_key(each) for each in range(self._group.world_size)]
        self._store.set(keys[rank], json.dumps(own))
        for _ in self._until_there(keys, check):
            pass
        tallies = [json.loads(text) for text in self._store.multi_get(keys)]
        if self._phases:  # all have read those of the phase before
            self._store.delete_key(f"{self._name}/tally/{self._phases - 1}/{rank}")
        self._phases += 1
        self._begin()
        _require_equal(tallies)

    def close(self) -> None:
        """Let go of the store."""
        store, self._store = self._store, None
        if store is not None:
            self._group.put_back(store)

    def _tally_key(self, rank: int) -> str:
        return f"{self._name}/tally/{self._phases}/{rank}"

    def _until_there(
        self, keys: list[str], check: Callable[[], object] | None = None
    ) -> Iterator[None]:
        """Wait until all keys are there, and look what else is there now and then."""
        pause, self._end = FIRST_PAUSE, time.monotonic() + self._lost_after
        while not self._store.check(keys):
            (check or self._check)()
            yield
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


_REMEDY = (
    "Batches and steps are each rank's own: cancel them on all ranks alike, by something that all "
    "have agreed on, or cancel 'train', 'epoch' or 'fit', which end on all ranks together"
)


def _require_equal(tallies: list[dict[str, Any]]) -> None:
    first = tallies[0]
    others = [rank for rank, tally in enumerate(tallies) if tally != first]
    if others:
        said = "; ".join(
            f"rank {rank} took {tallies[rank]['steps']} steps and cancelled "
            f"{_listed(tallies[rank])}"
            for rank in (0, *others[:8])
        )
        raise DesyncError(
            f"the ranks have not done the same in this training phase: {said}. {_REMEDY}", others
        )


def _listed(tally: dict[str, Any]) -> str:
    places, more = tally["places"], tally["batch"] + tally["step"] - len(tally["places"])
    if not places:
        return "no batch and no step"
    return f"({'; '.join(places)}{f'; and {more} more' if more else ''})"


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} has"
    return f"ranks {', '.join(map(str, ranks))} have"
