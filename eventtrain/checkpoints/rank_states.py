"""What of a snapshot is each rank's own, and what of it a rank gets that goes on."""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

OWN = (
    *("random", "phase_start", "gradients", "buffers", "callbacks"),
    *("loss_func", "loaders", "last_batch", "loader_state", "syncs_buffers"),
)
"""The parts of a content that may differ from rank to rank, beside the buffers of the model."""
StateForRank = Callable[[Sequence[dict[str, Any]], int, int, str | None], dict[str, Any]]
"""``Callback.state_for_rank``."""
_BUFFERS = "model_buffers"


def own_part(content: Mapping[str, Any], buffers: Sequence[str]) -> dict[str, Any]:
    """Return what of a snapshot is this rank's own.

    Args:
        content: What ``take_snapshot`` returned.
        buffers: The names of the model's buffers.
    """
    model = _trained(content)
    found = {key: content[key] for key in OWN if key in content}
    return {**found, _BUFFERS: {name: model[name] for name in buffers if name in model}}


def with_own_part(content: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a snapshot of rank 0 as it was on the rank whose own part is given.

    Raises:
        CheckpointError: The part is none by its form.
    """
    if not isinstance(own.get(_BUFFERS), dict):
        raise CheckpointError("a rank's own part lacks its buffers")
    key = "training_model" if "training_model" in content else "model"
    model = OrderedDict(content[key])
    if hasattr(content[key], "_metadata"):
        model._metadata = content[key]._metadata  # type: ignore[attr-defined]
    model.update({name: value for name, value in own[_BUFFERS].items() if name in model})
    return {**content, key: model, **{name: own[name] for name in OWN if name in own}}


def for_another_world(
    contents: Sequence[Mapping[str, Any]],
    rank: int,
    size: int,
    states: Mapping[str, StateForRank],
) -> dict[str, Any]:
    """Return the snapshot with which a rank goes on where there were more ranks, or fewer.

    Buffers, and what the order of the data depends on, are those of rank 0. Gradients that wait
    for a step are the mean of all ranks', which is what sharing them would have made of them. A
    rank keeps its random numbers; one that was not there gets numbers that are derived from those
    of another rank and its own number, the same each time.

    Args:
        contents: The snapshot as it was on each rank that there was.
        rank: This one, now.
        size: How many there are now.
        states: By the names of callbacks, what says with which state each goes on.

    Raises:
        CheckpointError: They do not belong together.
    """
    first = contents[0]
    own = contents[rank] if rank < len(contents) else first
    content = {**first, "last_batch": None}
    content["gradients"] = _mean_gradients([each["gradients"] for each in contents])
    phase = content["position"]["phase"]
    content["callbacks"] = {}
    # In the order of the first, and those that had nothing to keep on it.
    for name in dict.fromkeys(name for each in contents for name in each["callbacks"]):
        found = [each["callbacks"].get(name, {}) for each in contents]
        state_for_rank: StateForRank = states.get(name, _own_or_first)
        content["callbacks"][name] = state_for_rank(found, rank, size, phase)
    for key in ("random", "phase_start"):
        state = own[key]
        if state is None:
            continue
        numbers = state["global"]
        if rank >= len(contents):
            numbers = derived_state(contents[rank % len(contents)][key]["global"], rank)
        content[key] = {**state, "global": numbers, "loaders": first[key]["loaders"]}
    return content


def _mean_gradients(gradients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for each in gradients for name in each))
    found: dict[str, Any] = {}
    for name in names:
        parts = [each[name] for each in gradients if each.get(name) is not None]
        if not parts:
            found[name] = None  # it lies divided, and is there already
        elif all(isinstance(part, Tensor) and part.shape == parts[0].shape for part in parts):
            total = torch.zeros_like(parts[0])
            for part in parts:
                total += part
            found[name] = total / len(gradients)
        else:
            raise CheckpointError(f"the gradients of {name} are not alike on all ranks")
    return found


def _own_or_first(states: Sequence[Any], rank: int, size: int, phase: str | None) -> Any:
    return states[rank] if rank < len(states) else states[0]


def derived_state(state: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Return states of the global generators for a rank that had none.

    Args:
        state: What ``random_state`` returned on another rank.
        rank: The number of the new one.
    """
    known = bytes(state["torch"].tolist()) + str(rank).encode()
    seed = int.from_bytes(hashlib.sha256(known).digest()[:4], "big")
    found: dict[str, Any] = {
        "python": random.Random(seed).getstate(),
        "torch": torch.Generator().manual_seed(seed).get_state(),
    }
    if "numpy" in state:
        import numpy

        state_of: Any = numpy.random.RandomState(seed).get_state
        name, keys, *rest = state_of(legacy=True)
        found["numpy"] = (name, torch.from_numpy(keys.astype("int64")), *rest)
    if "cuda" in state and torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        made = [torch.Generator(f"cuda:{each}").manual_seed(seed) for each in devices]
        found["cuda"] = [each.get_state() for each in made]
    return found


def _trained(content: Mapping[str, Any]) -> Mapping[str, Any]:
    model: Mapping[str, Any] = content.get("training_model", content["model"])
    return model
