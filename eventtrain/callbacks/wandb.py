"""Fits as runs of Weights & Biases."""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..arguments import absolute_path, real_number
from ..errors import describe
from .shared.extras import import_extra
from .shared.tracking import PARTIAL, SIGNALS, Tracker, look_for
from .shared.wandb_journal import Journal, Place, rows_in

if TYPE_CHECKING:
    from ..state import RunState

Mode = Literal["online", "offline", "disabled"]
logger = logging.getLogger("eventtrain")


class WandB(Tracker):
    """Writes each fit as a run of Weights & Biases: parameters, rows, the machine, how it ended.

    Rows of ``run.history`` are drawn over ``step``, the optimizer steps, with the ``epoch``, the
    ``seconds`` that they took and the learning rates. A process of W&B's writes them to its folder
    and sends them: the loop does not wait for a server. What has not been sent when the fit ends
    stays in that folder, for ``wandb sync``.

    A fit that resumes goes on as the run that its checkpoint names, and a row that is there is not
    written again. Each other fit is a run of its own, unless one is given.

    Args:
        project: Its name; ``None`` (default): what W&B is set to.
        entity: The user or team; ``None`` (default): what W&B is set to.
        run_name: What the run is called; W&B finds a name by default.
        run_id: Of a run, which is made if it is not there; fits that do not resume each other
            follow one another in it, and the parameters of the first stay. ``None`` (default) is a
            run that the program has active, where neither ``project``, ``entity`` nor ``run_name``
            says otherwise, and which is not ended then; else a new run.
        mode: ``"online"``, ``"offline"`` (written to the folder alone) or ``"disabled"``;
            ``None`` (default): what W&B is set to.
        folder: Where W&B makes its folder ``wandb``; ``None`` (default): the working directory.
        params: Parameters besides, by name.
        tags: Words that the run is found by.
        system: Have W&B record processor, memory and GPU. Default ``True``.
        checkpoints: Hand the newest and the best checkpoint over when the fit ends. They may be
            large. Default ``False``.
        artifacts: Files and folders to hand over when the fit ends; none by default.
        fork: Go on from a checkpoint as a new run, which says in its parameters of which.
            Default ``False``.
        patience: Seconds that the beginning and the end of a fit wait for a server. Default 30.

    Attributes:
        wandb_run: What ``wandb.init`` returned, during a fit: handlers of yours may log with it.
        run_id: Its id; that of the last fit between fits.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
        ModuleNotFoundError: wandb is missing.
        wandb.errors.Error: When a fit begins: W&B refuses to begin the run. A server that does not
            answer is no such error.
    """

    held_in_run = ("wandb_run",)

    def __init__(
        self,
        project: str | None = None,
        *,
        entity: str | None = None,
        run_name: str | None = None,
        run_id: str | None = None,
        mode: Mode | None = None,
        folder: str | os.PathLike[str] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        system: bool = True,
        checkpoints: bool = False,
        artifacts: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        fork: bool = False,
        patience: float = 30.0,
    ) -> None:
        super().__init__(
            params, system=system, checkpoints=checkpoints, artifacts=artifacts, fork=fork
        )
        texts = {"project": project, "entity": entity, "run_name": run_name, "run_id": run_id}
        for name, value in texts.items():
            if not (value is None or (isinstance(value, str) and value)):
                raise TypeError(f"{name} must be a text, got {value!r}")
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(f"mode must be 'online', 'offline' or 'disabled', got {mode!r}")
        if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
            raise TypeError(f"tags must be a list of texts, got {tags!r}")
        if not real_number("patience", patience, "seconds") > 0:
            raise ValueError(f"patience must be above 0 seconds, got {patience!r}")
        self.project, self.entity, self.run_name = project, entity, run_name
        self.mode, self.tags, self.patience = mode, list(tags), patience
        self.folder = None if folder is None else absolute_path("folder", folder)
        self.wandb_run: Any = None
        self._asked_id = run_id
        self._is_lent = self._is_cut_off = False
        self._offset = 0  # steps of what the run had before this fit
        self._last: Place | None = None  # of the last row of this fit
        self._is_there: Place | None = None  # of the last row that an earlier process has
        self._journal = Journal(Path())
        self._rows = 0
        self._lost: list[dict[str, Any]] = []
        look_for("wandb", "WandB")

    @cached_property
    def name(self) -> str:
        """``"wandb"``."""
        return "wandb"

    def start(self, run: RunState, continued: Mapping[str, Any]) -> None:
        """Begin the run, or go on with it."""
        wandb = import_extra("wandb", user="WandB", extra="wandb")
        self._rows, self._lost, self._is_cut_off = 0, [], False
        run_id = continued.get("run_id") or self._asked_id
        is_free = not (self.project or self.entity or self.run_name or run_id)
        self._is_lent = is_free and wandb.run is not None
        made = wandb.run if self._is_lent else self._begun(wandb, run_id)
        self.wandb_run, self.run_id = made, made.id
        self._offset, self._last = continued.get("offset", 0), None
        forked = {} if self.forked_from is None else {"forked_from": self.forked_from}
        params = {**self.all_params(run), **forked}
        # Those of the first fit stay.
        made.config.update({k: v for k, v in params.items() if k not in made.config})
        made.define_metric("step")
        made.define_metric("*", step_metric="step")
        made.define_metric(f"{PARTIAL}*", step_metric=f"{PARTIAL}step")
        own = Path(made.settings.wandb_dir).absolute()  # a handler may change the folder
        self._journal = Journal(own / f"eventtrain-{made.id}.jsonl")
        self._is_there = self._place_there(is_online=made.settings.mode != "offline")
        if not continued:
            self._offset = 0 if self._is_there is None else self._is_there[0]
            self._is_there = None

    def _begun(self, wandb: Any, run_id: str | None) -> Any:
        options: dict[str, Any] = {
            "project": self.project,
            "entity": self.entity,
            "name": self.run_name,
            "id": run_id,
            "dir": self.folder,
            "tags": self.tags or None,
            "mode": self.mode,
            "reinit": "create_new",  # a run that the program has active stays
            "settings": wandb.Settings(
                init_timeout=self.patience,
                finish_timeout=self.patience,
                finish_timeout_raises=True,
                x_disable_stats=not self.system,
            ),
        }
        if run_id is not None and self._mode_of(wandb) != "offline":
            options["resume"] = "allow"
        try:
            return wandb.init(**options)
        except wandb.errors.AuthenticationError:
            raise
        except wandb.errors.CommError as error:
            logger.warning(
                "W&B does not answer: %s. Training goes on, and the run is written to its folder "
                "alone",
                describe(error),
            )
        options.pop("resume", None)
        self._is_cut_off = True
        return wandb.init(**{**options, "mode": "offline"})

    def _mode_of(self, wandb: Any) -> str:
        return str(self.mode or wandb.setup().settings.mode)

    def _place_there(self, *, is_online: bool) -> Place | None:
        """Return the last row that the run has, once those are handed over that W&B has lost.

        Args:
            is_online: Whether it is the server that knows.
        """
        told = self._in_summary()
        if self._is_lent:  # its rows are with the process that goes on
            return told
        last, rows = self._journal.read()
        places = [place for place in (last, told, *(place for place, _ in rows)) if place]
        if rows and not is_online:
            folder = Path(self.wandb_run.settings.wandb_dir)
            found = rows_in(folder, str(self.run_id))
            rows = [row for row in rows if row[0] not in found]
        elif told is not None:
            rows = [row for row in rows if row[0] > told]
        for _, row in rows:
            self.wandb_run.log(row)
        return max(places, default=None)

    def _in_summary(self) -> Place | None:
        summary = self.wandb_run.summary
        step, epoch = summary.get("step"), summary.get("epoch")
        is_there = isinstance(step, (int, float)) and isinstance(epoch, (int, float))
        return (int(step), int(epoch)) if is_there else None

    def send_row(self, steps: int, epoch: int, row: Mapping[str, float]) -> None:
        """Hand the row to W&B's process."""
        place = self._offset + steps, epoch
        if self.wandb_run is None:
            return
        is_whole = "epoch" in row
        if is_whole and self._is_there is not None and place <= self._is_there:
            return
        values = {**row, "step" if is_whole else f"{PARTIAL}step": place[0]}
        try:
            self.wandb_run.log(values)
            self._rows += 1
            if is_whole:
                self._last = place
                self._journal.add(place, values)
        except Exception as error:  # W&B's process may be gone: training goes on
            self._lost.append({**values, "error": describe(error)})

    def finish(self, outcome: Mapping[str, Any], artifacts: Iterable[Path]) -> None:
        """Hand over how it ended, and wait a while until everything is sent."""
        made, self.wandb_run = self.wandb_run, None
        if made is None:
            return
        folder = Path(made.settings.sync_dir)
        try:
            made.summary.update({"eventtrain": dict(outcome)})
            for path in artifacts:
                _hand_over_or_say(made, path)
            if not self._is_lent:
                made.finish(exit_code=_exit_code(outcome))
                if self._last is not None and not self._lost:
                    self._journal.close(self._last)
        except Exception as error:
            self._say(folder, f": {describe(error)}")
            return
        if self._is_cut_off or self._lost:
            self._say(folder, "")

    def _say(self, folder: Path, why: str) -> None:
        """Say what has not been sent, and where it is."""
        text = f"{self._rows} rows may not have got to W&B{why}: `wandb sync {folder}` sends them"
        if self._lost:
            path = folder.parent / f"eventtrain-{self.run_id}-unsent.jsonl"
            lines = "".join(f"{json.dumps(row)}\n" for row in self._lost)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(lines)
            text += f"; {len(self._lost)} more, which it did not take, are in {path}"
        warnings.warn(text, RuntimeWarning, stacklevel=4)

    def why_not_load(self, state: Mapping[str, Any], run: RunState) -> str | None:
        """Say so where the checkpoint is of another run than that which is to be written into."""
        saved = state.get("run_id")
        if self.fork or self._asked_id is None or saved in (None, self._asked_id):
            return None
        return (
            f"it is of W&B's run {saved}, and WandB(run_id={self._asked_id!r}) names another one: "
            "leave run_id out to go on with the old one, or add fork=True"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return which run it is, and the steps that it had before this fit."""
        return {"run_id": self.run_id, "offset": self._offset}


def _hand_over_or_say(made: Any, path: Path) -> None:
    try:
        _hand_over(made, path)
    except Exception as error:  # the fit has ended well without
        warnings.warn(
            f"{path} could not be handed over to W&B: {describe(error)}",
            RuntimeWarning,
            stacklevel=4,
        )


def _hand_over(made: Any, path: Path) -> None:
    wandb = import_extra("wandb", user="WandB", extra="wandb")
    is_checkpoint = path.name.startswith("checkpoint-")
    kind = "checkpoint" if is_checkpoint else "file"
    name = re.sub(r"[^\w.-]", "_", f"{made.id}-{path.name}", flags=re.ASCII)
    artifact = wandb.Artifact(name, type=kind)
    artifact.add_dir(str(path)) if path.is_dir() else artifact.add_file(str(path))
    made.log_artifact(artifact)


def _exit_code(outcome: Mapping[str, Any]) -> int:
    """Return what W&B knows a failed run by; one that was interrupted is none that is finished."""
    return int(outcome["outcome"] == "failed" or outcome.get("reason") in SIGNALS)
