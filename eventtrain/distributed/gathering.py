"""Predictions of all processes, put into the one order of the samples; nothing is padded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, distributed as dist

from ..around import around
from ..data.batch import convert_parts
from ..data.global_order import SharedBatches
from ..data.sharding import shard_loader, shares_of
from ..data.weights import form_of
from ..errors import DataError
from .groups import require_all_ranks
from .reductions import OneProcess, World


class _CannotBeOrdered(Exception):
    """A part has no row for each sample, or cannot be sent."""


@around
def sharing(loader: Any, world: OneProcess) -> Iterator[Any]:
    """Have this process get its share of what a loader gives; all of it where it is alone."""
    undo: list[Callable[[], None]] = []
    try:
        if world.size > 1:
            loader = shard_loader(loader, world.rank, world.size, 0, undo)
        yield loader
    finally:
        for put_back in undo:
            put_back()


def gather_rows(wholes: list[Any], loader: Any, batches: int, world: OneProcess) -> list[Any]:
    """Return what all processes have predicted, in the global order; collective.

    Args:
        wholes: What this process has: predictions, targets; see ``_gather``.
        loader: What ``sharing`` gave. Nothing is gathered of one that cuts for itself.
        batches: How many batches there were.
        world: The processes.

    Raises:
        DataError: A part has no row for each sample. All processes raise it.
    """
    if isinstance(world, World):
        require_all_ranks("run.predict")
    shares = shares_of(loader)
    if not isinstance(world, World) or shares is None or not batches:
        return wholes
    places = _places(shares, batches, world)
    has_rows = [not isinstance(each, Tensor) or len(each) > 0 for each in wholes]
    return [
        _gather(whole, places, batches, world) if is_there else whole
        for whole, is_there in zip(wholes, has_rows, strict=True)
    ]


def gather_in_turn(whole: Any, world: OneProcess) -> Any:
    """Return what all processes have, that of each behind that of the rank before; collective.

    Args:
        whole: Tensors with a row for each sample of this process, lists with an element for each,
            and mappings, tuples and dataclasses of such.
        world: The processes.

    Raises:
        DataError: As for ``gather_rows``.
    """
    if not isinstance(world, World):
        return whole
    places: list[list[int]] = []
    for row in world.gather([_rows_of(whole)]):
        first = places[-1][-1] + 1 if places and places[-1] else 0
        places.append(list(range(first, first + int(row[0]))))
    return _gather(whole, places, 0, world)


def _rows_of(part: Any) -> int:
    if isinstance(part, Tensor):
        return len(part) if part.ndim else 0
    if isinstance(part, list):
        return len(part)
    inner = part.values() if isinstance(part, Mapping) else part if isinstance(part, tuple) else ()
    return max(map(_rows_of, inner), default=0)


def _gather(whole: Any, places: list[list[int]], batches: int, world: World) -> Any:
    """Return what all processes have predicted, in the global order; collective.

    Args:
        whole: What this process has predicted, batches joined: tensors with a row for each of its
            samples, lists with an element for each, and mappings, tuples and dataclasses of such.
            It has a row, which is dropped, for each batch of which it has no sample too.
        places: Of the rows of each process in the order.
        batches: How many batches there were.
        world: The processes.

    Returns:
        The same in all processes, in the form of ``whole``, on the CPU.

    Raises:
        DataError: A part has no row for each sample, or another form in another process. All
            processes raise it.
    """
    leaves: list[Any] = []
    sent: list[Tensor] = []

    def keep(leaf: Any) -> Any:
        leaves.append(leaf)
        return leaf

    problem, form = "", ""
    try:
        _mapped(whole, len(places[world.rank]), keep)
        form = json.dumps([_form(leaf) for leaf in leaves])
        sent = [_sent(leaf, places[world.rank]) for leaf in leaves]
    except (_CannotBeOrdered, DataError) as error:
        problem = str(error)
    told = [
        json.loads(_text(each)) for each in _gather_bytes(_bytes([problem, form, batches]), world)
    ]
    _check(told)
    ordered = iter(
        [
            _ordered(leaf, _gather_bytes(part, world), places)
            for leaf, part in zip(leaves, sent, strict=True)
        ]
    )
    return _mapped(whole, len(places[world.rank]), lambda leaf: next(ordered))


def _places(shares: SharedBatches, batches: int, world: World) -> list[list[int]]:
    """Return for each process where its rows stand in the order, -1 for those that do not count."""
    places: list[list[int]] = [[] for _ in range(world.size)]
    first = 0
    for batch in range(batches):
        size = shares.rows_of_batch(batch)
        for rank, own in enumerate(places):
            own += range(first + rank, first + size, world.size) if rank < size else [-1]
        first += size
    return places


def _mapped(part: Any, rows: int, leaf: Callable[[Any], Any]) -> Any:
    """Return a whole with ``leaf`` of each part that has a row for each sample in its place."""
    if part is None:
        return None
    if isinstance(part, Tensor):
        if part.ndim and len(part) == rows and part.layout is torch.strided:
            return leaf(part)
    elif isinstance(part, list) and len(part) == rows:
        return leaf(part)
    elif isinstance(part, (Mapping, list, tuple)) or is_dataclass(part):
        return convert_parts(part, lambda inner: _mapped(inner, rows, leaf))
    raise _CannotBeOrdered(f"{form_of(part)}, for {rows} samples")


def _form(leaf: Any) -> list[Any]:
    """Describe what a leaf must have in common with those of other processes."""
    if isinstance(leaf, Tensor):
        return [str(leaf.dtype), list(leaf.shape[1:])]
    return ["list"]


def _sent(leaf: Any, places: list[int]) -> Tensor:
    """Return the rows that count as bytes."""
    own = [row for row, place in enumerate(places) if place >= 0]
    if isinstance(leaf, Tensor):
        rows = leaf.detach().cpu()[own]
        return rows.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
    return _bytes([_packed(leaf[row]) for row in own])


def _ordered(leaf: Any, parts: list[Tensor], places: list[list[int]]) -> Any:
    """Return all rows in order."""
    counted = [[place for place in own if place >= 0] for own in places]
    if isinstance(leaf, Tensor):
        whole = leaf.new_empty((sum(map(len, counted)), *leaf.shape[1:]), device="cpu")
        for part, own in zip(parts, counted, strict=True):
            whole[own] = part.view(leaf.dtype).view(len(own), *leaf.shape[1:])
        return whole
    rows: list[Any] = [None] * sum(map(len, counted))
    for part, own in zip(parts, counted, strict=True):
        for place, row in zip(own, json.loads(_text(part)), strict=True):
            rows[place] = _unpacked(row)
    return rows


def _packed(value: Any) -> Any:
    """Return a value as plain JSON: what comes from another process is not unpickled."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_complex():
        kind = str(value.dtype).removeprefix("torch.")
        exact = value.detach().cpu()
        exact = exact.double() if exact.is_floating_point() else exact
        return {"tensor": exact.tolist(), "dtype": kind, "shape": list(value.shape)}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _packed(inner) for key, inner in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_packed(inner) for inner in value]}
    raise _CannotBeOrdered(f"an element of {form_of(value)}, which is not sent between processes")


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        dtype = getattr(torch, value["dtype"])
        return torch.tensor(value["tensor"], dtype=dtype).reshape(value["shape"])
    if "dict" in value:
        return {key: _unpacked(inner) for key, inner in value["dict"].items()}
    (kind, elements), *_ = value.items()
    found = [_unpacked(inner) for inner in elements]
    return tuple(found) if kind == "tuple" else found


def _check(told: list[list[Any]]) -> None:
    """Refuse what is no row for each sample, or differs; all processes have heard the same."""
    problems = [f"rank {rank}: {problem}" for rank, (problem, *_) in enumerate(told) if problem]
    if problems:
        raise DataError(
            "the predictions of several processes can be put into one order only where they have a "
            f"row, or an element of a list, for each sample; this has not: {'; '.join(problems)}"
        )
    if any(each != told[0] for each in told):
        forms = "; ".join(f"rank {rank}: {form}" for rank, (_, form, _) in enumerate(told))
        raise DataError(f"the processes predicted other forms or numbers of batches: {forms}")


def _bytes(value: Any) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def _text(part: Tensor) -> bytes:
    return bytes(part.tolist())


def gather_text(text: str, world: OneProcess) -> list[str]:
    """Return the text of each process, by rank; collective."""
    if not isinstance(world, World):
        return [text]
    own = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return [_text(part).decode() for part in _gather_bytes(own, world)]


def _gather_bytes(own: Tensor, world: World) -> list[Tensor]:
    """Return the bytes of each process, on the CPU; their numbers may differ."""
    sizes = [int(row[0]) for row in world.gather([own.numel()])]
    # To one length on the way alone.
    sent = torch.zeros(max(1, *sizes), dtype=torch.uint8, device=world.device)
    sent[: own.numel()] = own.to(world.device)
    parts = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather(parts, sent, group=world.group)
    return [part[:size].cpu() for part, size in zip(parts, sizes, strict=True)]
