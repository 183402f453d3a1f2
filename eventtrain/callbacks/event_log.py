"""A record of the run: which events fired, who handled them, what was cancelled and why."""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..arguments import absolute_path, whole_number
from ..bus.handlers import Handler, Options
from ..callback import Callback
from ..errors import describe
from ..events import Event, event_names
from ..reports.about import about_cancellation, about_failure, about_row
from ..reports.event_lines import cut_torn_line, lines_of

if TYPE_CHECKING:
    from ..bus.event_bus import Signal
    from ..state import RunState

# json.dumps with options would make an encoder for every line.
_encode = json.JSONEncoder(default=str).encode
_KNOWN = frozenset(event_names())
_FLUSH_AFTER = 5.0  # seconds


class EventLog(Callback):
    """Writes down every event of a run, custom ones too, as one line of JSON each.

    ``eventtrain replay FILE`` draws the run from such a file. A line holds

    - ``event``; ``scope``, the innermost open one (``run.token.scope``);
      ``epoch``, ``batch``;
    - ``outcome``: how the scope ended, in closing events, else ``null``;
    - ``handlers``: names of the others subscribed to the event, in the order in
      which they run; after a cancellation the later ones of them were skipped;
    - ``cancellations``: requests since the line before, with the fields of ``Cancellation``;
    - ``declared``, for an event of a scope of your own: that ``scope``, the event's ``kind``, and
      ``only_after``, as in ``Event``;
    - ``exception``, once, in the ``fit_failed`` line (outside of a fit, in the
      first closing line), and ``failure`` with it: ``type``, ``message``, ``notes``, the
      lines ``where`` it came through, and ``because`` of what it was raised;
    - ``steps``: optimizer steps so far; ``t``: seconds since the run began;
    - ``run``, in a run's first line: when it began, from which checkpoint it goes on,
      ``environment`` and ``configuration``. What a callback was made with stands there, less
      options that are called like a key, a token or a password;
    - ``rates``, in ``begin_step`` where they have changed: learning rates that are no tensors;
    - ``row``, in the line behind that of ``after_row``: the row of the history, less what is
      still on a device.

    The log looks at an event before its other handlers do, at priority
    1,000,000. So what they do there shows in the next line: a
    cancellation from ``after_loss`` stands in the line that follows that of
    ``after_loss``. An event that a handler of higher priority cancels is not
    logged, nor is one that nobody saw because the run was cancelled before it.
    Events that are declared while a run goes on are logged from the next run on.

    Nothing is read from the device.

    Args:
        path: The file. The first run of this object replaces it, later ones add
            to it, and so does a fit with ``resume=``, whichever process it is in. ``None``
            (default) keeps the lines in ``records``. Of several processes, rank 0 writes there,
            and rank 1 to ``NAME.rank1.jsonl`` beside it.
        flush_every: Lines to write at a time, or fewer when the last were written five seconds
            ago. Whatever happens, whole lines are written, and all of them when the
            outermost scope closes; a process that is killed loses fewer than this many.

    Attributes:
        records: The lines as dictionaries, where ``path`` is ``None``.

    Raises:
        TypeError: ``path`` is no path, or ``flush_every`` no whole number.
        ValueError: ``flush_every`` is less than 1.
        OSError: When a run begins: the file cannot be written.
    """

    priority = 1_000_000  # far above the bands, below what keeps the run itself right

    def __init__(self, path: str | os.PathLike[str] | None = None, flush_every: int = 100) -> None:
        self.path = None if path is None else absolute_path("path", path)
        self._own_path = self.path
        self.flush_every = whole_number("flush_every", flush_every, 1, "lines")
        self.records: list[dict[str, Any]] = []
        self._lines: list[str] = []
        self._is_new = True
        self._start: float | None = None
        self._began_at = self._written = 0.0
        self._is_first = False
        self._rates: dict[str, float] = {}
        self._rates_of: Callable[[Any], dict[str, float]] = dict
        self._row: dict[str, Any] | None = None
        self._known = 0
        self._has_told_failure = False

    def set_runner(self, run: RunState) -> None:
        """Attach to ``run`` and subscribe to what its bus declares; the runner does this itself."""
        super().set_runner(run)
        new = []
        for name in run.bus:
            signal = run.bus.signal(name)
            if not any(isinstance(h, _Entry) and h.is_of(self, run) for h in signal.handlers):
                new.append(_Entry(self, signal, run))
        run.bus.attach(new, sender=run)
        if run.learn is not None:  # a run is about to begin
            self._begin(run)

    def _begin(self, run: Any) -> None:
        self._start = self._written = time.perf_counter()
        self._began_at, self._is_first = time.time(), True
        self._rates, self._row = {}, None
        from ..reports.about_run import rates_of  # here: it imports torch

        self._rates_of = rates_of
        self._known = run.token.accepted
        self._has_told_failure = False
        if self.path is not None:
            self._own_path = _of_rank(self.path, run.rank)
            # Opened now, so that a wrong path is told before any work is done.
            if self._is_new and not run.starting_point.is_continued:
                with open(self._own_path, "wb"):
                    pass
            else:
                cut_torn_line(self._own_path)  # which a process that was killed may have left
            self._is_new = False

    def write(self, event: Event, handlers: list[str], run: RunState) -> None:
        """Add the line for ``event``, which is just firing."""
        token, now = run.token, time.perf_counter()
        record: dict[str, Any] = {
            "event": event.name,
            "scope": token.scope,
            "epoch": run.epoch,
            "batch": run.batch_index,
            "outcome": token.outcome if event.kind == "closing" else None,
            "handlers": handlers,
            "cancellations": self._new_cancellations(run) if token.history else [],
            "steps": run.steps,
            "t": 0.0 if self._start is None else round(now - self._start, 6),
        }
        if event.scope and event.name not in _KNOWN:
            own = {"scope": event.scope, "kind": event.kind, "only_after": event.only_after}
            record["declared"] = own
        if token.exception is not None and not self._has_told_failure:
            self._has_told_failure = True
            record["exception"] = describe(token.exception)
            record["failure"] = about_failure(token.exception)
        if self._is_first:
            self._is_first = False
            from ..reports.about_run import about_run

            record["run"] = about_run(run, self._began_at)
        if event.name == "begin_step" and (rates := self._rates_of(run.opt)) != self._rates:
            record["rates"] = self._rates = rates
        if self._row is not None:
            record["row"] = about_row(self._row)
        self._row = run.history[-1] if event.name == "after_row" else None  # it is filled in there
        if self.path is None:
            self.records.append(record)
            return
        self._lines.append(_encode(record))
        # Without an open scope the run has ended, and this may be the last line.
        is_due = now - self._written > _FLUSH_AFTER
        if is_due or len(self._lines) >= self.flush_every or token.scope is None:
            self._written = now
            self._flush()

    def report_parts(self) -> dict[str, Any]:
        """Return the lines, those that are not written yet too."""
        if self._start is None:  # what is in the file is another's
            return {}
        if self._own_path is None:
            return {"events": list(self.records)}
        if self._lines:
            self._flush()
        return {"events": lines_of(self._own_path)} if os.path.exists(self._own_path) else {}

    def _new_cancellations(self, run: RunState) -> list[dict[str, Any]]:
        # Another thread may add to the history at any moment.
        new = run.token.accepted_since(self._known)
        self._known += len(new)
        return [about_cancellation(each) for each in new]

    def _flush(self) -> None:
        assert self._own_path is not None
        text = "".join(f"{line}\n" for line in self._lines)
        self._lines.clear()
        # Opened for every block: no file stays open, whatever becomes of the run.
        with open(self._own_path, "ab") as file:
            file.write(text.encode())


def _of_rank(path: str, rank: int) -> str:
    stem, suffix = os.path.splitext(path)
    return f"{stem}.rank{rank}{suffix}" if rank else path


class _Entry(Handler):
    """The log's place among the handlers of one event for one runner."""

    __slots__ = ("_log", "_run", "_signal")

    def __init__(self, log: EventLog, signal: Signal, run: RunState) -> None:
        options = Options(priority=log.priority, name=log.name)
        super().__init__(signal.name, self._receive, options, origin=log.write)
        self._log = log
        self._signal = signal
        # Weak: on a shared bus, a runner ends with its last user.
        self._run = weakref.ref(run)

    def is_of(self, log: EventLog, run: RunState) -> bool:
        return self._log is log and self._run() is run

    def unfiltered(self) -> Callable[[Any], object]:
        """Return what writes the line, with the names of the others as they are now."""
        # It is made anew when subscriptions change, and not otherwise.
        return partial(self._log.write, self._signal.event, self._others(self._run()))

    def _receive(self, run: Any, **_: object) -> None:
        self._log.write(self._signal.event, self._others(run), run)

    def _others(self, run: object) -> list[str]:
        return [handler.name for handler in self._signal.handlers_for(run) if handler is not self]
