"""Metrics that are no mean over batches: computed once, of all predictions of a phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .bus.receivers import name_of
from .data.batch import convert_parts
from .data.joining import join_batches
from .data.weights import sample_counts
from .distributed.gathering import gather_in_turn
from .distributed.reductions import OneProcess


class OverAll:
    """A function of all predictions and targets of a phase, as a metric.

    What it has seen stays on its device until the phase has ended, and is joined then as
    ``run.predict`` does: on the CPU, tensors along the first dimension, mappings key by key. On
    several processes that is what all of them have seen, by rank.

    Args:
        fn: ``fn(pred, target)`` returning one number: an area under a curve, an F1, a correlation.
        name: Of the column; by default that of the function.

    Raises:
        TypeError: ``fn`` is no function.
    """

    def __init__(self, fn: Callable[[Any, Any], Any], name: str | None = None) -> None:
        if isinstance(fn, type) or not callable(fn) or hasattr(fn, "update"):
            raise TypeError(
                f"OverAll takes a function of (pred, target), got {fn!r}: a metric of torchmetrics "
                "is over all predictions by itself, pass it as it is"
            )
        self.fn = fn
        self.name = name_of(fn) if name is None else name
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        self._seen: list[tuple[Any, Any]] = []
        self._joined: tuple[Any, Any] | None = None

    def update(self, pred: Any, target: Any) -> None:
        """See one more batch."""
        # Copies: a compiled model may write its next prediction into the same memory.
        self._seen.append((_kept(pred), _kept(target)))
        self._joined = None

    __call__ = update

    def to(self, device: Any) -> None:
        """Do nothing: what was seen stays where it is."""

    def gather(self, world: OneProcess) -> None:
        """Have all processes see what each has seen; collective.

        Raises:
            DataError: It has no row for each sample, or another form in another process.
        """
        self._joined = gather_in_turn(self._whole(), world)

    def compute(self) -> Any:
        """Return what the function makes of the whole."""
        return self.fn(*(self._joined or self._whole()))

    def _whole(self) -> tuple[Any, Any]:
        counts = [sample_counts(pair) for pair in self._seen]
        pred, target = (
            join_batches([pair[side] for pair in self._seen], counts) for side in (0, 1)
        )
        return pred, target

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen."""
        return {"seen": list(self._seen), "joined": self._joined}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self._seen, self._joined = list(state["seen"]), state["joined"]


def _kept(part: Any) -> Any:
    return part.detach().clone() if isinstance(part, Tensor) else convert_parts(part, _kept)
