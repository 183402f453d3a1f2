from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from eventtrain.checkpoints.shards import (
    divided,
    files_of_rank,
    mesh_of,
    on_host,
    split_shards,
    with_shards,
    write_shards,
)
from eventtrain.errors import CheckpointError

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A group of this process alone: what lies divided is of another type all the same."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def shard_of(tensor: torch.Tensor, mesh: DeviceMesh, placement: Any) -> DTensor:
    return distribute_tensor(tensor, mesh, [placement])


def nest(mesh: DeviceMesh) -> dict[str, Any]:
    """A content with divided tensors at several depths, beside what is not divided."""
    model: Any = OrderedDict(w=shard_of(torch.arange(6.0).reshape(3, 2), mesh, Shard(0)))
    model["plain"] = torch.ones(2)
    model._metadata = {"": {"version": 3}}
    moments = {"exp_avg": shard_of(torch.ones(3, 2), mesh, Shard(1)), "step": torch.tensor(4.0)}
    return {
        "model": model,
        "opt": {"state": {0: moments}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "callbacks": {"ema": {"of": (shard_of(torch.full((2,), 7.0), mesh, Replicate()), None)}},
    }


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, DTensor):
        assert found.placements == expected.placements
        assert torch.equal(found.full_tensor(), expected.full_tensor())
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def test_what_was_split_and_written_is_put_together_again(mesh: DeviceMesh, tmp_path: Path) -> None:
    rest, shards = split_shards(nest(mesh))
    assert len(shards) == 3
    assert not any(isinstance(each, DTensor) for each in (rest["model"]["w"],))
    write_shards(tmp_path / "x.shards", shards, None)
    found = with_shards(rest, tmp_path / "x.shards", mesh)
    assert_same(found, nest(mesh))
    assert found["model"]._metadata == {"": {"version": 3}}


def test_the_rest_can_be_read_without_running_code(mesh: DeviceMesh, tmp_path: Path) -> None:
    rest, _ = split_shards(nest(mesh))
    torch.save(rest, tmp_path / "rest.pt")
    found = torch.load(tmp_path / "rest.pt", weights_only=True)
    assert found["shards"] == rest["shards"]


def test_without_a_mesh_tensors_are_whole(mesh: DeviceMesh, tmp_path: Path) -> None:
    rest, shards = split_shards(nest(mesh))
    write_shards(tmp_path / "x.shards", shards, None)
    found = with_shards(rest, tmp_path / "x.shards")
    assert type(found["model"]["w"]) is torch.Tensor
    assert torch.equal(found["model"]["w"], torch.arange(6.0).reshape(3, 2))


def test_copies_on_the_host_do_not_change_with_the_run(mesh: DeviceMesh, tmp_path: Path) -> None:
    content = nest(mesh)
    rest, shards = split_shards(content)
    copies = on_host(shards)
    with torch.no_grad():
        content["model"]["w"].zero_()
    write_shards(tmp_path / "x.shards", copies, None)
    found = with_shards(rest, tmp_path / "x.shards")
    assert torch.equal(found["model"]["w"], torch.arange(6.0).reshape(3, 2))


def test_the_files_of_the_ranks_are_all_that_is_written(mesh: DeviceMesh, tmp_path: Path) -> None:
    _, shards = split_shards(nest(mesh))
    write_shards(tmp_path / "x.shards", shards, None)
    assert sorted(files_of_rank(tmp_path / "x.shards", 0)) == sorted(
        (tmp_path / "x.shards").iterdir()
    )
    assert files_of_rank(tmp_path / "x.shards", 1) == []


def test_what_lies_divided_in_no_whole_dimension_is_refused(mesh: DeviceMesh) -> None:
    partial = DTensor.from_local(torch.ones(2), mesh, [Partial()])
    with pytest.raises(CheckpointError, match=r'\["model", "w"\] lies divided as .*Partial'):
        split_shards({"model": {"w": partial}})


def test_a_folder_that_cannot_be_written_to_is_told_of(mesh: DeviceMesh, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    _, shards = split_shards(nest(mesh))
    with pytest.raises(CheckpointError, match=r"cannot write to .*file/x: rank 0: NotADirectory"):
        write_shards(tmp_path / "file" / "x", shards, None)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"shape": [2, 2]}, "is not what the checkpoint tells of it"),
        ({"dtype": torch.float64}, "is not what the checkpoint tells of it"),
        ({"dtype": "float32"}, "without type or shape"),
        ({"shape": [-1, 2]}, "without type or shape"),
        ({"shape": [2**50, 2**50]}, "cannot be read"),
        ({"dims": [5]}, "divided where it has no end"),
        ({"dims": ["0"]}, "divided where it has no end"),
        ({"shape": None}, "cannot be read"),
    ],
)
def test_a_content_that_tells_of_other_shards_is_refused(
    mesh: DeviceMesh, tmp_path: Path, about: dict[str, Any], message: str
) -> None:
    rest, shards = split_shards(nest(mesh))
    write_shards(tmp_path / "x.shards", shards, None)
    rest["shards"]['["model", "w"]'].update(about)
    with pytest.raises(CheckpointError, match=message):
        with_shards(rest, tmp_path / "x.shards", mesh)


def test_shards_without_a_place_in_the_content_are_refused(
    mesh: DeviceMesh, tmp_path: Path
) -> None:
    rest, shards = split_shards(nest(mesh))
    write_shards(tmp_path / "x.shards", shards, None)
    del rest["model"]["w"]
    with pytest.raises(CheckpointError, match=r'has no place for \["model", "w"\]'):
        with_shards(rest, tmp_path / "x.shards", mesh)


def test_shards_whose_folder_is_missing_are_refused(tmp_path: Path) -> None:
    about = {"shape": [2], "dtype": torch.float32, "dims": [0]}
    content = {"model": {"w": None}, "shards": {'["model", "w"]': about}}
    with pytest.raises(CheckpointError, match=r"missing/\.metadata of a checkpoint is refused"):
        with_shards(content, tmp_path / "missing")


def test_what_was_taken_whole_is_divided_as_the_parameters_are(mesh: DeviceMesh) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    names = [name for name, _ in model.named_parameters()]
    shapes = {name: p.shape for name, p in model.named_parameters()}
    state = {i: {"exp_avg": torch.full(shapes[n], float(i)), "step": torch.tensor(1.0)}
             for i, n in enumerate(names)}  # fmt: skip
    content = {
        "model": {name: value.clone() for name, value in model.state_dict().items()},
        "opt": {"state": state, "param_groups": [{"params": list(range(len(names)))}]},
        "parameters": [[{"name": name} for name in names]],
        "callbacks": {"ema": {"shadow": {names[0]: torch.ones(shapes[names[0]])}, "n": 3}},
        "history": [{"epoch": 0}],
    }
    fully_shard(model, mesh=mesh)
    found = divided(content, model)
    assert mesh_of(model) == mesh
    for i, name in enumerate(names):
        assert isinstance(found["model"][name], DTensor)
        assert isinstance(found["opt"]["state"][i]["exp_avg"], DTensor)
        assert torch.equal(found["opt"]["state"][i]["exp_avg"].full_tensor(), state[i]["exp_avg"])
        assert type(found["opt"]["state"][i]["step"]) is torch.Tensor
    assert type(found["model"]["1.running_mean"]) is torch.Tensor
    assert isinstance(found["callbacks"]["ema"]["shadow"][names[0]], DTensor)
    assert found["history"] is content["history"]
