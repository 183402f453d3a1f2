"""Checkpoints on disk, under the path at which others import them."""

from .checkpoints.files import (
    list_checkpoints,
    next_path,
    remove_checkpoint,
    remove_unfinished,
    write_checkpoint,
)
from .checkpoints.reading import load_checkpoint
from .checkpoints.records import FORMAT, Record

__all__ = [
    "FORMAT",
    "Record",
    "list_checkpoints",
    "load_checkpoint",
    "next_path",
    "remove_checkpoint",
    "remove_unfinished",
    "write_checkpoint",
]
