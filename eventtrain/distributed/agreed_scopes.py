"""Scopes that several processes open and leave together."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from ..cancellation import CancellationToken, Scope, Unwind
from ..cancellation.scope import CLOSING_CODE


class Taking(Protocol):
    """The part that a process takes, as far as its scopes ask it."""

    def enter(self, scope: Scope) -> None:
        """Be told that ``scope`` is about to open; raise if it must not."""
        ...

    def come_to_end(self, scope: Scope, error: BaseException | None) -> BaseException | None:
        """Be told that ``scope`` is about to close; return what it is to close with."""
        ...

    def explain(self, error: BaseException) -> BaseException:
        """Return why this process fails, which is ``error`` or what is behind it."""
        ...

    def was_left(self, scope: Scope) -> None:
        """Be told that ``scope`` has closed."""
        ...


class AgreedScope(Scope):
    """A scope that asks the part which its process takes before it opens, and before it closes.

    So the loop, which opens scopes, need not know whether there are other processes.

    Attributes:
        part: Who is asked.
    """

    __slots__ = ("part",)

    def __init__(self, part: Taking, token: CancellationToken, name: str, owner: object) -> None:
        super().__init__(token, name, owner)
        self.part = part

    def __enter__(self) -> Scope:
        if not self.is_open:
            self.part.enter(self)
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        # While it is open: a cancellation that is delivered here may aim at it.
        found = self.part.come_to_end(self, error)
        kind, traceback = (None, None) if found is None else (type(found), found.__traceback__)
        try:
            ends_here = super().__exit__(kind, found, traceback)
            if ends_here or found is None or isinstance(found, Unwind):
                self.part.was_left(self)
        except Unwind:
            self.part.was_left(self)
            raise
        except BaseException as raised:  # by a closing event, or of who has compared
            explained = self.part.explain(raised)
            if explained is raised:
                raise
            raise explained from explained.__cause__
        if not ends_here and found is not None and found is not error:
            raise found
        return ends_here


CLOSING_CODE.update({AgreedScope.__enter__.__code__, AgreedScope.__exit__.__code__})
