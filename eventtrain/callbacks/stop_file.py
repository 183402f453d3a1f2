"""Ends a fit when a file appears: for runs that nobody can press Ctrl-C on."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..arguments import absolute_path, flag, real_number
from ..callback import Callback
from ..events import ScopeName, Vocabulary
from ..priorities import POLICY

if TYPE_CHECKING:
    from ..runner import Runner

_AROUND = Vocabulary().around("batch")
_SCOPES = [name for name in _AROUND if name == "fit" or "fit" in Vocabulary().around(name)]


class StopFile(Callback):
    """Cancels the fit once a file is there, whatever is in it.

    It looks after batches of training and validation, and asks the file system
    at most once in ``every_seconds``. A file that is there before the fit
    begins ends it after its first batch.

    Args:
        path: The file; a relative path is taken from where the object was made.
        every_seconds: Least time between two looks in seconds, 0 or more.
        scope: What to end: ``"fit"`` (default), ``"epoch"``, ``"train"`` or
            ``"validate"``. A file that appears while that scope is not open
            waits for it.
        remove: Delete the file when it has been obeyed. Without that it ends
            the next fit as well, or the next epoch if that is the scope.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is none of the above.
        OSError: The file cannot be removed.
    """

    priority = POLICY

    def __init__(
        self,
        path: str | os.PathLike[str],
        every_seconds: float = 1.0,
        scope: ScopeName = "fit",
        remove: bool = False,
    ) -> None:
        if not 0 <= real_number("every_seconds", every_seconds, "seconds") < math.inf:
            raise ValueError(f"every_seconds must be finite and 0 or more, got {every_seconds!r}")
        if scope not in _SCOPES:
            raise ValueError(f"scope must be one of {', '.join(_SCOPES)}, got {scope!r}")
        self.path = absolute_path("path", path)
        self.every_seconds = every_seconds
        self.scope = scope
        self.remove = flag("remove", remove)
        self._next_look = -math.inf

    def begin_fit(self, run: Runner) -> None:
        """Look at the first opportunity."""
        self._next_look = -math.inf

    def after_batch(self, run: Runner) -> None:
        """Look for the file, if it is time to."""
        now = time.monotonic()
        if now < self._next_look or not {"fit", self.scope}.issubset(run.token.open_scopes):
            return
        self._next_look = now + self.every_seconds
        if not os.path.exists(self.path):
            return
        run.token.cancel(self.scope, f"the file {self.path} is there")
        if self.remove:
            with suppress(FileNotFoundError):
                os.remove(self.path)
