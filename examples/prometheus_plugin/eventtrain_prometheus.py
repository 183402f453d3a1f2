"""An eventtrain plugin that writes the state of a run in Prometheus' text format."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from eventtrain import Callback

if TYPE_CHECKING:  # at run time it would import torch, also where plugins are only listed
    from eventtrain import Runner

eventtrain_plugin_api = 1

HELP = {
    "eventtrain_running": ("gauge", "1 while a fit is running"),
    "eventtrain_epoch": ("gauge", "index of the current epoch"),
    "eventtrain_steps_total": ("counter", "optimizer steps taken in this fit"),
    "eventtrain_batches_total": ("counter", "training batches ended in this fit"),
    "eventtrain_cancellations_total": ("counter", "cancellations asked for, by scope"),
    "eventtrain_fit_seconds": ("gauge", "seconds since the fit began"),
    "eventtrain_metric": ("gauge", "what callbacks measured in the last epoch"),
}


class PrometheusExporter(Callback):
    """Writes a file of metrics as a fit goes on; a reader never sees half of one.

    It writes what the host knows already and reads nothing from the device.

    Args:
        path: The file; its folder must exist.
        every: Training batches between two writes. The file is written at the
            end of every epoch and of the fit as well.
    """

    priority = -80  # reports: after those who measure

    def __init__(self, path: str = "eventtrain.prom", every: int = 100) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder of {path} does not exist; make it first")
        self.every = every

    def begin_fit(self, run: Runner) -> None:
        """Write the first file, so that an unwritable place shows before the training."""
        self._start = time.monotonic()
        self._metrics: dict[str, float] = {}
        self._write(run, running=1)

    def after_batch(self, run: Runner) -> None:
        """Write now and then."""
        if run.in_train and run.n_iter % self.every == 0:
            self._write(run, running=1)

    def after_epoch(self, run: Runner) -> None:
        """Write what the epoch's metrics are."""
        self._metrics = {
            name: value for name, value in run.history[-1].items() if isinstance(value, float)
        }
        self._write(run, running=1)

    def after_fit(self, run: Runner) -> None:
        """Write that it is over."""
        self._write(run, running=0)

    def _write(self, run: Runner, running: int) -> None:
        scopes = Counter(cancellation.scope for cancellation in run.token.history)
        values: dict[str, dict[str, float]] = {
            "eventtrain_running": {"": running},
            "eventtrain_epoch": {"": run.epoch or 0},
            "eventtrain_steps_total": {"": run.steps},
            "eventtrain_batches_total": {"": run.n_iter},
            "eventtrain_cancellations_total": {f'{{scope="{s}"}}': n for s, n in scopes.items()},
            "eventtrain_fit_seconds": {"": time.monotonic() - self._start},
            "eventtrain_metric": {f'{{name="{n}"}}': v for n, v in self._metrics.items()},
        }
        lines = []
        for name, samples in values.items():
            kind, text = HELP[name]
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{labels} {value}" for labels, value in samples.items()]
        self._replace("\n".join(lines) + "\n")

    def _replace(self, text: str) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise
