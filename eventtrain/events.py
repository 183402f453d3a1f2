"""The vocabulary: every scope and every event of the training loop, in ordered tables.

The loop, the checks on ``Callback`` classes, the pictures, the command line and the
documentation read these tables; nothing else lists events, or knows what lies inside what.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from .errors import did_you_mean

Kind = Literal["opening", "point", "closing"]
ScopeName = Literal["fit", "epoch", "train", "validate", "predict", "batch", "step"]
"""A name in ``SCOPES``, for type checkers."""
PhaseName = Literal["train", "validate", "predict"]
"""A name in ``PHASES``, for type checkers."""
EventName = Literal[
    "begin_fit",
    "begin_epoch",
    "begin_train",
    "begin_validate",
    "begin_predict",
    "begin_batch",
    "after_pred",
    "after_loss",
    "after_backward",
    "begin_step",
    "after_cancel_step",
    "after_step",
    "after_cancel_batch",
    "after_batch",
    "after_cancel_train",
    "after_train",
    "after_cancel_validate",
    "after_validate",
    "after_cancel_predict",
    "after_predict",
    "after_cancel_epoch",
    "after_epoch",
    "after_row",
    "fit_failed",
    "after_cancel_fit",
    "after_fit",
]
"""The name of a row of ``EVENTS``, for type checkers."""


@dataclass(frozen=True, slots=True)
class ScopeSpec:
    """A scope of the vocabulary, and where it may be.

    Attributes:
        name: What ``token.cancel`` calls it.
        parents: The scopes that it opens in; a run may begin with one that has none.
        is_phase: Whether it is a pass over batches, which ``during=`` may name.
        last_point: The last event of kind ``"point"`` that its batches get to; ``None`` where
            they get to all.
        note: What a picture of the loop says beside its opening event.
    """

    name: str
    parents: tuple[str, ...] = ()
    is_phase: bool = False
    last_point: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the vocabulary.

    Attributes:
        name: The event's name, as handlers subscribe to it.
        scope: The scope it belongs to (see ``SCOPES``); ``""`` for a custom event.
        kind: ``"opening"`` fires first in its scope and ``"point"`` inside it,
            and a cancellation takes effect at both; ``"closing"`` fires after
            the scope's work has ended and runs all its handlers whatever happened.
        fields: Fields of the run that hold something meaningful at this event,
            beyond those that are valid throughout (``ALWAYS``).
        meaning: One line for people.
        only_after: For a closing event, the one outcome that it fires after, before the event
            that closes the scope: ``"cancelled"`` or ``"failed"``. ``None`` (default): any.
    """

    name: str
    scope: str
    kind: Kind
    fields: tuple[str, ...]
    meaning: str
    only_after: Literal["cancelled", "failed"] | None = None

    @property
    def closes_scope(self) -> bool:
        """Whether it fires when its scope is left, however that happens."""
        return self.kind == "closing" and self.name == f"after_{self.scope}"


_NO_GRADIENTS = "no gradients, evaluation mode"

SCOPE_SPECS: tuple[ScopeSpec, ...] = (
    ScopeSpec("fit"),
    ScopeSpec("epoch", ("fit",), note="every epoch"),
    ScopeSpec("train", ("epoch",), is_phase=True),
    ScopeSpec("validate", ("epoch",), True, last_point="after_loss", note=_NO_GRADIENTS),
    ScopeSpec("predict", (), is_phase=True, last_point="after_pred", note=_NO_GRADIENTS),
    ScopeSpec("batch", ("train", "validate", "predict"), note="every batch"),
    ScopeSpec("step", ("batch",)),
)
"""The scopes of the training loop, outermost first."""

SCOPES = tuple(spec.name for spec in SCOPE_SPECS)
"""Names of the scopes, outermost first."""

PHASES = tuple(spec.name for spec in SCOPE_SPECS if spec.is_phase)
"""The scopes that run through a loader; ``during=`` takes one of them."""

ALWAYS = ("learn", "model", "opt", "loss_func", "data", "token", "in_train")
"""Fields of the run that are valid at every event."""

_FIT = ("epochs", "total_steps")
_EPOCH = (*_FIT, "epoch", "n_epochs", "n_iter")
_PHASE = (*_EPOCH, "phase", "iters")
_BATCH = (*_PHASE, "batch_index", "batch", "xb", "yb")
_PRED = (*_BATCH, "pred")
_LOSS = (*_PRED, "loss")

_MEANINGS = {"train": "training", "validate": "validation", "predict": "prediction"}


def _cancelled(scope: str, fields: tuple[str, ...]) -> Event:
    meaning = f"{_MEANINGS.get(scope, f'the {scope}')} was cancelled"
    return Event(f"after_cancel_{scope}", scope, "closing", fields, meaning, "cancelled")


EVENTS: tuple[Event, ...] = (
    Event("begin_fit", "fit", "opening", _FIT, "the fit starts"),
    Event("begin_epoch", "epoch", "opening", _EPOCH, "an epoch starts"),
    Event("begin_train", "train", "opening", _PHASE, "training batches follow"),
    Event("begin_validate", "validate", "opening", _PHASE, "validation batches follow"),
    Event("begin_predict", "predict", "opening", ("phase", "iters"), "prediction batches follow"),
    Event("begin_batch", "batch", "opening", _BATCH, "a batch has been loaded"),
    Event("after_pred", "batch", "point", _PRED, "the model has been called"),
    Event("after_loss", "batch", "point", _LOSS, "the loss has been computed"),
    Event("after_backward", "batch", "point", _LOSS, "gradients have been computed"),
    Event("begin_step", "step", "opening", _LOSS, "the optimizer is about to step"),
    _cancelled("step", _LOSS),
    Event("after_step", "batch", "point", _LOSS, "the optimizer has stepped"),
    _cancelled("batch", _BATCH),
    Event("after_batch", "batch", "closing", _BATCH, "the batch has ended"),
    _cancelled("train", _PHASE),
    Event("after_train", "train", "closing", _PHASE, "training batches have ended"),
    _cancelled("validate", _PHASE),
    Event("after_validate", "validate", "closing", _PHASE, "validation batches have ended"),
    _cancelled("predict", ("phase",)),
    Event("after_predict", "predict", "closing", ("phase",), "prediction batches have ended"),
    _cancelled("epoch", _EPOCH),
    Event("after_epoch", "epoch", "closing", _EPOCH, "the epoch has ended"),
    Event("after_row", "epoch", "closing", _EPOCH, "a row of the history is complete"),
    Event(
        *("fit_failed", "fit", "closing", (*_FIT, "exception"), "an exception is escaping"),
        only_after="failed",
    ),
    _cancelled("fit", (*_FIT, "outcome")),
    Event("after_fit", "fit", "closing", (*_FIT, "outcome"), "the fit has ended"),
)
"""The events of the training loop, in the order in which they can first fire."""


def event_names(events: Iterable[Event] = EVENTS) -> tuple[str, ...]:
    """Return the names of ``events`` in table order."""
    return tuple(event.name for event in events)


class Vocabulary:
    """Scopes with their nesting, to which more can be added.

    Args:
        scopes: The scopes, outermost first.

    Attributes:
        scopes: Each by its name, in that order.
    """

    def __init__(self, scopes: Iterable[ScopeSpec] = SCOPE_SPECS) -> None:
        self.scopes = {spec.name: spec for spec in scopes}

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the scopes that ``during=`` may name."""
        return tuple(spec.name for spec in self.scopes.values() if spec.is_phase)

    def add(self, spec: ScopeSpec) -> None:
        """Add a scope. Batches, where there are such, may be in a phase that is added.

        Raises:
            ValueError: The name is taken, or one of its parents is not there.
        """
        if spec.name in self.scopes:
            raise ValueError(f"there is a scope {spec.name!r} already")
        for parent in spec.parents:
            if parent not in self.scopes:
                raise ValueError(
                    f"scope {spec.name!r} is to be inside of {parent!r}, which is none of "
                    f"{', '.join(self.scopes)}.{did_you_mean(parent, self.scopes)}"
                )
        self.scopes[spec.name] = spec
        batch = self.scopes.get("batch")
        if spec.is_phase and batch is not None:
            self.scopes["batch"] = replace(batch, parents=(*batch.parents, spec.name))

    def children(self, scope: str) -> list[str]:
        """Return the scopes that may open right inside of ``scope``, in order."""
        return [spec.name for spec in self.scopes.values() if scope in spec.parents]

    def around(self, scope: str) -> list[str]:
        """Return all scopes that ``scope`` may be in, at any depth, outermost first."""
        found = set(self._outward(scope))
        return [name for name in self.scopes if name in found]

    def is_in_phase(self, scope: str) -> bool:
        """Whether ``scope`` is a phase, or always in one; so are events that are in no scope."""
        return scope not in self.scopes or any(
            self.scopes[name].is_phase for name in (scope, *self._outward(scope))
        )

    def _outward(self, scope: str) -> Iterator[str]:
        for parent in self.scopes[scope].parents:
            yield parent
            yield from self._outward(parent)
