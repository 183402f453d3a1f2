"""The loop as a picture in text, with the handlers of a bus filled in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..bus.event_bus import EventBus
from ..bus.handlers import Handler, number
from ..events import Event

# Scopes, events and their order are read from the vocabulary. The loop's own lines are here.
_BEFORE = {
    "after_pred": "pred = model(xb)",
    "after_loss": "loss = loss_func(pred, yb)",
    "after_backward": "loss.backward()",
}
_AFTER = {"begin_step": "opt.step()", "after_step": "opt.zero_grad()"}
_COLUMN = 42
_NARROW, _WIDTH = 28, 79  # of what is folded: where handlers begin, and where lines end
_OWN = 6  # events of your own that are drawn folded


def picture(bus: EventBus, sender: Any = None, *, details: bool = True) -> str:
    """Draw the loop: every event in its scope, and under it its handlers in true order.

    Handlers are drawn as ``[priority] name``, with their filters, or folded, those of an event in
    its line. A handler for one phase is drawn in that phase alone. Events for cancellations and
    failures are drawn where they have handlers. Prediction, which is a run of its own, and events
    of your own stand below.

    Args:
        bus: Whose handlers to draw.
        sender: Draw only the handlers that run for this sender; all by default.
        details: Give each handler a line (default). ``False`` folds them, so that the picture fits
            on one screen however many there are.

    Returns:
        Lines of text, without a newline at the end.
    """
    drawing = _Drawing if details else _Folded
    return "\n".join(drawing(bus, sender).lines())


class _Drawing:
    def __init__(self, bus: EventBus, sender: Any) -> None:
        self._bus = bus
        self._sender = sender
        self._table = [bus.signal(name).event for name in bus]
        self._vocabulary = bus.vocabulary
        self._scopes = bus.vocabulary.scopes

    def lines(self) -> Iterator[str]:
        roots = [spec.name for spec in self._scopes.values() if not spec.parents]
        drawn = [lines for root in roots if (lines := list(self._scope(root, 0, None)))]
        own = [event for event in self._table if event.scope not in self._scopes]
        if own:
            drawn.append(["events of your own", *self._own(own)])
        for index, lines in enumerate(drawn):
            yield from ["", *lines] if index else lines

    def _own(self, events: list[Event]) -> Iterator[str]:
        for event in events:
            yield from self._event(event, 1, None)

    def _scope(self, name: str, depth: int, phase: str | None) -> Iterator[str]:
        """Draw a scope with the scopes inside it, all in the order of the table."""
        phase = name if self._scopes[name].is_phase else phase
        waiting = self._vocabulary.children(name)
        for event in self._table:
            if event.scope == name:
                if event.kind == "closing":  # scopes that were added later stand after it
                    yield from self._inside(waiting, depth, phase)
                    waiting = []
                if self._fires(event, phase):
                    yield from self._event(event, depth + (event.kind == "point"), phase)
            elif event.scope in waiting and event.kind == "opening":
                waiting.remove(event.scope)
                yield from self._inside([event.scope], depth, phase)

    def _inside(self, scopes: list[str], depth: int, phase: str | None) -> Iterator[str]:
        for scope in scopes:
            opening = next((e for e in self._table if e.scope == scope), None)
            if opening is not None and self._fires(opening, phase):
                yield from self._scope(scope, depth + 1, phase)

    def _fires(self, event: Event, phase: str | None) -> bool:
        """Whether a phase gets as far, and if it does so without anything going wrong."""
        if event.only_after is not None:
            return bool(self._handlers(event, phase))
        last = None if phase is None else self._scopes[phase].last_point
        if last is None or last not in self._bus or event.scope == phase:
            return True
        last_event = self._bus.signal(last).event
        around = self._vocabulary.around(event.scope)
        if event.scope != last_event.scope and last_event.scope not in around:
            return True
        if event.scope == last_event.scope and event.kind != "point":
            return True
        return self._table.index(event) <= self._table.index(last_event)

    def _event(self, event: Event, depth: int, phase: str | None) -> Iterator[str]:
        if event.name in _BEFORE:
            yield "  " * depth + _BEFORE[event.name]
        note = "" if event.scope else event.meaning
        if event.kind == "opening" and event.scope in self._scopes:
            note = self._scopes[event.scope].note
        yield from self._with_handlers(event, depth, note, self._handlers(event, phase))
        if event.name in _AFTER:
            yield "  " * depth + _AFTER[event.name]

    def _with_handlers(
        self, event: Event, depth: int, note: str, handlers: list[Handler]
    ) -> Iterator[str]:
        yield f"{'  ' * depth + event.name:{_COLUMN}}{note}".rstrip()
        for handler in handlers:
            yield "  " * (depth + 1) + self._describe(handler)

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


class _Folded(_Drawing):
    """The same with a line an event, in which its handlers are counted and the first named."""

    def __init__(self, bus: EventBus, sender: Any) -> None:
        super().__init__(bus, sender)
        self._has_handlers = False
        self._of_failures: dict[str, None] = {}  # names, in the order in which they were met

    def lines(self) -> Iterator[str]:
        yield from super().lines()
        if self._of_failures:
            named = _counted(list(self._of_failures), _WIDTH - _NARROW)
            yield from ["", _column("cancelled or failed") + named]
        if self._has_handlers:
            yield ""
            yield "each handler: print(run.picture(details=True)), print(run.bus.explain())"

    def _fires(self, event: Event, phase: str | None) -> bool:
        if event.only_after is None:
            return super()._fires(event, phase)
        names = (handler.name for handler in self._handlers(event, phase))
        self._of_failures.update(dict.fromkeys(names))
        self._has_handlers |= bool(self._of_failures)
        return False  # in its place it would be a line of its own

    def _own(self, events: list[Event]) -> Iterator[str]:
        yield from super()._own(events[:_OWN])
        if len(events) > _OWN:
            yield f"  ... +{len(events) - _OWN}"

    def _with_handlers(
        self, event: Event, depth: int, note: str, handlers: list[Handler]
    ) -> Iterator[str]:
        line = "  " * depth + event.name
        if handlers:
            self._has_handlers = True
            line = _column(line)
            note = f"  ({note})" if note else ""
            named = _counted([handler.name for handler in handlers], _WIDTH - len(line))
            line += named
            if len(line + note) <= _WIDTH:
                line += note
        elif note:
            line = _cut(f"{_column(line)}{note}", _WIDTH)
        yield _cut(line, _WIDTH)


def _column(text: str) -> str:
    return f"{text:{_NARROW - 2}}  "


def _counted(names: list[str], room: int) -> str:
    """Return how many there are and as many of their names as have room, one at least."""
    count = f"{len(names)} handler{'s' * (len(names) > 1)}: "
    text = ""
    for shown in range(1, len(names) + 1):
        rest = len(names) - shown
        longer = f"{count}{', '.join(names[:shown])}{f', ... +{rest}' if rest else ''}"
        if text and len(longer) > room:
            break
        text = longer
    return _cut(text, room)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: max(room - 3, 0)]}..."
