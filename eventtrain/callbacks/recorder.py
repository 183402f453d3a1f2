"""Losses and schedules of every training batch, and pictures of them."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import whole_number
from ..bus.handlers import is_among
from ..callback import handler, listify
from ..optimizers import named_optimizers, parameter_groups
from ..priorities import METRICS, REPORTS
from .shared.plots import FAINT, MAIN, MARKERS, SEVERAL, saved_figure, shown_figure, tidy
from .shared.readings import (
    batch_weight,
    detached_mean,
    hyperparameters,
    last_over_processes,
    plain_row,
    to_host,
)
from .shared.row_ends import RowCallback

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..runner import Runner

_USUAL = ("lr", "momentum", "betas", "weight_decay")


class Recorder(RowCallback):
    """Keeps the loss and the optimizer's settings of every training batch.

    Losses stay on their device, cut from the graph, until the epoch ends or
    somebody asks; then they are read in one transfer. The settings are those
    in force when the loss was computed. A fit starts over. On several processes losses are those
    of all of them as soon as the training phase has ended, and of this one's shares before.

    Source: the recorder of fastai, with the same two plots.

    Args:
        fields: Fields of the optimizer's parameter groups to keep. ``None``
            (default) keeps ``lr``, ``momentum``, ``betas`` and ``weight_decay``,
            those of them that the optimizer has. Of several optimizers they bear the name
            before them, ``"g.lr"``; ``"lr"`` keeps that of each that has it.

    Attributes:
        rows: One row an epoch or validation as in ``run.history``, with its ``outcome``, and
            ``batches``: how many training losses there were by its end.

    Raises:
        ValueError: When a fit begins: the optimizer lacks one of ``fields``.
    """

    priority = REPORTS

    def __init__(self, fields: str | Iterable[str] | None = None) -> None:
        self._asked = None if fields is None else listify(fields)
        for name in self._asked or ():
            if not isinstance(name, str):
                raise TypeError(f"fields must be names of optimizer fields, got {name!r}")
        self._start(())

    def _start(self, names: Iterable[str]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._validations: dict[str, str] = {}  # labels of losses in the rows, by columns
        self._columns: dict[str, list[Any]] = {"loss": [], **{name: [] for name in names}}
        # Not read yet, on the device.
        self._new: dict[str, list[Any]] = {name: [] for name in self._columns}
        self._places: list[int] = []  # how many batches had ended before each
        self._is_resumed = False
        self._weights: list[Any] = []  # of this phase's losses, which are yet to be shared

    def begin_fit(self, run: Runner) -> None:
        """Start over with the fields that the optimizer has."""
        has = _columns_of(run.opt)
        wanted = _USUAL if self._asked is None else self._asked
        lacks = [name for name in self._asked or () if not _chosen(name, has)]
        if lacks:
            kinds = " and ".join(type(opt).__name__ for _, opt in named_optimizers(run.opt))
            raise ValueError(
                f"{kinds} has no field {lacks[0]!r} for Recorder to keep; "
                f"it has {', '.join(sorted(has)) or 'none'}"
            )
        self._start(dict.fromkeys(column for name in wanted for column in _chosen(name, has)))

    @handler(during="train", priority=METRICS)
    def after_loss(self, run: Runner) -> None:
        """Keep the batch's loss and settings; nothing is read from the device."""
        if self._is_resumed:
            self._forget_from(run.n_iter)
        self._weights.append(batch_weight(run))
        self._places.append(run.n_iter)
        for column, values in self._new.items():
            if column == "loss":
                values.append(detached_mean(run.loss))
            else:
                owner, _, name = column.rpartition(".")
                values.append(hyperparameters(run.opt[owner] if owner else run.opt, name))

    def _forget_from(self, place: int) -> None:
        """Drop batches that were cut, and are run again; none where the fit begins."""
        self._is_resumed = False
        kept = bisect_left(self._places, place) if place else len(self._places)
        for values in (self._places, *self._columns.values()):
            del values[kept:]

    @handler(priority=METRICS)
    def after_train(self, run: Runner) -> None:
        """Have the losses of the phase be those of all processes."""
        losses = self.losses if run.world.size > 1 else []
        shared = last_over_processes(losses, self._weights, run)
        losses[len(losses) - len(shared) :] = shared

    def end_row(self, run: Runner) -> None:
        """Read the losses so far, and keep the row."""
        row = plain_row(run.history[-1])
        self._validations |= _losses_of(run.valid_loaders or (None,))
        self.rows.append({**row, "outcome": run.outcome, "batches": len(self.losses)})

    def _read(self) -> dict[str, list[Any]]:
        if self._new["loss"]:
            for name, values in to_host(self._new).items():
                self._columns[name] += values
                self._new[name] = []
        return self._columns

    @property
    def losses(self) -> list[float]:
        """The loss of every training batch; reads from the device what is not read yet."""
        return self._read()["loss"]

    @property
    def lrs(self) -> list[float]:
        """The learning rate of the first parameter group, for every training batch.

        Of several optimizers, that of the first; of the others, ``values("d.lr")``.
        """
        rates = _chosen("lr", self.fields)
        return self.values(rates[0] if rates else "lr")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names that ``values`` takes."""
        return tuple(name for name in self._columns if name != "loss")

    def values(self, name: str, group: int | None = 0) -> list[Any]:
        """Return a field of the optimizer for every training batch.

        Args:
            name: For example ``"momentum"``; ``"betas"`` gives tuples.
            group: Index of the parameter group; ``None`` gives lists of all groups.

        Returns:
            One value a batch; ``None`` where the group did not exist or lacked the field.

        Raises:
            KeyError: The field was not kept.
        """
        if name not in self.fields:
            known = ", ".join(self.fields) or "none"
            raise KeyError(f"no field {name!r} was recorded; there are {known}")
        column = self._read()[name]
        if group is None:
            return list(column)
        return [each[group] if group < len(each) else None for each in column]

    def plot_loss(self, ax: Axes | None = None, skip_last: int = 0, *, smooth: float = 0.0) -> Axes:
        """Draw the training loss, and the validation loss where the rows have it.

        Of several validation loaders each has a line of its own.

        Args:
            ax: Axes to draw on; a new pyplot figure by default.
            skip_last: Batches at the end to leave out.
            smooth: In [0, 1): weight of the past in an exponential average, drawn
                over the batches' own losses. 0 (default) draws these alone.
        """
        whole_number("skip_last", skip_last, 0)
        if not 0 <= smooth < 1:
            raise ValueError(f"smooth must be at least 0 and below 1, got {smooth!r}")
        ax = _new_axes() if ax is None else ax
        losses = self.losses[: max(len(self.losses) - skip_last, 0)]
        steps = range(1, len(losses) + 1)
        faint: dict[str, Any] = {"color": FAINT, "linewidth": 0.8} if smooth else {}
        ax.plot(steps, losses, label="training, each batch", **{"color": MAIN, **faint})
        if smooth:
            ax.plot(steps, _smoothed(losses, smooth), color=MAIN, label="training, smoothed")
        self._plot_validations(ax, len(losses))
        ax.set(xlabel="training batches", ylabel="loss")
        ax.legend(frameon=False)
        return tidy(ax)

    def _plot_validations(self, ax: Axes, batches: int) -> None:
        """Draw the losses of the validations that came by the end of so many batches."""
        # An epoch that was cut short may have seen a part of the validation set only.
        ends = [row for row in self.rows if row["outcome"] == "completed"]
        ends = [row for row in ends if row["batches"] <= batches]
        styles = cycle(product(MARKERS, SEVERAL))
        for column, label in self._validations.items():
            marker, color = next(styles)
            found = [(row["batches"], row[column]) for row in ends if column in row]
            if found:
                x, y = zip(*found, strict=True)
                ax.plot(x, y, color=color, marker=marker, markersize=3.5, label=label)

    def plot_lr(self, ax: Axes | None = None) -> Axes:
        """Draw the learning rate of every parameter group; like ``plot_loss`` otherwise.

        Of several optimizers, those of all into one picture.
        """
        ax = _new_axes() if ax is None else ax
        for name in _chosen("lr", self.fields) or ["lr"]:
            self._plot_field(name, ax)
        return ax

    def plot_sched(self, *names: str, axes: Sequence[Axes] | None = None) -> list[Axes]:
        """Draw several fields of the optimizer side by side.

        Args:
            *names: Fields; all that were kept by default.
            axes: Axes to draw on, one a field; a new pyplot figure by default.
        """
        names = names or self.fields
        if axes is None:
            figure = shown_figure("Recorder.plot_sched", (4.5 * max(len(names), 1), 3.5))
            axes = list(figure.subplots(1, len(names), squeeze=False)[0]) if names else []
        pairs = zip(names, axes, strict=True)
        return [self._plot_field(name, ax) for name, ax in pairs]

    def save_plots(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``loss.png`` and ``schedules.png`` into a folder, which is made if need be.

        Of several processes, rank 0 alone writes.

        Returns:
            Their paths, none on other ranks; without an optimizer field there is no
            ``schedules.png``.
        """
        if not is_among("zero", self.run):
            return []
        losses = saved_figure("Recorder.save_plots", (8, 5))
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.plot_loss(losses.add_subplot(), smooth=0.9)
        losses.savefig(folder / "loss.png")
        if not self.fields:
            return [folder / "loss.png"]
        schedules = saved_figure("Recorder.save_plots", (4.5 * len(self.fields), 3.5))
        self.plot_sched(axes=list(schedules.subplots(1, len(self.fields), squeeze=False)[0]))
        schedules.savefig(folder / "schedules.png")
        return [folder / "loss.png", folder / "schedules.png"]

    def _plot_field(self, name: str, ax: Axes) -> Axes:
        columns = self.values(name, group=None)
        steps = range(1, len(columns) + 1)
        lines = _lines(columns)
        owner, _, field = name.rpartition(".")
        for label, values in lines.items():
            ax.plot(steps, values, label=f"{owner} {label}".strip())
        ax.set(xlabel="training batches", ylabel=field)
        if len(lines) > 1 or owner:
            ax.legend(frameon=False)
        return tidy(ax)

    def report_parts(self) -> dict[str, Any]:
        """Return a row for each training batch: its loss and learning rate."""
        losses = self.losses
        rates = self.lrs if _chosen("lr", self.fields) else [None] * len(losses)
        pairs = enumerate(zip(losses, rates, strict=True))
        rows = [{"fit": 0, "n_iter": i, "loss": loss, "lr": lr} for i, (loss, lr) in pairs]
        return {"batches": rows} if rows else {}

    def state_dict(self) -> dict[str, Any]:
        """Return all that was recorded, read from the device."""
        found = {"columns": dict(self._read()), "rows": list(self.rows)}
        return {**found, "places": list(self._places), "validations": dict(self._validations)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after what another recorder has recorded."""
        columns = state["columns"]
        self._start(name for name in columns if name != "loss")
        self._columns = {name: list(values) for name, values in columns.items()}
        self.rows = [dict(row) for row in state["rows"]]
        # Earlier formats lack the rest.
        self._validations = dict(state.get("validations", _losses_of((None,))))
        self._places = list(state.get("places", [-1] * len(self.losses)))
        self._is_resumed = True


def _losses_of(names: Iterable[str | None]) -> dict[str, str]:
    """Return the columns of validation losses, and how each is called in a picture."""
    return {
        "valid_loss" if name is None else f"valid_{name}_loss": (
            "validation" if name is None else f"validation, {name}"
        )
        for name in names
    }


def _columns_of(opt: Any) -> list[str]:
    """Return the fields that an optimizer has; of several, with the name before each."""
    found = (
        name if owner is None else f"{owner}.{name}"
        for owner, group in parameter_groups(opt)
        for name in group
        if name != "params"
    )
    return list(dict.fromkeys(found))


def _chosen(name: str, columns: Iterable[str]) -> list[str]:
    """Return the column of a name, or those of all optimizers whose field it is."""
    found = list(columns)
    return [each for each in found if name in (each, each.rpartition(".")[2])]


def _lines(columns: list[list[Any]]) -> dict[str, list[float]]:
    """Return a line for every group, and for every part of a tuple; NaN leaves a gap."""
    lines: dict[str, list[float]] = {}
    for at, groups in enumerate(columns):
        for group, value in enumerate(groups):
            parts = value if isinstance(value, (tuple, list)) else (value,)
            for part, number in enumerate(parts):
                label = f"group {group}" + (f"[{part}]" if len(parts) > 1 else "")
                line = lines.setdefault(label, [float("nan")] * len(columns))
                line[at] = float("nan") if number is None else float(number)
    return lines


def _smoothed(values: list[float], weight: float) -> list[float]:
    """Average exponentially, corrected for the start as in Adam; what is not finite is skipped."""
    average, total, result = 0.0, 0.0, []
    for value in values:
        if abs(value) < float("inf"):
            average = weight * average + (1 - weight) * value
            total = weight * total + 1 - weight
        result.append(average / total if total else float("nan"))
    return result


def _new_axes() -> Axes:
    axes: Axes = shown_figure("Recorder's plots", (8, 5)).add_subplot()
    return axes
