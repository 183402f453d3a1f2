"""One handler of one event: what to call, when, in what order, and what if it fails."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..arguments import flag, real_number, whole_number
from ..events import PHASES
from .receivers import Receiver, is_async, name_of, reference_to, reject_flag, source_of

OnError = Literal["raise", "warn", "disable"]
Around = Callable[["Handler", Callable[[Any], object]], Callable[[Any], object]]
"""Wraps the compiled call of a handler."""
logger = logging.getLogger("eventtrain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a handler is subscribed; see ``EventBus.on`` for the meaning of each field.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range.
    """

    priority: float = 0
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    name: str | None = None
    every: int = 1
    once: bool = False
    when: Callable[[Any], object] | None = None
    during: str | None = None
    weak: bool = False
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        real_number("priority", self.priority)
        whole_number("every", self.every, 1)
        flag("once", self.once)
        flag("weak", self.weak)
        if self.when is not None and not callable(self.when):
            raise TypeError(f"when must be a function of the run, got {self.when!r}")
        if self.during is not None and self.during not in PHASES:
            raise ValueError(f"during must be one of {', '.join(PHASES)}, got {self.during!r}")
        if self.on_error not in ("raise", "warn", "disable"):
            raise ValueError(f"on_error must be raise, warn or disable, got {self.on_error!r}")
        object.__setattr__(self, "before", names(self.before))
        object.__setattr__(self, "after", names(self.after))


def names(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


class Tally:
    """What the handlers of one subscription count together.

    Attributes:
        handlers: Those of them that are subscribed.
        left: How many calls that ``during`` and ``when`` let through remain until
            ``every`` lets one through; it counts down.
        is_spent: Whether ``once`` has had its call.
    """

    __slots__ = ("handlers", "is_spent", "left")

    def __init__(self, every: int = 1) -> None:
        self.handlers: list[Handler] = []
        self.left = every
        self.is_spent = False

    def detach(self) -> None:
        """Take all of them off their signals."""
        for handler in list(self.handlers):
            handler.detach()


class Handler:
    """A receiver on one event, with its options; what a signal's order consists of.

    Attributes:
        event: Name of the event.
        name: The name that ``before=`` and ``after=`` of others refer to.
        priority, before, after: What its place in the order follows from.
        options: All options.
        source: Where the function was written, as ``module:line``.
        plugin: Which plugin brought it, as people should read it; ``None`` for user code.
        calls: How often it has run, counted for handlers with a filter;
            ``None`` for the others, which are called without any detour.
        tally: What ``every`` and ``once`` count, together with the handlers
            subscribed in the same call.
        key: What its signal knows it by; ``None`` while it is on none.
        detach: Takes it off its signal; does nothing the second time.
        around: What ``compile`` wraps its call in, or ``None``; its signal sets it.
    """

    __slots__ = (
        "__weakref__",
        "_receiver",
        "after",
        "around",
        "before",
        "calls",
        "detach",
        "event",
        "key",
        "name",
        "options",
        "plugin",
        "priority",
        "source",
        "tally",
    )

    def __init__(
        self,
        event: str,
        receiver: Receiver,
        options: Options,
        *,
        origin: Receiver | None = None,
        plugin: str | None = None,
        tally: Tally | None = None,
    ) -> None:
        written = origin or receiver
        self.event = event
        self.options = options
        self.name = options.name or name_of(written)
        self.priority = options.priority
        self.before = options.before
        self.after = options.after
        self.source = source_of(written)
        self.plugin = plugin
        self.key: Any = None
        self.detach: Callable[[], None] = _nothing
        self.around: Around | None = None
        self._receiver: Any = receiver
        if options.weak:
            self._receiver = reference_to(receiver, self._receiver_died)
        self.tally = Tally(options.every) if tally is None else tally
        self.tally.handlers.append(self)
        self.calls: int | None = 0 if self._is_filtered else None

    @property
    def _is_filtered(self) -> bool:
        options = self.options
        return (
            options.every > 1
            or options.once
            or options.when is not None
            or options.during is not None
        )

    @property
    def receiver(self) -> Receiver | None:
        """The function that runs; ``None`` once a weakly held one is gone."""
        if self.options.weak:
            receiver: Receiver | None = self._receiver()
            return receiver
        held: Receiver = self._receiver
        return held

    def __call__(self, sender: object, **arguments: object) -> object:
        """Run it as ``blinker.Signal.send`` does, filters and all."""
        receiver = self.receiver
        if receiver is None:
            return None
        if self.calls is None and self.options.on_error == "raise":
            return receiver(sender, **arguments)
        if arguments:
            receiver = functools.partial(receiver, **arguments)
        return self._wrapped(receiver)(sender)

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    def describe(self) -> str:
        """Name it for a message: event, handler, priority, source and plugin."""
        plugin = f", plugin {self.plugin}" if self.plugin else ""
        return (
            f"handler {self.name!r} of event {self.event!r} "
            f"(priority {number(self.priority)}, {self.source}{plugin})"
        )

    def describe_filter(self) -> str:
        """Return the filter options that are set, as they would be written."""
        options = self.options
        parts = []
        if options.every > 1:
            parts.append(f"every={options.every}")
        if options.once:
            parts.append("once")
        if options.during is not None:
            parts.append(f"during={options.during}")
        if options.when is not None:
            parts.append(f"when={name_of(options.when)}")
        return " ".join(parts)

    def compile(self) -> Callable[[Any], object]:
        """Return what an emission calls: the bare function when nothing stands between."""
        receiver = self.receiver
        if is_async(receiver):
            return self._refuse_to_await
        call = self._wrapped(self._dereferencing() if self.options.weak else self._receiver)
        return call if self.around is None else self.around(self, call)

    def _wrapped(self, call: Callable[[Any], object]) -> Callable[[Any], object]:
        if self._is_filtered:
            call = self._filtering(call)
        if self.options.on_error != "raise":
            call = self._guarding(call)
        return call

    def _refuse_to_await(self, _: object) -> object:
        raise TypeError(
            f"{self.describe()} is a coroutine function; handlers run synchronously. "
            "Signal.send_async() awaits it."
        )

    def _dereferencing(self) -> Callable[[Any], object]:
        reference = self._receiver

        def call(sender: object) -> object:
            receiver = reference()
            return None if receiver is None else receiver(sender)

        return call

    def _filtering(self, call: Callable[[Any], object]) -> Callable[[Any], object]:
        """Put the filters around ``call``, the one that is asked first outermost."""
        options = self.options
        call = self._counting(call)
        if options.once:
            call = _once(call, self.tally)
        if options.every > 1:
            call = _every(call, options.every, self.tally)
        if options.when is not None:
            call = _when(call, options.when)
        if options.during is not None:
            call = _during(call, options.during)
        return call

    def _counting(self, receiver: Callable[[Any], object]) -> Callable[[Any], object]:
        def call(sender: object) -> object:
            self.calls += 1  # type: ignore[operator]  # a filtered handler counts
            return receiver(sender)

        return call

    def _guarding(self, receiver: Callable[[Any], object]) -> Callable[[Any], object]:
        disable = self.options.on_error == "disable"

        def call(sender: object) -> object:
            try:
                result = receiver(sender)
                reject_flag(result)
                return result
            except Exception as error:
                where = self.describe() + position(sender)
                if disable:
                    self.detach()
                    logger.exception("%s failed and has been disconnected", where)
                else:
                    # Epoch and batch are in it: Python shows warnings of equal text only once.
                    text = f"{where} failed: {type(error).__name__}: {error}"
                    warnings.warn(text, RuntimeWarning, stacklevel=2)
                return None

        return call

    def leave(self) -> None:
        """Note that it is on no signal any more; its signal calls this."""
        self.key = None
        # Both refer to this handler, which would otherwise live until a collection.
        self.detach = _nothing
        self.around = None
        if self in self.tally.handlers:
            self.tally.handlers.remove(self)

    def _receiver_died(self, _: object) -> None:
        self.detach()


def _nothing() -> None:
    return None


# One small function a filter: a call that is filtered out costs little more than the call.


def _during(call: Callable[[Any], object], phase: str) -> Callable[[Any], object]:
    def filtered(sender: Any) -> object:
        return call(sender) if sender.phase == phase else None

    return filtered


def _when(
    call: Callable[[Any], object], predicate: Callable[[Any], object]
) -> Callable[[Any], object]:
    def filtered(sender: object) -> object:
        return call(sender) if predicate(sender) else None

    return filtered


def _every(call: Callable[[Any], object], n: int, tally: Tally) -> Callable[[Any], object]:
    def filtered(sender: object) -> object:
        tally.left = left = tally.left - 1
        if left:
            return None
        tally.left = n
        return call(sender)

    return filtered


def _once(call: Callable[[Any], object], tally: Tally) -> Callable[[Any], object]:
    def filtered(sender: object) -> object:
        if tally.is_spent:  # an emission that began before it left
            return None
        tally.is_spent = True
        tally.detach()
        return call(sender)

    return filtered


class Subscription:
    """What ``on`` returns: a handle on handlers subscribed together.

    As a context manager it disconnects them when the block is left.
    """

    __slots__ = ("handlers",)

    def __init__(self, handlers: Sequence[Handler]) -> None:
        self.handlers = tuple(handlers)

    @property
    def connected(self) -> bool:
        """Whether any of the handlers is still subscribed."""
        return any(handler.key is not None for handler in self.handlers)

    def disconnect(self) -> None:
        """End the subscription; does nothing the second time."""
        for handler in self.handlers:
            handler.detach()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *error: object) -> None:
        self.disconnect()

    def __repr__(self) -> str:
        state = "" if self.connected else "disconnected: "
        return f"<Subscription: {state}{'; '.join(h.describe() for h in self.handlers)}>"


def number(value: float) -> str:
    """Return a priority as people would write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def position(sender: object) -> str:
    """Return ``", epoch 1, batch 17"`` as far as the sender knows them."""
    text = ""
    for label, field in (("epoch", "epoch"), ("batch", "batch_index")):
        value = getattr(sender, field, None)
        if value is not None:
            text += f", {label} {value}"
    return text
