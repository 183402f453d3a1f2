"""A function applied to every batch before the model sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..callback import Callback
from ..events import PHASES
from ..priorities import TRANSFORM

if TYPE_CHECKING:
    from ..runner import Runner


class BatchTransform(Callback):
    """Replaces ``run.xb``, and ``run.yb`` if asked to, by what a function makes of them.

    It runs on whole batches, on the device that they have been moved to. The function must
    not change its arguments in place: a loader may hand the same tensors out again.
    ``run.batch`` stays as it was loaded.

    To use several, give all but one another name (``transform.name = "flip"``); they
    run in the order in which the runner got them.

    Args:
        fn: ``fn(xb, yb)``, which returns the two anew.
        x: ``x(xb)``, which returns the inputs alone; instead of ``fn``.
        during: The phase to do it in: ``"train"`` (default), ``"validate"``,
            ``"predict"``; ``None`` for all three.

    Raises:
        TypeError: Not exactly one of ``fn`` and ``x`` is given, or it cannot be called. In a
            batch: ``fn`` returned something other than two parts.
        ValueError: ``during`` is no phase.
    """

    priority = TRANSFORM

    def __init__(
        self,
        fn: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        *,
        x: Callable[[Any], Any] | None = None,
        during: str | None = "train",
    ) -> None:
        if (fn is None) == (x is None):
            raise TypeError("pass either fn(xb, yb) or x=, a function of xb alone")
        if not callable(fn if x is None else x):
            raise TypeError(f"a transform must be a function, got {fn if x is None else x!r}")
        if during is not None and during not in PHASES:
            raise ValueError(f"during must be one of {', '.join(PHASES)} or None, got {during!r}")
        self.fn, self.x, self.during = fn, x, during

    def begin_batch(self, run: Runner) -> None:
        """Transform the batch, in the phase that was asked for."""
        if self.during is not None and run.phase != self.during:
            return
        if self.fn is None:
            assert self.x is not None
            run.xb = self.x(run.xb)
            return
        parts = self.fn(run.xb, run.yb)
        if not isinstance(parts, (tuple, list)) or len(parts) != 2:
            raise TypeError(
                f"a batch transform must return (xb, yb), got {type(parts).__name__} "
                "(for a function of the inputs alone: BatchTransform(x=...))"
            )
        run.xb, run.yb = parts
