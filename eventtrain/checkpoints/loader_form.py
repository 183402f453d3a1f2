"""Whether a loader gives the batches that the one of a checkpoint gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ..data.batch import loader_length
from ..data.global_order import GlobalBatchSampler
from ..data.sharding import as_made
from ..data.weights import count_samples
from ..errors import DataError
from .loader_state import SETTINGS, parts_of

_PLAIN = (int, float, bool, str, type(None))
# What these draw for an epoch they draw at once.
_EAGER = (
    BatchSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    DistributedSampler,
    GlobalBatchSampler,
)


def loader_form(loader: Any) -> dict[str, Any]:
    """Describe what decides which rows are in which batch of a loader, as plain data.

    It is the same on any number of processes, for a loader that these share and for one that stands
    in the place of such a loader.

    Returns:
        What it is, and what its settings are, its samplers' too, each under a name that messages
        can use.
    """
    loader = as_made(loader)
    form: dict[str, Any] = {"kind": type(loader).__name__, "number of batches": None}
    if isinstance(loader, (list, tuple)):
        form["sizes of the batches"] = [_size_of(batch) for batch in loader]
    form["number of batches"] = loader_length(loader)
    for place, part in parts_of(loader):
        name = place.removeprefix("loader").lstrip(".")
        if isinstance(part, Sampler):
            form[f"kind of {name}"] = type(part).__name__
        if name.rpartition(".")[2] == "dataset":
            form[f"length of {name}"] = loader_length(part)
        if place == "loader" or isinstance(part, Sampler):
            is_own = getattr(part, "generator", None) is not None
            form[f"{name}.generator".lstrip(".")] = "its own" if is_own else None
        for setting in SETTINGS:
            if setting == "seed" and getattr(part, "has_seed_of_run", False):
                continue
            value = getattr(part, setting, None)
            if type(value) in _PLAIN and value is not None:
                form[f"{name}.{setting}".lstrip(".")] = value
    if isinstance(loader, DataLoader):
        form["persistent_workers"] = loader.persistent_workers and loader.num_workers > 0
        if _depends_on_workers(loader):
            form["num_workers"] = loader.num_workers
            form["prefetch_factor"] = loader.prefetch_factor
    return form


def _depends_on_workers(loader: DataLoader[Any]) -> bool:
    """Whether another number of workers gives other rows: they share a stream, or read ahead."""
    if isinstance(loader.dataset, IterableDataset):
        return True
    samplers = [part for _, part in parts_of(loader) if isinstance(part, Sampler)]
    return any(getattr(each, "generator", None) is not None for each in samplers) and not all(
        _draws_at_once(each) for each in samplers
    )


def _draws_at_once(sampler: Sampler[Any]) -> bool:
    if type(sampler) is RandomSampler:
        rows = loader_length(sampler.data_source)
        return not sampler.replacement and rows is not None and sampler.num_samples <= rows
    return type(sampler) in _EAGER


def keeps_order(loader: Any) -> bool:
    """Whether a loader gives its batches in its own order, and not in that of who is faster."""
    loaders = [part for _, part in parts_of(loader) if isinstance(part, DataLoader)]
    return all(getattr(each, "in_order", True) or each.num_workers < 2 for each in loaders)


# What a loader that cuts for itself may have of its own on each rank, and what hangs on the
# number of ranks besides.
_OF_RANK = ("number of batches", "sizes of the batches", "rank", "seed", "num_samples")
_OF_WORLD = ("batch_size", "bs", "num_replicas")


def common_form(form: Mapping[str, Any], *, is_same_world: bool) -> dict[str, Any]:
    """Return what ranks have in common of the form of a loader that cuts for itself.

    Args:
        form: What ``loader_form`` returned on any rank.
        is_same_world: Whether to keep what is the same for as long as the number of them is.
    """
    left_out = _OF_RANK if is_same_world else _OF_RANK + _OF_WORLD
    return {
        name: value
        for name, value in form.items()
        if name.rpartition(".")[2] not in left_out and not name.startswith("length of ")
    }


def form_differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Say in what two loaders differ of those that ``loader_form`` described."""
    differences = []
    for name in [*saved, *(each for each in own if each not in saved)]:
        was, now = saved.get(name), own.get(name)
        if was == now:
            continue
        if isinstance(was, list) and isinstance(now, list):
            name, was, now = _first_difference(name, was, now)
        differences.append(f"{name}: {was!r} in the checkpoint, {now!r} here")
    return differences


def _first_difference(name: str, was: list[Any], now: list[Any]) -> tuple[str, Any, Any]:
    for index, (one, other) in enumerate(zip(was, now, strict=False)):
        if one != other:
            return f"rows of batch {index}", one, other
    return "number of batches", len(was), len(now)


def _size_of(batch: Any) -> int | None:
    try:
        return count_samples(batch)
    except DataError:
        return None


def draws_order_at_once(loader: Any) -> bool:
    """Whether a loader is known to draw the order of an epoch before its first batch."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    samplers = [part for _, part in parts_of(loader) if isinstance(part, Sampler)]
    return all(type(each) is RandomSampler or _draws_at_once(each) for each in samplers)
