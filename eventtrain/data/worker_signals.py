"""Signals to the worker processes of a loader, where other processes need their batches."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from ..around import around


class Outlast:
    """A ``worker_init_fn``: the worker goes on when a signal ends all processes of a group.

    Its own process ends it when the run has come to its end, which on several processes may be
    some batches later. Ctrl-C is ignored; SIGTERM is obeyed from its own process alone.

    Args:
        inner: The loader's own ``worker_init_fn``.
    """

    def __init__(self, inner: Callable[[int], object] | None) -> None:
        self.inner = inner

    def __call__(self, worker: int) -> None:
        """Prepare the worker, in its main thread."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        # A thread, as it can ask who has sent a signal, which a handler cannot.
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
        if self.inner is not None:
            self.inner(worker)


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@around
def outlasting(loader: Any) -> Iterator[None]:
    """Have workers that ``loader`` starts meanwhile, or a loader that it holds, outlast signals."""
    held = vars(loader).values() if hasattr(loader, "__dict__") else ()
    loaders = [each for each in (loader, *held) if isinstance(each, DataLoader)]
    if not loaders or not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = [each.worker_init_fn for each in loaders]
    # Workers have the mask of who starts them: none comes before they are prepared.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        for each, inner in zip(loaders, before, strict=True):
            each.worker_init_fn = inner if isinstance(inner, Outlast) else Outlast(inner)
        yield
    finally:
        for each, inner in zip(loaders, before, strict=True):
            each.worker_init_fn = inner
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
