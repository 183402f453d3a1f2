"""Weighted sums of numbers that come batch by batch, and stay on their device meanwhile."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def one_number(value: Any, whose: str, remedy: str) -> Any:
    """Return a number as a float, or as a tensor without dimensions or gradient.

    Args:
        value: Anything.
        whose: How the message begins that says that it is none.
        remedy: How that message ends.

    Raises:
        TypeError: It is no single number.
    """
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.is_complex():
            return value.detach().reshape(())
        got = f"a tensor of shape {list(value.shape)} and {value.dtype}"
    elif hasattr(value, "__float__") and not getattr(value, "ndim", 0):
        return float(value)
    else:
        got = type(value).__name__
    raise TypeError(f"{whose} no single number but {got}: {remedy}")


def checked_weight(weight: Any, whose: str) -> Any:
    """Return a weight as a float, or as a tensor that is NaN where the weight is negative.

    Args:
        weight: A number of at least 0, or a tensor without dimensions, at which the host does not
            look: NaN stays in every sum.
        whose: What it belongs to, for messages.

    Raises:
        TypeError: It is neither.
        ValueError: It is negative, NaN or infinite.
    """
    if isinstance(weight, Tensor) and not weight.ndim and not weight.is_complex():
        weight = weight.detach().to(_exact(weight.device))
        return torch.where(weight >= 0, weight, math.nan)
    if isinstance(weight, (Tensor, bool)) or not isinstance(weight, Real):
        raise TypeError(
            f"{whose} must be a number or a tensor without dimensions, got {weight!r}: count what "
            "the value is a mean of"
        )
    number = float(weight)
    if not 0 <= number < math.inf:
        raise ValueError(f"{whose} must be at least 0 and finite, got {weight!r}")
    return number


def added(total: Any, value: Any, weight: Any) -> Any:
    """Return ``total + weight * value``, computed on the device of the tensors among them.

    Nothing is changed in place, as a checkpoint may still hold the sum of before; and nothing is
    copied from a device to the host, which would wait for it.

    Args:
        total: A float, or what this returned.
        value: What ``one_number`` returned.
        weight: A number, or a tensor without dimensions. A value of weight 0 counts for nothing,
            though it is NaN, as a mean over nothing is.
    """
    if isinstance(weight, Tensor):
        device = value.device if isinstance(value, Tensor) else weight.device
        weight = weight.to(device, non_blocking=True)
        value, weight = torch.where(weight == 0, 0.0, value * weight), 1
    elif not weight:
        return total
    if not isinstance(value, Tensor):
        return total + value * weight
    if not isinstance(total, Tensor):
        # Filled, not copied from the host: a copy would wait for the device.
        total = value.new_full((), total, dtype=_exact(value.device))
    elif total.device != value.device:
        if total.device.type == "cpu":  # read from a checkpoint
            total = total.to(value.device)
        else:
            value = value.to(total.device, non_blocking=True)
    return total.add(value, alpha=weight)


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
