"""The parent's end of a worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from typing import Any

from ..interpreters import environment_of, module_beside
from .registry import Peer

TIMEOUT = 300.0
"""Seconds that one answer may take."""


class Process:
    """A peer's own process, which lives through all rounds.

    Attributes:
        peer: Who.
        problem: Why it cannot be measured, or ``None``.
    """

    def __init__(self, peer: Peer, seed: int, counts: tuple[int, ...]) -> None:
        self.peer = peer
        self.problem: str | None = None
        python = os.environ.get(peer.variable) or sys.executable
        folder, module = module_beside(__file__, "worker")
        arguments = [peer.name, str(seed), *map(str, counts)]
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (see close)
        self._child: subprocess.Popen[str] | None = None
        if python == sys.executable and peer.version is None:
            self.problem = f"skipped: {peer.missing}"
            return
        try:
            self._child = subprocess.Popen(
                [python, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment_of(folder),
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # so that all that it starts can be ended with it
            )
        except OSError as error:
            self.problem = f"failed: {python} does not start: {error}"

    @property
    def skipped(self) -> bool:
        """Whether its framework is not there to be measured."""
        return (self.problem or "").startswith("skipped")

    def ask(self, **question: Any) -> dict[str, Any] | None:
        """Ask the worker to time a round; ``None`` when there is no answer any more."""
        if self.problem or self._child is None or self._child.stdin is None:
            return None
        with suppress(OSError):  # it is gone: what it said last tells why
            print(json.dumps(question), file=self._child.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any] | None:
        """Wait for the next answer; ``None``, and a ``problem``, when it is not a good one."""
        if self.problem or self._child is None:
            return None
        line = self._line()
        if self.problem:
            return None
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or ["nothing on standard error"]
            self.problem = f"failed: its process ended ({self._child.wait()}): {said[-1]}"
            return None
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.problem = f"failed: it answered {line.strip()[:80]!r}, which is no answer"
            return None
        for word in ("skipped", "failed"):
            if word in answer:
                self.problem = f"{word}: {answer[word]}"
                return None
        return answer

    def close(self) -> None:
        """End the process."""
        self._kill()
        if self._child is not None:
            self._child.communicate()
        self._errors.close()

    def _line(self) -> str:
        assert self._child is not None and self._child.stdout is not None
        timer = threading.Timer(TIMEOUT, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            return self._child.stdout.readline()
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self.problem = f"failed: timeout, no answer within {TIMEOUT:g} s"
        self._kill()

    def _kill(self) -> None:
        if self._child is None:
            return
        if sys.platform == "win32":
            self._child.kill()
        else:
            with suppress(ProcessLookupError, PermissionError):  # all of them have ended
                os.killpg(self._child.pid, signal.SIGKILL)
