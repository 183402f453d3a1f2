"""Handlers that run beside the loop, in a thread of their own, on a record of the run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from queue import Full, Queue
from threading import Thread
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from .arguments import whole_number
from .bus.handlers import Handler, HandlerOptions, logger, names, place_of
from .bus.receivers import Receiver, check_receiver, name_of, reject_result, source_of
from .bus.running import running_handler
from .bus.subscription import Subscription
from .data.batch import convert_parts
from .errors import add_note
from .optimizers import parameter_groups

WhenFull = Literal["wait", "drop"]
TENSORS = ("pred", "xb", "yb", "batch", "weight")
"""What is copied into a record where it is asked for."""
_NUMBERS = (
    *(
        "epoch",
        "epochs",
        "total_steps",
        "n_epochs",
        "n_iter",
        "steps",
        "phase",
        "valid_name",
        "in_train",
        "batch_index",
    ),
    *("iters", "train_iters", "outcome", "rank"),
)
_ROOTS = ("fit", "validate", "predict")
_CLOSING = ("after_batch", "after_train", "after_validate", "after_predict", "after_epoch")
_PAUSE = 0.1  # seconds


class RunnerOptions(HandlerOptions, total=False):
    """What ``Runner.on`` takes, for type checkers."""

    background: bool
    queue: int
    full: WhenFull
    tensors: str | Iterable[str]


class Record:
    """What a run was when an event fired; nothing of it changes.

    It has ``event``, ``time`` (seconds since 1970), ``loss`` and ``losses`` (copies, on their
    device, without a graph), ``lrs`` (of the parameter groups), ``row`` (of the history, as it
    was), the counters of the run from ``epoch`` to ``steps``, and what ``tensors=`` has named.
    """

    __slots__ = ("_fields",)
    _fields: Mapping[str, Any]

    def __init__(self, fields: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_fields", MappingProxyType(dict(fields)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._fields:
            return self._fields[name]
        remedy = f": ask for a copy, tensors=({name!r},)" if name in TENSORS else ""
        raise AttributeError(
            f"a handler in the background gets a record of the run, which has no {name!r}{remedy}. "
            f"It has {', '.join(self._fields)}"
        )

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(
            f"{name} of a record cannot be set: the run has gone on. What changes the run is a "
            "handler without background=True"
        )

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self._fields]

    def __repr__(self) -> str:
        return f"<Record of {self.event}{place_of(self)}>"


def record_of(run: Any, event: str, tensors: Iterable[str] = ()) -> Record:
    """Copy what there is of a run, without waiting for a device."""
    groups = [] if run.learn is None else [group for _, group in parameter_groups(run.opt)]
    found = {name: getattr(run, name) for name in (*_NUMBERS, "loss", "losses")}
    for name in ("loss", "losses", *tensors):
        found[name] = _copied(getattr(run, name))
    found["lrs"] = tuple(_copied(group.get("lr")) for group in groups)
    found["row"] = MappingProxyType(
        {k: _copied(v) for k, v in run.history[-1].items()} if run.history else {}
    )
    return Record({"event": event, "time": time.time(), **found})


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else convert_parts(value, _copied)


class Background:
    """Has one function run in a thread, once for each record, in order.

    Args:
        fn: ``fn(record)``.
        size: How many records may wait.
        full: What happens to one for which there is no room: the loop waits, or it is dropped.
        tensors: What a record has besides.

    Attributes:
        dropped: Records dropped in this run.
    """

    def __init__(self, fn: Receiver, size: int, full: WhenFull, tensors: tuple[str, ...]) -> None:
        self._fn, self._size, self._full, self._tensors = fn, size, full, tensors
        self._handlers: tuple[Handler, ...] = ()
        self._thread: Thread | None = None
        self._process = 0
        self._error: BaseException | None = None
        self._has_failed = False
        self.dropped = 0

    def subscribe(
        self, on: Callable[..., Subscription], event: str | Iterable[str], options: dict[str, Any]
    ) -> Subscription:
        """Subscribe to ``event`` and to the closing events by ``on``."""
        check_receiver(self._fn, ", ".join(names(event)))
        name = options.pop("name", None) or name_of(self._fn)
        self._handlers = on(event, self.hand_over, name=name, **options).handlers
        for handler in self._handlers:
            handler.source = f"{source_of(self._fn)}, in background"  # as explain() shows it
        last = float("-inf")
        ends = on((*_CLOSING, "after_fit"), self.close, name=f"{name} in background", priority=last)
        return Subscription([*self._handlers, *ends.handlers])

    @property
    def is_subscribed(self) -> bool:
        """Whether it hears of any event."""
        return any(handler.key is not None for handler in self._handlers)

    # In the thread of the loop

    def hand_over(self, run: Any) -> None:
        """Have the function called with a record of now."""
        handler = self._handlers[0]
        if len(self._handlers) > 1:
            handler = running_handler() or handler
        record = record_of(run, handler.event, self._tensors)
        is_here = self._thread is None or self._process == os.getpid()
        if not run.is_running or not is_here:  # nobody would end the thread, or there is none
            reject_result(self._fn(record))
            return
        if self._thread is None:
            self._begin()
        self._put(handler, record, _marked(run))

    def _begin(self) -> None:
        self.dropped, self._has_failed, self._process = 0, False, os.getpid()
        self._queue: Queue[Any] = Queue(self._size)
        name = f"eventtrain {self._handlers[0].name}"
        self._thread = Thread(target=self._work, args=(self._queue,), name=name, daemon=True)
        self._thread.start()

    def _put(self, *entry: Any) -> None:
        if self._full == "drop":
            try:
                self._queue.put_nowait(entry)
            except Full:
                self.dropped += 1
            return
        while True:
            try:
                return self._queue.put(entry, timeout=_PAUSE)
            except Full:  # looked at anew, so that a signal is received meanwhile
                continue

    def close(self, run: Any) -> None:
        """Raise what the function has raised; where the run ends, wait for it first."""
        if self._thread is not None and not any(getattr(run.scope, n).is_open for n in _ROOTS):
            self.stop()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def stop(self) -> None:
        """Have all records worked off, and end the thread; do nothing where there is none."""
        thread, self._thread = self._thread, None
        if thread is None or self._process != os.getpid():
            return
        try:
            self._queue.put(None)
            thread.join()
        except BaseException:  # an interrupt: what waits is given up, and the thread ends
            self._has_failed = True
            self._queue.put(None)
            raise
        finally:
            del self._queue
        if self.dropped:
            logger.warning(
                "%s was not told of %d events, for which its queue of %d had no room",
                self._handlers[0].describe(),
                self.dropped,
                self._size,
            )

    # In the thread of the function

    def _work(self, queue: Queue[Any]) -> None:
        while (entry := queue.get()) is not None:
            if not self._has_failed:
                self._call(*entry)

    def _call(self, handler: Handler, record: Record, mark: torch.cuda.Event | None) -> None:
        try:
            if mark is not None:
                mark.synchronize()  # what was copied may lie on a stream that this thread is not on
            reject_result(self._fn(record))
        except BaseException as error:
            if isinstance(error, Exception) and handler.forgives(error, record):
                self._has_failed = handler.options.on_error == "disable"
                return
            add_note(error, f"eventtrain: raised in {handler.describe()}{place_of(record)}")
            self._error, self._has_failed = error, True


def _marked(run: Any) -> torch.cuda.Event | None:
    """Return what is over when all that the device was given until now is."""
    if not (isinstance(run.loss, Tensor) and run.loss.is_cuda):
        return None
    mark: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    mark.record()
    return mark


class Backgrounds:
    """The handlers of one runner that run in the background."""

    def __init__(self) -> None:
        self._all: list[Background] = []

    def subscribe(
        self,
        on: Callable[..., Subscription],
        event: str | Iterable[str],
        fn: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        """Subscribe as ``Runner.on`` does: a function, or as a decorator.

        Raises:
            TypeError, ValueError: An option is none, or does not go together with another.
        """
        size = whole_number("queue", options.pop("queue", 1000), 1, "records")
        full = options.pop("full", "wait")
        if full not in ("wait", "drop"):
            raise ValueError(f"full must be 'wait' or 'drop', got {full!r}")
        tensors = names(options.pop("tensors", ()))
        strange = [name for name in tensors if name not in TENSORS]
        if strange:
            raise ValueError(f"tensors can be of {', '.join(TENSORS)}, got {strange[0]!r}")
        if options.get("weak"):
            raise ValueError("a handler in the background is held strongly: leave weak out")

        def subscribe(function: Any) -> Subscription:
            background = Background(function, size, full, tensors)
            subscription = background.subscribe(on, event, dict(options))
            self._all.append(background)
            return subscription

        def decorate(function: Any) -> Any:
            subscribe(function)
            return function

        return subscribe(*fn) if fn else decorate

    def stop(self) -> None:
        """End all threads that have not ended with the run's own closing event."""
        for background in self._all:
            background.stop()
        self._all = [background for background in self._all if background.is_subscribed]


def without_background(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a handler that runs in the loop.

    Raises:
        TypeError: One is of those that run in the background.
    """
    for name in ("queue", "full", "tensors"):
        if name in options:
            raise TypeError(f"{name} is an option of handlers in the background: background=True")
    return options
