"""The state of a run that handlers read, and the record that remains of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from .around import around
from .bus.binding import Emitter, Scopes
from .bus.event_bus import EventBus
from .cancellation import Cancellation, CancellationToken, Outcome, Scope, Unwind
from .data.bunch import DataBunch, valid_loaders_of
from .data.weights import count_samples
from .distributed.groups import found_group
from .distributed.reductions import ONE_PROCESS, OneProcess
from .errors import DataError, describe
from .learner import Learner
from .model_call import total_loss
from .phase_log import NO_PHASE, NoPhase

_OF_THE_BATCH = (
    *("phase", "in_train", "iters", "batch_index", "batch", "xb", "yb", "pred", "loss"),
    *("_weighed", "_parts"),
)
_COUNTERS = ("n_iter", "steps", "epochs_done", "epoch_began_at", "train_iters")

_SLOTS = (
    "_parts",
    "_valid_loaders",
    "_weighed",
    "batch",
    "batch_index",
    "emit",
    "epoch",
    "epoch_began_at",
    "epochs",
    "epochs_done",
    "history",
    "in_interlude",
    "in_train",
    "is_running",
    "iters",
    "learn",
    "loss",
    "n_iter",
    "phase",
    "phase_log",
    "pred",
    "result",
    "scope",
    "steps",
    "token",
    "total_steps",
    "train_iters",
    "valid_name",
    "validate_every",
    "world",
    "xb",
    "yb",
)
"""The interpreter reads and writes slots faster than a dictionary this large, and the loop does so
ten times a batch. Not in the class: pyright takes no property where it sees a slot."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """How a run ended and what it did.

    Attributes:
        outcome: ``"completed"``, ``"cancelled"`` or ``"failed"``.
        reason: The reason of the cancellation that ended it, or the exception
            that did; ``None`` when it completed.
        cancellations: The requests during the run, oldest first; as ``token.history``,
            at least the last 10,000 of them.
        epochs: Epochs that ran to their end; the one too that ended with the last of the steps
            that were asked for.
        steps: Optimizer steps taken.
        seconds: Wall time.
        history: One row an epoch, ``{"epoch": 0, ...}``, filled in by callbacks; with
            ``validate_every`` one a validation, ``{"epoch": 0, "step": 100, ...}``.
    """

    outcome: Outcome
    reason: str | None
    cancellations: tuple[Cancellation, ...]
    epochs: int
    steps: int
    seconds: float
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)


class RunState:
    """What a run knows about itself. ``Runner`` adds the loop.

    For type checkers ``epoch``, ``phase``, ``batch_index`` and ``loss`` are never ``None``, as in
    a handler of a batch, so that these need not ask.

    Attributes:
        learn: The ``Learner`` during a run, else ``None``.
        token: The ``CancellationToken`` of the run; an idle one between runs.
        epoch, epochs: Index of the epoch from 0, and their number; ``None`` before, and their
            number in a fit by steps too.
        total_steps: Optimizer steps that a fit by steps takes in all, else ``None``.
        n_iter: Training batches that have ended in this fit.
        epochs_done: Epochs that have run to their end in this fit.
        epoch_began_at: ``n_iter`` when the epoch began.
        train_iters: Batches of training in an epoch, ``None`` where the loader cannot tell.
        steps: Optimizer steps taken in this fit.
        iters: Batches in the current phase, ``None`` where the loader cannot tell.
        batch_index: Index of the batch in its phase from 0, ``None`` between phases.
        phase: ``"train"``, ``"validate"`` or ``"predict"`` from its ``begin_`` event
            on, until the next epoch begins.
        valid_name: The name of the loader that is validated on, while that is one of several.
        in_train: Whether the model is in training mode.
        batch: The batch as loaded, on the model's device.
        xb, yb: Its two parts, or the whole batch twice where it has not two.
        pred, loss: What model and loss function returned for this batch; ``None``
            until then, and where a model that computes its own loss gives none in validation.
        losses: The parts of the loss by their names, where it was given as a mapping.
        weight: What the loss of this batch is a mean of; asked for once a batch.
        emit: Fires events, ``self.emit.after_loss()``; there during a run only.
        scope: Opens scopes, ``with self.scope.batch:``; there during a run only.
        bus: The ``EventBus``.
        cbs: The callbacks, ``TrainEvalCallback`` first.
        is_running: Whether a run is under way.
        history: One row an epoch, ``{"epoch": 0}``, for callbacks to fill in; with
            ``validate_every`` one a validation, which has its ``"step"`` once it is complete.
        validate_every: Steps from one validation of the fit to the next; ``None`` where each
            follows an epoch.
        in_interlude: Whether a validation is under way that comes in the midst of an epoch:
            ``validate_now`` or ``validate_every`` asked for it.
        result: The ``FitResult`` of the last run, also when it raised.
        phase_log: What ``log`` adds up in the current phase.
        world: Asks the other processes of the run for their numbers; nobody where it is alone.
    """

    __slots__ = _SLOTS

    if TYPE_CHECKING:  # at run time these are slots; handlers read a value, the loop sets None too

        @property
        def epoch(self) -> int: ...  # noqa: D102
        @epoch.setter
        def epoch(self, value: int | None) -> None: ...

        @property
        def phase(self) -> str: ...  # noqa: D102
        @phase.setter
        def phase(self, value: str | None) -> None: ...

        @property
        def batch_index(self) -> int: ...  # noqa: D102
        @batch_index.setter
        def batch_index(self, value: int | None) -> None: ...

        @property
        def loss(self) -> Tensor: ...  # noqa: D102
        @loss.setter
        def loss(self, value: Tensor | None) -> None: ...

    _weighed: tuple[Any, float | Tensor] | None  # what was asked last, and the answer
    valid_name: str | None
    _valid_loaders: dict[str | None, Any]  # all of them, while valid_name is one of several
    _parts: tuple[Any, Mapping[str, Any]] | None  # of the loss, and of which batch
    emit: Emitter
    scope: Scopes
    bus: EventBus
    cbs: list[Any]

    def __init__(self) -> None:
        self.result: FitResult | None = None
        self.world: OneProcess = ONE_PROCESS
        self.in_train = False
        self.is_running = False
        self.reset_counters()
        self.drop_references()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        kind = type(self).__name__
        raise TypeError(
            f"a {kind} cannot be copied or pickled: its handlers are subscribed for it alone. Make "
            f"another with {kind}(...); what it has learned is in learn.model, and a Checkpoint "
            "keeps the state of a run."
        )

    @property
    def rank(self) -> int:
        """The number of this process among those of its group, from 0."""
        return found_group().rank

    @property
    def world_size(self) -> int:
        """How many processes the group has; 1 for a process that is alone."""
        return found_group().world_size

    @property
    def local_rank(self) -> int:
        """The number of this process among those on its machine, from 0."""
        return found_group().local_rank

    @property
    def is_zero(self) -> bool:
        """Whether this process is the one that speaks for all; so is one that is alone."""
        return found_group().is_zero

    @property
    def model(self) -> Any:
        """``learn.model``."""
        return self._learner().model

    @model.setter
    def model(self, value: Any) -> None:
        self._learner().model = value

    @property
    def opt(self) -> Any:
        """``learn.opt``: the optimizer, or several by their names."""
        return self._learner().opt

    @opt.setter
    def opt(self, value: Any) -> None:
        self._learner().opt = value

    @property
    def stepping(self) -> str | None:
        """The name of the optimizer that steps, or was the last to; ``None`` of one alone.

        For handlers of ``begin_step``, ``after_step`` and ``after_cancel_step``.
        """
        return self._learner().steppers.chosen

    @property
    def loss_func(self) -> Any:
        """``learn.loss_func``."""
        return self._learner().loss_func

    @loss_func.setter
    def loss_func(self, value: Any) -> None:
        self._learner().loss_func = value

    @property
    def data(self) -> DataBunch:
        """``learn.data``; while one of several validation loaders is used, ``valid_dl`` is that."""
        return self._learner().data

    @data.setter
    def data(self, value: DataBunch) -> None:
        self._learner().data = value

    @property
    def valid_loaders(self) -> dict[str | None, Any]:
        """The validation loaders by their names; one alone has the name ``None``."""
        if self.valid_name is None:
            return valid_loaders_of(self.data)
        return {**self._valid_loaders, self.valid_name: self.data.valid_dl}

    @property
    def prefix(self) -> str:
        """What columns of this phase begin with: ``"train"``, ``"valid"``, ``"valid_easy"``."""
        if self.phase == "train":
            return "train"
        return "valid" if self.valid_name is None else f"valid_{self.valid_name}"

    @around
    def validating_on(self, name: str | None) -> Iterator[None]:
        """Have ``data.valid_dl`` be one of several loaders, and put them all back.

        What somebody has set in its place meanwhile stays, under its name.

        Args:
            name: A key of ``valid_loaders``; ``None`` changes nothing.
        """
        if name is None:
            yield
            return
        data, several = self.data, self.data.valid_dl
        self._valid_loaders, self.valid_name = valid_loaders_of(data), name
        data.valid_dl = chosen = self._valid_loaders[name]
        try:
            yield
        finally:
            now = data.valid_dl
            data.valid_dl = several if now is chosen else {**several, name: now}
            self._valid_loaders, self.valid_name = {}, None

    def place_of_batch(self) -> tuple[Any, ...]:
        """What tells this batch from the others of the run."""
        return self.batch_index, self.phase, self.valid_name, self.epoch

    @property
    def weight(self) -> float | Tensor:
        """What the loss of this batch is a mean of: samples, or what ``learn.weight`` counts.

        Where the batch itself cannot be counted, ``xb`` and ``yb`` are, as they are now.
        It is asked for when somebody first reads it in a batch, and kept for the batch; a
        tensor stays on its device.

        Raises:
            TypeError, DataError: See ``eventtrain.data.weights.weight_of``.
        """
        batch, weight = self.batch, None if self.learn is None else self.learn.weight
        # By the id: holding the batch would keep it alive while the next one is computed on.
        asked = (id(batch), *self.place_of_batch(), weight)
        if self._weighed is None or self._weighed[0] != asked:
            try:
                self._weighed = asked, self.world.weight_of(self)
            except DataError:
                if weight is None:
                    # Not kept: they may be others before the batch is.
                    with suppress(DataError):
                        return count_samples((self.xb, self.yb))
                raise
        return self._weighed[1]

    @property
    def losses(self) -> Mapping[str, Any]:
        """The parts of this batch's loss by their names; none where it is one number."""
        parts = self._parts
        is_known = parts is not None and parts[0] == self.place_of_batch()
        return parts[1] if parts is not None and is_known else {}

    def take_losses(self, losses: Mapping[str, Any]) -> Any:
        """Return the whole of several losses, and have ``losses`` be their parts.

        Args:
            losses: Scalar tensors by name, the whole at ``"loss"``.

        Raises:
            TypeError: There is no whole, or a part is no single number.
        """
        whole, parts = total_loss(losses)
        self._parts = self.place_of_batch(), parts
        return whole

    def log(self, name: str, value: Any, weight: Any = None) -> None:
        """Average a number over the phase, and have the average stand in its row.

        Called from a handler in training it gives the column ``train_NAME``, in validation
        ``valid_NAME`` (``valid_EASY_NAME`` of the loader ``EASY`` of several), in ``history`` from
        ``after_train`` and ``after_validate`` on. The sums stay on the device of the value until
        then; over several processes they are those of all, whoever has logged.

        Args:
            name: Any text that no other column has.
            value: A number, or a tensor of one element, which is cut from the graph.
            weight: What the value is a mean of: a number of at least 0, or a tensor without
                dimensions. ``None`` (default) weights it as the loss of the batch is.

        Raises:
            RuntimeError: Neither training nor validation goes on.
            TypeError: ``value`` or ``weight`` is no single number, or ``name`` no text.
            ValueError: Another column has the name; ``weight`` is negative, NaN or infinite, or
                missing where there is no batch.
        """
        self.phase_log.add(self, name, value, weight)

    @property
    def n_epochs(self) -> float:
        """Epochs trained so far, with the fraction of the current one where its length is known."""
        if self.epoch is None:
            return 0.0
        done = self.n_iter - self.epoch_began_at
        # No more than one: the length may be an estimate.
        return self.epoch + (min(done / self.train_iters, 1.0) if self.train_iters else 0.0)

    @property
    def outcome(self) -> Outcome | None:
        """In a closing event, how its scope ended; between runs, how the last run did."""
        if self.is_running:
            return self.token.outcome
        return None if self.result is None else self.result.outcome

    @property
    def exception(self) -> BaseException | None:
        """The exception that is escaping, in ``fit_failed`` and the closing events after it."""
        return self.token.exception

    def _learner(self) -> Learner:
        if self.learn is None:
            raise AttributeError(
                "model, opt, loss_func and data are there during a run only; at any time they are "
                "the learner's own: learn.model"
            )
        return self.learn

    def reset_counters(self) -> None:
        """Be where a run begins."""
        self._valid_loaders, self.valid_name = {}, None
        self.phase_log: NoPhase = NO_PHASE
        self.epoch = None
        self.epochs: int | None = None
        self.total_steps: int | None = None
        self.validate_every: int | None = None
        self.in_interlude = False
        self.phase = None
        self.n_iter = 0
        self.steps = 0
        self.history: list[dict[str, Any]] = []
        self.epochs_done = 0
        self.epoch_began_at = 0
        self.train_iters: int | None = None

    def start_row(self) -> None:
        """Begin the row of an epoch in ``history``."""
        self.history.append({"epoch": self.epoch})
        self.epoch_began_at = self.n_iter

    def moment(self) -> dict[str, Any]:
        """Return where the run stands in its phase: the batch, and what there is of it."""
        return {name: getattr(self, name) for name in _OF_THE_BATCH}

    def go_back_to(self, moment: dict[str, Any]) -> None:
        """Stand again where ``moment`` was asked for."""
        for name in _OF_THE_BATCH:
            setattr(self, name, moment[name])

    def counters(self) -> dict[str, Any]:
        """Return what the run has counted, for a checkpoint."""
        return {name: getattr(self, name) for name in _COUNTERS}

    def set_counters(self, counters: dict[str, Any]) -> None:
        """Go on counting from what ``counters`` returned."""
        for name in _COUNTERS:
            setattr(self, name, counters[name])

    def drop_references(self) -> None:
        """Forget everything that would keep a model, its data or its graph alive."""
        self.phase_log = NO_PHASE
        self.learn: Learner | None = None
        self.batch: Any = None
        self.xb: Any = None
        self.yb: Any = None
        self.pred: Any = None
        self.loss = None
        self.batch_index = None
        self.iters: int | None = None
        self._weighed = self._parts = None
        for name in ("emit", "scope"):
            if hasattr(self, name):
                delattr(self, name)
        self.token = CancellationToken()
        self.token.finish()

    def summary(
        self, scope: Scope, known: int, failure: BaseException | None, seconds: float
    ) -> FitResult:
        """Make the result of a run whose outermost scope was ``scope``."""
        token, reason = self.token, None
        outcome: Outcome = scope.outcome or "cancelled"
        if failure is not None and not isinstance(failure, Unwind):
            outcome, reason = "failed", describe(failure)
        elif outcome == "cancelled":
            # Pending still: it was cancelled before it began, and nobody absorbed that.
            ended_by = token.pending or token.absorbed
            reason = None if ended_by is None else ended_by.reason
        return FitResult(
            outcome=outcome,
            reason=reason,
            cancellations=tuple(token.accepted_since(known)),
            epochs=self.epochs_done,
            steps=self.steps,
            seconds=seconds,
            history=self.history,
        )
