"""What is asked for, and what carries it: plain records that token and scopes share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

Outcome = Literal["completed", "cancelled", "failed"]
Origin = tuple[str | None, str | None, int | None, int | None]
"""Handler, event, epoch and batch that a cancellation came from."""


class OpenScope(Protocol):
    """What the token has to know of a scope."""

    name: str

    @property
    def outcome(self) -> Outcome | None:
        """How it ended last; ``None`` before and while it is open."""

    @property
    def parent(self) -> OpenScope | None:
        """The scope around it."""


class Unwind(BaseException):
    """Carries a delivered cancellation outward to the scope that absorbs it.

    A ``BaseException``, so that ``except Exception`` in a handler or a model
    cannot eat it. Private to the package.
    """

    def __init__(self, token: object) -> None:
        super().__init__("a cancellation is being delivered")
        self.token = token


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A request to end a scope: what, why, by whom and where.

    Attributes:
        scope: The scope asked to end.
        reason: The caller's words; may be empty.
        by: The handler that asked, or the function or thread outside of any handler.
        event: The event that handler was serving; ``None`` outside of handlers.
        epoch: Epoch at the time, counted from 0; ``None`` where there was none.
        batch: Index of the batch within its phase, from 0; ``None`` where there was none.
        time: Seconds since the Unix epoch.
        rank: Of several processes, the one whose request it was; ``None`` where there is one
            process, and where all ranks have asked alike.
        source: The line that called ``cancel``, as ``file:line``; ``None`` where a signal asked.
            Records that differ in nothing else are equal.
    """

    scope: str
    reason: str
    by: str
    event: str | None
    epoch: int | None
    batch: int | None
    time: float
    rank: int | None = None
    source: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, before it is granted.

    Attributes:
        cancellation: Its record.
        target: The open scope that it aims at; ``None`` for a fit that has not begun.
        is_by_handler: Whether a handler asked, which may want to keep what follows it from
            happening; a signal, a timer or another thread comes at any moment.
    """

    cancellation: Cancellation
    target: OpenScope | None
    is_by_handler: bool = False
