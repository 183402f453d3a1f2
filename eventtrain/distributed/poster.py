"""The thread that writes into the log: requests, milestones, and the failure of its rank."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

from ..errors import describe
from .log import Entry, Log
from .standing import Standing

COUNTERS = ("answers", "ended", "over", "closed")
SIGN_OF_LIFE: Entry = {"kind": "asked", "aim": [], "record": None}


class Poster:
    """Writes what its rank has to say, when it is time for it.

    The others only leave word, which never waits: a signal handler may do so, too.

    Args:
        log: Its own way to the log.
        standing: What it shares with loop and watcher.
        world_size: How many ranks there are.
    """

    def __init__(self, log: Log, standing: Standing, world_size: int) -> None:
        self._log = log
        self._standing = standing
        self._world_size = world_size
        self._word: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._failure: Entry | None = None
        self._milestone: str | None = None
        self._doubt: int | None = None

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

    def doubt(self, length: int) -> None:
        """Have all asked for a sign of life, unless more of the log than this has come already."""

        def note() -> None:
            self._doubt = length

        self._word.put(note)

    def run(self) -> None:
        """Write until nothing comes any more; the last rank to come here clears the store."""
        standing = self._standing
        try:
            while not standing.is_over:
                self._word.get()()
                self._write()
            standing.asking.clear()
            standing.tell()
            if self._log.count("closed") == self._world_size:
                self._log.remove(standing.heard.length, COUNTERS)
        except Exception as error:
            standing.lose(f"the store between the ranks has failed: {describe(error)}")
        finally:
            del self._log  # and with it the connection

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
            self._log.append(length, SIGN_OF_LIFE)
