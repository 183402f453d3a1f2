"""What the loss of a batch is a mean of: samples, where they can be counted, or as it is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..errors import DataError, UncountableError, add_note
from .batch import batch_parts

Weight = Callable[[Any], "float | Tensor"]
"""``weight(batch)``: how much the mean loss of a batch counts among others."""
_REMEDY = (
    "Say what the loss of a batch is a mean of: Learner(..., weight=lambda batch: ...), "
    "a number or a tensor without dimensions"
)


def weight_of(batch: Any, weight: Weight | None = None) -> float | Tensor:
    """Return how much the mean loss of a batch counts, without asking a device anything.

    Args:
        batch: What a loader yielded.
        weight: Told by the user; ``None`` (default) counts samples.

    Returns:
        An ``int`` or ``float`` of at least 0; or, where ``weight`` gave a tensor, one
        without dimensions or gradient on the same device, float64 where the device has
        it, NaN where the number is negative.

    Raises:
        TypeError: ``weight`` gave something else than one number.
        DataError: It gave a negative number, NaN or infinity; or samples cannot be counted
            for sure.
    """
    if weight is None:
        return count_samples(batch)
    try:
        value = weight(batch)
    except Exception as error:
        add_note(error, f"Raised by the learner's weight(batch), of a batch of {form_of(batch)}.")
        raise
    return _checked_tensor(value) if isinstance(value, Tensor) else _checked_number(value)


def count_samples(batch: Any) -> int:
    """Count the samples of a batch: those of its target, or of its input where it has none.

    Where nothing else tells, an object with a ``to`` and a length has as many as it is long, unless
    it has keys, which that may be the number of.

    Args:
        batch: A pair of input and target, or anything else, which is then counted as a whole.

    Returns:
        The only number that input and target can both be read as; see ``possible_counts``.

    Raises:
        UncountableError: There is nothing to count by.
        DataError: Input and target disagree, or can be read as several numbers.
    """
    xb, yb = batch_parts(batch)
    inputs, targets = possible_counts(xb), possible_counts(yb)
    found = _both(inputs, targets) if inputs or targets else _lengths(xb, yb)
    if xb is yb and isinstance(xb, (list, tuple)) and len(xb) == 1 and len(found) > 1:
        found -= {1}  # what a DataLoader makes of a TensorDataset of one tensor
    if len(found) == 1:
        return next(iter(found))
    if not (inputs or targets or found):
        raise UncountableError(
            f"the samples of a batch of {form_of(batch)} cannot be counted. {_REMEDY}"
        )
    if not found:
        raise DataError(
            f"the target has {_listed(targets)} samples and the input {_listed(inputs)}, in a "
            f"batch of {form_of(batch)}. {_REMEDY}"
        )
    if _are_parallel(xb, yb):
        return len(yb)
    raise DataError(
        f"a batch of {form_of(batch)} can be read as {_listed(found)} samples. {_REMEDY}"
    )


def sample_counts(batch: Any) -> frozenset[int]:
    """Return the numbers of samples that a batch can be read as; none where nothing tells."""
    xb, yb = batch_parts(batch)
    inputs, targets = possible_counts(xb), possible_counts(yb)
    return _both(inputs, targets) or inputs | targets or _lengths(xb, yb)


def listed_samples(batch: Any) -> int:
    """Return how many elements of one kind a batch lists; 0 where it is no list of such."""
    is_list = isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields")
    return len(batch) if is_list and are_of_one_kind(batch) else 0


def possible_counts(part: Any) -> frozenset[int]:
    """Return the numbers of samples that a part of a batch can be read as.

    Args:
        part: A tensor or array has as many as its first dimension is long, a
            ``PackedSequence`` as many sequences, and a graph batch what its ``batch_size``
            says. Mappings, named tuples and dataclasses have what their members agree on. A list or
            tuple can be a sample an element, where its elements are of one kind; or its
            elements are fields, and it has what they agree on; often it can be both.

    Returns:
        No number where there is nothing to count by: text, numbers, ``None``, tensors
        without dimensions, members that disagree, and other objects.
    """
    if isinstance(part, Tensor):
        return frozenset([part.size(0)] if part.ndim else ())
    if part is None or isinstance(part, (str, bytes, bytearray)):
        return frozenset()
    if isinstance(part, PackedSequence):
        order = part.sorted_indices
        count = int(part.batch_sizes[0]) if order is None else len(order)  # the former is on CPU
        return frozenset([count])
    if isinstance(part, Mapping):
        return _agreed(part.values())
    if isinstance(part, tuple) and hasattr(part, "_fields"):
        return _agreed(part)
    if isinstance(part, Sequence):
        by_field = _agreed(part)
        return by_field | {len(part)} if are_of_one_kind(part) else by_field
    shape = getattr(part, "shape", None)
    first = shape[0] if isinstance(shape, tuple) and shape else getattr(part, "batch_size", None)
    if isinstance(first, int) and not isinstance(first, bool):
        return frozenset([first])
    if is_dataclass(part) and not isinstance(part, type):
        return _agreed(getattr(part, field.name) for field in fields(part))
    return frozenset()


def are_of_one_kind(elements: Sequence[Any]) -> bool:
    """Whether elements can be samples of one data set: alike in type, dtype, dimensions, keys."""
    return len({_kind(element) for element in elements}) == 1


def _lengths(*parts: Any) -> frozenset[int]:
    """Return how long the parts are that are moved to a device as a whole and have no keys."""
    return frozenset(
        len(part)
        for part in parts
        if callable(getattr(part, "to", None))
        and hasattr(type(part), "__len__")
        and not hasattr(part, "keys")
        and not isinstance(part, (type, Tensor, list, tuple))
    )


def _both(inputs: frozenset[int], targets: frozenset[int]) -> frozenset[int]:
    return inputs & targets if inputs and targets else inputs or targets


def _agreed(parts: Iterable[Any]) -> frozenset[int]:
    counts = [count for part in parts if (count := possible_counts(part))]
    return frozenset.intersection(*counts) if counts else frozenset()


def _kind(element: Any) -> Any:
    if isinstance(element, Tensor):
        return Tensor, element.dtype, element.ndim
    if isinstance(element, Mapping):
        return type(element), frozenset(element)
    return type(element)


def _are_parallel(xb: Any, yb: Any) -> bool:
    """Whether both list a sample an element, as detection does: images, and mappings of boxes."""
    return (
        xb is not yb
        and isinstance(xb, (list, tuple))
        and isinstance(yb, (list, tuple))
        and len(xb) == len(yb)
        and all(isinstance(target, Mapping) for target in yb)
    )


def _checked_tensor(value: Tensor) -> Tensor:
    if value.ndim or value.is_complex() or value.dtype is torch.bool:
        raise TypeError(
            f"weight(batch) must be one number, got a {value.dtype} tensor of shape "
            f"{list(value.shape)}: count with .sum(), or len()"
        )
    exact = torch.float32 if value.device.type == "mps" else torch.float64
    value = value.detach().to(exact)
    # The host cannot look: what is added up will tell, as NaN stays in every sum.
    return torch.where(value >= 0, value, math.nan)


def _checked_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"weight(batch) must be a number or a tensor without dimensions, got {value!r}"
        )
    number = int(value) if isinstance(value, Integral) else float(value)
    if not 0 <= number < math.inf:
        raise DataError(f"weight(batch) must be at least 0 and finite, got {value!r}")
    return number


def _listed(counts: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(counts)))


def form_of(part: Any, depth: int = 2) -> str:
    """Describe a part of a batch by its types and shapes."""
    if isinstance(part, Tensor):
        return "a nested tensor" if part.is_nested else f"shape {list(part.shape)}"
    if isinstance(part, Mapping) and depth:
        inside = ", ".join(f"{key!r}: {form_of(part[key], depth - 1)}" for key in list(part)[:6])
        return f"{{{inside}{', ...' if len(part) > 6 else ''}}}"
    if isinstance(part, (list, tuple)) and depth:
        inside = ", ".join(form_of(each, depth - 1) for each in part[:4])
        return f"{len(part)} parts ({inside}{', ...' if len(part) > 4 else ''})"
    return "None" if part is None else f"type {type(part).__name__}"
