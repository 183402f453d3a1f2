"""Average loss and metrics of every epoch, measured without making the host wait."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, count
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import takes_one_argument
from ..bus.receivers import name_of
from ..callback import camel2snake, handler, listify
from ..data.weights import form_of
from ..distributed.reductions import OneProcess
from ..errors import DataError, add_note
from ..over_all import OverAll as OverAll
from ..phase_log import merged, over_all
from ..runner import Runner
from ..text_table import short_number, table_line
from ..weighted_sums import added, one_number
from .shared.metric_state import metric_state, set_metric_state
from .shared.readings import detached_mean, to_host
from .shared.row_ends import RowCallback, RowClock

Metric = Any
"""``metric(pred, yb)`` returning one number, ``OverAll``, one of torchmetrics; several by name."""
Pick = Callable[[Any], Any]
"""``pick(run)`` returns what metrics get of a batch."""


class AvgStats:
    """Averages over one phase, each batch weighted by ``run.weight``: by default its samples.

    The sums stay on the device of the loss, in float64 where it has that, and
    are read once, when a property is. A torchmetrics metric keeps its own state. Parts of the loss
    (``run.losses``) are averaged as it is, under their names, each over the batches that gave it.

    On several processes they are those of this process, until ``share`` makes them those of all.

    Args:
        metrics: One metric or several; in a mapping, each by the name of its column. A function's
            mean over a batch is averaged; a torchmetrics metric is updated and computed, a
            collection's members each under the collection's name for it.
        in_train: Whether these are the training batches' averages.
        pred: A function of the run that returns what metrics get first; ``None`` (default) stands
            for ``run.pred``.
        target: The same for what they get next; ``None`` (default) stands for ``run.yb``.

    Attributes:
        names: ``"loss"``, the metrics' names and those of the parts of the loss, in the order of
            ``avg_stats``. A phase whose batches had no loss has none of it.
    """

    def __init__(
        self,
        metrics: Metric | Iterable[Metric] | None,
        in_train: bool,
        pred: Pick | None = None,
        target: Pick | None = None,
    ) -> None:
        self._pick = _picker("pred", pred), _picker("target", target)
        named = [pair for metric in _listed(metrics) for pair in _members(metric)]
        self.metrics: list[Metric] = [metric for _, metric in named]
        self.names = _told_apart(["loss", *(name for name, _ in named)])
        self.in_train = in_train
        self.reset()

    @property
    def metric_names(self) -> Sequence[str]:
        """The names of the metrics alone."""
        return self.names[1 : 1 + len(self.metrics)]

    def reset(self) -> None:
        """Start over."""
        self.count: Any = 0
        self._updates = 0
        del self.names[1 + len(self.metrics) :]
        self.has_loss = True
        self._sums: list[Any] = [0.0] * (1 + len(self.metrics))
        # Value and weight of each part of the loss. Not every batch need have each.
        self._parts: dict[str, tuple[Any, Any]] = {}
        # What metrics that keep state have computed of the samples of all processes.
        self._computed: dict[int, float] | None = None
        for metric in self.metrics:
            if _keeps_state(metric):
                metric.reset()

    @property
    def all_stats(self) -> list[float]:
        """The sums, loss first, as plain floats; 0.0 for a torchmetrics metric."""
        parts = (total for total, _ in self._parts.values())
        return [float(total) for total in to_host([*self._sums, *parts])]

    @property
    def avg_stats(self) -> list[float]:
        """The averages, loss first, as plain floats; empty while all weights are 0.

        Raises:
            DataError: A weight was negative or not finite.
            TypeError: A torchmetrics metric computes something else than one number.
        """
        sums, weights, parts = to_host([self._sums, self.count, list(self._parts.values())])
        if not math.isfinite(weights):
            raise DataError(
                "the learner's weight(batch) gave a negative number, NaN or infinity in one of "
                f"the {'training' if self.in_train else 'validation'} batches"
            )
        if not weights:
            return []
        values = [total / weights for total in sums]
        computed = self._compute() if self._computed is None else self._computed
        for index, value in computed.items():
            values[index] = value
        return [*values, *(total / weight if weight else math.nan for total, weight in parts)]

    def _compute(self) -> dict[int, float]:
        return {
            index: float(_one_number(metric.compute(), f"metric {self.names[index]!r} computes"))
            for index, metric in enumerate(self.metrics, 1)
            if _keeps_state(metric)
        }

    def share(self, world: OneProcess) -> None:
        """Have the averages be those over the samples of all processes; collective.

        One all-reduce adds up all sums; parts of a loss travel with their names, and metrics that
        keep state gather it themselves.

        Args:
            world: The processes; one alone has nothing to share.

        Raises:
            DataError: A metric that keeps state saw no sample in one of the processes, or computes
                another number in each of them. All processes raise it.
        """
        if world.size == 1 or self._computed is not None:
            return
        has_state = any(map(_keeps_state, self.metrics))
        has_no_sample = bool(has_state and not self._updates)
        *sums, self.count, without, has_parts = world.sums(
            [*self._sums, self.count, has_no_sample, bool(self._parts)]
        )
        self._sums, self._computed = sums, {}
        if has_parts:  # in one of them at least
            self._set_parts(over_all(self._parts, world))
        if not has_state or not self.count:
            return
        if without:
            raise DataError(
                f"{without:g} of {world.size} processes had no sample of this phase, and metrics "
                f"that keep state ({', '.join(self.names[1:])}) cannot be computed without: use a "
                "larger data set or fewer processes"
            )
        for metric in self.metrics:
            if isinstance(metric, OverAll):
                metric.gather(world)
        self._computed = self._compute()
        rows = world.gather(list(self._computed.values()))
        for index, values in zip(self._computed, zip(*rows, strict=True), strict=True):
            if len(set(map(repr, values))) > 1:
                raise DataError(
                    f"metric {self.names[index]!r} computes another number in each process "
                    f"({', '.join(map(str, values))}): compute() must gather its state from all of "
                    "them, as a torchmetrics metric does unless sync_on_compute=False"
                )

    def accumulate(self, run: Runner) -> None:
        """Add the batch that ``run`` has just computed the loss of."""
        weight = run.weight
        parts = run.losses
        self.has_loss = run.loss is not None or run.loss_func is not None
        self._check_parts(parts)
        if not isinstance(weight, Tensor) and not weight:
            return  # it counts for nothing, and its row may be another process's
        self._updates += 1
        pred, yb = self._picked(run) if self.metrics else (None, None)
        numbers = {}
        if self.has_loss:
            numbers[0] = _one_number(detached_mean(run.loss), "loss_func returned")
        found_parts = {
            name: _one_number(detached_mean(part), f"part {name!r} of the loss is")
            for name, part in parts.items()
        }
        for index, metric in enumerate(self.metrics, 1):
            try:
                if _keeps_state(metric):
                    if isinstance(run.loss, Tensor):
                        metric.to(run.loss.device)
                    metric.update(pred, yb)
                    continue
                found = metric(pred, yb)
            except Exception as error:
                given = f"pred of {form_of(pred)}, yb of {form_of(yb)}"
                add_note(error, f"Raised by metric {self.names[index]!r}, given {given}.")
                raise
            numbers[index] = _one_number(found, f"metric {self.names[index]!r} returned")
        self.count = self.count + weight  # not in place: the weight may be the user's own
        for index, number in numbers.items():
            self._sums[index] = added(self._sums[index], number, weight)
        for name, part in found_parts.items():
            total, count = self._parts.get(name, (0.0, 0.0))
            if name not in self._parts:
                self.names.append(name)
            self._parts[name] = added(total, part, weight), count + weight

    def _picked(self, run: Runner) -> list[Any]:
        found = []
        for name, pick in zip(("pred", "target"), self._pick, strict=True):
            try:
                found.append(pick(run))
            except Exception as error:
                add_note(
                    error,
                    f"Raised by the function {name}= of the metrics, which is called with the run: "
                    f"run.pred is {form_of(run.pred)}, run.yb is {form_of(run.yb)}.",
                )
                raise
        return found

    def _check_parts(self, parts: Iterable[str]) -> None:
        for name in parts:
            if name in self.names[: 1 + len(self.metrics)]:
                raise ValueError(
                    f"a part of the loss and a metric are both called {name!r}: give the part "
                    "another key in the mapping that loss_func returns"
                )

    def _set_parts(self, parts: Mapping[str, Any]) -> None:
        self._parts = {name: (total, weight) for name, (total, weight) in parts.items()}
        self.names[1 + len(self.metrics) :] = self._parts

    def state_dict(self) -> dict[str, Any]:
        """Return what has been added up since the last reset."""
        kept = [metric_state(metric) for metric in self.metrics if _keeps_state(metric)]
        return {
            "count": self.count,
            "sums": list(self._sums),
            "metrics": kept,
            "updates": self._updates,
            "computed": self._computed,
            "parts": {name: list(sums) for name, sums in self._parts.items()},
            "has_loss": self.has_loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on adding to what ``state_dict`` returned.

        Raises:
            ValueError: It is of other metrics.
        """
        keeping = [metric for metric in self.metrics if _keeps_state(metric)]
        state = _with_named_parts(state)
        metrics = len(state["sums"]) - 1
        if metrics != len(self.metrics) or len(state["metrics"]) != len(keeping):
            raise ValueError(
                f"the state is of {metrics} metrics, and there are "
                f"{len(self.metrics)}: {', '.join(self.metric_names) or 'none'}"
            )
        self.reset()
        self.count, self._sums = state["count"], list(state["sums"])
        # Earlier formats lack these.
        self._updates, self._computed = state.get("updates", 1), state.get("computed")
        self._set_parts(state["parts"])
        self.has_loss = state.get("has_loss", True)
        for metric, kept in zip(keeping, state["metrics"], strict=True):
            set_metric_state(metric, kept)

    def __repr__(self) -> str:
        averages = self.avg_stats
        if not averages:
            return ""
        pairs = list(zip(self.names, averages, strict=True))[not self.has_loss :]
        text = ", ".join(f"{name} {value:.4f}" for name, value in pairs)
        return f"{'train' if self.in_train else 'valid'}: {text}"


class AvgStatsCallback(RowCallback):
    """Prints one line of averages an epoch, and writes them to ``run.history``.

    In a fit with ``validate_every`` there is a line a validation; averages of training are then of
    all batches since the line before.

    Args:
        metrics: As for ``AvgStats``.
        report: Called with each line, of several processes on rank 0 alone; ``None`` for
            silence. ``print`` (default) leaves it to a callback that shows rows itself, as
            ``Progress`` does in a notebook.
        pred: As for ``AvgStats``: ``lambda run: run.pred["logits"]``, say.
        target: As for ``AvgStats``: ``lambda run: run.batch["labels"]``, say.

    Attributes:
        train_stats, valid_stats: The ``AvgStats`` of the last epoch, or row; of several validation
            loaders that of the last one.

    Raises:
        TypeError: A metric is none, ``report`` takes something else than a line, or ``pred`` or
            ``target`` than the run.
    """

    priority = 50  # metrics: before anything that reads run.history
    counts_within_batch = True

    def __init__(
        self,
        metrics: Metric | Iterable[Metric] | None = None,
        report: Callable[[str], object] | None = print,
        *,
        pred: Pick | None = None,
        target: Pick | None = None,
    ) -> None:
        metrics = _listed(metrics)
        if report is not None:
            _check_report(report)
        self.train_stats = AvgStats(metrics, True, pred, target)
        self.valid_stats = AvgStats(copy.deepcopy(metrics), False, pred, target)
        self._report = report
        self._titles: list[str] = []
        self._of_sets: dict[str, float] = {}  # of this row, measured on named loaders
        self._clock = RowClock()
        self._is_written = False  # what has been averaged of training stands in a row already
        self._spans_epochs = False

    @property
    def phase_columns(self) -> Sequence[str]:
        """The names of its averages."""
        return self.train_stats.names if self.in_train else self.valid_stats.names

    def begin_fit(self, run: Runner) -> None:
        """Print the column titles again."""
        self._titles = []
        self._clock = RowClock()
        self._spans_epochs = run.validate_every is not None
        self._is_written = self._spans_epochs
        self._of_sets = {}
        self._check_columns(run)

    def _check_columns(self, run: Runner) -> None:
        """Refuse a column that another one has: the last to write would have it."""
        own = set(self.train_stats.metric_names)
        for other in run.cbs:
            if other is self or not isinstance(other, AvgStatsCallback):
                continue
            for name in other.train_stats.metric_names:
                if name in own:
                    raise ValueError(
                        f"{self!r} and {other!r} both have a metric {name!r}, and would write one "
                        'column: give it another name in one of them, AvgStatsCallback({"name": f})'
                    )

    def begin_epoch(self, run: Runner) -> None:
        """Start the epoch's clock."""
        self._clock.begin_epoch(run)
        if not self._spans_epochs:
            self.train_stats.reset()
            self.valid_stats.reset()
            self._of_sets = {}

    def begin_validate(self, run: Runner) -> None:
        """Start over, for a validation outside of a fit too."""
        self._check_columns(run)
        if not run.in_interlude and run.valid_name == next(iter(run.valid_loaders)):
            self._of_sets = {}
        self.valid_stats.reset()

    def after_loss(self, run: Runner) -> None:
        """Add the batch."""
        if self._is_written and run.in_train:
            self._is_written = False
            self.train_stats.reset()
        stats = self.train_stats if run.in_train else self.valid_stats
        known = len(stats.names)
        with torch.no_grad():
            stats.accumulate(run)
        if len(stats.names) != known:
            run.phase_log.keep_free(stats.names)

    @handler("after_train")
    def share_train(self, run: Runner) -> None:
        """Have the averages be those of all processes, once a phase; or later, once a row."""
        if run.outcome != "failed" and not self._spans_epochs:
            self.train_stats.share(run.world)

    def after_validate(self, run: Runner) -> None:
        """Have the averages be those of all; report a validation that is no part of a row."""
        if run.outcome != "failed":
            self.valid_stats.share(run.world)
        is_aside = run.in_interlude and not self._spans_epochs
        if run.token.scope is None or is_aside:
            run.history[-1].update(self._row(self.valid_stats, run.prefix))
            if run.valid_name == list(run.valid_loaders)[-1]:
                self._print_line(run.history[-1], run)
        elif run.valid_name is not None and run.outcome != "failed":
            self._keep_row_of(run)
        if is_aside:
            self.valid_stats.reset()  # else it would pass for that of the epoch

    def _keep_row_of(self, run: Runner) -> None:
        """Keep what was measured on one of several loaders: the next one starts over."""
        row = self._row(self.valid_stats, run.prefix)
        twice = sorted(row.keys() & self._of_sets.keys())
        if twice:
            raise ValueError(
                f"two of the validation loaders would have the column {twice[0]!r}: give one of "
                f"them another name, {', '.join(map(repr, run.valid_loaders))}"
            )
        self._of_sets.update(row)

    def end_row(self, run: Runner) -> None:
        """Report the row, unless it failed: its averages would pass for those of a whole one."""
        if run.outcome == "failed":
            return
        place: dict[str, Any] = {"epoch": run.epoch}
        trained = {}
        if self._spans_epochs:
            place["step"] = run.steps
        if not self._is_written:
            if self._spans_epochs:
                self.train_stats.share(run.world)
            trained = self._row(self.train_stats, "train")
        self._is_written = self._spans_epochs
        of_sets, self._of_sets = self._of_sets, {}
        row = {**trained, **(of_sets or self._row(self.valid_stats, "valid"))}
        run.history[-1].update(row)
        self._print_line({**place, **row, "seconds": self._clock.lap(run)}, run)

    def state_dict(self) -> dict[str, Any]:
        """Return what has been measured of the current epoch or row."""
        stats = {"train": self.train_stats, "valid": self.valid_stats}
        state: dict[str, Any] = {phase: each.state_dict() for phase, each in stats.items()}
        place = {"spans_epochs": self._spans_epochs, "is_written": self._is_written}
        return {**state, **place, "of_sets": dict(self._of_sets)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on measuring the epoch in which the state was saved."""
        self.train_stats.load_state_dict(state["train"])
        self.valid_stats.load_state_dict(state["valid"])
        self._spans_epochs = state.get("spans_epochs", False)  # earlier formats lack these
        self._is_written = state.get("is_written", False)
        self._of_sets = dict(state.get("of_sets", {}))

    def state_for_rank(
        self, states: Sequence[dict[str, Any]], rank: int, size: int, phase: str | None
    ) -> dict[str, Any]:
        """Give the first rank what all have added up of a phase, and the others nothing.

        Raises:
            ValueError: A metric that keeps state has begun with the phase: only its class could
                say what two states make.
        """
        found = dict(states[0])
        key = {"train": "train", "validate": "valid"}.get(phase or "")
        if key is not None:
            found[key] = self._part_of_rank([state[key] for state in states], rank)
        if key != "train" and found.get("spans_epochs") and not found["is_written"]:
            found["train"] = self._part_of_rank([state["train"] for state in states], rank)
        return found

    def _part_of_rank(self, parts: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
        each = [_with_named_parts(part) for part in parts]
        if any(one["metrics"] and one.get("updates", 1) for one in each):
            raise ValueError(
                "AvgStatsCallback has a metric that keeps state, and is in the middle of a phase: "
                f"go on with {len(parts)} processes, or from a checkpoint between epochs"
            )
        totals = [sum(numbers) for numbers in zip(*(one["sums"] for one in each), strict=True)]
        (named,) = merged([[one["parts"]] for one in each])
        count = sum(one["count"] for one in each)
        whole = {**each[0], "sums": totals, "count": count, "parts": named}
        nothing = {**whole, "sums": [0.0] * len(totals), "count": 0, "updates": 0, "parts": {}}
        return whole if rank == 0 else nothing

    def _row(self, stats: AvgStats, prefix: str) -> dict[str, float]:
        pairs = list(zip(stats.names, stats.avg_stats, strict=False))
        return {f"{prefix}_{name}": value for name, value in pairs[not stats.has_loss :]}

    def _print_line(self, row: dict[str, Any], run: Runner) -> None:
        if self._report is None or not self.is_zero:
            return
        if self._report is print and any(callback.shows_rows for callback in run.cbs):
            return  # a function of the user's own gets every line
        shown = {title: value for title, value in row.items() if value is not None}
        if self._titles != list(shown):
            self._titles = list(shown)
            self._report(_line(self._titles, self._titles))
        self._report(_line(map(short_number, shown.values()), self._titles))


def _with_named_parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state as ``AvgStats.state_dict`` gives it, also of one of an earlier format."""
    parts, sums, count = state.get("parts", []), state["sums"], state["count"]
    if isinstance(parts, Mapping):
        return dict(state)
    own = len(sums) - len(parts)
    named = {name: [total, count] for name, total in zip(parts, sums[own:], strict=True)}
    return {**state, "sums": sums[:own], "parts": named}


def _check_report(report: Any) -> None:
    """Refuse what could not print a line, before there is one to print."""
    if _keeps_state(report) or not callable(report) or not takes_one_argument(report):
        raise TypeError(
            f"report is called with each line that is to be printed, got {report!r}: several "
            "metrics go into one list, AvgStatsCallback([first, second])"
        )


def _picker(name: str, pick: Pick | None) -> Pick:
    if pick is None:
        return attrgetter({"pred": "pred", "target": "yb"}[name])
    if not callable(pick) or isinstance(pick, type) or not takes_one_argument(pick):
        raise TypeError(
            f"{name} must be a function of the run that returns what metrics get, got {pick!r}: "
            f"{name}=lambda run: {_EXAMPLES[name]}"
        )
    return pick


_EXAMPLES = {"pred": 'run.pred["logits"]', "target": 'run.batch["labels"]'}


def _keeps_state(metric: Any) -> bool:
    """Whether it is a torchmetrics metric, or one that behaves alike."""
    if isinstance(metric, type):
        return False
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset"))


def _listed(metrics: Metric | Iterable[Metric] | None) -> list[Metric]:
    # A collection or a mapping could be iterated over, for its names.
    is_one = _keeps_state(metrics) or isinstance(metrics, (Tensor, Mapping, nn.ModuleDict))
    return [metrics] if is_one else listify(metrics)


def _members(metric: Metric) -> list[tuple[str, Metric]]:
    """Return a metric under its name, or those of a mapping or a collection under theirs."""
    if isinstance(metric, (Mapping, nn.ModuleDict)) and not _keeps_state(metric):
        return [pair for name, each in metric.items() for pair in _called(name, each)]
    if isinstance(metric, type):
        raise TypeError(f"metric {metric.__name__} is a class: pass an instance, or a function")
    if not callable(metric):
        raise TypeError(
            f"a metric must be a function of (pred, yb) or a torchmetrics metric, got {metric!r}: "
            "pass accuracy itself, say, and not what accuracy(pred, yb) returns"
        )
    if not _keeps_state(metric):
        return [(name_of(metric), metric)]
    if isinstance(metric, OverAll):
        return [(metric.name, metric)]
    if hasattr(metric, "items"):
        return list(metric.items())
    return [(camel2snake(type(metric).__name__), metric)]


def _called(name: Any, metric: Metric) -> list[tuple[str, Metric]]:
    if not isinstance(name, str) or not name:
        raise TypeError(f"a mapping has metrics by the names of their columns, texts, got {name!r}")
    found = _members(metric)
    return [(name if len(found) == 1 else f"{name}_{own}", each) for own, each in found]


def _told_apart(names: Iterable[str]) -> list[str]:
    """Number the names that are there already."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in count(2))
        found.append(next(each for each in chain([name], numbered) if each not in found))
    return found


def _one_number(value: Any, whose: str) -> Any:
    return one_number(
        value,
        whose,
        "return a mean over the batch; several numbers are several metrics, each a function of "
        "its own, or a handler of yours that reads them",
    )


def _line(cells: Iterable[str], titles: Sequence[str]) -> str:
    return table_line(list(cells), [max(len(title), 7) for title in titles], left=0)
