"""Predictions of many batches put together: joined where they fit, else kept in a list."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .batch import convert_parts
from .weights import are_of_one_kind, possible_counts

Counts = Sequence[frozenset[int]]


def join_batches(
    parts: Sequence[Any], counts: Counts, *, listed: Sequence[int] = (), inside: bool = False
) -> Any:
    """Put what was made of each batch together, in order, on the CPU.

    - Tensors are joined along the first dimension; those without dimensions become one, a
      number a batch.
    - Mappings of the same keys (a ``ModelOutput`` too) are joined key by key, dataclasses field
      by field, and tuples and named tuples of the same length place by place. A tensor in them
      that has no row for each sample (a hidden state with layers first) is kept a batch.
    - A list or tuple with an element for each sample (detections) goes into one flat list.
      A list of other things is joined place by place where every element has a row for each
      sample.
    - ``None`` for every batch is ``None``.
    - What does not fit (other shapes, dtypes, keys or lengths; text; objects), and what could
      be read in two ways, is a list with what each batch gave. Nothing is padded or lost.

    Args:
        parts: What was made of each batch.
        counts: For each batch, the numbers of samples that it can be read as; see
            ``sample_counts``.
        listed: For each batch, how many elements it lists that may be samples; see
            ``listed_samples``. Default none.
        inside: Whether the parts are members of larger ones. Default ``False``.

    Returns:
        The whole; an empty tensor where there is no batch.
    """
    parts = list(parts)
    if not parts:
        return torch.empty(0)
    first = parts[0]
    if all(part is None for part in parts):
        return None
    if all(isinstance(part, Tensor) for part in parts):
        has_rows = [
            not count or not part.ndim or not possible_counts(part).isdisjoint(count)
            for part, count in zip(parts, counts, strict=True)
        ]
        return _joined_tensors(parts) if all(has_rows) or not inside else on_host(parts)
    if len({type(part) for part in parts}) == 1 and not isinstance(first, PackedSequence):
        if isinstance(first, Mapping):
            return _joined_mappings(parts, counts)
        if isinstance(first, (list, tuple)):
            return _joined_sequences(parts, counts, listed)
        if is_dataclass(first) and not callable(getattr(first, "to", None)):
            return _joined_fields(parts, counts)
    return [on_host(part) for part in parts]


def on_host(part: Any) -> Any:
    """Return a part with its tensors on the CPU; what cannot be moved stays as it is."""
    if isinstance(part, Tensor):
        return part.cpu()
    if callable(getattr(part, "to", None)) and not isinstance(part, type):
        try:
            return part.to("cpu")
        except Exception:  # a "to" that means something else: nothing may be lost for it
            return part
    try:
        if isinstance(part, Mapping):
            return _with_items(part, {key: on_host(value) for key, value in part.items()})
        if is_dataclass(part) and not isinstance(part, type):
            found = {field.name: on_host(getattr(part, field.name)) for field in fields(part)}
            return _with_fields(part, found)
        return convert_parts(part, on_host)
    except Exception:  # a class of somebody's own that is not made again from its parts
        return part


def _joined_tensors(parts: list[Tensor]) -> Any:
    if any(part.is_nested for part in parts):  # they have no shape to compare
        return on_host(parts)
    forms = {(part.dtype, part.layout, part.shape[1:], part.ndim) for part in parts}
    if len(forms) != 1:
        return [part.cpu() for part in parts]
    join = torch.cat if parts[0].ndim else torch.stack
    try:
        return join(parts).cpu()
    except (RuntimeError, NotImplementedError, TypeError):
        # Too large for the device together, or on several: there is room on the host. Or of a
        # kind that cannot be joined.
        held = [part.cpu() for part in parts]
    try:
        return join(held)
    except (RuntimeError, NotImplementedError, TypeError):
        return held


def _joined_mappings(parts: list[Any], counts: Counts) -> Any:
    first = parts[0]
    if any(list(part) != list(first) and set(part) != set(first) for part in parts):
        return [on_host(part) for part in parts]
    joined = {
        key: join_batches([part[key] for part in parts], counts, inside=True) for key in first
    }
    return _with_items(first, joined)


def _with_items(part: Any, values: Mapping[Any, Any]) -> Any:
    try:
        # A copy keeps the class, and what it carries besides.
        whole = copy.copy(part)
        for key, value in values.items():
            whole[key] = value
    except Exception:  # it takes no items
        return dict(values)
    return whole


def _joined_fields(parts: list[Any], counts: Counts) -> Any:
    try:
        joined = {
            field.name: join_batches(
                [getattr(part, field.name) for part in parts], counts, inside=True
            )
            for field in fields(parts[0])
        }
        return _with_fields(parts[0], joined)
    except Exception:  # it is not to be made again from its fields
        return [on_host(part) for part in parts]


def _with_fields(part: Any, values: Mapping[str, Any]) -> Any:
    whole = copy.copy(part)
    for name, value in values.items():
        object.__setattr__(whole, name, value)  # also where the class is frozen
    return whole


def _joined_sequences(parts: list[Any], counts: Counts, listed: Sequence[int]) -> Any:
    first = parts[0]
    is_named = isinstance(first, tuple) and hasattr(first, "_fields")
    is_even = len({len(part) for part in parts}) == 1
    by_sample = not is_named and all(
        are_of_one_kind(part) and len(part) in count
        for part, count in zip(parts, counts, strict=True)
    )
    by_place = is_even and all(
        not possible_counts(element).isdisjoint(count)
        for part, count in zip(parts, counts, strict=True)
        for element in part
    )
    by_element = not (by_place or is_named) and _are_of_elements(parts, listed)
    if by_sample and by_place:
        return [on_host(part) for part in parts]
    if by_sample or by_element:
        return [on_host(element) for part in parts for element in part]
    if not by_place and not (is_even and isinstance(first, tuple)):
        return [on_host(part) for part in parts]
    places = [join_batches(place, counts, inside=True) for place in zip(*parts, strict=True)]
    if is_named:
        return first._make(places)
    try:
        return type(first)(places)
    except Exception:  # a class of somebody's own that takes other arguments
        return tuple(places)


def _are_of_elements(parts: list[Any], listed: Sequence[int]) -> bool:
    """Whether each part has an element for each that its batch lists, as detections of images do.

    Two are two samples only beside other batches, or where mappings are what was found: else they
    may be what was made of an input and its target.
    """
    return (
        [len(part) for part in parts] == list(listed)
        and all(map(are_of_one_kind, parts))
        and (set(listed) != {2} or all(isinstance(each, Mapping) for each in parts[0]))
    )
