"""MNIST's training file: where it lies, how it is fetched, how it is read.

Nothing is believed before its SHA-256 matches, and nothing gets its final name
before that: a folder never holds half a file under a whole file's name.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import math
import os
import sys
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..around import around
from ..errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

MIRRORS: tuple[str, ...] = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# File name and SHA-256 of the decompressed bytes, which every packing shares.
IMAGES = (
    "train-images-idx3-ubyte",
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
)
LABELS = (
    "train-labels-idx1-ubyte",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
)
# Seconds that a mirror may stay silent.
TIMEOUT = 20.0


def load_mnist(path: str | os.PathLike[str] | None = None) -> tuple[Tensor, Tensor]:
    """Read MNIST's training file, downloading it where that is allowed.

    Args:
        path: The folder that holds the two files, with or without ``.gz``.
            ``None`` (default) looks in ``$EVENTTRAIN_DATA`` or its subfolder
            ``mnist``; where that is not set, in the cache folder
            (``$XDG_CACHE_HOME`` or ``~/.cache``, then ``eventtrain/mnist``).
            Only the cache folder is ever written to.

    Returns:
        Images uint8 ``[60000, 28, 28]`` and labels uint8 ``[60000]``.

    Raises:
        DataError: The files are missing or damaged, or no mirror gave them.
    """
    if path is None and not os.environ.get("EVENTTRAIN_DATA"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        folder = cache / "eventtrain" / "mnist"
        images, labels = (_from_cache(folder, *file) for file in (IMAGES, LABELS))
    else:
        folder = _given_folder(path)
        images, labels = (_from_folder(folder, *file) for file in (IMAGES, LABELS))
    return read_idx(images), read_idx(labels)


def read_idx(data: bytes) -> Tensor:
    """Parse an IDX file of unsigned bytes.

    Args:
        data: The whole file, decompressed.

    Returns:
        A writable uint8 tensor of the shape that the file declares.

    Raises:
        DataError: The header is not that of such a file, or the length does not fit it.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08" or data[3] == 0:
        raise DataError(
            f"not an IDX file of bytes: it begins with {data[:4].hex(' ') or 'nothing'}, "
            "expected 00 00 08 and the number of dimensions"
        )
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if len(data) < start or len(data) - start != math.prod(shape) or 0 in shape:
        raise DataError(
            f"an IDX file of shape {shape} holds {start + math.prod(shape)} bytes, "
            f"at least one of them data, but this one holds {len(data)}"
        )
    import torch  # here: doctor looks for the files where torch is missing

    # frombuffer shares memory, and bytes are read-only.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).reshape(shape)


def _given_folder(path: str | os.PathLike[str] | None) -> Path:
    if path is not None:
        folder, origin = Path(path).expanduser(), ""
    else:
        folder, origin = Path(os.environ["EVENTTRAIN_DATA"]).expanduser(), " (EVENTTRAIN_DATA)"
        if not _holds_all(folder) and _holds_all(folder / "mnist"):
            folder = folder / "mnist"
    if not _holds_all(folder):
        # Downloading here would write where nobody asked for it.
        raise DataError(f"MNIST is not in {folder}{origin}. Put {_wanted()} there.")
    return folder


def _locate(folder: Path, name: str) -> Path:
    """Return where the file lies, packed or not; where it should lie if it is missing."""
    plain, packed = folder / name, folder / f"{name}.gz"
    return plain if plain.is_file() and not packed.is_file() else packed


def _holds_all(folder: Path) -> bool:
    return all(_locate(folder, name).is_file() for name, _ in (IMAGES, LABELS))


def _wanted() -> str:
    return f"{IMAGES[0]}.gz and {LABELS[0]}.gz"


def _from_folder(folder: Path, name: str, sha256: str) -> bytes:
    path = _locate(folder, name)
    try:
        return _read(path, sha256)
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}. Put a whole file in its place.") from error


def _from_cache(folder: Path, name: str, sha256: str) -> bytes:
    path = _locate(folder, name)
    causes = []
    if path.is_file():
        try:
            return _read(path, sha256)
        except DataError as error:
            causes.append(f"{path} is damaged: {error}")
    for mirror in MIRRORS:
        url = f"{mirror}{name}.gz"
        try:
            return _download(url, folder / f"{name}.gz", sha256)
        except (OSError, HTTPException, ValueError) as error:
            causes.append(f"{url}: {str(error) or type(error).__name__}")
    raise DataError(
        f"MNIST could not be downloaded into {folder}:\n  "
        + "\n  ".join(causes)
        + f"\nPut {_wanted()} into that folder, or set EVENTTRAIN_DATA to a folder that "
        'holds them. get_data("digits") needs no download.'
    )


def _read(path: Path, sha256: str) -> bytes:
    """Return a file's content, decompressed, once its hash is found right."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"it cannot be decompressed ({error}); SHA-256 {sha256} expected"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError(f"its content has SHA-256 {found}, expected {sha256}")
    return data


def _download(url: str, target: Path, sha256: str) -> bytes:
    """Fetch a packed file, check it, give it its name and return its content."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a rename across file systems would not be atomic.
    part = target.with_name(f".{uuid.uuid4().hex}.{target.name}")
    try:
        with part.open("xb") as file:
            _fetch(url, file)
            file.flush()
            os.fsync(file.fileno())
        data = _read(part, sha256)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return data


def _fetch(url: str, file: BinaryIO) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        with _progress(url, total) as advance:
            while chunk := response.read(1 << 16):
                file.write(chunk)
                advance(len(chunk))
    if total is not None and file.tell() != total:
        raise DataError(f"the connection closed after {file.tell()} of {total} bytes")


@around
def _progress(url: str, total: int | None) -> Iterator[Callable[[int], object]]:
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        tqdm = None
    if tqdm is None:
        print(f"eventtrain: downloading {url}", file=sys.stderr)
        yield lambda count: None
    else:
        with tqdm(total=total, desc=url.rpartition("/")[2], unit="B", unit_scale=True) as bar:
            yield bar.update
