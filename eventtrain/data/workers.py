"""Batches that worker processes load, which the signal that ends a run may kill first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

from torch.utils.data import DataLoader

from ..cancellation import CancellationToken
from ..interrupts import watch_workers
from .loaders import TensorLoader
from .worker_signals import outlasting


class WorkerBatches:
    """The batches of a loader whose workers may die of the signal that cancels the run.

    A terminal, a batch system and a container send Ctrl-C or SIGTERM to all processes of a
    group, loader workers included. What the loader raises of that is the same cancellation,
    and not a failure. On several processes the others may need another batch of this one before
    all leave together, so there the workers outlast the signal.

    Args:
        loader: Any loader.
        token: Steers the run.
    """

    def __init__(self, loader: Iterable[Any], token: CancellationToken) -> None:
        self._loader = loader
        self._token = token
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> WorkerBatches:
        return self

    def __next__(self) -> Any:
        """Return the next batch.

        Raises:
            StopIteration: There is none.
        """
        try:
            if self._batches is None:
                several = self._token.agree is not None
                with outlasting(self._loader) if several else nullcontext():
                    self._batches = iter(self._loader)
                watch_workers(self._token, WorkerBatches.__next__.__code__)
            return next(self._batches)
        except StopIteration:
            raise
        except (Exception, KeyboardInterrupt) as error:
            token = self._token
            if token.is_interrupted or (_is_of_dead_worker(error) and token.is_interrupted_soon()):
                token.release()  # the batch around this run, whose end it waits for, cannot end
                token.check()
            raise


def batches_of(loader: Iterable[Any], token: CancellationToken) -> Iterable[Any]:
    """Return what to iterate over for the batches of ``loader``: itself where it has no workers."""
    if isinstance(loader, DataLoader):
        return WorkerBatches(loader, token) if loader.num_workers else loader
    if isinstance(loader, (list, tuple, TensorLoader)):
        return loader
    return WorkerBatches(loader, token)  # a loader may hold another one, which has workers


def _is_of_dead_worker(error: BaseException) -> bool:
    return type(error) is RuntimeError and "DataLoader worker (pid" in str(error)
