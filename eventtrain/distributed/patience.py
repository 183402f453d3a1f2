"""How long a rank waits for others: for as long as they live, and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..cancellation import CancellationToken
from ..errors import RemoteError
from .agreement import Agreement

SOON = 5.0
"""Seconds after which who waits asks for a sign of life, and in which one is given."""


class Patience:
    """One wait for other ranks, of which one may be slow, and another may have been killed.

    Args:
        agreement: Knows of failures, and asks everybody for a sign of life.
        token: The run's. Once a signal has asked for its end, there may be little time: a rank that
            gives no sign of life is not waited for until it counts as lost.
    """

    def __init__(self, agreement: Agreement, token: CancellationToken) -> None:
        self._agreement, self._token = agreement, token
        self._ask_at = time.monotonic() + SOON
        self._is_hurried = False
        self._asked_at = 0.0
        self._is_answered: Callable[[], bool] | None = None

    def __call__(self) -> None:
        """Be asked now and then.

        Raises:
            RemoteError: Another rank has failed, or gives no sign of life.
        """
        failure = self._agreement.failure
        if failure is not None:
            raise RemoteError(str(failure), failure.ranks)
        now = time.monotonic()
        if self._token.is_interrupted and not self._is_hurried:
            self._is_hurried, self._ask_at = True, now
        if self._is_answered is None:
            if now >= self._ask_at:
                self._asked_at = now
                self._is_answered = self._agreement.ask_who_is_there()
        elif self._is_answered():
            self._is_answered, self._ask_at = None, now + SOON
        elif self._is_hurried and now > max(self._asked_at, self._ask_at) + SOON:
            raise RemoteError(
                "a signal asks for the end of the run while this rank waits for another, and one "
                f"of the others gives no sign of life for {SOON:g} s"
            )
