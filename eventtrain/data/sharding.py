"""Giving each process its share of a loader's batches, for the time of a run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from ..errors import DataError
from .bunch import DataBunch
from .global_order import GlobalBatchSampler, Share, SharedBatches
from .lengths import has_exact_length


def shard_data(data: DataBunch, rank: int, world_size: int, seed: int) -> Callable[[], None]:
    """Have the loaders give this process its share of every batch, so that ``bs`` is over all.

    - A ``TensorLoader``, and a ``DataLoader`` over a ``GlobalBatchSampler``, is told its share.
    - A ``DataLoader`` that torch gave its samplers (``shuffle=``, ``batch_size=``) is replaced by
      one that differs in its ``GlobalBatchSampler`` alone.
    - All else cuts for itself and is left alone: a ``DistributedSampler``, samplers and loaders of
      one's own, streams.

    Args:
        data: Its loaders are changed or replaced.
        rank: This process.
        world_size: How many there are.
        seed: The same in all processes: for the order of those that have neither a seed nor a
            generator. With one process too, so that a run goes on with the same order on another
            number of them. A checkpoint keeps it.

    Returns:
        A function that puts everything back.

    Raises:
        DataError: A loader draws from samplers of torch's that give all processes everything.
    """
    undo: list[Callable[[], None]] = []

    def put_back() -> None:
        while undo:
            undo.pop()()

    try:
        for name in ("train_dl", "valid_dl"):
            given = getattr(data, name)
            several = given if isinstance(given, Mapping) else {None: given}
            cut = {
                key: shard_loader(loader, rank, world_size, seed, undo)
                for key, loader in several.items()
            }
            if any(cut[key] is not several[key] for key in cut):
                setattr(data, name, cut if several is given else cut[None])
                undo.append(lambda name=name, given=given: setattr(data, name, given))  # type: ignore[misc]
    except BaseException:
        put_back()
        raise
    return put_back


def shard_loader(
    loader: Any, rank: int, world_size: int, seed: int, undo: list[Callable[[], None]]
) -> Any:
    """Return what gives a process its share of the batches of ``loader``; see ``shard_data``.

    Args:
        loader: Any loader, or ``None``.
        rank: As for ``shard_data``.
        world_size: As for ``shard_data``.
        seed: As for ``shard_data``.
        undo: What puts ``loader`` back, where it is changed, is added here.

    Raises:
        DataError: As for ``shard_data``.
    """
    shares = shares_of(loader)
    if shares is not None:
        undo.append(_undo_of(shares))
        # By methods, which what wraps a loader passes on.
        shares.shard(rank, world_size)
        shares.use_seed_of_run(seed)
        return loader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    sampler = loader.sampler if loader.batch_size is None else loader.batch_sampler
    inner = getattr(sampler, "sampler", None)
    kinds = [type(part) for part in (sampler, inner) if part is not None]
    if any(not kind.__module__.startswith("torch.") for kind in kinds):
        return loader
    if any(hasattr(part, "num_replicas") for part in (sampler, inner)):
        return loader
    if type(loader) is DataLoader and kinds[0] is BatchSampler and _takes_all(inner, loader):
        return _with_global_batches(loader, inner, Share(rank, world_size), seed)
    if world_size == 1:
        return loader
    drawn = " over ".join(kind.__name__ for kind in kinds)
    raise DataError(
        f"{world_size} processes would each train on everything that this {type(loader).__name__} "
        f"gives ({drawn}): pass batch_sampler=GlobalBatchSampler(dataset, bs), whose batches are "
        "shared out, or a DistributedSampler or a sampler of yours that knows its rank"
    )


def shares_of(loader: Any) -> SharedBatches | None:
    """Return what knows the shares of a loader's batches; ``None`` where nobody does."""
    if hasattr(loader, "rows_of_share"):  # what wraps a loader passes it on
        return loader  # type: ignore[no-any-return]
    sampler = getattr(loader, "batch_sampler", None)
    return sampler if hasattr(sampler, "rows_of_share") else None


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell a loader, and what it is made of, which epoch comes next, where they want to know."""
    told: list[Any] = []
    for part in _parts(loader):
        tell = getattr(part, "set_epoch", None)
        if callable(tell) and all(part is not other for other in told):
            told.append(part)
            tell(epoch)


def order_print(loader: Any) -> list[float]:
    """Return numbers that must be equal in all processes that train on ``loader`` together.

    Returns:
        Its length, -1 where it has none that is exact; and where it shares out global batches, on
        what these depend.
    """
    length = len(loader) if has_exact_length(loader) else -1
    shares: Any = shares_of(loader)
    if shares is None:
        return [length, 0, 0, 0, 0]
    state = None if shares.generator is None else shares.generator.get_state()
    drawn = -1 if state is None else zlib.crc32(state.numpy())
    seed = -1 if shares.seed is None else shares.seed
    return [length, shares.batch_size, seed if shares.shuffle else -1, drawn, shares.epoch]


def _parts(loader: Any) -> Iterator[Any]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    yield loader
    yield batch_sampler
    for owner in (loader, batch_sampler):
        for name in ("sampler", "dataset"):
            yield getattr(owner, name, None)


def _undo_of(shares: Any) -> Callable[[], None]:
    share, is_seeded = shares.share, shares.has_seed_of_run

    def put_back() -> None:
        shares.shard(share.rank, share.world_size)
        if not is_seeded:
            shares.use_seed_of_run(None)

    return put_back


def _takes_all(sampler: Any, loader: DataLoader[Any]) -> bool:
    """Whether a sampler gives each sample of the loader's data once."""
    if type(sampler) is SequentialSampler:
        return len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
    return (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )


def _with_global_batches(
    loader: DataLoader[Any], sampler: Any, share: Share, seed: int
) -> DataLoader[Any]:
    generator = getattr(sampler, "generator", None)
    batches = GlobalBatchSampler(
        loader.dataset,  # type: ignore[arg-type]
        loader.batch_size or 1,
        shuffle=type(sampler) is RandomSampler,
        seed=seed if generator is None else 0,
        drop_last=loader.drop_last,
        generator=generator,
        rank=share.rank,
        world_size=share.world_size,
    )
    batches.has_seed_of_run = generator is None
    kept = {name: getattr(loader, name) for name in _KEPT if hasattr(loader, name)}
    made = DataLoader(loader.dataset, batch_sampler=batches, **kept)
    _replaced[made] = loader
    return made


_replaced: WeakKeyDictionary[DataLoader[Any], DataLoader[Any]] = WeakKeyDictionary()
"""What the user made, by what stands in its place."""


def as_made(loader: Any) -> Any:
    """Return the loader that the user made, where ``loader`` stands in its place for a run."""
    return _replaced.get(loader, loader) if isinstance(loader, DataLoader) else loader


_KEPT = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator"),
    *("multiprocessing_context", "prefetch_factor", "persistent_workers", "in_order"),
)
