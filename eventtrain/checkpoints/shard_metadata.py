"""The index of a sharded checkpoint, read without running any code that it might hold.

``torch.distributed.checkpoint`` pickles its index (``.metadata``), and unpickling can call
anything. Here only the names are found that such an index is made of, and what comes of that is
taken apart and put together anew, tensors alone.
"""

from __future__ import annotations

import pickle
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from ..errors import CheckpointError
from .records import is_count

INDEX = ".metadata"
_FILE = re.compile(r"__\d+_\d+\.distcp")
_LARGEST = 2**30  # bytes


class _Plain:
    """What stands for an object in an index: its attributes, and nothing that could be called."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Tensor(_Plain):
    """Stands for ``TensorStorageMetadata``."""


class _Place(_Plain):
    """Stands for ``_StorageInfo``."""


class _Index(_Plain):
    """Stands for ``MetadataIndex``."""


class _Chunk(_Plain):
    """Stands for ``ChunkStorageMetadata``."""


class _Properties(_Plain):
    """Stands for ``TensorProperties``."""


def _text(*parts: object) -> str:
    return "/".join(map(str, parts))


def _first(value: object) -> object:
    return value


_METADATA = "torch.distributed.checkpoint.metadata"
_KNOWN: dict[tuple[str, str], Any] = {
    (_METADATA, "Metadata"): _Plain,
    (_METADATA, "StorageMeta"): _Plain,
    (_METADATA, "TensorStorageMetadata"): _Tensor,
    (_METADATA, "TensorProperties"): _Properties,
    (_METADATA, "ChunkStorageMetadata"): _Chunk,
    (_METADATA, "MetadataIndex"): _Index,
    (_METADATA, "_MEM_FORMAT_ENCODING"): _first,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _Place,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _first,
    **{
        (module, name): _text
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}


class _Unpickler(pickle.Unpickler):
    """Finds what an index is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        found = _KNOWN.get((module, name))
        if found is None and module == "torch":
            kind = vars(torch).get(name)
            found = kind if isinstance(kind, torch.dtype) else None
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in it")
        return found


class ShardReader(FileSystemReader):
    """Reads the shards of a folder, by an index that has been checked.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index.

        Raises:
            CheckpointError: It is damaged, or holds what is no tensor, or files elsewhere.
        """
        return read_index(self._folder)


def read_index(folder: Path) -> Metadata:
    """Read the index of the shards in a folder, without running any code that it might hold.

    Raises:
        CheckpointError: It cannot be read, names anything that such an index does not need, holds
            what is no tensor, or tells of files outside of the folder.
    """
    path = folder / INDEX
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > _LARGEST:
            raise ValueError("it is no file, or far too long")
        with path.open("rb") as file:
            return _as_metadata(_Unpickler(file).load(), folder)
    except Exception as error:  # an unpickler raises whatever the bytes make it raise
        raise CheckpointError(f"the index {path} of a checkpoint is refused: {error}") from error


def _as_metadata(found: Any, folder: Path) -> Metadata:
    """Put the index together anew, of what has been seen to be right."""
    about = _state(found, _Plain)
    tensors = {_name(name): _tensor(each) for name, each in _items(about, "state_dict_metadata")}
    places = {}
    sizes: dict[str, int] = {}
    for index, place in _items(about, "storage_data"):
        key = _index(index, tensors)
        places[key] = _place(place, folder, sizes)
    for name, tensor in tensors.items():
        for chunk in tensor.chunks:
            if MetadataIndex(name, chunk.offsets) not in places:
                raise ValueError(f"nothing tells where {name!r} is")
    return Metadata(tensors, storage_data=places, storage_meta=StorageMeta())  # type: ignore[arg-type]


def _tensor(value: Any) -> TensorStorageMetadata:
    about = _state(value, _Tensor)
    dtype = _state(about["properties"], _Properties, tuple)[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor has no type")
    size = _size(about["size"])
    chunks = []
    for each in about["chunks"]:
        chunk = _state(each, _Chunk)
        offsets, sizes = _size(chunk["offsets"], len(size)), _size(chunk["sizes"], len(size))
        if any(o + s > n for o, s, n in zip(offsets, sizes, size, strict=True)):
            raise ValueError("a part lies outside of its tensor")
        chunks.append(ChunkStorageMetadata(offsets, sizes))
    return TensorStorageMetadata(TensorProperties(dtype), size, chunks)


def _index(value: Any, tensors: dict[str, TensorStorageMetadata]) -> MetadataIndex:
    about = _state(value, _Index)
    name = _name(about["fqn"])
    if name not in tensors:
        raise ValueError(f"it tells where {name!r} is, and not what")
    return MetadataIndex(name, _size(about["offset"], len(tensors[name].size)))


def _place(value: Any, folder: Path, sizes: dict[str, int]) -> Any:
    about = _state(value, _Place)
    name, offset, length = (about[key] for key in ("relative_path", "offset", "length"))
    if not (isinstance(name, str) and _FILE.fullmatch(name)):
        raise ValueError(f"it tells of a file {name!r}, which no shard is called")
    if about.get("transform_descriptors"):
        raise ValueError("its shards are encoded")
    if name not in sizes:
        status = (folder / name).lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is no file")
        sizes[name] = status.st_size
    if not (is_count(offset) and is_count(length) and offset + length <= sizes[name]):
        raise ValueError(f"a part lies outside of {name}")
    from torch.distributed.checkpoint import filesystem

    make: Callable[..., Any] = vars(filesystem)["_StorageInfo"]
    return make(name, offset, length)


def _state(value: Any, kind: type[_Plain], form: type = dict) -> Any:
    if type(value) is not kind or type(getattr(value, "state", None)) is not form:
        raise ValueError(f"{type(value).__name__.strip('_')} stands where it does not belong")
    return value.state


def _items(about: dict[str, Any], key: str) -> list[tuple[Any, Any]]:
    value = about[key]
    if type(value) is not dict:
        raise ValueError(f"its {key} is of another kind")
    return list(value.items())


def _name(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a name is no text")
    return value


def _size(value: Any, dimensions: int | None = None) -> torch.Size:
    if type(value) is not torch.Size or not all(is_count(each) for each in value):
        raise ValueError("a size is of another kind")
    if dimensions is not None and len(value) != dimensions:
        raise ValueError("a size has another number of dimensions")
    return value
