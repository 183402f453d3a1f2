"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BufferedRandom
from pathlib import Path
from tempfile import TemporaryFile

PART = ".part"
"""How the name of a file ends that is still being written; it begins with a dot."""


def replace_file(path: Path, write: Callable[[BufferedRandom], object]) -> None:
    """Write a file beside ``path`` and give it that name in one step.

    A process that is killed at any moment, or a machine that loses its power,
    leaves what was there before or the new file whole.

    Args:
        path: The file.
        write: Given the open file, which it may read back too; writes the content.

    Raises:
        OSError: It cannot be written; what was there before is as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        with part.open("w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def prepare_folder(folder: Path) -> None:
    """Make a folder where it is not there, and see that files can be written in it.

    Raises:
        OSError: They cannot; ``FileExistsError``, where it is no folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=folder).close()


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed left half written in ``folder``."""
    for part in folder.glob(f".*{PART}"):
        if not _is_anothers(part):
            part.unlink(missing_ok=True)


def _is_anothers(part: Path) -> bool:
    """Whether a process that runs on this machine, and is not this one, has begun ``part``."""
    number = part.name.removesuffix(PART).rpartition(".")[2]
    if os.name == "nt" or not number.isdecimal() or int(number) == os.getpid():
        return False  # on Windows the question would be a signal
    try:
        os.kill(int(number), 0)
    except PermissionError:
        return True  # somebody else's
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # which cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
