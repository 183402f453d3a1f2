"""How long a fit goes on: for so many epochs, or for so many optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, NoReturn

from .arguments import whole_number
from .learner import Learner

_IDLE_PASSES = 100
_IDLE_BATCHES = 100
_CALLS = "run.fit(10, learn) for epochs, or run.fit(steps=1000, learn=learn)"


class Epochs:
    """So many passes over the training loader.

    Args:
        epochs: How many, counted from the beginning of a fit that is resumed.

    Attributes:
        epochs, steps: How many of which; ``None`` for the other.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs: int | None = epochs
        self.steps: int | None = None

    def passes(self, run: Any) -> Iterable[int]:
        """Return the numbers of the epochs that are to be run."""
        start: int = run.starting_point.epoch
        return range(start, self.epochs or 0)

    def up_to_end(self, batches: Iterable[Any], run: Any) -> Iterable[Any]:
        """Return the batches of a phase that are to be run: all."""
        return batches

    def cuts(self, run: Any) -> bool:
        """Whether a pass ends before its loader has run out."""
        return False

    def is_last_epoch(self, run: Any) -> bool:
        """Whether no epoch follows the one that is under way, or closing."""
        return bool(run.epoch + 1 == self.epochs)


class Steps(Epochs):
    """So many steps of the optimizer, over as many passes as it takes.

    The last pass ends with the batch of the last step, whatever is left of it. Steps that were not
    taken, as those that were cancelled, do not count.

    Args:
        steps: How many, counted from the beginning of a fit that is resumed.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(0)
        self.epochs, self.steps, self._end = None, steps, steps

    def passes(self, run: Any) -> Iterator[int]:
        """Yield the numbers of epochs until all steps have been taken.

        Raises:
            RuntimeError: Pass after pass takes no step.
        """
        start = run.starting_point
        idle, steps, batches = 0, run.steps, run.n_iter
        for epoch in count(start.epoch):
            if run.steps >= self._end and not start.is_yet_to_be_entered(run):
                return
            yield epoch
            if run.steps > steps:
                idle, steps, batches = 0, run.steps, run.n_iter
                continue
            idle += 1
            # A pass that was cut short may have left a group of batches that goes on in the next,
            # and over a few batches a scaler may have to try before it finds its scale.
            is_whole = run.scope.train.outcome == "completed"
            if idle >= _IDLE_PASSES or (is_whole and run.n_iter - batches >= _IDLE_BATCHES):
                self._refuse_to_go_on(run.n_iter - batches, idle, run)

    def _refuse_to_go_on(self, batches: int, passes: int, run: Any) -> NoReturn:
        raise RuntimeError(
            f"fit(steps={self._end}) has taken {run.steps} steps, and none in the last {batches} "
            f"batches ({passes} {'pass' if passes == 1 else 'passes'} over the training loader): "
            "it would never end. Look for who cancels steps, batches or epochs in "
            "run.result.cancellations, or for a one_batch that does not call optimizer_step"
        )

    def up_to_end(self, batches: Iterable[Any], run: Any) -> Iterable[Any]:
        """Return the batches of a phase; those of training end with the last step."""
        return _UpToEnd(batches, self, run) if run.in_train else batches

    def cuts(self, run: Any) -> bool:
        """Whether the last step has been taken, so that no further batch is trained on."""
        return bool(run.in_train and run.steps >= self._end)

    def is_last_epoch(self, run: Any) -> bool:
        """Whether no epoch follows the one that is under way, or closing."""
        return bool(run.steps >= self._end)


class _UpToEnd:
    """Iterates over batches, and asks for none after the last step; holds on to none."""

    def __init__(self, batches: Iterable[Any], steps: Steps, run: Any) -> None:
        self._loader, self._steps, self._run = batches, steps, run
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> _UpToEnd:
        return self

    def __next__(self) -> Any:
        if self._steps.cuts(self._run):
            raise StopIteration
        if self._batches is None:
            self._batches = iter(self._loader)
        return next(self._batches)


NOTHING = Epochs(0)
"""Of a run that is no fit."""


def asked_for(epochs: Any, learn: Any, steps: Any) -> Epochs:
    """Return how long a fit is to be by what ``Runner.fit`` was given.

    Raises:
        TypeError, ValueError: It is not one number of epochs or steps; the message has the call
            that would be right.
    """
    if isinstance(epochs, Learner):
        if steps is not None:
            raise TypeError("fit takes the learner by its name here: fit(steps=1000, learn=learn)")
        raise TypeError(
            "fit takes the number of epochs first: fit(epochs, learn); or "
            "fit(steps=1000, learn=learn)"
        )
    if epochs is not None and steps is not None:
        raise TypeError(
            f"fit takes epochs or steps, and got both, epochs={epochs!r} and steps={steps!r}: "
            f"{_CALLS}"
        )
    if steps is not None:
        return Steps(whole_number("steps", steps, 0))
    if epochs is None:
        raise TypeError(f"epochs must be a whole number, got None, or steps be given: {_CALLS}")
    return Epochs(whole_number("epochs", epochs, 0))
