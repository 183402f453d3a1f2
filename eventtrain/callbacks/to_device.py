"""Copies the next batches to the device while the current one is being computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..arguments import whole_number
from ..callback import Callback, handler
from ..data.batch import convert_parts, loader_length, model_device, move_to
from ..data.lengths import has_exact_length
from ..errors import DataError
from ..priorities import BEFORE_EVERYONE, MOVE_DATA

if TYPE_CHECKING:
    from ..runner import Runner


class ToDevice(Callback):
    """Puts a loader that copies ahead in front of the training and validation loaders.

    The runner moves every batch to the model's device by itself. What this adds,
    on CUDA, is that the copies of the next batches run on a stream of their own,
    out of pinned memory, beside the computation. For other devices the loaders
    pass their batches through as they are.

    ``learn.data.train_dl`` and ``valid_dl`` are replaced in ``begin_train`` and
    ``begin_validate`` at ``MOVE_DATA``, and put back when these phases close. A loader
    that somebody sets in between stays.

    Args:
        device: Where to; by default where the model's parameters are.
        prefetch: Batches to copy ahead, at least 1. Each takes device memory.

    Raises:
        TypeError, ValueError: ``prefetch`` is no whole number, or below 1.
        ValueError: torch knows no such device.
        RuntimeError: In a fit: the device is one of CUDA's, and is not there.
    """

    held_in_run = ("_replaced",)
    priority = MOVE_DATA

    def __init__(self, device: torch.device | str | None = None, prefetch: int = 2) -> None:
        try:
            self.device = None if device is None else torch.device(device)
        except RuntimeError as error:
            raise ValueError(
                f"ToDevice(device={device!r}): torch knows no such device. Write 'cuda', 'cuda:1', "
                "'mps' or 'cpu', or leave it out for the device of the model"
            ) from error
        self.prefetch = whole_number("prefetch", prefetch, 1, "batches")
        self._replaced: dict[str, tuple[Any, Any, _Ahead]] = {}  # by the attribute
        # One for all epochs: freed memory stays with the stream that it was allocated on.
        self._sides: dict[torch.device, torch.cuda.Stream] = {}

    def begin_train(self, run: Runner) -> None:
        """Replace the training loader."""
        self._replace(run, "train_dl")

    def begin_validate(self, run: Runner) -> None:
        """Replace the validation loader."""
        self._replace(run, "valid_dl")

    @handler(event=["after_train", "after_validate"], priority=BEFORE_EVERYONE)
    def put_back(self, run: Runner) -> None:
        """Close what still reads; put the loader back, unless somebody has set another since."""
        attribute = "train_dl" if run.phase == "train" else "valid_dl"
        if attribute not in self._replaced:
            return
        data, loader, ahead = self._replaced.pop(attribute)
        if getattr(data, attribute) is ahead:
            setattr(data, attribute, loader)
        ahead.close()

    def _replace(self, run: Runner, attribute: str) -> None:
        loader = getattr(run.data, attribute)
        device = self.device or model_device(run.model)
        has_length = hasattr(type(loader), "__len__")
        made = _SizedAhead if has_length else _Ahead
        ahead = made(loader, device, self.prefetch, self._side_of(device))
        self._replaced[attribute] = run.data, loader, ahead
        setattr(run.data, attribute, ahead)

    def _side_of(self, device: torch.device) -> torch.cuda.Stream | None:
        """Return the stream to copy on; ``None`` where copies cannot run beside the computation."""
        if device.type == "cuda" and device not in self._sides:
            try:
                self._sides[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            except (RuntimeError, AssertionError) as error:  # the latter where torch has no CUDA
                raise RuntimeError(
                    f"ToDevice copies to {device}, which torch cannot use: leave device= out, for "
                    "the device of the model"
                ) from error
        return self._sides.get(device)


class _Ahead:
    """Iterates over ``loader``, with batches copied ahead to ``device`` where there is a stream."""

    def __init__(
        self, loader: Any, device: torch.device, prefetch: int, side: torch.cuda.Stream | None
    ) -> None:
        self._loader = loader
        self._device = device
        self._prefetch = prefetch
        self._side = side
        self._open: list[Generator[Any, None, None]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)  # dataset, batch_size, ...

    def __iter__(self) -> Iterator[Any]:
        reading = _read(self._loader, iter(self._loader))
        if self._side is not None:
            reading = self._ahead(reading, self._side)
        self._open.append(reading)
        return reading

    def close(self) -> None:
        """Close every iterator, and those of the loader behind it."""
        while self._open:
            self._open.pop().close()

    def _ahead(self, batches: Generator[Any, None, None], side: Any) -> Generator[Any, None, None]:
        waiting: deque[tuple[Any, torch.cuda.Event]] = deque()

        def copy_next() -> None:
            for batch in batches:
                # A copy may take the memory of a batch that the host has dropped while the
                # device is still computing on it: it waits for all that is queued by now.
                # (Tensor.record_stream does not reach into a batch of somebody's own class.)
                side.wait_stream(torch.cuda.current_stream(self._device))
                with torch.cuda.stream(side):
                    waiting.append((move_to(_pinned(batch), self._device), side.record_event()))
                return

        try:
            for _ in range(self._prefetch):
                copy_next()
            while waiting:
                batch, copied = waiting.popleft()
                torch.cuda.current_stream(self._device).wait_event(copied)
                copy_next()
                yield batch
        finally:
            batches.close()


class _SizedAhead(_Ahead):
    """The same for a loader that knows its length."""

    def __len__(self) -> int:
        return len(self._loader)


def _read(loader: Any, batches: Iterator[Any]) -> Generator[Any, None, None]:
    """Yield from ``batches``, close them, and see that a ``DataLoader`` gave all it has."""
    count = 0
    try:
        for batch in batches:
            count += 1
            yield batch
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    # The runner checks this for the loaders that it sees itself.
    if isinstance(loader, DataLoader) and has_exact_length(loader):
        length = loader_length(loader)
        if length is not None and 0 < count < length:
            raise DataError(
                f"the loader behind ToDevice ended after {count} of {length} batches. Look for a "
                "StopIteration raised in its dataset, sampler or collate function."
            )


def _pinned(batch: Any) -> Any:
    """Return ``batch`` in pinned memory; what is on a device already stays there."""
    if isinstance(batch, Tensor):
        return batch if batch.device.type != "cpu" or batch.is_pinned() else batch.pin_memory()
    if callable(pin := getattr(batch, "pin_memory", None)):
        return pin()
    return convert_parts(batch, _pinned)
