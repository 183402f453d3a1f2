"""The thread that reads the log, and answers for its rank; whatever the loop is doing meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from ..cancellation import Cancellation
from ..errors import RemoteError, describe
from .log import Entry, Log
from .paths import Path
from .standing import Agreed, Heard, Standing

GRACE = 2.0
"""Seconds that a loop has to come to a boundary, once it is known that another rank has failed."""


class Watcher:
    """Hears every entry in its order, and lets the rank's standing follow.

    Args:
        log: Its own way to the log.
        standing: What it shares with loop and poster.
        rank, world_size: Of this process, and of how many.
        lost_after: Seconds in which every rank must answer.
        nudge: Called after each entry, to have the poster look.
        cut: Called with the other ranks' ends of connections where another rank has failed, and
            the loop does not come to a boundary: it may wait for that rank in a collective.
    """

    def __init__(
        self,
        log: Log,
        standing: Standing,
        *,
        rank: int,
        world_size: int,
        lost_after: float,
        nudge: Callable[[], object],
        cut: Callable[[set[str]], object] | None = None,
    ) -> None:
        self._log = log
        self._standing = standing
        self._rank = rank
        self._ranks = range(world_size)
        self._lost_after = lost_after
        self._patience = lost_after
        self._nudge = nudge
        self._cut = cut
        self._grace = GRACE
        self._asked: Entry = {}
        self._requests = 0
        self._answered: list[int] = []  # where in the log they stood, the last ones

    def run(self) -> None:
        """Hear entries until nothing comes any more."""
        standing = self._standing
        try:
            while not standing.is_over:
                self._hear(self._next())
                standing.tell()
                self._nudge()
                self._forget()
            self._free_the_loop()
            for index in self._answered:
                self._log.take_back_answer(index, self._rank)
            self._log.close()
        except Exception as error:
            standing.lose(f"the store between the ranks has failed: {describe(error)}")
        finally:
            self._nudge()

    def _next(self) -> Entry:
        """Return the next entry; see to it that there will be one where everybody waits for it."""
        length, is_undecided, _ = self._standing.heard
        patience = timedelta(seconds=self._patience)
        entry = self._log.read(length, patience) if is_undecided else None
        if entry is None and is_undecided:
            self._settle(length)
        while entry is None:
            entry = self._log.read(length)
        return entry

    def _hear(self, entry: Entry) -> None:
        standing, kind = self._standing, entry["kind"]
        length = standing.heard.length + 1
        if kind == "asked":
            self._asked = entry
            self._patience = min(self._lost_after, entry.get("patience", self._lost_after))
            self._answer(length - 1)
            if entry["record"] is not None:
                standing.aims.add(tuple(entry["aim"]))  # now the poster may drop what it covers
            return
        if kind == "agreed":
            record, standing.last = self._asked["record"], tuple(entry["last"])
            asked = None if record is None else Cancellation(**record)
            standing.agreed.append(Agreed(tuple(self._asked["aim"]), asked, standing.last))
        elif kind == "failed":
            standing.fail(RemoteError(entry["message"], entry["ranks"]))
            if entry.get("are_silent"):
                self._grace = 0.0  # the loop has stood there for long enough
        else:
            standing.reached.add(kind)
        standing.heard = Heard(length, is_over=kind in ("failed", "over"))

    def _answer(self, index: int) -> None:
        """Say where this rank stands. Who says so last settles what is to be done."""
        position = self._look(index)
        self._requests += 1
        if self._log.answer(index, self._rank, position) == self._requests * len(self._ranks):
            self._decide(index)
        self._answered.append(index)

    def _forget(self) -> None:
        """Take back old answers, once nobody waits for this rank."""
        while len(self._answered) > 2 and not self._standing.heard.is_undecided:
            # One before the last may still be read, by who helps out.
            self._log.take_back_answer(self._answered.pop(0), self._rank)

    def _look(self, index: int) -> Path:
        standing = self._standing
        standing.heard = Heard(index + 1, is_undecided=True)  # write ...
        standing.is_held = True
        with standing.fence:
            pass
        return standing.position  # ... then look

    def _decide(self, index: int) -> None:
        positions = self._log.answers(index, self._ranks)
        # A position that was taken back after it was read may come lower the next time.
        last = max(self._standing.last, *positions)
        self._log.append(index + 1, {"kind": "agreed", "last": last})

    def _settle(self, length: int) -> None:
        """Name the ranks that have been silent too long, or do what the last to answer has not."""
        silent = self._log.silent(length - 1, self._ranks)
        if not silent:
            return self._decide(length - 1)
        one = len(silent) == 1
        names = f"rank {silent[0]} has" if one else f"ranks {', '.join(map(str, silent))} have"
        message = f"{names} not answered for {self._patience:g} s, when {self._question()}"
        entry = {"kind": "failed", "ranks": silent, "message": message, "are_silent": True}
        self._log.append(length, entry)

    def _free_the_loop(self) -> None:
        """See that a loop which may wait for a rank that has failed hears of it all the same."""
        standing, failure = self._standing, self._standing.failure
        if self._cut is None or failure is None or failure.ranks == (self._rank,):
            return
        with standing.news:
            has_noticed = standing.news.wait_for(lambda: standing.is_noticed, self._grace)
        if not has_noticed:
            self._cut(self._log.ends(rank for rank in self._ranks if rank != self._rank))

    def _question(self) -> str:
        record = self._asked["record"]
        if record is None:
            if "patience" in self._asked:
                return "a rank asked who is there, since a connection of its had broken"
            return "a rank that had waited for as long asked who is there"
        why = f": {record['reason']}" if record["reason"] else ""
        return f"rank {record['rank']} asked to cancel {record['scope']!r}{why}"
