"""Options of handlers that run in the background: how records of the run wait for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from .arguments import flag, whole_number
from .bus.handlers import HandlerOptions, MethodOptions as PlainOptions, names

WhenFull = Literal["wait", "drop"]
TENSORS = ("pred", "xb", "yb", "batch", "weight")
"""What is copied into a record where it is asked for."""
_OWN = ("queue", "full", "tensors")


class BackgroundOptions(TypedDict, total=False):
    """What handlers in the background take besides, for type checkers."""

    background: bool
    queue: int
    full: WhenFull
    tensors: str | Iterable[str]


class RunnerOptions(HandlerOptions, BackgroundOptions, total=False):
    """What ``Runner.on`` takes, for type checkers."""


class MethodOptions(PlainOptions, BackgroundOptions, total=False):
    """What ``@handler`` takes, for type checkers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How the records of one handler wait, and what they have.

    Attributes:
        queue: How many may wait.
        full: What happens to one for which there is no room: the loop waits, or it is dropped.
        tensors: What a record has besides.

    Raises:
        TypeError, ValueError: One of these is none.
    """

    queue: int = 1000
    full: WhenFull = "wait"
    tensors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole_number("queue", self.queue, 1, "records")
        if self.full not in ("wait", "drop"):
            raise ValueError(f"full must be 'wait' or 'drop', got {self.full!r}")
        object.__setattr__(self, "tensors", names(self.tensors))
        strange = [name for name in self.tensors if name not in TENSORS]
        if strange:
            raise ValueError(f"tensors can be of {', '.join(TENSORS)}, got {strange[0]!r}")


def without_own(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a handler in the loop has as well; see that the others are some.

    Raises:
        TypeError, ValueError: One of the others is none.
    """
    flag("background", options.get("background", False))
    Waiting(**{name: options[name] for name in _OWN if name in options})
    return {k: v for k, v in options.items() if k not in ("background", *_OWN)}


def parted(options: Mapping[str, Any]) -> tuple[dict[str, Any], Waiting | None]:
    """Return the options that a handler in the loop has as well, and how records wait for it.

    Args:
        options: All. Where ``background`` is given and false, what else is of the background does
            nothing.

    Returns:
        The options, and ``None`` for a handler that runs in the loop.

    Raises:
        TypeError, ValueError: An option is none, or does not go together with another.
    """
    plain, given = without_own(options), {k: options[k] for k in _OWN if k in options}
    if given and "background" not in options:
        raise TypeError(
            f"{next(iter(given))} is an option of handlers in the background: background=True"
        )
    if not options.get("background", False):
        return plain, None
    if plain.get("weak"):
        raise ValueError("a handler in the background is held strongly: leave weak out")
    return plain, Waiting(**given)
