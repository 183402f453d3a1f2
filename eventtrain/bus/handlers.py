"""One handler of one event: what to call, when, in what order, and what if it fails."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol, TypedDict, cast

from ..arguments import flag, real_number, whole_number
from ..errors import describe
from ..events import PhaseName, ScopeSpec
from ..launch import found_launch
from . import filters
from .filters import Tally
from .receivers import (
    Receiver,
    is_async,
    name_of,
    reference_to,
    reject_result,
    source_of,
    why_not_run,
)

OnError = Literal["raise", "warn", "disable"]
Ranks = Literal["all", "zero", "local_zero"]
Around = Callable[["Handler", Callable[[Any], object]], Callable[[Any], object]]
"""Wraps what an emission calls for a handler."""
logger = logging.getLogger("eventtrain")


class MethodOptions(TypedDict, total=False):
    """What ``@handler`` takes, for type checkers; see ``EventBus.on`` for their meaning."""

    priority: float
    before: str | Iterable[str]
    after: str | Iterable[str]
    name: str | None
    every: int
    once: bool
    when: Callable[[Any], object] | None
    during: PhaseName | ScopeSpec | None
    weak: bool
    on_error: OnError
    ranks: Ranks


class HandlerOptions(MethodOptions, total=False):
    """What ``EventBus.on`` takes, for type checkers."""

    sender: Any


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
    during: str | ScopeSpec | None = None
    weak: bool = False
    on_error: OnError = "raise"
    ranks: Ranks = "all"

    def __post_init__(self) -> None:
        real_number("priority", self.priority)
        whole_number("every", self.every, 1)
        flag("once", self.once)
        flag("weak", self.weak)
        if self.when is not None:
            if not callable(self.when):
                raise TypeError(f"when must be a function of the run, got {self.when!r}")
            cause = why_not_run(self.when)
            if cause is not None:  # what it returns would always be true
                raise TypeError(f"when={name_of(self.when)} {cause}")
        if isinstance(self.during, ScopeSpec):
            object.__setattr__(self, "during", self.during.name)
        if self.during is not None and not isinstance(self.during, str):
            raise TypeError(f"during must be the name of a phase, got {self.during!r}")
        if self.on_error not in ("raise", "warn", "disable"):
            raise ValueError(f"on_error must be raise, warn or disable, got {self.on_error!r}")
        if self.ranks not in ("all", "zero", "local_zero"):
            raise ValueError(f"ranks must be all, zero or local_zero, got {self.ranks!r}")
        object.__setattr__(self, "before", names(self.before))
        object.__setattr__(self, "after", names(self.after))


class Owner(Protocol):
    """Whose handlers are not the user's own; see ``Provider``."""

    def take(self, handler: Handler) -> None:
        """Have a handler be the plugin's."""
        ...

    @property
    def sender(self) -> Any:
        """Whom its handlers hear where they name nobody."""
        ...


def names(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


class Handler:
    """A receiver on one event, with its options; what a signal's order consists of.

    Attributes:
        event: Name of the event.
        name: The name that ``before=`` and ``after=`` of others refer to.
        priority, before, after: What its place in the order follows from.
        options: All options.
        source: Where the function was written, as ``module:line``.
        plugin: Which plugin brought it, as people should read it; ``None`` for user code.
        provider: That plugin itself, on the bus that it was loaded onto; or ``None``.
        home: What the signals of one bus have in common; that of the signal it was put on last.
        calls: How often it has run, counted for handlers with a filter;
            ``None`` for the others, which are called without any detour.
        tally: What ``every`` and ``once`` count, together with the handlers
            subscribed in the same call.
        key: What its signal knows it by; ``None`` while it is on none.
        detach: Takes it off its signal; does nothing the second time.
        bury: Called when its function, which is held weakly, has died; its signal sets it.
        changed_in: The thread that has put it on its signal, or taken it off, last.
        around: What ``callee`` wraps its function in, or ``None``; its signal sets it.
    """

    __slots__ = (
        "__weakref__",
        "_receiver",
        "after",
        "around",
        "before",
        "bury",
        "calls",
        "changed_in",
        "detach",
        "event",
        "home",
        "key",
        "name",
        "options",
        "plugin",
        "priority",
        "provider",
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
        self.provider: Owner | None = None
        self.home: object = None
        self.key: Any = None
        self.detach: Callable[[], None] = _nothing
        self.bury: Callable[[], object] = _nothing
        self.changed_in: int | None = None
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

    @property
    def reference(self) -> Callable[[], Receiver | None] | None:
        """The weak reference to the function, where it is held weakly."""
        return self._receiver if self.options.weak else None

    @property
    def is_bare(self) -> bool:
        """Whether nothing stands between a call and the function: neither filter nor guard."""
        return self.calls is None and self.options.on_error == "raise"

    def __call__(self, sender: object, **arguments: object) -> object:
        """Run it as ``blinker.Signal.send`` does, filters and all."""
        receiver = self.receiver
        if receiver is None:
            return None
        if self.is_bare:
            return receiver(sender, **arguments)
        if arguments:
            receiver = functools.partial(receiver, **arguments)
        return self.filtered(receiver)(sender)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self.describe()} cannot be copied or pickled: it belongs to its signal. "
            "Copy the bus, or subscribe the function again with bus.on(...)."
        )

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
        if options.ranks != "all":
            parts.append(f"ranks={options.ranks}")
        return " ".join(parts)

    def runs_for(self, sender: object) -> bool:
        """Whether it runs in this process."""
        return is_among(self.options.ranks, sender)

    def callee(self) -> Callable[[Any], object]:
        """Return what an emission calls: the bare function when nothing stands between."""
        refused = is_async(self.receiver)
        call = self.filtered(self._refuse_to_await if refused else self.unfiltered())
        return call if self.around is None else self.around(self, call)

    def unfiltered(self) -> Callable[[Any], object]:
        """Return what stands behind the filters; made anew after every change of the order."""
        return self._dereferencing() if self.options.weak else cast(Receiver, self._receiver)

    def filtered(self, call: Callable[[Any], object]) -> Callable[[Any], object]:
        """Return ``call`` with the handler's filters and its ``on_error`` around it."""
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
            call = filters.once(call, self.tally)
        if options.every > 1:
            call = filters.every(call, options.every, self.tally)
        if options.when is not None:
            call = filters.when(call, options.when)
        if options.during is not None:
            call = filters.during(call, str(options.during))
        return call

    def _counting(self, receiver: Callable[[Any], object]) -> Callable[[Any], object]:
        def call(sender: object) -> object:
            self.calls += 1  # type: ignore[operator]  # a filtered handler counts
            return receiver(sender)

        return call

    def _guarding(self, receiver: Callable[[Any], object]) -> Callable[[Any], object]:
        def call(sender: object) -> object:
            try:
                result = receiver(sender)
                reject_result(result)
                return result
            except Exception as error:
                if not self.forgives(error, sender):
                    raise
                return None

        return call

    def forgives(self, error: Exception, sender: object) -> bool:
        """Do what ``on_error`` says about an exception of this handler; whether that was all.

        Called where ``error`` is being handled.
        """
        if self.options.on_error == "raise":
            return False
        where = self.describe() + place_of(sender)
        if self.options.on_error == "disable":
            self.detach()
            logger.exception("%s failed and has been disconnected", where)
        else:
            # Epoch and batch are in it: Python shows warnings of equal text only once.
            text = f"{where} failed: {describe(error)}"
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        return True

    def snapshot(self) -> dict[str, Any]:
        """Return the values of all slots that may change, but for how often it has run."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in _LASTING}

    def leave(self) -> None:
        """Note that it is on no signal any more; its signal calls this."""
        self.key = None
        # They refer to this handler, which would otherwise live until a collection.
        self.detach = self.bury = _nothing
        self.around = None
        if self in self.tally.handlers:
            self.tally.handlers.remove(self)

    def _receiver_died(self, _: object) -> None:
        self.bury()


def is_among(ranks: Ranks, sender: object) -> bool:
    """Whether this process is one of ``ranks``, by where the sender says that it is.

    A sender that does not say is where the process was started.
    """
    if ranks == "all":
        return True
    name = "rank" if ranks == "zero" else "local_rank"
    rank: object = getattr(sender, name, None)
    if rank is None:
        launch = found_launch()
        return launch is None or getattr(launch, name) == 0
    return rank == 0


_LASTING = ("__weakref__", "calls")


def _nothing() -> None:
    return None


def number(value: float) -> str:
    """Return a priority as people would write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def place_of(sender: object) -> str:
    """Return ``", epoch 1, batch 17"`` as far as the sender knows them."""
    text = ""
    for label, field in (("epoch", "epoch"), ("batch", "batch_index")):
        value = getattr(sender, field, None)
        if value is not None:
            text += f", {label} {value}"
    return text
