from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from eventtrain.checkpoints.shard_metadata import INDEX, ShardReader, read_index
from eventtrain.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.int64)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards as torch writes them."""
    save(dict(TENSORS), storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    return tmp_path


def read(folder: Path) -> dict[str, Tensor]:
    found = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    load(dict(found), storage_reader=ShardReader(folder), no_dist=True)
    return found


def torchs_own(folder: Path) -> Metadata:
    return FileSystemReader(folder).read_metadata()


def test_the_index_is_the_one_that_torch_reads(folder: Path) -> None:
    own, torchs = read_index(folder), torchs_own(folder)
    assert own.storage_data == torchs.storage_data
    assert set(own.state_dict_metadata) == set(torchs.state_dict_metadata)
    for name, about in torchs.state_dict_metadata.items():
        found: Any = own.state_dict_metadata[name]
        other: Any = about
        assert (found.size, found.chunks) == (other.size, other.chunks)
        assert found.properties.dtype == other.properties.dtype


def test_the_tensors_are_read_by_it(folder: Path) -> None:
    found = read(folder)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


# Code in an index


class Runs:
    """When it is unpickled, something runs."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "a command": lambda trace: Runs(os.system, f"touch {trace}"),
    "eval": lambda trace: Runs(eval, f"open({str(trace)!r}, 'w')"),
    "a file that is opened": lambda trace: Runs(open, str(trace), "w"),
    "a file that torch writes": lambda trace: Runs(torch.save, torch.ones(1), str(trace)),
    "an import": lambda trace: Runs(__import__, "this"),
    "an attribute": lambda trace: Runs(getattr, dict, "fromkeys"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("place", ["whole", "in a name", "in the storage data", "in the rest"])
def test_an_index_that_would_run_something_is_refused_and_nothing_runs(
    folder: Path, tmp_path: Path, kind: str, place: str
) -> None:
    trace = tmp_path / "it ran"
    hostile, index = HOSTILE[kind](trace), torchs_own(folder)
    if place == "whole":
        index = hostile
    elif place == "in a name":
        index.state_dict_metadata[hostile] = index.state_dict_metadata["a"]
    elif place == "in the storage data":
        index.storage_data[MetadataIndex("a", [0, 0])] = hostile
    else:
        index.planner_data = hostile
    (folder / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match=r"\.metadata of a checkpoint is refused: it names"):
        read_index(folder)
    assert not trace.exists()


def test_an_entry_that_would_run_something_is_refused_and_nothing_runs(
    folder: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "it ran"
    place = read_index(folder).storage_data[MetadataIndex("a", torch.Size([0, 0]))]
    payload = pickle.dumps(HOSTILE["a command"](trace))
    with (folder / place.relative_path).open("r+b") as file:
        file.seek(place.offset)
        file.write(payload.ljust(place.length, b"\0"))
    with pytest.raises(BaseException, match="CheckpointException"):
        read(folder)
    assert not trace.exists()


# An index that tells of what is not there


def change_place(**changes: Any) -> Callable[[Metadata, Path], None]:
    def change(index: Metadata, folder: Path) -> None:
        for place in index.storage_data.values():
            for name, value in changes.items():
                setattr(place, name, value)

    return change


def change_chunk(offsets: list[int], sizes: list[int]) -> Callable[[Metadata, Path], None]:
    def change(index: Metadata, folder: Path) -> None:
        about: Any = index.state_dict_metadata["a"]
        about.chunks[0] = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))

    return change


def add_bytes(index: Metadata, folder: Path) -> None:
    index.state_dict_metadata["c"] = BytesStorageMetadata()


def forget_place(index: Metadata, folder: Path) -> None:
    del index.storage_data[MetadataIndex("a", torch.Size([0, 0]))]


def tell_of_another(index: Metadata, folder: Path) -> None:
    index.storage_data[MetadataIndex("d", torch.Size([0]))] = next(
        iter(index.storage_data.values())
    )


def number_a_name(index: Metadata, folder: Path) -> None:
    index.state_dict_metadata[7] = index.state_dict_metadata["a"]  # type: ignore[index]


def link_a_file(index: Metadata, folder: Path) -> None:
    name = next(iter(index.storage_data.values())).relative_path
    (folder / name).rename(folder / "elsewhere")
    (folder / name).symlink_to(folder / "elsewhere")


WRONG: dict[str, tuple[Callable[[Metadata, Path], None], str]] = {
    "a file above": (change_place(relative_path="../__0_0.distcp"), "no shard is called"),
    "an absolute file": (change_place(relative_path="/etc/passwd"), "no shard is called"),
    "a file of another kind": (change_place(relative_path=".metadata"), "no shard is called"),
    "a file that is not there": (change_place(relative_path="__9_9.distcp"), "No such file"),
    "a link": (link_a_file, "is no file"),
    "a part beyond the end": (change_place(length=2**40), "lies outside of __0_0"),
    "a part before the start": (change_place(offset=-1), "lies outside of __0_0"),
    "a length that is no number": (change_place(length="1"), "lies outside of __0_0"),
    "encoded shards": (change_place(transform_descriptors=["zstd"]), "encoded"),
    "a chunk beyond its tensor": (change_chunk([0, 1], [3, 4]), "outside of its tensor"),
    "a chunk of other dimensions": (change_chunk([0], [3]), "another number of dimensions"),
    "a negative chunk": (change_chunk([0, -1], [3, 4]), "of another kind"),
    "a chunk that is nowhere": (change_chunk([0, 1], [3, 3]), "nothing tells where 'a' is"),
    "bytes": (add_bytes, "BytesStorageMetadata, which has no place in it"),
    "a tensor without a place": (forget_place, "nothing tells where 'a' is"),
    "a place without a tensor": (tell_of_another, "where 'd' is, and not what"),
    "a name that is a number": (number_a_name, "a name is no text"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_index_that_tells_of_what_is_not_there_is_refused(folder: Path, kind: str) -> None:
    index = torchs_own(folder)
    change, message = WRONG[kind]
    change(index, folder)
    (folder / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        read_index(folder)


@pytest.mark.parametrize("content", [b"", b"\x80\x05.", b"(" * 10_000, b"\x80\x05]r\xff\xff\xff"])
def test_bytes_that_are_no_index_are_refused(folder: Path, content: bytes) -> None:
    (folder / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match="is refused"):
        read_index(folder)


@pytest.mark.parametrize("kind", ["missing", "a folder", "a link"])
def test_an_index_that_is_no_file_is_refused(folder: Path, kind: str) -> None:
    (folder / INDEX).rename(folder / "moved")
    if kind == "a folder":
        (folder / INDEX).mkdir()
    elif kind == "a link":
        (folder / INDEX).symlink_to(folder / "moved")
    with pytest.raises(CheckpointError, match="is refused"):
        read_index(folder)


@settings(max_examples=200)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_index_is_read_as_one_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: float, byte: int, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    save(dict(TENSORS), storage_writer=FileSystemWriter(folder), no_dist=True)
    content = bytearray((folder / INDEX).read_bytes())
    at = int(place * len(content))
    content[at] = byte
    (folder / INDEX).write_bytes(content[:at] if cut else content)
    try:
        found = read_index(folder)
    except CheckpointError:
        return
    assert isinstance(found, Metadata)
