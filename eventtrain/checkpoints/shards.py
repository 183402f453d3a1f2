"""Tensors that lie divided on several processes, written and read by torch's own checkpoints."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, empty

from ..errors import CheckpointError, describe
from .records import is_count
from .shard_metadata import INDEX, ShardReader

Shards = dict[str, DTensor]
"""By key, which is the place in a content as JSON."""


def split_shards(content: Mapping[str, Any]) -> tuple[dict[str, Any], Shards]:
    """Take the divided tensors out of a content.

    Args:
        content: What ``take_snapshot`` returned.

    Returns:
        The rest, with ``None`` in their places and, at ``"shards"``, what they are like; and the
        tensors themselves.

    Raises:
        CheckpointError: One is divided in another way than along dimensions.
    """
    shards: Shards = {}

    def taken(path: list[Any], leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        detached: Any = leaf.detach()
        shards[json.dumps(path)] = detached
        return None

    rest = _mapped(content, taken, [])
    rest["shards"] = {key: _about(key, shard) for key, shard in shards.items()}
    return rest, shards


def _mapped(value: Any, leaf: Callable[[list[Any], Any], Any], path: list[Any]) -> Any:
    """Return a nest with each leaf replaced, and with what a state dictionary knows of versions."""
    if isinstance(value, dict):
        copy: Any = type(value)(
            (key, _mapped(each, leaf, [*path, key])) for key, each in value.items()
        )
        if hasattr(value, "_metadata"):
            copy._metadata = value._metadata
        return copy
    if type(value) in (list, tuple):
        return type(value)(_mapped(each, leaf, [*path, i]) for i, each in enumerate(value))
    return leaf(path, value)


def _about(key: str, shard: DTensor) -> dict[str, Any]:
    if not all(type(each) in (Shard, Replicate) for each in shard.placements):
        raise CheckpointError(
            f"{key} lies divided as {shard.placements}, and a checkpoint holds what is divided "
            "along whole dimensions: save in a handler of yours, with torch.distributed.checkpoint"
        )
    dims = [each.dim if isinstance(each, Shard) else None for each in shard.placements]
    return {"shape": list(shard.shape), "dtype": shard.dtype, "dims": dims}


def write_shards(folder: Path, shards: Mapping[str, Tensor], group: Any) -> None:
    """Write divided tensors; collective.

    Args:
        folder: Where to, made if it is not there.
        shards: By key.
        group: The process group, of all ranks.

    Raises:
        CheckpointError: A rank cannot write; all ranks raise it.
    """
    try:
        writer = FileSystemWriter(folder, overwrite=True)
        save(dict(shards), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        said = [f"rank {rank}: {describe(each[0])}" for rank, each in error.failures.items()]
        raise CheckpointError(f"cannot write to {folder}: {'; '.join(said)}") from error


def files_of_rank(folder: Path, rank: int) -> list[Path]:
    """Return what ``write_shards`` has written on a rank."""
    return [*folder.glob(f"__{rank}_*"), *([folder / INDEX] if rank == 0 else [])]


def mesh_of(model: Any) -> DeviceMesh | None:
    """Return over what the parameters of a model are divided; ``None`` where they are not."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.device_mesh for p in parameters if isinstance(p, DTensor)), None)


def with_shards(
    content: Mapping[str, Any], folder: Path, mesh: DeviceMesh | None = None
) -> dict[str, Any]:
    """Return a content with the tensors that were divided in their places.

    Args:
        content: What ``split_shards`` returned.
        folder: Where the tensors are.
        mesh: Over which they are divided now; whole on the CPU, where there is none.

    Raises:
        CheckpointError: They cannot be read, or are not what the content tells.
    """
    found: dict[str, Tensor] = {}
    try:
        found = {key: _room_for(about, mesh) for key, about in content["shards"].items()}
        reader = ShardReader(folder)
        index = reader.read_metadata()
        for key, tensor in found.items():
            was: Any = index.state_dict_metadata.get(key)
            if was is None or (was.size, was.properties.dtype) != (tensor.shape, tensor.dtype):
                raise CheckpointError(f"{key} is not what the checkpoint tells of it")
        if found:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                # Each rank by itself: what it needs is all in the index.
                load(dict(found), storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the shards in {folder} cannot be read: {error}") from error

    def put(path: list[Any], leaf: Any) -> Any:
        return found.pop(json.dumps(path), leaf) if leaf is None else leaf

    whole: dict[str, Any] = _mapped({k: v for k, v in content.items() if k != "shards"}, put, [])
    if found:
        raise CheckpointError(f"the checkpoint beside {folder} has no place for {sorted(found)[0]}")
    return whole


def _room_for(about: Any, mesh: DeviceMesh | None) -> Tensor:
    shape, dtype, dims = about["shape"], about["dtype"], about["dims"]
    if not (isinstance(dtype, torch.dtype) and all(is_count(each) for each in shape)):
        raise CheckpointError("the checkpoint tells of a tensor without type or shape")
    if mesh is None:
        return torch.empty(shape, dtype=dtype)
    if len(dims) != mesh.ndim:
        dims = [None] * (mesh.ndim - 1) + [next((d for d in dims if d is not None), None)]
    if not all(d is None or (is_count(d) and d < len(shape)) for d in dims):
        raise CheckpointError(
            "the checkpoint tells of a tensor that is divided where it has no end"
        )
    placements = [Replicate() if d is None else Shard(d) for d in dims]
    return empty(*shape, dtype=dtype, device_mesh=mesh, placements=placements)


def divided(content: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return a content with whole tensors divided as the parameters are that they belong to.

    That is, those of the model, and those of their shape that the optimizer, the gradients and the
    callbacks keep for them, by name or by the place in the optimizer's groups.

    Args:
        content: One that was taken where nothing was divided.
        model: Its parameters are divided.
    """
    own = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}
    by_index = _names_by_place(content)

    def put(path: list[Any], leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or isinstance(leaf, DTensor):
            return leaf
        for name in _owners(path, by_index):
            parameter = own.get(name)
            if parameter is not None and parameter.shape == leaf.shape:
                mesh, placements = parameter.device_mesh, parameter.placements
                here = leaf.to(mesh.device_type)
                return distribute_tensor(here, mesh, placements, src_data_rank=None)
        return leaf

    parts = ("model", "training_model", "opt", "gradients", "callbacks")
    return {
        key: _mapped(value, put, [key]) if key in parts else value for key, value in content.items()
    }


def _names_by_place(content: Mapping[str, Any]) -> dict[tuple[Any, ...], Any]:
    """Return the names of the parameters by where the optimizers' states have what is theirs."""
    opt, groups = content["opt"], content.get("parameters", [])
    several = isinstance(content.get("opt_class"), Mapping)
    found: dict[tuple[Any, ...], Any] = {}
    parts = [((name,), opt[name], groups[name]) for name in opt] if several else [((), opt, groups)]
    for path, state, told in parts:
        names = [each["name"] for group in told for each in group]
        indices = [i for group in state.get("param_groups", ()) for i in group["params"]]
        for index, name in zip(indices, names, strict=False):
            found[("opt", *path, "state", index)] = name
    return found


def _owners(path: list[Any], by_place: Mapping[tuple[Any, ...], Any]) -> Iterator[Any]:
    """Yield the names of the parameters that a tensor at a place may belong to."""
    if path[0] == "opt":
        yield by_place.get(tuple(path[:3])) or by_place.get(tuple(path[:4]))
    else:
        yield from reversed(path[1:])


def on_host(shards: Mapping[str, DTensor]) -> dict[str, Tensor]:
    """Copy this rank's parts into host memory, so that the run may go on changing its own."""
    return {key: shard.to("cpu", copy=True) for key, shard in shards.items()}


def make_group_of_thread() -> Any:
    """Return a group of all ranks for collectives of another thread; collective."""
    return dist.new_group(backend="gloo")
