"""What the loop does at a boundary: it begins what comes next, or waits, or leaves."""

from __future__ import annotations

from ..cancellation import Cancellation, CancellationToken, Request
from ..cancellation.records import OpenScope
from .paths import Path, end_of, next_inside
from .standing import Standing


class Boundary:
    """Tells the standing where the loop is, and acts upon what has been agreed on.

    Args:
        token: Its open scopes are those of the loop.
        standing: What it shares with watcher and poster.
    """

    def __init__(self, token: CancellationToken, standing: Standing) -> None:
        self._token = token
        self._standing = standing
        self._paths: dict[OpenScope, Path] = {}  # of the scopes that are open, and of closed ones

    def path_of(self, scope: OpenScope) -> Path | None:
        """Return the path of an open scope; ``None`` if it has opened without a boundary."""
        return self._paths.get(scope)

    def enter(self, scope: OpenScope) -> None:
        """Come to where ``scope`` opens inside of the innermost one."""
        parent = self._token.innermost
        while parent is not None and parent not in self._paths:
            parent = parent.parent
        path = () if parent is None else next_inside(self._paths[parent], self._standing.position)
        self._reach(path)
        self._paths[scope] = path

    def leave(self, scope: OpenScope) -> None:
        """Come to the end of ``scope``, which is still open."""
        self._reach(end_of(self._paths[scope]))

    def _reach(self, path: Path) -> None:
        """Come to a position: begin it, or wait, or leave."""
        standing = self._standing
        if standing.is_held:  # by a request of its own, perhaps: then N must not be this position
            return self._wait_at(path)
        before = standing.position
        standing.position = path  # write ...
        with standing.fence:
            pass
        if standing.is_held:  # ... then look
            standing.position = before  # not begun after all
            self._wait_at(path)

    def _wait_at(self, path: Path) -> None:
        """Wait for what is being agreed on, and act upon it; return if ``path`` is begun."""
        standing = self._standing
        before = standing.position
        while True:
            with standing.news:
                standing.news.wait_for(lambda: standing.failure or not standing.is_waiting)
            standing.raise_failure()
            while standing.agreed and standing.agreed[0].last < path:
                agreed = standing.agreed.pop(0)
                self._act(agreed.record, agreed.aim)
            standing.position = path
            if standing.may_begin(path):
                return
            standing.position = before

    def _act(self, record: Cancellation | None, aim: Path) -> None:
        """Leave the scope that a request aims at; if it is not open any more, only note that."""
        if record is None:
            return
        scope = self._token.innermost
        while scope is not None and self._paths.get(scope) != aim:
            scope = scope.parent
        if scope is None:
            self._token.note(record)
        else:
            self._token.accept(Request(record, scope))
            self._token.check()
