"""Loaders that keep a state of their own, which brings them to a place in their data."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from ..cancellation import CancellationToken
from ..data.workers import batches_of
from ..errors import CheckpointError, add_note


class StatefulLoader(Protocol):
    """A loader as torchdata's ``StatefulDataLoader`` is one."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> Any:
        """Return where in its data it is."""
        ...

    def load_state_dict(self, state_dict: Any) -> None:
        """Have the next iteration begin there."""
        ...


@dataclass
class Said:
    """What a loader has said of itself.

    Attributes:
        before: What its ``state_dict`` returned before the last batch, copied; ``None`` before the
            second, for which an iteration that begins anew is as good.
    """

    before: Any = None


def keeps_state(loader: Any) -> TypeGuard[StatefulLoader]:
    """Whether a loader tells where it is, and can be told where to begin."""
    return all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict"))


class StatedBatches:
    """The batches of a loader that keeps state, with the state from before the last of them.

    From there the last batch that was done is read once more when a run goes on: it tells whether
    it is the same data. Then, too, loaders draw their order that do so with the first batch.

    Args:
        loader: The loader.
        token: That of the run.
        state: Where it is to begin; ``None`` for the beginning.

    Attributes:
        said: What the loader has said, in an object of its own: who keeps it does not keep workers.
    """

    def __init__(self, loader: StatefulLoader, token: CancellationToken, state: Any = None) -> None:
        self._loader, self._token = loader, token
        self._batches: Iterator[Any] | None = None
        self._has_begun = False
        self.said = Said(state)

    def __iter__(self) -> StatedBatches:
        return self

    def __next__(self) -> Any:
        """Return the next batch.

        Raises:
            StopIteration: There is none.
            CheckpointError: The loader does not take the state where it is to begin.
        """
        if self._batches is None:
            if self.said.before is not None:
                self._load(self.said.before)
            self._batches = iter(batches_of(self._loader, self._token))
        if self._has_begun:
            self.said.before = self._state()
        batch = next(self._batches)
        self._has_begun = True
        return batch

    def _state(self) -> Any:
        try:
            return copy.deepcopy(self._loader.state_dict())
        except Exception as error:
            add_note(
                error,
                "Raised where Checkpoint copies what the loader's state_dict() returns, before "
                "each batch: a loader that has that method must return plain data and tensors",
            )
            raise

    def _load(self, state: Any) -> None:
        try:
            self._loader.load_state_dict(copy.deepcopy(state))
        except Exception as error:
            raise CheckpointError(
                f"the loader ({type(self._loader).__name__}) does not take the state that it, or "
                f"another, said when the checkpoint was taken: {type(error).__name__}: {error}. "
                "Make it as it was made there, or resume from a checkpoint that was taken between "
                "epochs"
            ) from error


def stated_batches(
    loader: Iterable[Any], token: CancellationToken, state: Any = None
) -> StatedBatches | None:
    """Return the batches with what tells their place; ``None`` of a loader that keeps no state."""
    return StatedBatches(loader, token, state) if keeps_state(loader) else None
