"""Profiling: what the handlers of a bus cost, and when each of them ran.

``with bus.profile() as p:`` has the emissions of that bus compiled anew, with a
clock around every handler, and again without when the block is left: a bus that
is not being profiled runs the same code as if there were no profiles.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any, NoReturn

from ..arguments import whole_number
from ..cancellation import CLOSING_CODE, Scope
from ..text_table import text_table
from .handlers import Handler
from .spans import Spans

MAX_SPANS = 1_000_000
"""How many spans a profile keeps for its trace by default: 32 MB of them."""

_UNREAD = 4096


@dataclass(slots=True)
class Timing:
    """What is known of one handler; ``device_ms`` where CUDA was in use."""

    event: str
    handler: str
    source: str
    plugin: str | None
    label: int
    calls: int = 0
    nanoseconds: int = 0
    device_ms: float | None = None


class DeviceClock:
    """Times handlers on the CUDA device with pairs of events, without waiting for it."""

    def __init__(self) -> None:
        self._unread: list[tuple[Timing, Any, Any]] = []

    def start(self, torch: Any) -> tuple[Any, Any] | None:
        """Mark a beginning on the current stream; ``None`` where CUDA is not in use."""
        if not torch.cuda.is_initialized():
            return None
        # A device that has failed fails here too: handlers are to run all the same.
        with suppress(RuntimeError):
            stream, event = torch.cuda.current_stream(), torch.cuda.Event(enable_timing=True)
            event.record(stream)
            return stream, event
        return None

    def stop(self, torch: Any, timing: Timing, start: tuple[Any, Any]) -> None:
        """Mark the end on the stream of the beginning."""
        with suppress(RuntimeError):
            end = torch.cuda.Event(enable_timing=True)
            end.record(start[0])
            self._unread.append((timing, start[1], end))
            if len(self._unread) % _UNREAD == 0:
                self.read(wait=False)

    def read(self, *, wait: bool) -> None:
        """Add up what the device has passed; with ``wait``, wait until it has passed all."""
        unread, self._unread = self._unread, []
        for timing, start, end in unread:
            if wait:
                end.synchronize()
            elif not end.query():
                self._unread.append((timing, start, end))
                continue
            timing.device_ms = (timing.device_ms or 0.0) + start.elapsed_time(end)


class Profile:
    """Calls and times of every handler; ``EventBus.profile`` makes it.

    Times are host times and include the handler's filters and whatever it emits
    itself. ``calls`` counts the calls that passed the filters. Handlers that
    agree in event, name, source and plugin share a row. Only ``emit`` is timed,
    not blinker's ``send``. While a torch profiler is active, each handler is also
    a range called ``event/handler`` in its trace.

    Args:
        max_spans: How many calls and scopes are kept for the trace. Those beyond
            are counted in the table all the same, and in ``dropped``.

    Attributes:
        is_running: Whether the block is being run.
    """

    def __init__(self, max_spans: int = MAX_SPANS) -> None:
        self.max_spans = whole_number("max_spans", max_spans, 0)
        self.is_running = False
        self._timed_scopes: dict[type[Scope], type[Scope]] = {}
        self._began = self._ended = 0
        self._timings: dict[tuple[object, ...], Timing] = {}
        self._calls: weakref.WeakKeyDictionary[Handler, list[int]] = weakref.WeakKeyDictionary()
        self._device = DeviceClock()
        self._spans = Spans(max_spans, 0)
        # Several threads may run on one bus, and a signal handler may emit.
        self._lock = threading.RLock()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Profile cannot be copied or pickled: it belongs to the bus that it times. Take what "
            "it has measured: to_dicts(), to_json(path) or table()."
        )

    # While it runs

    def start(self) -> None:
        """Begin; ``EventBus.profile`` calls it."""
        self._began, self.is_running = perf_counter_ns(), True
        self._spans = Spans(self.max_spans, self._began)

    def stop(self) -> None:
        """End: what is open still ends here, and the device's times are read."""
        with self._lock:
            self.is_running = False
            self._ended = perf_counter_ns()
            self._spans.close_all(self._ended)
            with suppress(RuntimeError):
                self._device.read(wait=True)

    def wrap(
        self, scope: str, handler: Handler, call: Callable[[Any], object]
    ) -> Callable[[Any], object]:
        """Return ``call``, which runs ``handler``, with a clock around it."""
        timing, count = self._timing_of(scope, handler), self._calls.setdefault(handler, [0, 0])
        label = f"{handler.event}/{handler.name}"

        def timed(sender: Any) -> object:
            if not self.is_running:  # an emission that began in the block and outlived it
                return call(sender)
            torch = sys.modules.get("torch")
            entered = _enter_range(torch, label)
            device = None if torch is None else self._device.start(torch)
            calls, start = handler.calls, perf_counter_ns()
            try:
                return call(sender)
            finally:
                end = perf_counter_ns()
                if device is not None:
                    self._device.stop(torch, timing, device)
                if entered is not None:
                    entered.__exit__(None, None, None)
                # A handler with filters counts for itself when they let it run.
                self._add(timing, count, start, end, calls is None or calls != handler.calls)

        return timed

    def follow(self, scopes: Iterable[Scope]) -> None:
        """Time these scopes too, from the next time they are entered."""
        for scope in scopes:
            own = type(scope)
            if own in self._timed_scopes.values():
                continue
            if own not in self._timed_scopes:
                self._timed_scopes[own] = _timed_scope(self, own)
            scope.__class__ = self._timed_scopes[own]

    def unfollow(self, scopes: Iterable[Scope]) -> None:
        """Make of them again what they were."""
        for own, timed in self._timed_scopes.items():
            for scope in scopes:
                if type(scope) is timed:
                    scope.__class__ = own

    def opened(self, scope: Scope) -> None:
        """Note that a scope begins."""
        with self._lock:
            if self.is_running:
                self._spans.open(scope)

    def closed(self, scope: Scope) -> None:
        """Note that a scope and the handlers of its closing event have ended."""
        with self._lock:
            self._spans.close(scope, perf_counter_ns())

    def of(self, handler: Handler) -> tuple[int, float]:
        """Return how often ``handler`` has run since the block began, and the ms it took."""
        calls, nanoseconds = self._calls.get(handler, (0, 0))
        return calls, nanoseconds / 1e6

    # What came of it

    @property
    def dropped(self) -> int:
        """How many calls and scopes the trace lacks."""
        return self._spans.dropped

    @property
    def seconds(self) -> float:
        """Wall time of the block, so far or in all."""
        return ((perf_counter_ns() if self.is_running else self._ended) - self._began) / 1e9

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one dictionary a handler that was called, the most expensive first.

        ``share`` is its part of the block's wall time, from 0 to 1; ``device_ms``
        is ``None`` unless CUDA was in use.
        """
        wall = self.seconds * 1e9 or 1.0
        with self._lock:
            timings = sorted(self._timings.values(), key=lambda t: -t.nanoseconds)
            return [
                {
                    "event": t.event,
                    "handler": t.handler,
                    "source": t.source,
                    "plugin": t.plugin,
                    "calls": t.calls,
                    "total_ms": t.nanoseconds / 1e6,
                    "mean_us": t.nanoseconds / 1e3 / t.calls if t.calls else None,
                    "share": t.nanoseconds / wall,
                    "device_ms": t.device_ms,
                }
                for t in timings
                if t.nanoseconds
            ]

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return ``seconds``, ``dropped`` and ``handlers`` as JSON; write it to ``path`` if given.

        Each of the handlers has the fields of ``to_dicts``.
        """
        data = {"seconds": self.seconds, "dropped": self.dropped, "handlers": self.to_dicts()}
        text = json.dumps(data, indent=1)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def table(self) -> str:
        """Return the rows of ``to_dicts`` as text."""
        rows = self.to_dicts()
        if not rows:
            return "no handler was called"
        names = ["event", "handler", "source", "plugin"]
        table = [[*names, "calls", "total ms", "mean us", "share", "device ms"]]
        for row in rows:
            mean, device = row["mean_us"], row["device_ms"]
            table.append(
                [
                    *(row["event"], row["handler"], row["source"], row["plugin"] or ""),
                    *(str(row["calls"]), f"{row['total_ms']:.3f}"),
                    *("" if mean is None else f"{mean:.1f}", f"{100 * row['share']:.1f} %"),
                    "" if device is None else f"{device:.3f}",
                ]
            )
        return text_table(table, left=len(names), drop_empty=True)

    __str__ = table

    def __repr__(self) -> str:
        state = "running" if self.is_running else "ended"
        return f"<Profile, {state}: {len(self.to_dicts())} handlers, {self.seconds:.3f} s>"

    def to_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the spans as a trace in JSON, which Perfetto and chrome://tracing open.

        Every scope has a lane of its own, with the scope's spans and in them the
        handlers of its events; other threads have lanes of their own. Scopes that
        were open when the block began are not drawn. Beginnings and ends are
        separate events, in order of time. ``otherData`` says how many spans were
        dropped.
        """
        about = {"seconds": self.seconds, "max_spans": self.max_spans, "dropped": self.dropped}
        with open(path, "w", encoding="utf-8") as file, self._lock:
            self._spans.write_chrome_trace(file, about)

    # Keeping the record; the caller holds the lock

    def _add(self, timing: Timing, count: list[int], start: int, end: int, ran: bool) -> None:
        with self._lock:
            if not self.is_running:  # the block was left inside of this very call
                end = self._ended
            timing.nanoseconds += end - start
            count[1] += end - start
            if ran:
                timing.calls += 1
                count[0] += 1
                self._spans.add(timing.label, start, end)

    def _timing_of(self, scope: str, handler: Handler) -> Timing:
        names = (handler.event, handler.name, handler.source, handler.plugin)
        with self._lock:
            timing = self._timings.get(names)
            if timing is None:
                arguments = {"source": handler.source}
                if handler.plugin:
                    arguments["plugin"] = handler.plugin
                label = self._spans.label(scope, f"{handler.event}/{handler.name}", arguments)
                timing = self._timings[names] = Timing(*names, label)
            return timing


def _enter_range(torch: Any, label: str) -> Any:
    """Open a range in the trace of torch's profiler, if that is active."""
    if torch is None or not torch.autograd._profiler_enabled():
        return None
    entered = torch.profiler.record_function(label)
    entered.__enter__()
    return entered


def _timed_scope(profile: Profile, own: type[Scope]) -> type[Scope]:
    """Make the class that scopes of ``own`` have while ``profile`` runs: others pay nothing."""

    class TimedScope(own):  # type: ignore[misc,valid-type]  # a class that is known when it runs
        __slots__ = ()

        def __enter__(self) -> Scope:
            own.__enter__(self)
            profile.opened(self)
            return self

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
        ) -> bool:
            try:
                # Not super(): a block that ends in the scope has made it an untimed one by now.
                return own.__exit__(self, kind, error, traceback)
            finally:
                profile.closed(self)

    CLOSING_CODE.update({TimedScope.__enter__.__code__, TimedScope.__exit__.__code__})
    return TimedScope
