"""Datasets and loaders.

Any iterable serves as a loader. ``TensorLoader`` is the fast one for data
that fits in memory (or on the device): it never collates sample by sample and
never makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..arguments import flag, whole_number
from ..errors import DataError
from .global_order import (
    SharedBatches,
    checked_generator,
    global_batches,
    order_of_epoch,
    shared_order,
)

# How many batches are cut at once. Cutting many in one call is what makes a
# slice cheap; cutting all of them would hold a view per batch in memory.
_CUT = 256


class Dataset:
    """Inputs and targets of equal length, indexed together.

    Args:
        x: Inputs: a tensor ``[n, ...]`` or anything with a length and an index.
        y: Targets, as long as ``x``. ``None`` (default) means there are none.

    Attributes:
        x: The inputs as given.
        y: The targets as given.

    Raises:
        DataError: ``x`` and ``y`` differ in length.
    """

    def __init__(self, x: Any, y: Any = None) -> None:
        if y is not None and len(x) != len(y):
            raise DataError(
                f"x and y must be equally long, but x holds {len(x)} items and y holds {len(y)}"
            )
        self.x = x
        self.y = y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Any:
        """Return ``(x[index], y[index])``, or ``x[index]`` where there are no targets.

        Args:
            index: Whatever ``x`` and ``y`` accept: an int, a slice, an index tensor.
        """
        return self.x[index] if self.y is None else (self.x[index], self.y[index])

    def __repr__(self) -> str:
        return f"Dataset(x={_form(self.x)}, y={'None' if self.y is None else _form(self.y)})"


class TensorLoader(SharedBatches):
    """Mini-batches of tensors, cut from the whole instead of collated.

    Every ``iter(loader)`` is a new epoch, and iterators do not disturb each
    other. Unshuffled batches are views, so changing one in place changes the
    data; shuffled batches are copies. The order of a shuffled epoch is drawn
    on the CPU, once, when its first batch is asked for, so that one seed gives
    one order on every device.

    On several processes ``shard`` has each take its share of every batch: ``bs`` is the number of
    rows over all of them, and ``GlobalBatchSampler`` says which rows are whose.

    Args:
        x: Inputs ``[n, ...]``, any dtype, on any device.
        y: Targets ``[n, ...]`` on the same device, or ``None`` (default).
        bs: Rows per batch, 64 by default; the last batch may hold fewer.
        shuffle: Draw a new order each epoch. Default ``False``.
        generator: CPU generator for the order; ``None`` (default) is torch's
            global one. An unshuffled loader draws nothing.
        drop_last: Leave out a last batch of fewer than ``bs`` rows. Default ``False``.
        seed: Have the order depend on this number and the epoch alone, which a run sets
            (``set_epoch``), and draw nothing. Default ``None``: it is drawn.

    Iterating gives ``(xb, yb)``, or ``xb`` alone where ``y`` is ``None``; dtype and device are
    those of ``x`` and ``y``.

    Attributes:
        dataset: The ``Dataset`` behind the loader, read anew each epoch.
        batch_size: ``bs``. Like ``shuffle``, ``generator``, ``drop_last`` and ``seed`` it
            may be changed; the next epoch follows.
        epoch: Whose order comes next, where there is a seed.
        share: The ``Share`` of this process.

    Raises:
        TypeError: ``x`` or ``y`` is no tensor, ``bs`` or ``seed`` no integer, or ``shuffle`` or
            ``drop_last`` neither true nor false.
        ValueError: ``bs`` is below 1, ``seed`` below 0, or ``generator`` is not on the CPU, or
            there beside ``seed``.
        DataError: ``x`` and ``y`` differ in length or device, or have no dimension.
        EmptyLoaderError: There is no row, or with ``drop_last`` no full batch.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        bs: int = 64,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
        seed: int | None = None,
    ) -> None:
        _check_tensors(x, y)
        self.dataset = Dataset(x, y)
        self.batch_size = whole_number("the batch size", bs, 1)
        self.shuffle = flag("shuffle", shuffle)
        self.generator = checked_generator(generator)
        self.drop_last = flag("drop_last", drop_last)
        self.seed = None if seed is None else whole_number("seed", seed, 0)
        if seed is not None and generator is not None:
            raise ValueError("the order is that of a seed or drawn from a generator: give one")
        super().__init__()
        self.require_batches("rows")

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        bs: int = 64,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
        seed: int | None = None,
    ) -> TensorLoader:
        """Make a loader over the tensors of a ``Dataset``, kept as ``.dataset``.

        The tensors are cut directly: an overridden ``__getitem__`` is not called.
        Arguments and errors are those of the class.
        """
        loader = cls(dataset.x, dataset.y, bs, shuffle, generator, drop_last, seed)
        loader.dataset = dataset
        return loader

    def _count(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        x, y, bs = self.dataset.x, self.dataset.y, self.batch_size
        start = self.take_start()
        if self.shuffle:
            shared_order(self.seed, self.generator, self.share)
            return self._shuffled(x, y, bs, start)
        if self.share.world_size > 1:
            return self._shares(x, y, global_batches(len(x), bs, self.drop_last, start))
        rows = slice(start, len(self) * bs if self.drop_last else len(x))
        if y is None:
            return _cut(x[rows], bs)
        return zip(_cut(x[rows], bs), _cut(y[rows], bs), strict=True)

    def _shares(self, x: Tensor, y: Tensor | None, places: Iterator[slice]) -> Iterator[Any]:
        cut = self.share.cut
        for place in places:
            yield cut(x[place]) if y is None else (cut(x[place]), cut(y[place]))

    def _shuffled(self, x: Tensor, y: Tensor | None, bs: int, start: int) -> Iterator[Any]:
        if self.seed is None:
            # Only a copy out of pinned memory leaves the host free to go on.
            order = torch.randperm(len(x), generator=self.generator, pin_memory=x.is_cuda)
        else:
            order = order_of_epoch(len(x), self.seed, self.epoch)
            order = order.pin_memory() if x.is_cuda else order
        order, share = order.to(x.device, non_blocking=True), self.share
        if share.world_size == 1:
            indices = _cut(order[start : len(self) * bs if self.drop_last else len(x)], bs)
        else:
            places = global_batches(len(x), bs, self.drop_last, start)
            indices = (share.cut(order[place]) for place in places)
        for index in indices:
            # index_select copies rows about twice as fast as x[index] on a CPU.
            xb = x.index_select(0, index)
            yield xb if y is None else (xb, y.index_select(0, index))

    def __repr__(self) -> str:
        return f"TensorLoader({self.dataset!r}, bs={self.batch_size}, shuffle={self.shuffle})"


def _cut(whole: Any, bs: int) -> Iterator[Any]:
    if not len(whole):
        return  # torch splits nothing into one piece
    for block in whole.split(bs * _CUT):
        yield from block.split(bs)


def _check_tensors(x: Any, y: Any) -> None:
    for name, part in [("x", x)] if y is None else [("x", x), ("y", y)]:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"{name} must be a tensor, not {type(part).__name__}: torch.as_tensor({name})"
            )
        if part.ndim == 0:
            raise DataError(f"{name} is a single number: it has no rows to make batches of")
    if y is not None and x.device != y.device:
        raise DataError(f"x and y must be on one device, but x is on {x.device}, y on {y.device}")


def _form(part: Any) -> str:
    shape = getattr(part, "shape", None)
    return f"{type(part).__name__}[{len(part)}]" if shape is None else str(list(shape))
