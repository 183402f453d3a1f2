"""What one rank's loop, watcher and poster know together."""

from __future__ import annotations

import sysconfig
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from ..cancellation import Cancellation
from ..errors import RemoteError
from .log import Entry
from .paths import Path


def fence(free_threaded: bool) -> AbstractContextManager[object]:
    """Return what must stand between a write and the look that follows it, in both threads.

    Two threads that write, pass a lock and then look cannot both miss what the other wrote:
    one of them passes second. Under Python's global lock no write is late in any case.
    """
    return threading.Lock() if free_threaded else nullcontext()


class Heard(NamedTuple):
    """How much of the log a rank has heard.

    Attributes:
        length: How many entries.
        is_undecided: Whether the last request among them still waits for its answer.
        is_over: Whether the last one says that nothing comes any more.
    """

    length: int
    is_undecided: bool = False
    is_over: bool = False


NOTHING = Heard(0)


class Ask(NamedTuple):
    """A request of this rank that is on its way to the log."""

    aim: Path
    entry: Entry


class Agreed(NamedTuple):
    """A request that has been agreed upon.

    Attributes:
        aim: Path of the scope that is to end.
        record: What was asked for; ``None`` for a sign of life.
        last: The last position that anybody begins in that scope.
    """

    aim: Path
    record: Cancellation | None
    last: Path


@dataclass
class Standing:
    """Where one rank stands, between its three threads.

    A request moves from ``asking`` (if it is this rank's) to ``heard.is_undecided`` to
    ``agreed``. It is put into the next place before it is taken from the last, so who looks at
    the places in that order cannot miss it: ``is_waiting``, then ``agreed``. What an entry says
    is here before ``heard`` counts it.

    Attributes:
        position: What the loop has begun, or is about to begin. Only the loop writes it.
        is_held: Whether there may be something to see at a boundary: the one thing that the
            loop looks at there. Everybody sets it, after what there is to see; the loop takes
            it back, before it looks for itself.
        asking: Requests that the log does not cover yet. ``append`` is a single step, which a
            signal handler may take at any moment.
        heard: How much of the log the watcher has heard.
        aims: The paths of the scopes that requests in the log aim at.
        last: The last position that is begun by the newest agreement.
        agreed: What the loop has still to act upon, oldest first; it alone takes from it.
        reached: What all ranks have come to: ``ended``, ``over``.
        failure: What ended it all, or ``None``.
        is_noticed: Whether the loop knows how it ended, or will before it waits for anybody.
        is_lost: Whether that was a store that is gone: this rank hears nothing any more.
        has_begun: Whether all ranks are there, so that one which does not answer is lost.
        news: Notified after every change of the above by the watcher and the poster.
        fence: To be passed between writing and looking.
    """

    position: Path = ()
    is_held: bool = False
    asking: list[Ask] = field(default_factory=list)
    heard: Heard = NOTHING
    aims: set[Path] = field(default_factory=set)
    last: Path = ()
    agreed: list[Agreed] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    failure: RemoteError | None = None
    is_noticed: bool = False
    is_lost: bool = False
    has_begun: bool = False
    news: threading.Condition = field(default_factory=threading.Condition)
    fence: AbstractContextManager[object] = field(
        default_factory=lambda: fence(bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
    )

    @property
    def is_over(self) -> bool:
        """Whether nothing comes any more."""
        return self.heard.is_over or self.is_lost

    @property
    def is_waiting(self) -> bool:
        """Whether a request has no answer yet."""
        return bool(self.asking) or self.heard.is_undecided

    def may_begin(self, path: Path) -> bool:
        """Whether the loop, whose position this is, goes on; said anew where it is held."""
        self.is_held = False
        with self.fence:
            pass
        if self.failure is None and not self.is_waiting and not self.agreed:
            return True
        self.is_held = True
        if self.failure is not None or self.is_waiting:
            return False
        return not self.agreed or path <= self.agreed[0].last

    def covers(self, aim: Path) -> bool:
        """Whether a request in the log is for this scope or for one around it."""
        return any(aim[:depth] in self.aims for depth in range(len(aim) + 1))

    def fail(self, failure: RemoteError) -> None:
        """Keep the first failure, and have the loop look."""
        self.failure = self.failure or failure
        self.is_held = True

    def raise_failure(self) -> None:
        """Raise what ended it all, if anything has; in the loop's thread."""
        if self.failure is not None:
            self.notice()
            raise RemoteError(str(self.failure), self.failure.ranks)

    def notice(self) -> None:
        """Be told that the loop knows of the failure."""
        self.is_noticed = True
        self.tell()

    def lose(self, why: str) -> None:
        """Do without the store, which ends the run unless it is over."""
        if not self.is_over:
            self.fail(RemoteError(why))
            self.is_lost = True
        self.tell()

    def tell(self) -> None:
        """Wake the loop where it waits."""
        with self.news:
            self.news.notify_all()
