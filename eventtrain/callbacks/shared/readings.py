"""Numbers on their way to the host: kept on the device, read in one go, made plain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...host_reading import to_host as to_host
from ...optimizers import named_optimizers, parameter_groups

if TYPE_CHECKING:
    from ...distributed.reductions import OneProcess
    from ...state import RunState


def detached_mean(value: Any) -> Any:
    """Return a number to be read later, without waiting for its device.

    Args:
        value: A tensor of any shape, or anything else.

    Returns:
        For a tensor, its mean: a scalar of its own on the same device, cut from
        the graph. Anything else as it is.
    """
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    # A copy: whoever owns the tensor may change it in place before it is read.
    return value.mean() if value.ndim else value.clone()


def batch_weight(run: RunState) -> Any:
    """Return what the loss of this process's share of a batch counts among those of all.

    One process alone need not count its samples.
    """
    return run.weight if run.world.size > 1 else 1


def last_over_processes(losses: Sequence[Any], weights: list[Any], run: RunState) -> list[float]:
    """Return the last of this process's losses over all processes, at the end of a phase.

    Args:
        losses: Of batches; the last of them are those that have a weight.
        weights: Their ``batch_weight``s, which are taken out of the list.
        run: Whose phase it is.

    Returns:
        None where there are no other processes, or some may not be here as the run has failed.
    """
    known = weights[:]
    weights.clear()
    if run.world.size == 1 or run.outcome == "failed":
        return []
    pairs = zip(losses[len(losses) - len(known) :], known, strict=True)
    return means_over_processes(list(pairs), run.world)


def means_over_processes(losses: Sequence[tuple[Any, Any]], world: OneProcess) -> list[float]:
    """Return the loss of each batch over all processes; collective, and read from the device.

    Args:
        losses: Of this process's shares, numbers or scalars, each with its ``batch_weight``; as
            many in each process.
        world: The processes.

    Returns:
        NaN for a batch of which nothing counts.
    """
    if world.size == 1:
        return to_host([loss for loss, _ in losses])  # type: ignore[no-any-return]
    # What counts for nothing may be NaN.
    parts = [
        torch.where(weight == 0, 0.0, loss * _on_device_of(loss, weight))
        if isinstance(weight, Tensor)
        else loss * weight
        if weight
        else 0.0
        for loss, weight in losses
    ]
    found = world.sums([*parts, *(weight for _, weight in losses)])
    return [
        total / weight if weight else math.nan
        for total, weight in zip(found[: len(losses)], found[len(losses) :], strict=True)
    ]


def _on_device_of(loss: Any, weight: Tensor) -> Tensor:
    return weight.to(loss.device, non_blocking=True) if isinstance(loss, Tensor) else weight


def stack_where_possible(tensors: list[Tensor]) -> Tensor | list[Tensor]:
    """Stack tensors of one shape into one, unless they lie on several devices."""
    places = {(tensor.device, tensor.dtype) for tensor in tensors}
    return torch.stack(tensors) if len(places) == 1 else tensors


def plain_value(value: Any) -> bool | int | float | str | None:
    """Return ``value`` as something that every file format takes.

    A tensor or NumPy value of one element becomes a number, which waits for its
    device; what is no number becomes its ``str``.
    """
    size = value.numel() if isinstance(value, Tensor) else getattr(value, "size", None)
    if size == 1 and callable(getattr(value, "item", None)):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def plain_row(row: Mapping[str, Any]) -> dict[str, bool | int | float | str | None]:
    """Return a row of the history with a plain value at every key."""
    return {key: plain_value(value) for key, value in row.items()}


def numbers_of(row: Mapping[str, Any], *, is_by_steps: bool = False) -> dict[str, float]:
    """Return what is measured in a row of the history: its numbers, but for its place.

    Args:
        row: The row.
        is_by_steps: Whether its ``"step"`` says where it is, as in a fit with ``validate_every``.
            Default ``False``.
    """
    place = ("epoch", "step") if is_by_steps else ("epoch",)
    plain = {key: value for key, value in plain_row(row).items() if key not in place}
    return {key: float(v) for key, v in plain.items() if isinstance(v, (int, float))}


def epoch_row(run: RunState, seconds: float | None) -> dict[str, Any]:
    """Return the row that is complete: ``run.history[-1]`` and how it went.

    Args:
        run: In ``after_epoch`` or ``after_row``.
        seconds: Wall time of the row; ``None`` where it is not known.

    Returns:
        ``epoch``, ``step`` with ``validate_every``, what callbacks measured, ``seconds`` and
        ``outcome``.
    """
    return {**plain_row(run.history[-1]), "seconds": seconds, "outcome": run.outcome}


def hyperparameters(opt: Any, name: str) -> list[Any]:
    """Return one field of every parameter group, without waiting for a device.

    Args:
        opt: An optimizer, or several by name, one after the other; one without ``param_groups``
            has no fields.
        name: For example ``"lr"``. A group that lacks it gives ``None``.
    """
    values = [group.get(name) for _, group in parameter_groups(opt)]
    return [
        tuple(map(detached_mean, v)) if isinstance(v, (tuple, list)) else detached_mean(v)
        for v in values
    ]


def labelled_hyperparameters(opt: Any, name: str) -> dict[str, Any]:
    """Return one field of every parameter group by a label that tells the groups apart.

    Args:
        opt: An optimizer, or several by name.
        name: For example ``"lr"``.

    Returns:
        At ``""`` that of a group that is the only one, at ``"0"`` and so on those of several; with
        the name of the optimizer before it where there are several, ``"g"`` or ``"g/0"``.
    """
    found: dict[str, Any] = {}
    for owner, each in named_optimizers(opt):
        values = hyperparameters(each, name)
        for index, value in enumerate(values):
            number = "" if len(values) == 1 else str(index)
            found["/".join(part for part in (owner, number) if part)] = value
    return found
