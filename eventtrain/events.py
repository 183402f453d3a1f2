"""The vocabulary: every event of the training loop, in one ordered table.

The loop, the checks on ``Callback`` classes, the command line and the
documentation read this table; nothing else lists event names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["opening", "point", "closing"]

SCOPES = ("fit", "epoch", "train", "validate", "predict", "batch", "step")
"""Names of the scopes, outermost first."""

PHASES = ("train", "validate", "predict")
"""The scopes that run through a loader; ``during=`` takes one of them."""


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
    """

    name: str
    scope: str
    kind: Kind
    fields: tuple[str, ...]
    meaning: str


ALWAYS = ("learn", "model", "opt", "loss_func", "data", "token", "in_train")
"""Fields of the run that are valid at every event."""

_EPOCH = ("epoch", "epochs", "n_epochs", "n_iter")
_PHASE = (*_EPOCH, "phase", "iters")
_BATCH = (*_PHASE, "batch_index", "batch", "xb", "yb")
_PRED = (*_BATCH, "pred")
_LOSS = (*_PRED, "loss")

EVENTS: tuple[Event, ...] = (
    Event("begin_fit", "fit", "opening", ("epochs",), "the fit starts"),
    Event("begin_epoch", "epoch", "opening", _EPOCH, "an epoch starts"),
    Event("begin_train", "train", "opening", _PHASE, "training batches follow"),
    Event("begin_validate", "validate", "opening", _PHASE, "validation batches follow"),
    Event("begin_predict", "predict", "opening", ("phase", "iters"), "prediction batches follow"),
    Event("begin_batch", "batch", "opening", _BATCH, "a batch has been loaded"),
    Event("after_pred", "batch", "point", _PRED, "the model has been called"),
    Event("after_loss", "batch", "point", _LOSS, "the loss has been computed"),
    Event("after_backward", "batch", "point", _LOSS, "gradients have been computed"),
    Event("begin_step", "step", "opening", _LOSS, "the optimizer is about to step"),
    Event("after_cancel_step", "step", "closing", _LOSS, "the step was cancelled"),
    Event("after_step", "batch", "point", _LOSS, "the optimizer has stepped"),
    Event("after_cancel_batch", "batch", "closing", _BATCH, "the batch was cancelled"),
    Event("after_batch", "batch", "closing", _BATCH, "the batch has ended"),
    Event("after_cancel_train", "train", "closing", _PHASE, "training was cancelled"),
    Event("after_train", "train", "closing", _PHASE, "training batches have ended"),
    Event("after_cancel_validate", "validate", "closing", _PHASE, "validation was cancelled"),
    Event("after_validate", "validate", "closing", _PHASE, "validation batches have ended"),
    Event("after_cancel_predict", "predict", "closing", ("phase",), "prediction was cancelled"),
    Event("after_predict", "predict", "closing", ("phase",), "prediction batches have ended"),
    Event("after_cancel_epoch", "epoch", "closing", _EPOCH, "the epoch was cancelled"),
    Event("after_epoch", "epoch", "closing", _EPOCH, "the epoch has ended"),
    Event("fit_failed", "fit", "closing", ("epochs", "exception"), "an exception is escaping"),
    Event("after_cancel_fit", "fit", "closing", ("epochs", "outcome"), "the fit was cancelled"),
    Event("after_fit", "fit", "closing", ("epochs", "outcome"), "the fit has ended"),
)
"""The events of the training loop, in the order in which they can first fire."""


def event_names(events: Iterable[Event] = EVENTS) -> tuple[str, ...]:
    """Return the names of ``events`` in table order."""
    return tuple(event.name for event in events)
