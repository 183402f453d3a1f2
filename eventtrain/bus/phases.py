"""Phases: what ``during=`` may name, and whose name a sender has as its phase."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..events import Event, Vocabulary
from .handlers import Handler


def check_phase(vocabulary: Vocabulary, event: Event, handler: Handler) -> None:
    """Check that the handler's ``during`` is a phase, and its event in one.

    Raises:
        ValueError: It is not.
    """
    during, phases = handler.options.during, ", ".join(vocabulary.phases)
    if during is None:
        return
    if during not in vocabulary.phases:
        raise ValueError(f"{handler.describe()}: during must be one of {phases}, got {during!r}")
    if not vocabulary.is_in_phase(event.scope):
        raise ValueError(
            f"{handler.describe()} has during={during!r}, but that event fires "
            f"outside of the phases {phases}"
        )


def keep_phase(on: Callable[..., object], opening: str, closing: str, phase: str) -> None:
    """Have ``phase`` of a sender right while it is in that scope, by handlers that ``on`` takes."""
    keeper = _PhaseKeeper(phase)
    on(opening, keeper.enter_phase, priority=math.inf)
    on(closing, keeper.leave_phase, priority=-math.inf)


class _PhaseKeeper:
    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._outer: dict[int, str | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._phase,)  # who is in the phase now is not in a copy's

    def enter_phase(self, run: Any) -> None:
        self._outer[id(run)] = getattr(run, "phase", None)
        run.phase = self._phase

    def leave_phase(self, run: Any) -> None:
        run.phase = self._outer.pop(id(run), None)
