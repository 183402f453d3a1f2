"""Where the time of an epoch goes: waiting for data, forward, loss, backward, step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import flag
from ..callback import Callback, handler
from ..data.batch import model_device
from ..distributed.reductions import ONE_PROCESS
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE, METRICS

if TYPE_CHECKING:
    from ..runner import Runner

_Paused = tuple[float, dict[str, float], int, torch.device | None, bool]
PARTS = ("data", "forward", "loss", "backward", "step")


class Timing(Callback):
    """Measures the seconds of each part of the loop, for every phase of every epoch.

    ``data`` is the wait from the end of a batch to the next one's arrival,
    ``forward`` the model, ``loss`` the loss function, ``backward`` the backward pass
    and ``step`` the optimizer's. ``rest`` is what is left of the phase: handlers,
    ``zero_grad``, the loop. A part that a cancellation kept from ending is in ``rest``.

    The clock is the host's: on a CUDA device it sees how long work takes to launch.
    With ``cuda=True``, events on the device's stream time all parts but ``data``; they
    are read, and the host waits for the device, once a phase.

    Args:
        cuda: Time with CUDA events, where the model is on a CUDA device. Default
            ``False``.
        history: Write ``seconds_train_data`` and so on to ``run.history``, of several processes
            their means; ``rows`` and ``table`` are of this one. Default ``False``.

    Attributes:
        rows: For every phase that has ended in this fit, ``epoch``, ``phase``,
            ``batches``, seconds of every part, ``rest`` and ``total``. A validation or
            prediction outside of a fit adds a row too.

    Raises:
        TypeError: ``cuda`` or ``history`` is neither true nor false.
    """

    priority = METRICS

    def __init__(self, cuda: bool = False, history: bool = False) -> None:
        self.cuda = flag("cuda", cuda)
        self.history_written = flag("history", history)
        self.rows: list[dict[str, Any]] = []
        self._paused: _Paused | None = None
        self._reset()

    def _reset(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._batches = 0
        self._phase_start: float | None = None
        self._phase: str | None = None
        # The host's clock, and an event on the device's stream.
        self._part_start: tuple[float, Any] | None = None
        self._events: list[tuple[str, Any, Any]] = []
        self._device: torch.device | None = None
        self._on_device = False

    def begin_fit(self, run: Runner) -> None:
        """Start over."""
        self.rows = []
        self._paused = None
        self._reset()

    @handler(["begin_train", "begin_validate", "begin_predict"], priority=AFTER_EVERYONE)
    def phase_starts(self, run: Runner) -> None:
        """Start the clock of a phase, and wait for data."""
        if run.in_interlude and self._phase_start is not None:
            self._pause(self._phase_start)
        self._reset()
        device = model_device(run.model)
        self._device = device if self.cuda and device.type == "cuda" else None
        self._phase_start, self._phase = time.perf_counter(), run.phase
        self._start()

    @handler("begin_batch", priority=BEFORE_EVERYONE)
    def data_ends(self, run: Runner) -> None:
        """A batch has come."""
        self._end("data")
        self._batches += 1
        self._on_device = self._device is not None

    @handler("begin_batch", priority=AFTER_EVERYONE)
    def forward_starts(self, run: Runner) -> None:
        """The model is next."""
        self._start()

    @handler("after_pred", priority=BEFORE_EVERYONE)
    def forward_ends(self, run: Runner) -> None:
        """The model has been called."""
        self._end("forward")

    @handler("after_pred", priority=AFTER_EVERYONE)
    def loss_starts(self, run: Runner) -> None:
        """The loss function is next."""
        self._start()

    @handler("after_loss", priority=BEFORE_EVERYONE)
    def loss_ends(self, run: Runner) -> None:
        """The loss has been computed."""
        self._end("loss")

    @handler("after_loss", priority=AFTER_EVERYONE, during="train")
    def backward_starts(self, run: Runner) -> None:
        """The backward pass is next."""
        self._start()

    @handler("after_backward", priority=BEFORE_EVERYONE)
    def backward_ends(self, run: Runner) -> None:
        """Gradients have been computed."""
        self._end("backward")

    @handler("begin_step", priority=AFTER_EVERYONE)
    def step_starts(self, run: Runner) -> None:
        """The optimizer is next."""
        self._start()

    @handler("after_step", priority=BEFORE_EVERYONE)
    def step_ends(self, run: Runner) -> None:
        """The optimizer has stepped."""
        self._end("step")

    @handler("after_batch", priority=AFTER_EVERYONE)
    def data_starts(self, run: Runner) -> None:
        """The next batch is waited for, on the host's clock."""
        self._on_device = False
        self._start()

    @handler(["after_train", "after_validate", "after_predict"], priority=BEFORE_EVERYONE)
    def phase_ends(self, run: Runner) -> None:
        """Write the row of a phase."""
        if self._phase_start is None or self._phase != run.phase:
            return
        self._read_events()
        total = time.perf_counter() - self._phase_start
        rest = max(total - sum(self._seconds.values()), 0.0)
        seconds = {**self._seconds, "rest": rest, "total": total}
        phase, batches = run.phase, self._batches
        self.rows.append({"epoch": run.epoch, "phase": phase, "batches": batches, **seconds})
        if self.history_written and phase != "predict":
            world = ONE_PROCESS if run.outcome == "failed" else run.world  # others may not be here
            ranks = zip(*world.gather(list(seconds.values())), strict=True)
            means = (sum(each) / world.size for each in ranks)
            name = phase if run.valid_name is None else f"{phase}_{run.valid_name}"
            keys = (f"seconds_{name}_{part}" for part in seconds)
            run.history[-1].update(zip(keys, means, strict=True))
        self._reset()
        if self._paused is not None and run.in_interlude:
            self._go_on(self._paused)

    def _pause(self, start: float) -> None:
        """Stop the clock of the training for a validation that comes between two batches."""
        self._read_events()
        place = self._device, self._part_start is not None
        elapsed = time.perf_counter() - start
        self._paused = elapsed, self._seconds, self._batches, *place

    def _go_on(self, paused: _Paused) -> None:
        """Let the clock of the training go on."""
        elapsed, self._seconds, self._batches, self._device, is_waiting = paused
        self._paused = None
        self._phase_start, self._phase = time.perf_counter() - elapsed, "train"
        if is_waiting:
            self._start()

    def _start(self) -> None:
        self._part_start = time.perf_counter(), self._event_now() if self._on_device else None

    def _end(self, part: str) -> None:
        now = time.perf_counter()
        if self._part_start is None:  # the event before it was cancelled, or is not in this loop
            return
        start, event = self._part_start
        self._part_start = None
        if event is None:
            self._seconds[part] += now - start
        else:
            self._events.append((part, event, self._event_now()))

    def _event_now(self) -> Any:
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _read_events(self) -> None:
        if self._events:
            torch.cuda.synchronize(self._device)
        for part, start, end in self._events:
            self._seconds[part] += start.elapsed_time(end) / 1000
        self._events = []

    def table(self) -> str:
        """Return the seconds of each phase, summed over the epochs, as text.

        One line a part: seconds, milliseconds a batch, share of the phase.
        """
        lines = ["phase     part      seconds  ms a batch   share"]
        for phase in dict.fromkeys(row["phase"] for row in self.rows):
            rows = [row for row in self.rows if row["phase"] == phase]
            batches = max(sum(row["batches"] for row in rows), 1)
            total = sum(row["total"] for row in rows)
            for part in (*PARTS, "rest", "total"):
                seconds = sum(row[part] for row in rows)
                share = 100 * seconds / total if total else 0.0
                lines.append(
                    f"{phase:8}  {part:8}  {seconds:7.3f}  {1000 * seconds / batches:10.3f}"
                    f"  {share:5.1f}%"
                )
        return "\n".join(lines)

    def report_parts(self) -> dict[str, Any]:
        """Return the rows."""
        return {"timing": [dict(row) for row in self.rows]}

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, and what was measured of an unfinished phase."""
        self._read_events()
        start = self._phase_start
        elapsed = None if start is None else time.perf_counter() - start
        return {
            "rows": [dict(row) for row in self.rows],
            "seconds": dict(self._seconds),
            "batches": self._batches,
            "elapsed": elapsed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the time in between does not count."""
        self.rows = [dict(row) for row in state["rows"]]
        if state["elapsed"] is not None:
            self._seconds = dict(state["seconds"])
            self._batches = state["batches"]
            self._phase_start = time.perf_counter() - state["elapsed"]
            self._phase = None if self.run is None else self.run.phase
