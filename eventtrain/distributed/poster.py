"""The thread that writes into the log: requests, milestones, and the failure of its rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from ..errors import describe
from .log import Entry, Log
from .standing import Standing

COUNTERS = ("answers", "ended", "over", "closed")
SIGN_OF_LIFE: Entry = {"kind": "asked", "aim": [], "record": None}

LOOKS = 4
"""How often it looks whether the loop stands still, in the time that it may do so."""


class Poster:
    """Writes what its rank has to say, when it is time for it.

    The others only leave word, which never waits: a signal handler may do so, too.

    Args:
        log: Its own way to the log.
        standing: What it shares with loop and watcher.
        rank, world_size: Of this process, and of how many.
        lost_after: Seconds for which the loop may stand where it is before the others are asked
            whether they are there: it may be in a collective that waits for one of them.
    """

    def __init__(
        self, log: Log, standing: Standing, *, rank: int, world_size: int, lost_after: float
    ) -> None:
        self._log = log
        self._standing = standing
        self._rank = rank
        self._world_size = world_size
        self._lost_after = lost_after
        self._word: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._failure: Entry | None = None
        self._milestone: str | None = None
        self._doubt: int | None = None
        self._sign_of_life = SIGN_OF_LIFE

    def look(self) -> None:
        """Have it look at the standing: there is something new."""
        self._word.put(lambda: None)

    def fail(self, entry: Entry) -> None:
        """Have all ranks told of a failure; of the first one only."""

        def note() -> None:
            self._failure = self._failure or entry

        self._word.put(note)

    def come_to(self, milestone: str) -> None:
        """Have this rank counted at a milestone, which is in the log when all have come there."""

        def note() -> None:
            if self._log.count(milestone) == self._world_size:
                self._milestone = milestone

        self._word.put(note)

    def doubt(self, length: int, patience: float | None = None) -> None:
        """Have all asked for a sign of life, unless more of the log than this has come already.

        Args:
            length: Of the log, when whoever doubts began to wait.
            patience: Seconds in which all must answer, if less than usual.
        """

        def note() -> None:
            self._doubt = length
            more = {} if patience is None else {"patience": patience}
            self._sign_of_life = {**SIGN_OF_LIFE, **more}

        self._word.put(note)

    def tell_ends(self, ends: Sequence[str]) -> None:
        """Have the others told of this rank's ends of the connections between ranks."""
        self._word.put(lambda: self._log.tell_ends(self._rank, ends))

    def run(self) -> None:
        """Write until nothing comes any more; the last rank to come here clears the store."""
        standing = self._standing
        try:
            while not standing.is_over:
                self._take_word()
                self._write()
            standing.asking.clear()
            standing.tell()
            with standing.news:  # until then others' ends are needed
                standing.news.wait_for(lambda: standing.is_noticed)
            if self._log.count("closed") == self._world_size:
                self._log.remove(standing.heard.length, COUNTERS, range(self._world_size))
            self._log.close()
        except Exception as error:
            standing.lose(f"the store between the ranks has failed: {describe(error)}")
        finally:
            del self._log  # and with it the connection

    def _take_word(self) -> object:
        """Wait for a word; doubt where there is none, and the loop stands still."""
        standing = self._standing
        position, length, looks = standing.position, standing.heard.length, 0
        while True:
            try:
                return self._word.get(timeout=self._lost_after / LOOKS)()
            except Empty:
                looks += 1
            if standing.position != position or not standing.has_begun:
                position, looks = standing.position, 0
            elif looks == LOOKS:
                self._doubt = length
                return None

    def _write(self) -> None:
        """Write the one entry that is due, if any; what then stands there comes back as news."""
        standing = self._standing
        length, is_undecided, is_over = standing.heard
        asks = list(standing.asking)  # more may be added at any moment
        while asks and (standing.covers(asks[0].aim) or "ended" in standing.reached):
            standing.asking.remove(asks.pop(0))
            standing.tell()
        if is_over:
            return
        if self._failure is not None:
            self._log.append(length, self._failure)
        elif is_undecided:
            return  # the answer stands next
        elif asks:
            self._log.append(length, asks[0].entry)
        elif self._milestone is not None and self._milestone not in standing.reached:
            self._log.append(length, {"kind": self._milestone})
        elif self._doubt == length:
            self._log.append(length, self._sign_of_life)
