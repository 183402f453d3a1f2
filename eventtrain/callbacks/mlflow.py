"""Fits as runs of MLflow's."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..arguments import absolute_path, real_number
from ..atomic_file import replace_file
from ..errors import describe
from .shared.extras import import_extra
from .shared.mlflow_run import Item, MLflowRun, is_refusal, is_remote, rows_among, without_password
from .shared.outbox import Outbox
from .shared.tracking import SIGNALS, Tracker, look_for

if TYPE_CHECKING:
    from ..state import RunState

# Seconds that the first answer may take before training goes on without: of a server, and of a
# database or a folder, which MLflow makes when it is not there yet.
_TO_BEGIN, _TO_BEGIN_HERE = 10.0, 300.0
logger = logging.getLogger("eventtrain")


class _NoMonitor:
    def finish(self) -> None:
        """Nothing was started."""


_NO_MONITOR = _NoMonitor()


class MLflow(Tracker):
    """Writes each fit as a run of MLflow's: parameters, rows, system numbers, how it ended.

    Rows of ``run.history`` become metrics, at the optimizer steps as ``step``, with the ``epoch``,
    the ``seconds`` that they took and the learning rates. A thread sends them: the loop does
    not wait for a server. One that is gone is tried again until it is back, and what has
    not got through when the fit ends is kept in a file, which ``send_unsent`` sends.

    A fit that resumes goes on with the run that its checkpoint names, and a row that is there is
    not written again. Each other fit is a run of its own, unless one is given.

    Args:
        experiment: Its name; made if it is not there. ``None`` (default): what MLflow is set to.
        tracking_uri: Of the server or the store; ``None`` (default): what MLflow is set to.
        run_name: What the run is called; MLflow finds a name by default.
        run_id: A run that is there, to write into; fits that do not resume each other follow one
            another in it, and the parameters of the first stay. ``None`` (default) is a run that
            the program has active, where neither ``experiment``, ``tracking_uri`` nor ``run_name``
            says otherwise, and which is not ended then; else a new run.
        params: Parameters besides, by name.
        tags: Tags of the run, by name.
        system: Have MLflow record processor, memory and GPU. Default ``True``.
        checkpoints: Upload the newest and the best checkpoint when the fit ends. They may be large.
            Default ``False``.
        artifacts: Files and folders to upload when the fit ends; none by default.
        fork: Go on from a checkpoint as a new run, with a tag that names the old one.
            Default ``False``.
        patience: Seconds that the end of a fit waits for a server that takes nothing.
            Default 30.
        unsent: The folder for what could not be sent, made when it is needed.

    Attributes:
        run_id: The run of this fit, or of the last one; ``None`` until it is made.
        unsent_path: The file with what the last fit could not send, ``None`` where there is none.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
        ModuleNotFoundError: mlflow is missing.
        mlflow.exceptions.MlflowException: When a fit begins: MLflow refuses to begin the run.
    """

    held_in_run = ("_outbox", "_target", "_monitor")

    def __init__(
        self,
        experiment: str | None = None,
        *,
        tracking_uri: str | None = None,
        run_name: str | None = None,
        run_id: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        system: bool = True,
        checkpoints: bool = False,
        artifacts: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        fork: bool = False,
        patience: float = 30.0,
        unsent: str | os.PathLike[str] = "mlflow-unsent",
    ) -> None:
        super().__init__(
            params, system=system, checkpoints=checkpoints, artifacts=artifacts, fork=fork
        )
        texts = {"experiment": experiment, "tracking_uri": tracking_uri}
        for name, value in {**texts, "run_name": run_name, "run_id": run_id}.items():
            if not (value is None or (isinstance(value, str) and value)):
                raise TypeError(f"{name} must be a text, got {value!r}")
        if not (tags is None or isinstance(tags, Mapping)):
            raise TypeError(f"tags must be a mapping of names to values, got {tags!r}")
        if real_number("patience", patience, "seconds") < 0:
            raise ValueError(f"patience must be at least 0 seconds, got {patience!r}")
        self.experiment, self.tracking_uri = experiment, tracking_uri
        self.run_name, self.patience = run_name, patience
        self.tags = {str(name): str(value) for name, value in (tags or {}).items()}
        self.unsent = Path(absolute_path("unsent", unsent))
        self.unsent_path: Path | None = None
        self._asked_id = run_id
        self._outbox: Outbox | None = None
        self._target: MLflowRun | None = None
        self._monitor: Any = None
        self._steps = 0  # of the last row
        look_for("mlflow", "MLflow")
        if self.system:
            look_for("psutil", "MLflow(system=True)", extra="mlflow")

    @cached_property
    def name(self) -> str:
        """``"mlflow"``."""
        return "mlflow"

    def start(self, run: RunState, continued: Mapping[str, Any]) -> None:
        """Begin to send, and wait a little for the first answer."""
        mlflow = import_extra("mlflow", user="MLflow", extra="mlflow")
        self.unsent_path, self._steps = None, continued.get("steps", 0)
        self._target = target = MLflowRun(self._about(mlflow, continued))
        self._outbox = outbox = Outbox(self._send, is_refusal, "eventtrain MLflow")
        outbox.put(["params", self.all_params(run)])
        outbox.put(["tags", {**self._versions(), "eventtrain.outcome": "running"}])
        for item in continued.get("unsent", []):
            outbox.put(item)
        seconds = min(_TO_BEGIN, self.patience) if is_remote(target.uri) else _TO_BEGIN_HERE
        if outbox.wait(seconds):
            self.run_id = target.about["run_id"]
        elif not outbox.refused:
            why = "" if outbox.error is None else f": {describe(outbox.error)}"
            logger.warning(
                "MLflow at %s does not answer%s. Training goes on; what it is told is kept, and "
                "sent when it answers",
                without_password(target.uri),
                why,
            )
        if outbox.refused:
            _, error = outbox.refused[0]
            self._drop()
            raise error

    def _about(self, mlflow: Any, continued: Mapping[str, Any]) -> dict[str, Any]:
        run_id = continued.get("run_id") or self._asked_id
        is_free = not (self.experiment or self.tracking_uri or self.run_name)
        active = mlflow.active_run() if is_free and run_id is None else None
        active_id = None if active is None else active.info.run_id
        forked = {} if self.forked_from is None else {"eventtrain.forked_from": self.forked_from}
        return {
            "tracking_uri": self.tracking_uri or mlflow.get_tracking_uri(),
            "experiment": self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME"),
            "experiment_id": os.environ.get("MLFLOW_EXPERIMENT_ID"),
            "run_name": self.run_name,
            "run_id": run_id or active_id,
            "tags": {**self.tags, **forked},
            "key": continued.get("key") or uuid4().hex,
            "is_resumed": bool(continued),
            "is_lent": active_id is not None,
            "offset": continued.get("offset", 0),
            "steps": continued.get("steps", 0),
        }

    def _versions(self) -> dict[str, str]:
        from .shared.description import describe_program

        return {f"eventtrain.with.{name}": text for name, text in describe_program().items()}

    def _send(self, item: Item) -> None:
        """Send an item, in the thread."""
        target = self._target
        assert target is not None
        if item[0] == "end":
            self._end_monitor()
        target.send(item)
        self.run_id = target.about["run_id"]
        if self.system and self._monitor is None and item[0] == "params":
            self._monitor = _monitor_of(target)

    def send_row(self, steps: int, epoch: int, row: Mapping[str, float]) -> None:
        """Have the row sent."""
        self._steps = steps
        if self._outbox is not None:
            self._outbox.put(["row", steps, epoch, dict(row), int(time.time() * 1000)])

    def finish(self, outcome: Mapping[str, Any], artifacts: Iterable[Path]) -> None:
        """Have sent how it ended and what is left, and keep what does not get through."""
        outbox, target = self._outbox, self._target
        if outbox is None or target is None:
            return
        # Of a run that goes on, tags may be there that told how it was interrupted.
        blank = "" if target.about["is_resumed"] else None
        told = {name: blank if value is None else value for name, value in outcome.items()}
        tags = {f"eventtrain.{name}": value for name, value in told.items() if value is not None}
        outbox.put(["tags", tags])
        outbox.put(["end", _status(outcome)])
        left: list[Item] = outbox.waiting
        try:
            left = outbox.end(self.patience)
        finally:
            # Those refused last: who sends them later is to get as far as can be.
            left = [*left, *(item for item, _ in outbox.refused)]
            error = outbox.refused[0][1] if outbox.refused else outbox.error
            self._drop()
            if left:
                self._keep(left, target, error, [*artifacts])
        if left:
            return
        for path in artifacts:
            _upload(target, path)

    def _drop(self) -> None:
        outbox, self._outbox, self._target = self._outbox, None, None
        if outbox is not None:
            outbox.end(0)
        # It waits for its own last request, of which nobody knows how long that takes.
        Thread(target=self._end_monitor, name="eventtrain MLflow end", daemon=True).start()

    def _end_monitor(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.finish()

    def _keep(
        self,
        items: Sequence[Item],
        target: MLflowRun,
        error: Exception | None,
        artifacts: Sequence[Path],
    ) -> None:
        """Write what could not be sent to a file, and say so."""
        # Who sends them goes on with the run, from the last row on.
        uri, going_on = without_password(target.uri), {"is_resumed": True, "steps": self._steps}
        about = {**target.about, **going_on, "tracking_uri": uri}
        name, count = about["run_id"] or about["key"], 0
        while (path := self.unsent / f"{name}{f'-{count}' if count else ''}.jsonl").exists():
            count += 1
        self.unsent.mkdir(parents=True, exist_ok=True)
        _write(path, [about, *items])
        self.unsent_path, rows = path, rows_among(items)
        files = "".join(f"; {each} was not uploaded" for each in artifacts)
        warnings.warn(
            f"{rows} rows, and {len(items) - rows} other things, could not be sent to MLflow at "
            f"{uri}: "
            f"{'no answer' if error is None else describe(error)}. They are kept: "
            f"MLflow.send_unsent({str(path)!r}) sends them{files}",
            RuntimeWarning,
            stacklevel=3,
        )

    @staticmethod
    def send_unsent(path: str | os.PathLike[str], tracking_uri: str | None = None) -> str:
        """Send what a fit could not send, and remove the file.

        Args:
            path: The file, which the warning has named.
            tracking_uri: Where to; by default where it was to go. A password that was in that is
                not in the file.

        Returns:
            The id of the run.

        Raises:
            ConnectionError, mlflow.exceptions.MlflowException: Something does not get through. The
                file then has what is left.
            ValueError: The file is none of these.
        """
        import_extra("mlflow", user="MLflow.send_unsent", extra="mlflow")
        file = Path(absolute_path("path", path))
        try:
            about, *items = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            target = MLflowRun({**about, "tracking_uri": tracking_uri or about["tracking_uri"]})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no file of what MLflow could not be sent") from error
        while items:
            try:
                target.send(items[0])
            except BaseException:
                _write(file, [{**target.about, "tracking_uri": about["tracking_uri"]}, *items])
                raise
            del items[0]
        file.unlink()
        return str(target.about["run_id"])

    def why_not_load(self, state: Mapping[str, Any], run: RunState) -> str | None:
        """Say so where the checkpoint is of another run than that which is to be written into."""
        saved = state.get("run_id")
        if self.fork or self._asked_id is None or saved in (None, self._asked_id):
            return None
        return (
            f"it is of MLflow's run {saved}, and MLflow(run_id={self._asked_id!r}) names another: "
            "leave run_id out to go on with the old one, or add fork=True"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return which run it is, and the rows that are yet to be sent."""
        outbox, target = self._outbox, self._target
        if outbox is None or target is None:
            return {"run_id": self.run_id, "key": None, "offset": 0, "steps": 0, "unsent": []}
        about, waiting = target.about, outbox.waiting
        return {
            "run_id": about["run_id"],
            "key": about["key"],
            "offset": about["offset"],
            "steps": self._steps,
            "unsent": [item for item in waiting if item[0] == "row"],
        }


def _monitor_of(target: MLflowRun) -> Any:
    """Start what records the machine, in a thread of MLflow's, which is no reason to stop."""
    try:
        return _started(target)
    except Exception as error:
        logger.warning("MLflow does not record the machine: %s", describe(error))
        return _NO_MONITOR


def _started(target: MLflowRun) -> Any:
    name = "mlflow.system_metrics.system_metrics_monitor"
    module = import_extra(name, user="MLflow(system=True)", extra="mlflow")
    monitor = module.SystemMetricsMonitor(
        target.about["run_id"],
        resume_logging=bool(target.about["is_resumed"]),
        tracking_uri=target.uri,
    )
    monitor.start()
    return monitor


def _status(outcome: Mapping[str, Any]) -> str:
    if outcome["outcome"] == "failed":
        return "FAILED"
    return "KILLED" if outcome.get("reason") in SIGNALS else "FINISHED"


def _upload(target: MLflowRun, path: Path) -> None:
    """Upload an artifact; what goes wrong is said, as the fit has ended well without."""
    folder = "checkpoints" if path.name.startswith("checkpoint-") else None
    try:
        target.send_artifact(path, folder)
    except Exception as error:
        warnings.warn(
            f"{path} could not be uploaded to MLflow: {describe(error)}",
            RuntimeWarning,
            stacklevel=4,
        )


def _write(path: Path, lines: Iterable[Any]) -> None:
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    replace_file(path, lambda file: file.write(text.encode()))
