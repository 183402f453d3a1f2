"""Why a run on several processes fails: by what happened here, or on another rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..bus.dispatch import raising_handler
from ..bus.handlers import place_of
from ..cancellation import Unwind
from ..errors import RemoteError
from .agreement import Agreement
from .transport import is_of_transport

SOON, PATIENCE = 0.5, 3.5
"""Seconds in which a rank that fails has said why, once its connections are gone; and in which one
that is there answers when it is asked."""


class Failures:
    """Finds out why this rank fails, and tells the others if it is the reason.

    Args:
        run: Where it is, for messages.
        agreement: Of the ranks.
    """

    def __init__(self, run: Any, agreement: Agreement) -> None:
        self._run = run
        self._agreement = agreement
        self._explained: BaseException | None = None

    def explain(self, error: BaseException) -> BaseException:
        """Return why this rank fails: ``error``, of which all are told, or another rank's."""
        if self._explained is error or isinstance(error, (RemoteError, Unwind)):
            return error
        if not is_of_transport(error):
            self._explained = error
            self._agreement.fail(error, self._where(error))
            return error
        remote = self._find_remote_failure()
        if remote is None:
            remote = RemoteError(
                f"the connection to another rank has broken, and none has said why, as when a "
                f"process is killed: {error}"
            )
            self._agreement.fail(remote, self._where(error))
        remote.__cause__ = error
        self._explained = remote
        return remote

    def _find_remote_failure(self) -> RemoteError | None:
        """Wait until it is known which rank has failed or is silent, or until a signal comes."""
        remote = self._hear_of_failure(SOON, lambda: False)
        if remote is None and not self._run.token.is_interrupted:
            have_answered = self._agreement.ask_who_is_there(PATIENCE)
            # The store may be gone as well: then nobody ever answers.
            remote = self._hear_of_failure(2 * PATIENCE, have_answered)
        return remote

    def _hear_of_failure(
        self, seconds: float, is_in_vain: Callable[[], bool]
    ) -> RemoteError | None:
        end = time.monotonic() + seconds
        remote = self._agreement.remote_failure(0.1)
        while remote is None and time.monotonic() < end and not is_in_vain():
            if self._run.token.is_interrupted:
                break
            remote = self._agreement.remote_failure(0.1)
        return remote

    def _where(self, error: BaseException) -> str:
        handler, place = raising_handler(error), place_of(self._run)
        if handler is None:
            return place.removeprefix(", ")
        return f"handler {handler.name!r} of {handler.event!r}{place}"
