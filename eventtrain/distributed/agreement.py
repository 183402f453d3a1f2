"""An agreement between ranks on where a scope is left: at one boundary, on all of them.

A request to end an outer scope may come up on any rank, at any moment, from any thread. If each
rank obeyed when it heard of it, one would leave before a batch that another has begun, and the
other would wait in a collective for ever. So they agree on a last position **N**: everybody begins
what lies at or before it, nobody begins what lies beyond. An ordinary batch costs no collective, no
call of the store, and no look at the device: a rank writes down where it is, and looks at a flag.

**The log.** All that is said goes into one log in a store (a ``TCPStore``): entries of JSON, in one
order for all. A request is followed by its answer, the N that was agreed on, before the next one is
asked. An entry is put into its place in a single step, or another one stands there already, so a
process that dies leaves no gap. A request that an earlier one covers (the same scope, or one around
it) is dropped. So a signal that all ranks receive at once becomes one request.

**The order of things.** Each rank has a *watcher*, a thread that is blocked until the log's next
entry is there. These are the steps when that is a request, and those of the loop at a boundary:

==============================  ======================================================
watcher                         loop, about to begin P
==============================  ======================================================
1. *write*: there is a request  1. *write*: I am at P
2. *look*: where is the loop?   2. *look*: is there a request?
3. publish that position        3. no: begin P. Yes: write back the position before it,
4. the last to publish takes    wait for N, then begin P if it is at or before N, and
   the greatest, which is N        leave if it is beyond
==============================  ======================================================

**Why that is right.** Take a loop that begins P without having waited. It looked after it had
written P, and saw no request. So the watcher wrote the request after that, and looked later still:
it found P, or what came after. Therefore N is not before P. Hence **nobody begins anything beyond
N without knowing N**, on whatever rank, however far one is ahead of another. And **nobody waits for
ever**: N needs the watchers only, which no loop delays. A position that the loop takes back may
have been published; then N is P, and the loop, which hears so, begins it. It is taken back, and
by a loop that is asked already not even written, for the sake of those who ask: if all ranks ask
while they are in batch 7, all are held before batch 8, and N is 7, whoever was quicker.

That one of two threads which write and then look must see what the other wrote is the whole
argument. Python's global lock gives it; without that lock, both pass a lock between the two.

**What a request means** is a matter of position, too, and so the same everywhere. It aims at a
scope by its path (``paths``). If N lies inside, every rank leaves that scope at its first boundary
beyond N, at the latest when the scope is about to close. If N lies behind, all have begun all of
it, and there is nothing to end. Several agreements are acted upon in the order of the log, one at a
boundary; N never falls. All ranks put all requests on record, in that order.

**The end.** A run is over when all ranks have come to its end (``end``) and have closed
(``close``); until then a failure on one raises ``RemoteError`` on the others. A rank that is asked
and does not answer for ``lost_after`` seconds is named. Who waits for the end asks now and then,
and so does the poster of a loop that stands still. A loop that hears of a failure nowhere, as it
waits in a collective, is freed by the watcher.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from ..cancellation import CancellationToken, Request
from ..cancellation.records import OpenScope
from ..errors import RemoteError, describe
from .boundary import Boundary
from .log import Log, Store
from .poster import Poster
from .standing import Ask, Standing
from .watcher import Watcher

AGREED = ("fit", "epoch", "train", "validate", "predict")
"""The scopes that ranks leave together. Others are each rank's own, and are left at once."""


class Agreement:
    """One rank's part in it, for one run of a token.

    The loop says what it does: ``enter`` before each scope that is opened, down to the batch,
    ``leave`` inside of a scope of ``AGREED`` that has come to its end, ``end`` when the run has,
    ``fail`` if it failed, and ``close`` in any case. All are called in the loop's thread.

    Args:
        connect: Makes a client of the store; called twice here, as each thread needs its own.
        put_back: Called with each client at the end, unless the store has failed.
        name: Of the run: the same on all ranks, and no other's on that store, nor that of an
            earlier attempt at the same run, which may have left its log there.
        token: Its requests are agreed on from now on. One that it holds already is as well.
        rank: Of this process, counted from 0.
        world_size: How many processes there are.
        lost_after: Seconds within which every rank must answer, however busy its loop is.
        cut: Ends the connections to the ends that it is given, so that a loop which waits in a
            collective for a rank that has failed is freed; ``None`` (default): it waits.

    Raises:
        ValueError: There is no such rank, or ``lost_after`` is not positive.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        name: str,
        token: CancellationToken,
        *,
        rank: int,
        world_size: int,
        lost_after: float = 60.0,
        cut: Callable[[set[str]], object] | None = None,
        put_back: Callable[[Store], object] = lambda client: None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 to {world_size - 1}, below world_size, got {rank}")
        if not 0 < lost_after < threading.TIMEOUT_MAX:
            raise ValueError(f"lost_after must be a positive number of seconds, got {lost_after!r}")
        self._token = token
        self._rank = rank
        self._lost_after = lost_after
        self._has_come_to: set[str] = set()
        self._standing = standing = Standing()
        self._boundary = Boundary(token, standing)
        self._poster = Poster(
            Log(connect(), name, put_back),
            standing,
            rank=rank,
            world_size=world_size,
            lost_after=lost_after,
        )
        watcher = Watcher(
            Log(connect(), name, put_back),
            standing,
            rank=rank,
            world_size=world_size,
            lost_after=lost_after,
            nudge=self._poster.look,
            cut=cut,
        )
        # Daemons: if the store hangs, close() gives them up, and the process can end all the same.
        self._threads = [
            threading.Thread(target=run, name=f"eventtrain-{name}-{what}", daemon=True)
            for what, run in (("watcher", watcher.run), ("poster", self._poster.run))
        ]
        for thread in self._threads:
            thread.start()
        # A process that ends while a thread waits for a store is aborted.
        atexit.register(self._close_at_exit, os.getpid())
        before = token.agree_by(self.ask)
        if before is not None:
            self.ask(before)

    @property
    def failure(self) -> RemoteError | None:
        """Why the run has failed, on whatever rank that was; ``None`` while it has not."""
        return self._standing.failure

    def ask(self, request: Request) -> None:
        """Put a request to all ranks, or have this one obey if the scope is its own.

        May be called from any thread and from signal handlers; never waits.

        Raises:
            TypeError: The reason is no text.
        """
        aim = () if request.target is None else self._boundary.path_of(request.target)
        if aim is None or request.cancellation.scope not in AGREED:
            return self._token.accept(request)
        record = replace(request.cancellation, rank=self._rank)
        for name in ("reason", "by"):
            value = getattr(record, name)
            if not isinstance(value, str):
                raise TypeError(f"cancel({name}=) is told to all ranks: give a str, got {value!r}")
        entry = {"kind": "asked", "aim": aim, "record": asdict(record)}
        self._standing.asking.append(Ask(aim, entry))
        self._standing.is_held = True  # after that: the loop may take it back at any moment
        self._poster.look()

    @property
    def is_asked(self) -> bool:
        """Whether a scope is to end, as far as this rank knows."""
        standing = self._standing
        return bool(standing.asking) or bool(standing.aims)

    def take_what_was_asked(self) -> None:
        """Have the token hold the request that keeps the run from beginning; before any scope.

        All ranks call it, or none, once one of them was asked.

        Raises:
            RemoteError: Another rank has failed.
        """
        standing = self._standing
        record = None
        while record is None:
            with standing.news:
                standing.news.wait_for(lambda: standing.failure or standing.agreed)
            standing.raise_failure()
            record = standing.agreed.pop(0).record
        self._token.accept(Request(record, None))

    def begin(self, ends: Sequence[str] = ()) -> None:
        """All ranks are there: from now on one that does not answer is lost.

        Args:
            ends: Names of this process's ends of connections to others, for their ``cut``.
        """
        self._poster.tell_ends(ends)
        self._standing.has_begun = True

    def has_gone_on(self, scope: OpenScope) -> bool:
        """Whether a rank has begun more in an open scope than this one, as far as was asked.

        What counts is what lies right inside of it: a validation between two batches of training
        may be longer on another rank.
        """
        path, last = self._boundary.path_of(scope), self._standing.last
        if path is None or len(last) <= len(path) or last[: len(path)] != path:
            return False
        depth = len(path) + 1
        return last[:depth] > self._standing.position[:depth]

    def enter(self, scope: OpenScope) -> None:
        """Be a boundary: ``scope`` is about to open inside of the token's innermost one.

        Raises:
            RemoteError: Another rank has failed.
        """
        self._boundary.enter(scope)

    def leave(self, scope: OpenScope) -> None:
        """Be a boundary: ``scope``, still open, has come to its end.

        Raises:
            RemoteError: Another rank has failed.
        """
        self._boundary.leave(scope)

    def end(self) -> None:
        """Wait until all ranks have come to the end of the run; a second time does nothing.

        Inside of the outermost scope after ``leave``, or behind it if it was cancelled.

        Raises:
            RemoteError: Another rank has failed, or is lost.
        """
        self._await("ended")
        # Every request is decided, and what it aimed at lies behind everybody.
        while self._standing.agreed:
            record = self._standing.agreed.pop(0).record
            if record is not None:
                self._token.note(record)

    def fail(self, error: BaseException, where: str = "") -> None:
        """Tell all ranks that this one has failed; does not wait. The first to fail is believed.

        Args:
            error: Its type and its text are told.
            where: Such as ``"handler 'boom' of 'after_batch', epoch 0, batch 2"``.
        """
        place = f" ({where})" if where else ""
        message = f"rank {self._rank} failed: {describe(error)}{place}"
        self._has_come_to.add("over")  # it never will: the others hear of this instead
        self._standing.notice()
        self._poster.fail({"kind": "failed", "ranks": [self._rank], "message": message})

    def remote_failure(self, seconds: float) -> RemoteError | None:
        """Return why another rank has failed, as soon as that is known, within ``seconds``.

        For a collective that broke: the reason arrives about as soon as the broken connection.
        """
        standing = self._standing
        standing.notice()
        with standing.news:
            standing.news.wait_for(lambda: standing.is_over, seconds)
        failure = standing.failure
        return None if failure is None or failure.ranks == (self._rank,) else failure

    def ask_who_is_there(self, patience: float | None = None) -> Callable[[], bool]:
        """Ask all ranks for a sign of life; does not wait. One that does not answer is lost.

        Args:
            patience: Seconds in which all must answer; ``lost_after`` by default.

        Returns:
            Whether all have answered, when it is called.
        """
        standing = self._standing
        length = standing.heard.length
        self._poster.doubt(length, patience)
        return lambda: standing.heard.length > length and not standing.is_waiting

    def close(self) -> None:
        """Leave the others, whatever has happened: threads, connections and keys go.

        If all has gone well it waits for all ranks to close. Raises nothing; ``failure`` tells.
        """
        standing = self._standing
        standing.notice()
        if "ended" not in standing.reached and not standing.is_over:
            self.fail(RuntimeError("it has left the run before the end"))
        try:
            self._await("over")
        except RemoteError:
            pass
        finally:
            self._token.agree = None
            atexit.unregister(self._close_at_exit)
            for thread in self._threads:
                thread.join(self._lost_after)

    def _close_at_exit(self, process: int) -> None:
        if os.getpid() == process:  # a fork has none of the threads
            self.close()

    def _await(self, milestone: str) -> None:
        """Come to a milestone, and wait until all have; ask who is there if that takes long."""
        standing, doubted = self._standing, -1
        if milestone not in self._has_come_to:
            self._has_come_to.add(milestone)
            self._poster.come_to(milestone)
        with standing.news:
            while milestone not in standing.reached and standing.failure is None:
                length = standing.heard.length
                if standing.news.wait(self._lost_after) or standing.heard.length != length:
                    continue
                if doubted == length:
                    standing.lose(f"the store has not answered for {2 * self._lost_after:g} s")
                    self._poster.look()
                doubted = length
                self._poster.doubt(length)
        standing.raise_failure()
