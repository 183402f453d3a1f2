"""Learning rates of their own for the blocks of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .submodules import choose_submodules


def discriminative_groups(
    model: nn.Module, lrs: Mapping[str, float] | Sequence[float] | slice
) -> list[dict[str, Any]]:
    """Make parameter groups with one learning rate a block, for any optimizer.

    ``torch.optim.AdamW(discriminative_groups(model, slice(1e-5, 1e-3)))`` trains
    the first layers of a pretrained model gently and its head fast.

    Args:
        model: The blocks are its children that have parameters, in order, or
            the modules that a mapping names.
        lrs: One rate a block. A sequence goes through the children;
            ``slice(low, high)`` gives them rates from ``low`` to ``high``, each
            larger than the one before by the same factor (a single child gets
            ``high``); a mapping goes from names as in ``named_modules()`` to
            rates, where the longest name that fits a parameter counts, and
            ``""`` takes all the rest.

    Returns:
        Groups ``{"params": [...], "lr": rate, "name": block}`` in the order of
        the blocks. Every parameter is in exactly one, those that need no
        gradient now too: they may later. One that blocks share is in the first.

    Raises:
        TypeError: ``lrs`` is none of the above.
        ValueError: The number of rates is not that of the blocks, a rate is
            negative, a name is not in the model, or a parameter has no rate.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text
    Classification", 2018; rates by ``slice`` are fastai's.
    """
    rates = dict(lrs) if isinstance(lrs, Mapping) else _rates_of_children(model, lrs)
    for name, rate in rates.items():
        if not rate >= 0:
            raise ValueError(f"the rate of {name!r} must be 0 or more, got {rate!r}")
    blocks: dict[str, list[nn.Parameter]] = {
        name: [] for name in choose_submodules(model, list(rates))
    }
    homeless: list[str] = []
    for path, parameter in model.named_parameters():
        block = _block_of(path, blocks)
        if block is None:
            homeless.append(path)
        else:
            blocks[block].append(parameter)
    if homeless:
        raise ValueError(
            f"no rate for the parameters {', '.join(homeless)}: give lrs as a mapping with their "
            'block, or with "" for all the rest'
        )
    return [
        {"params": parameters, "lr": rates[name], "name": name}
        for name, parameters in blocks.items()
        if parameters
    ]


def _rates_of_children(model: nn.Module, lrs: Any) -> dict[str, float]:
    names = [name for name, child in model.named_children() if list(child.parameters())]
    if isinstance(lrs, slice):
        return dict(zip(names, _spread(lrs, len(names)), strict=True))
    if isinstance(lrs, str) or not isinstance(lrs, Sequence):
        raise TypeError(f"lrs must be a mapping, a sequence or slice(low, high), got {lrs!r}")
    if len(lrs) != len(names):
        raise ValueError(f"{len(lrs)} rates for the {len(names)} blocks {', '.join(names)}")
    return dict(zip(names, lrs, strict=True))


def _spread(ends: slice, count: int) -> list[float]:
    low, high = ends.start, ends.stop
    if low is None or high is None or ends.step is not None or not (low > 0 and high > 0):
        raise ValueError(f"a slice of rates is slice(low, high) with both above 0, got {ends!r}")
    if count < 2:
        return [high] * count
    return [low * (high / low) ** (index / (count - 1)) for index in range(count)]


def _block_of(path: str, blocks: dict[str, list[nn.Parameter]]) -> str | None:
    """Return the longest of the blocks' names that the parameter at ``path`` belongs to."""
    while path:
        path = path.rpartition(".")[0]
        if path in blocks:
            return path
    return None
