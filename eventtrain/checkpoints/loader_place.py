"""Bringing a loader to the batch behind those of a phase that were done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate, default_convert

from ..cancellation import CancellationToken
from ..data.global_order import GlobalBatchSampler, SharedBatches
from ..data.loaders import Dataset, TensorLoader
from ..data.sharding import as_made, shares_of
from ..data.workers import batches_of
from ..errors import CheckpointError
from .batch_print import are_of_same_rows, are_same, batch_print
from .loader_form import draws_order_at_once
from .random_state import has_drawn_since, random_state
from .stateful_loaders import stated_batches

Worlds = tuple[int, int]
"""The number of processes of the run that was saved, and of the one that goes on."""


@dataclass(frozen=True)
class Place:
    """Where in a phase a loader stood.

    Attributes:
        phase: Its name.
        batch: How many batches were done, at least one; over all processes.
        begun_at: Before which batch the loader began; not 0 where the run went on there before.
        order: What ``SharedBatches.order_form`` returned when the phase began; ``None`` for a
            loader that cuts for itself, and in earlier formats.
        last_batch: What ``batch_print`` returned of the last one; ``None`` where it is not known.
        worlds: The numbers of processes.
        state: What the loader's own ``state_dict`` returned before the last batch; ``None`` of one
            that has none, of the first batch, and in earlier formats.
        origin: Where that is known from, for messages.
    """

    phase: str
    batch: int
    begun_at: int
    order: Mapping[str, Any] | None
    last_batch: Sequence[Mapping[str, Any]] | None
    worlds: Worlds
    origin: str
    state: Any = None

    @property
    def is_of_same_world(self) -> bool:
        """Whether this process has the share of each batch that it had."""
        return self.worlds[0] == self.worlds[1]

    def __str__(self) -> str:
        return f"{self.origin} was taken after {self.batch} batches of the {self.phase} loader"


def rest_of_loader(loader: Iterable[Any], token: CancellationToken, place: Place) -> Iterator[Any]:
    """Return an iterator over the batches that were not done.

    A loader that keeps a state of its own begins with the last batch that was done. So does one of
    which it is known that it makes its batches of nothing but rows, and every one whose batches are
    shared, where the number of processes is another one. Of others all batches are loaded and
    dropped, so that what is drawn for them is drawn, whatever that is.

    Args:
        loader: Its generators must be where they were when the phase began.
        token: That of the run.
        place: Where it is to be brought.

    Raises:
        CheckpointError: The loader has fewer batches than were done, or other ones, or cuts for
            itself and the number of processes is another one.
    """
    shares = shares_of(loader)
    _check_order(loader, shares, place)
    begun_at = place.begun_at
    is_other_world = not place.is_of_same_world
    can_state = shares is None and not is_other_world
    stated = stated_batches(loader, token, place.state) if can_state else None
    skips = stated is not None and place.state is not None
    if skips or (shares is not None and (is_other_world or is_made_of_rows_alone(loader))):
        begun_at = place.batch - 1
    index, before = begun_at, dict[str, Any]()
    try:
        if stated is None:
            batches, batch = _begin(batches_of(loader, token), shares, begun_at, place)
        else:
            before = random_state() if skips else {}  # it may draw what the model drew between
            batches, batch = stated, next(stated)
        for index in range(begun_at + 1, place.batch):
            before = random_state() if index + 1 == place.batch else {}
            batch = next(batches)
    except StopIteration:
        raise CheckpointError(
            f"{place}, which now ends after {index}: it must be the same data"
        ) from None
    if place.is_of_same_world and place.last_batch is not None:
        # What this process draws for a batch is another number without the model in between, and
        # rows may well be the same. For the first batch nothing is drawn in between.
        is_noise = bool(before) and has_drawn_since(before)
        _check_last_batch(batch, loader, place, is_noise)
    return batches


def _begin(
    loader: Iterable[Any], shares: SharedBatches | None, begun_at: int, place: Place
) -> tuple[Iterator[Any], Any]:
    """Return an iterator that begins before a batch, and that batch.

    Raises:
        StopIteration: There is no such batch.
    """
    if shares is None or not begun_at:
        batches = iter(loader)
        return batches, next(batches)
    shares.start_at(begun_at * shares.batch_size)
    try:
        batches = iter(loader)
        batch = next(batches)
    finally:
        was_left = shares.take_start()
    if was_left:
        raise CheckpointError(
            f"{place}, and what is in its place now began before it was asked where to: do without "
            "what wraps the loader, or resume from a checkpoint that was taken between epochs"
        )
    return batches, batch


def _check_order(loader: Any, shares: SharedBatches | None, place: Place) -> None:
    """See that the loader is about to give the samples in the order in which it gave them."""
    own = None if shares is None else shares.order_form()
    if own is None and (place.begun_at or not place.is_of_same_world):
        raise cannot_be_brought(loader, place.phase, place.worlds, place.origin)
    if own is None or place.order is None:
        # Then all batches are loaded, and the last one tells; but not where noise is added to it.
        had_seed = own is None and place.order is not None and place.order.get("shuffle")
        has_seed = own is not None and own["shuffle"] and as_made(loader) is not loader
        if had_seed or has_seed or not place.is_of_same_world:
            raise CheckpointError(
                f"{place}, which has an order of another kind now: one that Distributed gives it "
                f"here or gave it there, but not both. {_REMEDY}"
            )
        return
    names = [name for name in own if place.order.get(name) != own[name]]
    if names:
        told = [f"{n}: {place.order.get(n)!r} in the checkpoint, {own[n]!r} here" for n in names]
        raise CheckpointError(
            f"{place}, which now has another order: {'; '.join(told)}. Rows would be skipped or "
            f"repeated. {_REMEDY}"
        )


def _check_last_batch(batch: Any, loader: Iterable[Any], place: Place, is_noise: bool) -> None:
    """See that the last batch that was done is what it was."""
    assert place.last_batch is not None
    if are_same(place.last_batch, found := batch_print(batch)):
        return
    if not (
        is_noise and (draws_order_at_once(loader) or are_of_same_rows(place.last_batch, found))
    ):
        raise CheckpointError(
            f"{place}, and the last of them is now another batch: rows would be skipped or "
            "repeated. Make the loader of the same data in the same way. If it draws random "
            "numbers batch by batch, have it draw them from a generator (torch.Generator, "
            "random.Random, one of NumPy's) in an attribute of loader, sampler or dataset, or "
            "in workers that are not persistent; and resume this run from a checkpoint that "
            "was taken between epochs"
        )


def cannot_be_brought(loader: Any, phase: str, worlds: Worlds, origin: str) -> CheckpointError:
    """Return the error for a loader that cuts for itself, on another number of processes."""
    return CheckpointError(
        f"{origin} was taken in the middle of a phase on {_processes(worlds[0])}, and this run is "
        f"one of {_processes(worlds[1])}: the {phase} loader ({type(loader).__name__}) cuts for "
        "itself, so nobody knows which of its rows were done. Resume on as many processes as "
        "before, or from a checkpoint that was taken between epochs. With Distributed in the "
        "runner, on one process too, a TensorLoader, a DataLoader with batch_size= and shuffle=, "
        "and one over a GlobalBatchSampler go on with any number of processes"
    )


_REMEDY = (
    "Make the loader in the same way, with Distributed in the runner if it was there (it gives "
    "loaders an order, on one process too), or resume from a checkpoint that was taken between "
    "epochs"
)


def _processes(size: int) -> str:
    return "one process" if size == 1 else f"{size} processes"


def is_made_of_rows_alone(loader: Any) -> bool:
    """Whether a loader is known to draw nothing for a batch, and to keep nothing of having made it.

    A ``TensorLoader`` is, and a ``DataLoader`` over a ``GlobalBatchSampler`` that collates rows of
    tensors and lists as torch does.
    """
    if type(loader) is TensorLoader:
        return True
    return (
        type(loader) is DataLoader
        and type(loader.batch_sampler) is GlobalBatchSampler
        and loader.collate_fn in (default_collate, default_convert)
        and loader.worker_init_fn is None
        and _gives_rows_alone(loader.dataset)
    )


def _gives_rows_alone(dataset: Any) -> bool:
    if type(dataset) is Subset:
        return _gives_rows_alone(dataset.dataset)
    if type(dataset) is Dataset:
        return all(part is None or type(part) is Tensor for part in (dataset.x, dataset.y))
    return type(dataset) in (TensorDataset, Tensor, list, tuple)
