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
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any

from .cancellation import Scope
from .events import SCOPES
from .handlers import Handler

MAX_SPANS = 1_000_000
"""How many spans a profile keeps for its trace by default: 32 MB of them."""

_UNREAD = 4096
_WIDTH = 4  # of a span: label, thread, start, end
_LANES = (*SCOPES, "")


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
        dropped: How many calls and scopes the trace lacks.
        is_running: Whether the block is being run.
    """

    def __init__(self, max_spans: int = MAX_SPANS) -> None:
        if isinstance(max_spans, bool) or not isinstance(max_spans, int) or max_spans < 0:
            raise ValueError(f"max_spans must be a whole number from 0 on, got {max_spans!r}")
        self.max_spans = max_spans
        self.dropped = 0
        self.is_running = False
        self.timed_scope = _timed_scope(self)
        self._began = self._ended = 0
        self._timings: dict[tuple[object, ...], Timing] = {}
        self._calls: weakref.WeakKeyDictionary[Handler, list[int]] = weakref.WeakKeyDictionary()
        self._device = DeviceClock()
        self._labels: list[tuple[str, str, dict[str, str]]] = []  # lane, name, arguments
        self._scope_labels = {name: self._label(name, name, {}) for name in SCOPES}
        self._threads: dict[int, tuple[int, str]] = {}
        self._spans = array("q")
        self._open: dict[Scope, int | None] = {}
        # Several threads may run on one bus, and a signal handler may emit.
        self._lock = threading.RLock()

    # While it runs

    def start(self) -> None:
        """Begin; ``EventBus.profile`` calls it."""
        self._began, self.is_running = perf_counter_ns(), True

    def stop(self) -> None:
        """End: what is open still ends here, and the device's times are read."""
        with self._lock:
            self.is_running = False
            self._ended = perf_counter_ns()
            for scope in list(self._open):
                self._close(scope, self._ended)
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
            scope.__class__ = self.timed_scope

    def unfollow(self, scopes: Iterable[Scope]) -> None:
        """Make plain scopes of them again."""
        for scope in scopes:
            scope.__class__ = Scope

    def opened(self, scope: Scope) -> None:
        """Note that a scope begins; it takes its place in the trace now, while there is room."""
        with self._lock:
            if self.is_running:
                now = perf_counter_ns()
                self._open[scope] = self._span(self._scope_labels[scope.name], now, now)

    def closed(self, scope: Scope) -> None:
        """Note that a scope and the handlers of its closing event have ended."""
        with self._lock:
            if scope in self._open:
                self._close(scope, perf_counter_ns())

    def of(self, handler: Handler) -> tuple[int, float]:
        """Return how often ``handler`` has run since the block began, and the ms it took."""
        calls, nanoseconds = self._calls.get(handler, (0, 0))
        return calls, nanoseconds / 1e6

    # What came of it

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
        titles = ["event", "handler", "source", "plugin", "calls", "total ms", "mean us", "share"]
        table = [[*titles, "device ms"]]
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
        kept = [column for column in zip(*table, strict=True) if any(column[1:])]
        columns = []
        for column in kept:
            width, is_text = max(map(len, column)), column[0] in titles[:4]
            columns.append([c.ljust(width) if is_text else c.rjust(width) for c in column])
        return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))

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
        other = {"seconds": self.seconds, "max_spans": self.max_spans, "dropped": self.dropped}
        with open(path, "w", encoding="utf-8") as file, self._lock:
            head = {"displayTimeUnit": "ms", "otherData": other}
            file.write(json.dumps(head)[:-1] + ', "traceEvents": [')
            for i, event in enumerate(self._trace_events()):
                file.write((",\n" if i else "\n") + json.dumps(event))
            file.write("\n]}\n")

    def _trace_events(self) -> Iterator[dict[str, Any]]:
        pid, lanes = os.getpid(), self._lanes()
        common = {"ph": "M", "ts": 0, "pid": pid}
        yield {**common, "name": "process_name", "tid": 0, "args": {"name": "eventtrain"}}
        for tid, (name, _) in lanes.items():
            yield {**common, "name": "thread_name", "tid": tid, "args": {"name": name}}
            yield {**common, "name": "thread_sort_index", "tid": tid, "args": {"sort_index": tid}}
        streams = [self._lane_events(spans, pid, tid) for tid, (_, spans) in lanes.items()]
        yield from merge(*streams, key=lambda event: event["ts"])

    def _lanes(self) -> dict[int, tuple[str, list[tuple[int, int, int]]]]:
        """Sort the spans into lanes, by the number of each: ``(start, -end, label)``."""
        names = [name for _, name in sorted(self._threads.values())]
        lanes: dict[int, tuple[str, list[tuple[int, int, int]]]] = {}
        now = perf_counter_ns() - self._began
        still_open = {index for index in self._open.values() if index is not None}
        for i in range(0, len(self._spans), _WIDTH):
            label, thread, start, end = self._spans[i : i + _WIDTH]
            scope = self._labels[label][0]
            tid = 1 + thread * len(_LANES) + _LANES.index(scope)
            title = scope or "own events"
            lane = lanes.setdefault(tid, (f"{title} ({names[thread]})" if thread else title, []))
            lane[1].append((start, -(now if i in still_open else end), label))
        for _, spans in lanes.values():
            spans.sort()
        return dict(sorted(lanes.items()))

    def _lane_events(
        self, spans: list[tuple[int, int, int]], pid: int, tid: int
    ) -> Iterator[dict[str, Any]]:
        """Yield beginnings and ends in order. Calls of one thread nest, so its spans do."""
        ends: list[tuple[int, str]] = []

        def event(phase: str, time: int, name: str, **more: Any) -> dict[str, Any]:
            return {"name": name, "ph": phase, "ts": time / 1000, "pid": pid, "tid": tid, **more}

        for start, negative_end, label in spans:
            while ends and ends[-1][0] <= start:
                yield event("E", *ends.pop())
            _, name, arguments = self._labels[label]
            category = "handler" if arguments else "scope"
            yield event("B", start, name, cat=category, args=arguments)
            ends.append((-negative_end, name))
        while ends:
            yield event("E", *ends.pop())

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
                self._span(timing.label, start, end)

    def _span(self, label: int, start: int, end: int) -> int | None:
        if len(self._spans) >= _WIDTH * self.max_spans:
            self.dropped += 1
            return None
        index, began = len(self._spans), self._began
        self._spans.extend((label, self._thread(), start - began, end - began))
        return index

    def _close(self, scope: Scope, now: int) -> None:
        index = self._open.pop(scope)
        if index is not None:
            self._spans[index + 3] = now - self._began

    def _thread(self) -> int:
        ident = threading.get_ident()
        known = self._threads.get(ident)
        if known is None:
            known = (len(self._threads), threading.current_thread().name)
            self._threads[ident] = known
        return known[0]

    def _label(self, lane: str, name: str, arguments: dict[str, str]) -> int:
        self._labels.append((lane, name, arguments))
        return len(self._labels) - 1

    def _timing_of(self, scope: str, handler: Handler) -> Timing:
        names = (handler.event, handler.name, handler.source, handler.plugin)
        with self._lock:
            timing = self._timings.get(names)
            if timing is None:
                arguments = {"source": handler.source}
                if handler.plugin:
                    arguments["plugin"] = handler.plugin
                label = self._label(scope, f"{handler.event}/{handler.name}", arguments)
                timing = self._timings[names] = Timing(*names, label)
            return timing


def _enter_range(torch: Any, label: str) -> Any:
    """Open a range in the trace of torch's profiler, if that is active."""
    if torch is None or not torch.autograd._profiler_enabled():
        return None
    entered = torch.profiler.record_function(label)
    entered.__enter__()
    return entered


def _timed_scope(profile: Profile) -> type[Scope]:
    """Make the class that scopes have while ``profile`` runs: plain ones then pay nothing."""

    class TimedScope(Scope):
        __slots__ = ()

        def __enter__(self) -> Scope:
            Scope.__enter__(self)
            profile.opened(self)
            return self

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
        ) -> bool:
            try:
                # Not super(): a block that ends in the scope has made it a plain one by now.
                return Scope.__exit__(self, kind, error, traceback)
            finally:
                profile.closed(self)

    return TimedScope
