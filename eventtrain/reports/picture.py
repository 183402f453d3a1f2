"""The loop as a picture in text, with the handlers of a bus filled in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..bus.event_bus import EventBus
from ..bus.handlers import Handler, number
from ..events import PHASES, SCOPES, Event

# Scopes, events and their order are read from the table. What it does not tell is here.
_INSIDE = {"fit": ("epoch",), "epoch": ("train", "validate"), "batch": ("step",)}
_LAST_POINT = {"validate": "after_loss", "predict": "after_pred"}
_BEFORE = {
    "after_pred": "pred = model(xb)",
    "after_loss": "loss = loss_func(pred, yb)",
    "after_backward": "loss.backward()",
}
_AFTER = {"begin_step": "opt.step()", "after_step": "opt.zero_grad()"}
_NOTES = {
    "begin_epoch": "every epoch",
    "begin_validate": "no gradients, evaluation mode",
    "begin_predict": "no gradients, evaluation mode",
    "begin_batch": "every batch",
}
_COLUMN = 42


def picture(bus: EventBus, sender: Any = None) -> str:
    """Draw the loop: every event in its scope, and under it its handlers in true order.

    Handlers are drawn as ``[priority] name``, with their filters. A handler for one
    phase is drawn in that phase alone. Events for cancellations and failures are
    drawn where they have handlers. Prediction, which is a run of its own, and
    events of your own stand below.

    Args:
        bus: Whose handlers to draw.
        sender: Draw only the handlers that run for this sender; all by default.

    Returns:
        Lines of text, without a newline at the end.
    """
    return "\n".join(_Drawing(bus, sender).lines())


class _Drawing:
    def __init__(self, bus: EventBus, sender: Any) -> None:
        self._bus = bus
        self._sender = sender
        self._table = [bus.signal(name).event for name in bus]

    def lines(self) -> Iterator[str]:
        yield from self._scope("fit", 0, None)
        yield ""
        yield from self._scope("predict", 0, None)
        own = [event for event in self._table if event.scope not in SCOPES]
        if own:
            yield ""
            yield "events of your own"
            for event in own:
                yield from self._event(event, 1, None)

    def _scope(self, name: str, depth: int, phase: str | None) -> Iterator[str]:
        """Draw a scope with the scopes inside it, all in the order of the table."""
        phase = name if name in PHASES else phase
        inside = ("batch",) if name in PHASES else _INSIDE.get(name, ())
        for event in self._table:
            if event.scope == name:
                if not self._fires(event, phase):
                    continue
                yield from self._event(event, depth + (event.kind == "point"), phase)
            elif event.scope in inside and event.kind == "opening" and self._fires(event, phase):
                yield from self._scope(event.scope, depth + 1, phase)

    def _fires(self, event: Event, phase: str | None) -> bool:
        """Whether a phase gets as far, and if it does so without anything going wrong."""
        if event.name == "fit_failed" or event.name.startswith("after_cancel_"):
            return bool(self._handlers(event, phase))
        last = _LAST_POINT.get(phase or "")
        if last is None or last not in self._bus or event.scope not in ("batch", "step"):
            return True
        if event.kind == "closing" or event.name == "begin_batch":
            return True
        return self._table.index(event) <= self._table.index(self._bus.signal(last).event)

    def _event(self, event: Event, depth: int, phase: str | None) -> Iterator[str]:
        if event.name in _BEFORE:
            yield "  " * depth + _BEFORE[event.name]
        note = _NOTES.get(event.name, "" if event.scope else event.meaning)
        yield f"{'  ' * depth + event.name:{_COLUMN}}{note}".rstrip()
        for handler in self._handlers(event, phase):
            yield "  " * (depth + 1) + self._describe(handler)
        if event.name in _AFTER:
            yield "  " * depth + _AFTER[event.name]

    def _handlers(self, event: Event, phase: str | None) -> list[Handler]:
        """Return the handlers to draw at this event, in order."""
        signal = self._bus.signal(event.name)
        found = signal.handlers if self._sender is None else signal.handlers_for(self._sender)
        return [h for h in found if phase is None or h.options.during in (None, phase)]

    def _describe(self, handler: Handler) -> str:
        sender = ""
        if self._sender is None:
            sender = self._bus.signal(handler.event).senders_of(handler)
        parts = [
            f"[{number(handler.priority)}] {handler.name}",
            handler.describe_filter(),
            f"plugin {handler.plugin}" if handler.plugin else "",
            f"for {sender}" if sender else "",
        ]
        return "  ".join(part for part in parts if part)
