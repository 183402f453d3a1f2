"""The rows of all fits of a callback as plain data, and as a pandas table."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ..arguments import flag
from ..callback import handler
from ..optimizers import named_optimizers
from ..priorities import METRICS, REPORTS
from .shared.extras import import_extra
from .shared.readings import (
    batch_weight,
    detached_mean,
    epoch_row,
    hyperparameters,
    last_over_processes,
    plain_row,
    to_host,
)
from .shared.row_ends import RowCallback, RowClock

if TYPE_CHECKING:
    from ..runner import Runner

Kind = Literal["epochs", "batches"]


class History(RowCallback):
    """Keeps a row for every epoch of every fit, and for every training batch where asked.

    ``run.history`` is the current run's alone and starts over with each; this
    callback goes on. The runner shows it as ``run.history_table``, since
    ``run.history`` is the runner's own.

    In a fit with ``validate_every`` the rows are of validations instead, with their ``step``.

    An epoch's row has ``fit`` (counted from 0), ``epoch``, what callbacks wrote to
    ``run.history`` at priorities above REPORTS, ``seconds`` and ``outcome``. A
    validation outside of a fit gives a row whose ``fit`` and ``epoch`` are ``None``.
    A batch's row has ``fit``, ``epoch``, ``batch``, ``n_iter``, ``loss`` and ``lr``
    (the first parameter group's; of several optimizers ``lr_g`` and so on). Losses stay on their
    device until the epoch ends or somebody asks. On several processes they are those of all of them
    as soon as the training phase has ended, and of this one's shares before.

    Args:
        batches: Keep a row for every training batch as well. Default ``False``.
    """

    priority = REPORTS

    def __init__(self, batches: bool = False) -> None:
        self.batches = flag("batches", batches)
        self._fit = -1
        self._epoch_rows: list[dict[str, Any]] = []
        self._batch_rows: list[dict[str, Any]] = []
        self._new: list[dict[str, Any]] = []
        self._weights: list[Any] = []  # of this phase's losses, which are yet to be shared
        self._clock = RowClock()
        self._is_resumed = False

    @cached_property
    def name(self) -> str:
        """``"history_table"``."""
        return "history_table"

    def begin_fit(self, run: Runner) -> None:
        """Count the fit."""
        self._weights = []
        self._clock = RowClock()
        self._is_resumed = False
        self._fit += 1

    def begin_epoch(self, run: Runner) -> None:
        """Start the epoch's clock."""
        self._clock.begin_epoch(run)

    @handler(during="train", priority=METRICS)
    def after_loss(self, run: Runner) -> None:
        """Keep the batch's row, where batches are wanted; nothing is read from the device."""
        if self._is_resumed:
            self._forget_from(run.n_iter)
        if self.batches:
            self._weights.append(batch_weight(run))
            self._new.append(
                {
                    "fit": self._fit,
                    "epoch": run.epoch,
                    "batch": run.batch_index,
                    "n_iter": run.n_iter,
                    "loss": detached_mean(run.loss),
                    **_first_rates(run.opt),
                }
            )

    def _forget_from(self, place: int) -> None:
        """Drop rows of batches that were cut, and are run again; none where the fit begins."""
        self._is_resumed, rows = False, self._batch_rows
        if place:
            self._batch_rows = [r for r in rows if r["fit"] != self._fit or r["n_iter"] < place]

    @handler(priority=METRICS)
    def after_train(self, run: Runner) -> None:
        """Have the losses of the phase be those of all processes."""
        if not self.batches or run.world.size == 1:
            return
        self._read()
        losses = [row["loss"] for row in self._batch_rows]
        shared = last_over_processes(losses, self._weights, run)
        for row, loss in zip(self._batch_rows[len(losses) - len(shared) :], shared, strict=True):
            row["loss"] = loss

    def after_validate(self, run: Runner) -> None:
        """Keep the row of a validation that is no part of a fit."""
        if run.token.scope is None:
            row = plain_row(run.history[-1])
            self._epoch_rows.append({"fit": None, **row, "outcome": run.outcome})

    def end_row(self, run: Runner) -> None:
        """Keep the row, and read the losses so far."""
        seconds = self._clock.lap(run)
        if run.validate_every is None:
            self._clock = RowClock()
        self._epoch_rows.append({"fit": self._fit, **epoch_row(run, seconds)})
        self._read()

    def _read(self) -> None:
        if self._new:
            self._batch_rows += to_host(self._new)
            self._new = []

    def to_dicts(self, kind: Kind = "epochs") -> list[dict[str, Any]]:
        """Return the rows, oldest first, as dictionaries of numbers, text and ``None``.

        Args:
            kind: ``"epochs"`` or ``"batches"``.

        Raises:
            ValueError: ``kind`` is neither, or batches were not kept.
        """
        if kind not in ("epochs", "batches"):
            raise ValueError(f"kind must be 'epochs' or 'batches', got {kind!r}")
        if kind == "epochs":
            return [dict(row) for row in self._epoch_rows]
        self._read()
        if not self.batches and not self._batch_rows:
            raise ValueError("no batches were kept: make it with History(batches=True)")
        return [dict(row) for row in self._batch_rows]

    def to_pandas(self, kind: Kind = "epochs") -> Any:
        """Return the rows as a ``pandas.DataFrame``; what a row lacks is NaN.

        Raises:
            ModuleNotFoundError: pandas is missing.
        """
        rows = self.to_dicts(kind)
        return import_extra("pandas", user="History.to_pandas").DataFrame(rows)

    def state_dict(self) -> dict[str, Any]:
        """Return all rows, read from the device, and the number of the fit."""
        self._read()
        return {
            "fit": self._fit,
            "epochs": [dict(row) for row in self._epoch_rows],
            "batches": [dict(row) for row in self._batch_rows],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the rows of another."""
        self._fit = state["fit"]
        self._epoch_rows = [dict(row) for row in state["epochs"]]
        self._batch_rows = [dict(row) for row in state["batches"]]
        self._new, self._weights = [], []
        self._is_resumed = True


def _first_rates(opt: Any) -> dict[str, Any]:
    """Return the rate of the first group, of several optimizers that of each."""
    rates = {name: hyperparameters(each, "lr") for name, each in named_optimizers(opt)}
    return {
        "lr" if name is None else f"lr_{name}": values[0] if values else None
        for name, values in rates.items()
    }
