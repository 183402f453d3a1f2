"""What a row of the history is of: an epoch, or the steps since the last validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .arguments import whole_number
from .around import around
from .cancellation import Outcome, Unwind
from .cancellation.scope import hide_unwind
from .errors import DataError


class EpochRows:
    """A row an epoch, of its training and of the validation that follows.

    Attributes:
        every: Steps from one validation to the next; ``None`` where each follows an epoch.
        is_between_batches: Whether a validation is made, or its row told of, after a training
            batch that has ended with all its handlers.
    """

    every: int | None = None
    is_between_batches = False
    _has_begun = False

    def check(self, run: Any) -> None:
        """See that there can be such rows, before anything begins."""

    def begin_epoch(self, run: Any) -> None:
        """Begin what belongs to the epoch that has been entered."""
        self._has_begun = True
        run.start_row()

    def between(self, batches: Iterable[Any], run: Any) -> Iterable[Any]:
        """Return the batches of a phase, with what is to be done between them."""
        return batches

    def ends_with_validation(self, run: Any) -> bool:
        """Whether a validation follows now that the training of the epoch has ended."""
        return run.data.valid_dl is not None

    @around
    def aside(self, run: Any) -> Iterator[dict[str, Any]]:
        """Give a validation in the midst of an epoch a row of its own, which none is told of."""
        row = {"epoch": run.epoch, "step": run.steps}
        run.history.append(row)
        try:
            yield row
        finally:
            run.history[:] = [each for each in run.history if each is not row]

    def end_validation(self, run: Any) -> None:
        """Close the row that a validation completes."""

    @around
    def of_epoch(self, run: Any) -> Iterator[None]:
        """Close the row that an epoch completes: around its scope, for all handlers of that."""
        try:
            yield
        except Unwind:  # an exception may have come of a handler that was to fill the row in
            self._end_epoch(run)
            raise
        self._end_epoch(run)

    def _end_epoch(self, run: Any) -> None:
        has_begun, self._has_begun = self._has_begun, False
        if has_begun:  # several processes may have agreed not to enter
            _tell(run, run.scope.epoch.outcome)

    def end_fit(self, run: Any) -> None:
        """Drop what has not become a row."""


class ValidationRows(EpochRows):
    """A row a validation, of it and of the training since the one before.

    The row that is filled in has no ``"step"`` yet; it gets that when it is complete.

    Args:
        every: Steps from one validation to the next. Another comes at the end of the fit.
    """

    def __init__(self, every: int) -> None:
        self.every: int | None = every
        self._steps = every
        self._tried_at = 0

    def check(self, run: Any) -> None:
        """See that there is something to validate on.

        Raises:
            DataError: There is not.
        """
        if run.data.valid_dl is None:
            raise DataError(
                f"validate_every={self.every} has nothing to validate on: learn.data.valid_dl is "
                "None. Give the DataBunch a validation loader, or leave validate_every out"
            )

    def begin_epoch(self, run: Any) -> None:
        """See that there is a row to fill in; one may span epochs."""
        run.epoch_began_at = run.n_iter
        self._open(run)

    def between(self, batches: Iterable[Any], run: Any) -> Iterable[Any]:
        """Return the batches of a phase; between those of training a validation is made."""
        return _Between(batches, self, run) if run.in_train else batches

    def ends_with_validation(self, run: Any) -> bool:
        """Whether the fit ends here, and the last step has not been validated yet."""
        return bool(run.extent.is_last_epoch(run)) and self._last_step(run) != run.steps

    @around
    def aside(self, run: Any) -> Iterator[dict[str, Any]]:
        """Have a validation in the midst of an epoch complete the row that is filled in."""
        self._open(run)
        yield run.history[-1]

    def end_validation(self, run: Any) -> None:
        """Complete the row, and tell of it."""
        row = run.history[-1]
        numbers = {name: value for name, value in row.items() if name != "epoch"}
        row.clear()
        row.update(epoch=run.epoch, step=run.steps, **numbers)
        _tell(run, run.scope.validate.outcome)

    def _end_epoch(self, run: Any) -> None:
        """Do nothing: the row goes on."""

    def end_fit(self, run: Any) -> None:
        """Drop the row that no validation has completed."""
        if run.history and "step" not in run.history[-1]:
            run.history.pop()

    def before_batch(self, run: Any) -> None:
        """Validate if it is time to, and see that there is a row to fill in."""
        last = max(self._last_step(run) or 0, self._tried_at)
        if run.steps // self._steps > last // self._steps:
            self._tried_at = run.steps
            self.is_between_batches = True
            try:
                run.validate_now()
            finally:
                self.is_between_batches = False
            run.token.check()
        self._open(run)

    def _open(self, run: Any) -> None:
        if not run.history or "step" in run.history[-1]:
            run.history.append({"epoch": run.epoch})

    def _last_step(self, run: Any) -> int | None:
        return next((row["step"] for row in reversed(run.history) if "step" in row), None)


class _Between:
    """Iterates over training batches, and has what is between them done; holds on to none."""

    def __init__(self, batches: Iterable[Any], rows: ValidationRows, run: Any) -> None:
        self._loader, self._rows, self._run = batches, rows, run
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> _Between:
        return self

    def __next__(self) -> Any:
        try:
            self._rows.before_batch(self._run)
        except StopIteration as error:  # of a handler: here it would pass for the loader's end
            raise RuntimeError("a handler raised StopIteration in a validation") from error
        if self._batches is None:
            self._batches = iter(self._loader)
        return next(self._batches)


def rows_every(validate_every: Any) -> EpochRows:
    """Return the rows of a fit.

    Args:
        validate_every: What ``Runner.fit`` was given.

    Raises:
        TypeError, ValueError: It is no whole number, or below 1.
    """
    if validate_every is None:
        return EpochRows()
    return ValidationRows(whole_number("validate_every", validate_every, 1, "steps"))


def _tell(run: Any, outcome: Outcome | None) -> None:
    """Fire ``after_row``, in which ``run.outcome`` is how that ended which completed the row."""
    token = run.token
    outer, token.outcome = token.outcome, outcome
    try:
        run.emit.after_row()
    except BaseException as error:
        hide_unwind(error)
        raise
    finally:
        token.outcome = outer
