"""When scopes and handlers began and ended, and the trace that is drawn from it."""

from __future__ import annotations

import json
import os
import threading
from array import array
from collections.abc import Iterator, Mapping
from heapq import merge
from time import perf_counter_ns
from typing import Any, TextIO

from ..cancellation import Scope
from ..events import SCOPES

_WIDTH = 4  # of a span: label, thread, start, end
_OWN_EVENTS = ""
"""The lane of events that are in no scope; the last one."""


class Spans:
    """Spans of time, up to a limit. One thread at a time may use it.

    Args:
        limit: How many are kept; those beyond are counted in ``dropped``.
        began: Time from which a trace counts, in nanoseconds of ``perf_counter_ns``.
    """

    def __init__(self, limit: int, began: int) -> None:
        self.dropped = 0
        self._limit = limit
        self._began = began
        self._labels: list[tuple[str, str, Mapping[str, str]]] = []
        self._scope_labels: dict[str, int] = {}
        # By object: the number of a thread that has ended is given to another.
        self._threads: dict[threading.Thread, int] = {}
        self._spans = array("q")
        self._open: dict[Scope, int | None] = {}

    def label(self, lane: str, name: str, arguments: Mapping[str, str]) -> int:
        """Return the number by which ``add`` knows a lane, a name and what a trace tells of it."""
        self._labels.append((lane, name, arguments))
        return len(self._labels) - 1

    def add(self, label: int, start: int, end: int) -> int | None:
        """Keep a span of this thread; return its place, ``None`` where there is no room."""
        if len(self._spans) >= _WIDTH * self._limit:
            self.dropped += 1
            return None
        index, began = len(self._spans), self._began
        self._spans.extend((label, self._thread(), start - began, end - began))
        return index

    def open(self, scope: Scope) -> None:
        """Note that a scope begins; it takes its place now, while there is room."""
        now = perf_counter_ns()
        name = scope.name
        if name not in self._scope_labels:
            self._scope_labels[name] = self.label(name, name, {})
        self._open[scope] = self.add(self._scope_labels[name], now, now)

    def close(self, scope: Scope, now: int) -> None:
        """Note that a scope has ended; does nothing for one that was not open."""
        index = self._open.pop(scope, None)
        if index is not None:
            self._spans[index + 3] = now - self._began

    def close_all(self, now: int) -> None:
        """End what is open."""
        for scope in list(self._open):
            self.close(scope, now)

    def write_chrome_trace(self, file: TextIO, about: Mapping[str, Any]) -> None:
        """Write them in the Trace Event format, beginnings and ends apart, in order of time."""
        head = {"displayTimeUnit": "ms", "otherData": about}
        file.write(json.dumps(head)[:-1] + ', "traceEvents": [')
        for i, event in enumerate(self._events()):
            file.write((",\n" if i else "\n") + json.dumps(event))
        file.write("\n]}\n")

    def _thread(self) -> int:
        return self._threads.setdefault(threading.current_thread(), len(self._threads))

    def _events(self) -> Iterator[dict[str, Any]]:
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
        names = [thread.name for thread in self._threads]
        own = [lane for lane, *_ in self._labels if lane not in SCOPES and lane != _OWN_EVENTS]
        order = [*SCOPES, *dict.fromkeys(own), _OWN_EVENTS]
        lanes: dict[int, tuple[str, list[tuple[int, int, int]]]] = {}
        now = perf_counter_ns() - self._began
        still_open = {index for index in self._open.values() if index is not None}
        for i in range(0, len(self._spans), _WIDTH):
            label, thread, start, end = self._spans[i : i + _WIDTH]
            scope = self._labels[label][0]
            tid = 1 + thread * len(order) + order.index(scope)
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
