"""What handlers log in a phase: averages by name, written to the row when the phase has ended."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from .distributed.gathering import gather_text
from .distributed.reductions import OneProcess
from .errors import DataError
from .host_reading import to_host
from .weighted_sums import added, checked_weight, one_number

_REMEDY = (
    "log a mean over the batch; several numbers are several names, and what is no number goes "
    "into run.history[-1]"
)


class NoPhase:
    """Where nothing can be logged, as there is no phase to average over, or no row of it."""

    def add(self, run: Any, name: str, value: Any, weight: Any) -> None:
        """Refuse it.

        Raises:
            RuntimeError: Always.
        """
        where = "in prediction, which has no row" if run.phase == "predict" else "here"
        raise RuntimeError(
            f"run.log({name!r}, ...) averages over training or validation, and cannot {where}: "
            "call it between begin_train and after_train, or begin_validate and after_validate, "
            f"without these; a number that stands alone goes into run.history[-1][{name!r}]"
        )

    def keep_free(self, names: Iterable[str]) -> None:
        """Do nothing: nothing was logged."""

    def write(self, run: Any) -> NoPhase:
        """Return what was there before, itself."""
        return self

    def state(self) -> list[dict[str, Any]]:
        """Return the sums of this phase and those around it, outermost first: there is none."""
        return []

    def load(self, state: list[dict[str, Any]]) -> None:
        """Do nothing: a phase that has yet to begin logs its own."""


NO_PHASE = NoPhase()


class PhaseLog(NoPhase):
    """The averages of one phase.

    Args:
        prefix: What columns begin with, ``"train"`` or ``"valid"``; see ``RunState.prefix``.
        outer: That of the phase around it, which goes on later.

    Attributes:
        is_of_train: Whether it is of training.
    """

    def __init__(self, prefix: str, outer: NoPhase) -> None:
        self.prefix, self._outer = prefix, outer
        self.is_of_train = prefix == "train"
        # Value and weight added up, by name. Never changed in place: a checkpoint may hold them.
        self._sums: dict[str, tuple[Any, Any]] = {}

    def add(self, run: Any, name: str, value: Any, weight: Any) -> None:
        """Add a value to the average that goes by ``name``; see ``RunState.log``."""
        sums = self._sums.get(name)
        if sums is None:
            self._check_name(run, name)
            sums = 0.0, 0.0
        number = one_number(value, f"run.log({name!r}, ...) got", _REMEDY)
        if weight is not None:
            weight = checked_weight(weight, f"the weight of run.log({name!r}, ...)")
        elif run.batch_index is not None:
            weight = run.weight
        else:
            raise ValueError(
                f"run.log({name!r}, value) weights the value as the loss of the batch is, and "
                f"there is no batch here: say what it counts, run.log({name!r}, value, weight=1)"
            )
        total, count = sums
        self._sums[name] = added(total, number, weight), count + weight

    def _check_name(self, run: Any, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"run.log takes a name first, a text, got {name!r}")
        column = f"{self.prefix}_{name}"
        owners = [repr(cb) for cb in run.cbs if name in cb.phase_columns]
        if column in run.history[-1] and "step" not in run.history[-1]:  # it is complete then
            owners.append("run.history[-1]")
        if owners:
            raise ValueError(
                f"run.log({name!r}, ...) would be the column {column!r}, which {owners[0]} has: "
                "give it another name"
            )

    def keep_free(self, names: Iterable[str]) -> None:
        """Refuse names of other columns that were logged already.

        Raises:
            ValueError: One of them was.
        """
        for name in names:
            if name in self._sums:
                raise ValueError(
                    f"run.log({name!r}, ...) and a metric or part of the loss would be one column, "
                    f"{self.prefix}_{name}: give one of them another name"
                )

    def write(self, run: Any) -> NoPhase:
        """Write the averages into the run's last row; collective where there are several processes.

        Returns:
            The log of the phase around this one.

        Raises:
            DataError: A weight was negative, NaN or infinite.
        """
        if run.outcome != "failed":
            for name, (total, weight) in over_all(self._sums, run.world).items():
                if not math.isfinite(weight):
                    raise DataError(
                        f"a weight of run.log({name!r}, ...) was negative, NaN or infinite in "
                        f"{run.phase}: it is that of the loss, Learner(..., weight=), unless one "
                        "is given"
                    )
                if weight:
                    run.history[-1][f"{self.prefix}_{name}"] = total / weight
        return self._outer

    def state(self) -> list[dict[str, Any]]:
        """See ``NoPhase.state``."""
        return [*self._outer.state(), {name: list(sums) for name, sums in self._sums.items()}]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Go on from what ``state`` returned."""
        *outer, own = state
        self._outer.load(outer)
        self._sums = {name: (total, weight) for name, (total, weight) in own.items()}


def merged(states: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one state with what several processes have logged, as ``state`` returns it."""
    return [
        {name: list(sums) for name, sums in _summed(logs).items()}
        for logs in zip(*states, strict=True)
    ]


def over_all(sums: dict[str, tuple[Any, Any]], world: OneProcess) -> dict[str, tuple[Any, Any]]:
    """Return the sums of all processes, read from the device; collective.

    Args:
        sums: Value and weight added up, by name. Not all processes need know every name.
        world: The processes.
    """
    read = to_host(sums) if sums else {}
    if world.size == 1:
        return read
    return _summed([json.loads(text) for text in gather_text(json.dumps(read), world)])


def _summed(logs: Iterable[dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for log in logs:
        for name, (total, weight) in log.items():
            known = found.get(name, (0.0, 0.0))
            found[name] = known[0] + total, known[1] + weight
    return found
