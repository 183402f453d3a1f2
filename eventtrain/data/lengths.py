"""Whether a loader's length can be relied on, and whether the loader kept it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from ..errors import DataError, EmptyLoaderError
from .loaders import TensorLoader


def has_exact_length(dl: Any) -> bool:
    """Whether a loader will give as many batches as its length says, by how it is made.

    Sequences will, this package's ``TensorLoader``, and a ``DataLoader`` over a data set with
    an index and the samplers of torch or of this package. A length that somebody wrote may be
    an estimate.
    """
    if isinstance(dl, Sequence) or type(dl) is TensorLoader:
        return True
    return (
        isinstance(dl, DataLoader)
        and type(dl).__len__ is DataLoader.__len__
        and type(dl).__iter__ is DataLoader.__iter__
        and not isinstance(dl.dataset, IterableDataset)
        and all(
            part is None or type(part).__module__.partition(".")[0] in ("torch", "eventtrain")
            for part in (dl.sampler, dl.batch_sampler, getattr(dl.batch_sampler, "sampler", None))
        )
    )


def check_count(dl: Any, count: int, length: int | None, where: str) -> None:
    """Tell a loader that has run out from one that has nothing, or lost its end.

    Args:
        dl: The loader.
        count: How many batches it gave.
        length: How many it was to give, as far as it could tell.
        where: Which loader it is, for messages.

    Warns:
        RuntimeWarning: It gave fewer or more batches than its length, which is an estimate.

    Raises:
        EmptyLoaderError: It gave none.
        DataError: It ended before its length, which is exact.
    """
    if not count:
        raise EmptyLoaderError(
            f"{where} gave no batch ({type(dl).__name__}). {_why_empty(dl, length)}"
        )
    if length is None or count == length:
        return
    if count < length and isinstance(dl, DataLoader) and has_exact_length(dl):
        # DataLoader takes a StopIteration out of a dataset for its own end.
        raise DataError(
            f"{where} ended after {count} of {length} batches. "
            "Look for a StopIteration raised in its dataset, sampler or collate function."
        )
    if count < length or not isinstance(dl, DataLoader):  # else torch tells
        warnings.warn(
            f"{where} gave {count} batches, and its length is {length}. Where the length is an "
            "estimate, schedules over the whole fit and the time left are estimates too; where "
            "it is not, look for a StopIteration, or an end too early, in the loader.",
            RuntimeWarning,
            stacklevel=2,
        )


def _why_empty(dl: Any, length: int | None) -> str:
    if length == 0 and getattr(dl, "drop_last", False):
        return (
            "It drops the last batch, which is not full: a smaller batch size, or drop_last=False."
        )
    if length == 0:
        return "Its length is 0: look at its data set."
    return (
        "A generator can be read only once: pass something that can be iterated over in every "
        "epoch."
    )
