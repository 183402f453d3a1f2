"""Memory and processor time of the process, and memory of its CUDA device."""

from __future__ import annotations

import math
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import flag, whole_number
from ..callback import handler
from ..data.batch import model_device
from ..distributed.reductions import ONE_PROCESS, OneProcess
from ..priorities import METRICS
from .shared.row_ends import RowCallback

if TYPE_CHECKING:
    from ..runner import Runner


_PLACE = ("epoch", "n_iter")


class DeviceStats(RowCallback):
    """Takes stock of memory and processor time at the end of every row of ``run.history``.

    A row has ``epoch``, ``n_iter`` (training batches so far) and

    - ``host_rss``: bytes of memory that the process holds now (from ``/proc``, or
      psutil where that is installed);
    - ``host_rss_peak``: the most it has held, in bytes;
    - ``cpu_seconds``: processor time of all its threads since the run began;
    - ``cuda_allocated``, ``cuda_reserved``, ``cuda_allocated_peak``: bytes, by
      torch's allocator; the peak is since the process began, or since somebody
      called ``torch.cuda.reset_peak_memory_stats``;
    - ``cuda_utilization``: per cent of the last moments in which the device was busy,
      where torch can tell (it needs nvidia-ml-py).

    What cannot be known here is ``None``: all of ``cuda_*`` without a CUDA device. No
    number is asked of the device's own queue, so the host does not wait for it.

    Args:
        every: Take stock after every N-th training batch too. ``None`` (default): at
            the ends of epochs only, or of validations with ``validate_every``.
        history: Write what it is then to ``run.history``, without what is ``None``; of several
            processes the largest value of any, while ``rows`` are this one's. Default ``False``.

    Attributes:
        rows: The rows of this fit, oldest first. A validation outside of a fit adds one.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
    """

    priority = METRICS

    def __init__(self, every: int | None = None, history: bool = False) -> None:
        self.every = None if every is None else whole_number("every", every, 1)
        self.history_written = flag("history", history)
        self.rows: list[dict[str, Any]] = []
        self._cpu_start = time.process_time()

    def begin_fit(self, run: Runner) -> None:
        """Start over."""
        self.rows = []
        self._cpu_start = time.process_time()

    @handler(during="train")
    def after_batch(self, run: Runner) -> None:
        """Take stock after every N-th batch."""
        if self.every is not None and run.n_iter % self.every == 0:
            self.rows.append(self._row(run))

    def after_validate(self, run: Runner) -> None:
        """Take stock after a validation that is no part of a fit."""
        if run.token.scope is None:
            self._take(run)

    def end_row(self, run: Runner) -> None:
        """Take stock of the row: an epoch, or a validation and the training before it."""
        self._take(run)

    def _take(self, run: Runner) -> None:
        row = self._row(run)
        self.rows.append(row)
        if self.history_written:
            measured = {name: value for name, value in row.items() if name not in _PLACE}
            world = ONE_PROCESS if run.outcome == "failed" else run.world  # others may not be here
            run.history[-1].update(_most(measured, world))

    def _row(self, run: Runner) -> dict[str, Any]:
        return {
            **{name: getattr(run, name) for name in _PLACE},
            "host_rss": _host_rss(),
            "host_rss_peak": _host_rss_peak(),
            "cpu_seconds": time.process_time() - self._cpu_start,
            **_cuda_stats(_device_of(run.model)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the rows and the processor time so far."""
        spent = time.process_time() - self._cpu_start
        return {"rows": [dict(row) for row in self.rows], "cpu_seconds": spent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the rows of another process."""
        self.rows = [dict(row) for row in state["rows"]]
        self._cpu_start = time.process_time() - state["cpu_seconds"]


def _most(row: dict[str, Any], world: OneProcess) -> dict[str, Any]:
    """Return the largest value of any process at each key, less what is unknown; collective."""
    if world.size > 1:
        own = [math.nan if value is None else value for value in row.values()]
        ranks = zip(*world.gather(own), strict=True)
        known = ([value for value in each if not math.isnan(value)] for each in ranks)
        row = {name: max(values, default=None) for name, values in zip(row, known, strict=True)}
    return {name: value for name, value in row.items() if value is not None}


def _host_rss() -> int | None:
    pages = Path("/proc/self/statm")
    if pages.exists():
        import resource

        return int(pages.read_text().split()[1]) * resource.getpagesize()
    try:
        psutil = import_module("psutil")
    except ModuleNotFoundError:
        return None
    return int(psutil.Process().memory_info().rss)


def _host_rss_peak() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _device_of(model: Any) -> torch.device | None:
    """Return the CUDA device of the model, or ``None``."""
    device = model_device(model)
    return device if device.type == "cuda" else None


def _cuda_stats(device: torch.device | None) -> dict[str, int | None]:
    names = ("cuda_allocated", "cuda_reserved", "cuda_allocated_peak", "cuda_utilization")
    if device is None:
        return dict.fromkeys(names)
    cuda = torch.cuda
    memory = (
        cuda.memory_allocated(device),
        cuda.memory_reserved(device),
        cuda.max_memory_allocated(device),
    )
    return dict(zip(names, (*memory, _utilization(device)), strict=True))


def _utilization(device: torch.device) -> int | None:
    try:
        return torch.cuda.utilization(device)
    except Exception:  # no nvidia-ml-py, no permission, a driver that cannot tell
        return None
