"""Handlers that run beside the loop, in a thread of their own, on a record of the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from queue import Full, Queue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from .background_options import Waiting, parted
from .bus.event_bus import Events, events_of
from .bus.handlers import Handler, Options, logger, place_of
from .bus.receivers import Receiver, check_receiver, name_of, reject_result, source_of
from .bus.running import HandlerThread, running_handler
from .bus.subscription import Subscription
from .errors import add_note
from .record import Record, record_of

_ROOTS = ("fit", "validate", "predict")
_CLOSING = ("after_batch", "after_train", "after_validate", "after_predict", "after_epoch")
_ENDS = (*_CLOSING, "after_fit")
_PAUSE = 0.1  # seconds


class Background:
    """Has one function run in a thread, once for each record, in order.

    Args:
        fn: ``fn(record)``.
        waiting: How records wait, and what they have besides.

    Attributes:
        dropped: Records dropped in this run.
    """

    def __init__(self, fn: Receiver, waiting: Waiting) -> None:
        self._fn, self._waiting = fn, waiting
        self._handlers: tuple[Handler, ...] = ()
        self._thread: Thread | None = None
        self._process = 0
        self._error: BaseException | None = None
        self._has_failed = False
        self.dropped = 0

    def subscribe(
        self, on: Callable[..., Subscription], events: tuple[str, ...], options: dict[str, Any]
    ) -> Subscription:
        """Subscribe to ``events`` and to the closing events by ``on``."""
        check_receiver(self._fn, ", ".join(events))
        name = options.pop("name", None) or name_of(self._fn)
        self._take(on(events, self.hand_over, name=name, **options).handlers, self._fn)
        ends = on(_ENDS, self.close, **self._ending())
        return Subscription([*self._handlers, *ends.handlers])

    def handlers(
        self, events: Iterable[str], options: Options, origin: Receiver, plugin: str | None
    ) -> list[Handler]:
        """Return the handlers of ``events`` and of the closing events.

        Args:
            events: What the function is told of.
            options: Of these handlers.
            origin: As it was written.
            plugin: The plugin that brought it, for messages.
        """
        found = [Handler(e, self.hand_over, options, origin=origin, plugin=plugin) for e in events]
        self._take(found, origin)
        ending = Options(**self._ending())
        return [*found, *(Handler(e, self.close, ending, plugin=plugin) for e in _ENDS)]

    def _take(self, handlers: Iterable[Handler], origin: Receiver) -> None:
        self._handlers = tuple(handlers)
        for handler in self._handlers:
            handler.source = f"{source_of(origin)}, in background"  # as explain() shows it

    def _ending(self) -> dict[str, Any]:
        name = f"{self._handlers[0].name} in background"
        return {"name": name, "priority": float("-inf")}

    # In the thread of the loop

    def hand_over(self, run: Any) -> None:
        """Have the function called with a record of now."""
        handler = self._handlers[0]
        if len(self._handlers) > 1:
            handler = running_handler() or handler
        record = record_of(run, handler.event, self._waiting.tensors)
        is_here = self._thread is None or self._process == os.getpid()
        if not run.is_running or not is_here:  # nobody would end the thread, or there is none
            reject_result(self._fn(record))
            return
        if self._thread is None:
            self._begin()
            run.backgrounds.note(self)
        self._put(handler, record, _marked(run))

    def _begin(self) -> None:
        self.dropped, self._has_failed, self._process = 0, False, os.getpid()
        self._queue: Queue[Any] = Queue(self._waiting.queue)
        self._thread = HandlerThread(self._handlers[0], self._work, self._queue)
        self._thread.start()

    def _put(self, *entry: Any) -> None:
        if self._waiting.full == "drop":
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
                self._waiting.queue,
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
        self._begun: list[Background] = []

    def subscribe(
        self,
        on: Callable[..., Subscription],
        event: Events,
        fn: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        """Subscribe as ``Runner.on`` does: a function, or as a decorator.

        Args:
            on: Subscribes a handler that runs in the loop.
            event: As for ``Runner.on``.
            fn: The function, if it is given.
            options: Those of the loop and of the background.

        Raises:
            TypeError, ValueError: An option is none, or does not go together with another.
        """
        plain, waiting = parted(options)
        if waiting is None:
            return on(event, *fn, **plain)
        events = events_of(event)

        def subscribe(function: Any) -> Subscription:
            return Background(function, waiting).subscribe(on, events, dict(plain))

        def decorate(function: Any) -> Any:
            subscribe(function)
            return function

        return subscribe(*fn) if fn else decorate

    def note(self, background: Background) -> None:
        """Have one whose thread has begun be ended with the run."""
        self._begun.append(background)

    def stop(self) -> None:
        """End all threads that have not ended with the run's own closing event."""
        begun, self._begun = self._begun, []
        for background in begun:
            background.stop()
