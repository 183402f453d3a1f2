"""On what the order of a loader's next epoch depends, beside the global random numbers."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.sharding import shares_of

SETTINGS = (
    *("batch_size", "bs", "num_samples", "replacement", "shuffle", "drop_last", "in_order"),
    *("num_replicas", "rank", "seed", "persistent_workers"),
)
"""Attributes by which loaders and samplers are told what to do: compared, not put back."""
# Where loaders, samplers and datasets keep what they are made of.
_INNER = {"sampler", "batch_sampler", "dataset", "datasets", "loader", "dataloader", "dl"}
_READ_BESIDES = ("generator", *sorted(_INNER))  # also where they are properties
# How counters are called. A sampler's numbers are all kept: there is nothing else that they
# could be, while a dataset may well keep the number of an open file.
_PLAIN = (int, float, bool, str, type(None))
_COUNTER = re.compile(r"epoch|iter|count|calls|seen|pass|step|position|cursor|offset")


def loader_state(loader: Any) -> dict[str, Any]:
    """Return on what the order of the next epoch of ``loader`` depends, as plain data.

    Returns:
        ``"generators"``, the states of those of torch, NumPy and Python that loader, samplers
        and datasets keep in their attributes; ``"numbers"``, what they count; ``"started"``,
        which loaders have persistent workers that are running: these draw no new seed for an
        epoch. Each by its place in the loader. ``"order"``, of one whose batches processes share,
        is its ``order_form``.
    """
    state: dict[str, Any] = {"generators": {}, "numbers": {}, "started": []}
    shares = shares_of(loader)
    if shares is not None:
        state["order"] = shares.order_form()
    known: set[int] = set()
    for place, part, attributes in _walk(loader):
        if _has_persistent_workers(part) and part._iterator is not None:
            state["started"].append(place)
        for name, value in attributes.items():
            if type(value) in _PLAIN:
                if type(value) in (int, float, bool) and _is_counted(part, name):
                    state["numbers"][f"{place}.{name}"] = value
            elif _is_generator(value) and id(value) not in known:
                known.add(id(value))  # a loader often shares its own with its sampler
                state["generators"][f"{place}.{name}"] = _state_of(value)
    return state


def set_loader_state(loader: Any, state: Mapping[str, Any] | list[torch.Tensor]) -> None:
    """Bring ``loader`` to where it was when ``loader_state`` returned ``state``.

    Args:
        loader: What the state does not tell of stays as it is.
        state: Checkpoints of earlier formats hold a list, of the states of the generators in
            attributes that are called so.
    """
    if not isinstance(state, Mapping):
        for generator, each in zip(_called_generator(loader), state, strict=False):
            generator.set_state(each)
        return
    for place, part in parts_of(loader):
        if _has_persistent_workers(part):
            _start_or_stop(part, is_started=place in state["started"])
    # Afterwards: starting workers draws random numbers, and begins an epoch.
    parts = dict(parts_of(loader))
    for path, number in state["numbers"].items():
        place, _, name = path.rpartition(".")
        if place in parts and getattr(parts[place], name, None) != number:
            setattr(parts[place], name, number)
    for path, each in state["generators"].items():
        place, _, name = path.rpartition(".")
        found = _attributes(parts[place]).get(name) if place in parts else None
        if _is_generator(found):
            _set_state_of(found, each)
    order, shares = state.get("order"), shares_of(loader)
    seed = order.get("seed") if order else None
    if seed is not None and shares is not None and shares.has_seed_of_run:
        shares.use_seed_of_run(seed)  # that of this process may be another


def _start_or_stop(loader: Any, *, is_started: bool) -> None:
    """Have the next epoch begin as it would have: with workers that run already, or with none."""
    if is_started and loader._iterator is None:
        iter(loader)
    elif not is_started:
        loader._iterator = None


def _has_persistent_workers(part: Any) -> bool:
    return isinstance(part, DataLoader) and part.persistent_workers and part.num_workers > 0


def parts_of(loader: Any) -> Iterator[tuple[str, Any]]:
    """Yield the loader and all that it is made of, each once, with its place."""
    return ((place, part) for place, part, _ in _walk(loader))


def _walk(loader: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield place, part and its attributes."""
    parts: list[tuple[str, Any]] = [] if loader is None else [("loader", loader)]
    known = {id(loader)}
    for place, part in parts:  # it grows on the way
        attributes = _attributes(part)
        yield place, part, attributes
        for name, value in attributes.items():
            if type(value) in _PLAIN:
                continue
            are_several = name == "datasets" and isinstance(value, (list, tuple))
            inner = value if are_several else [value]  # a dataset may be a list itself, of rows
            for index, each in enumerate(inner):
                is_one = name in _INNER or isinstance(each, (DataLoader, Sampler, Dataset))
                if is_one and id(each) not in known:
                    known.add(id(each))
                    parts.append((f"{place}.{name}" + (f".{index}" if index else ""), each))


def _attributes(part: Any) -> dict[str, Any]:
    if isinstance(part, (torch.Tensor, torch.nn.Module, type)):
        return {}
    found: dict[str, Any] = getattr(part, "__dict__", {})
    kind: Any = type(part)
    more = [name for name in _read_besides(kind) if name not in found]
    return {**found, **{name: getattr(part, name, None) for name in more}} if more else found


@lru_cache(maxsize=64)
def _read_besides(kind: type) -> tuple[str, ...]:
    """Return the names of what instances of a class have where their dictionary lacks it."""
    passes_on = hasattr(kind, "__getattr__")  # a wrapper
    return tuple(n for n in _READ_BESIDES if passes_on or getattr(kind, n, None) is not None)


def _is_counted(part: Any, name: str) -> bool:
    if type(part).__module__.split(".")[0] in ("torch", "eventtrain"):
        return name == "epoch"
    if name in SETTINGS:
        return False
    return isinstance(part, Sampler) or _COUNTER.search(name) is not None


def _is_generator(value: Any) -> bool:
    if isinstance(value, random.SystemRandom):
        return False  # it has no state
    return isinstance(value, (torch.Generator, random.Random)) or _is_numpys(value)


def _is_numpys(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(
        value, (numpy.random.Generator, numpy.random.RandomState)
    )


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    # As text: numbers of 128 bits, and arrays that come in many types.
    is_old = hasattr(generator, "get_state")
    state = generator.get_state(legacy=False) if is_old else generator.bit_generator.state
    return json.dumps(state, default=lambda value: value.tolist())


def _set_state_of(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        version, internal, gauss = state
        generator.setstate((version, tuple(internal), gauss))
    elif hasattr(generator, "set_state"):
        generator.set_state(json.loads(state))
    else:
        generator.bit_generator.state = json.loads(state)


def _called_generator(loader: Any) -> Iterator[torch.Generator]:
    """Find the generators that checkpoints of earlier formats tell of, in their order."""
    found: set[int] = set()
    owners = [loader]
    for owner in owners:  # it grows on the way
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and id(generator) not in found:
            found.add(id(generator))
            yield generator
        for name in ("sampler", "batch_sampler", "dataset", "loader"):
            inner = getattr(owner, name, None)
            if inner is not None and all(inner is not other for other in owners):
                owners.append(inner)
