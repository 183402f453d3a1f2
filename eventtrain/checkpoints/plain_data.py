"""What a checkpoint can hold: data that is read again without running any code."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

# Compared by identity: what is read again knows of no subclasses, enumerations and NumPy's
# floats among them.
_ATOMS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size)


def plain_data(value: Any, where: str) -> Any:
    """Return ``value`` with NumPy's scalars as the Python numbers that they are.

    Args:
        value: Dictionaries, lists, tuples, sets, strings, numbers and tensors, in any nest.
        where: What it is, for the message.

    Returns:
        A copy of the nest with the same tensors. What a module's state dictionary knows of
        versions stays with it.

    Raises:
        CheckpointError: It holds anything else.
    """
    value = _python_number(value)
    kind = type(value)
    if kind in (dict, OrderedDict):
        copy: Any = kind(
            (plain_data(key, f"a key of {where}"), plain_data(each, f"{where}[{key!r}]"))
            for key, each in value.items()
        )
        if hasattr(value, "_metadata"):
            copy._metadata = plain_data(value._metadata, f"the versions of {where}")
        return copy
    if kind in (list, tuple, set):
        return kind(plain_data(each, f"{where}[{index}]") for index, each in enumerate(value))
    if kind in _ATOMS or kind in (Tensor, nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return _safe_tensor(value, where)
    raise CheckpointError(
        f"{where} is {value!r} of type {kind.__name__}, which a checkpoint cannot hold: "
        "keep plain data and tensors in state_dict()"
    )


def _safe_tensor(value: Tensor, where: str) -> Tensor:
    """Return a tensor of a class of its own, which is read again where it was declared safe."""
    kind = type(value)
    if kind not in torch.serialization.get_safe_globals():
        raise CheckpointError(
            f"{where} is a tensor of class {kind.__qualname__}, which is not read again before "
            f"torch.serialization.add_safe_globals([{kind.__qualname__}]): call that, or keep a "
            "plain tensor there"
        )
    return value


def _python_number(value: Any) -> Any:
    """Return a NumPy scalar as the Python number that it is, and all else as it is."""
    if isinstance(value, Tensor) or getattr(value, "ndim", None) != 0:
        return value
    return value.item()
