"""Workers that outlast the signals of a group, with real workers."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from eventtrain.data.worker_signals import Outlast, outlasting

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no such signals here")


class Rows(Dataset[Any]):
    """Tells which process loads a row; each takes a while."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.05)
        return torch.tensor([index, os.getpid()])


def prepare(worker: int) -> None:
    os.environ["PREPARED"] = str(worker)


class Held:
    """A loader of the user's own around another one."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader


def loader_of(method: str) -> DataLoader[Any]:
    return DataLoader(
        Rows(),
        batch_size=1,
        num_workers=1,
        multiprocessing_context=method,
        worker_init_fn=prepare,
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_load_on_when_they_are_signalled(method: str) -> None:
    loader = loader_of(method)
    with outlasting(Held(loader)):
        batches = iter(loader)
    assert loader.worker_init_fn is prepare
    indices = []
    for batch in batches:
        [[index, worker]] = batch.tolist()
        indices.append(index)
        for number in (signal.SIGTERM, signal.SIGINT):
            # By another process, as those of a batch system are; one's own may end its workers.
            os.waitpid(os.posix_spawn("/bin/kill", ["kill", f"-{number}", str(worker)], {}), 0)
    assert indices == list(range(8))


def test_their_own_process_can_end_them() -> None:
    loader = loader_of("fork")
    with outlasting(loader):
        batches: Any = iter(loader)
    next(batches)
    [worker] = batches._workers
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


def test_the_mask_of_this_process_is_as_before_and_workers_are_prepared_once() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    loader = loader_of("fork")
    with outlasting(loader):
        with outlasting(loader):
            assert isinstance(loader.worker_init_fn, Outlast)
            assert loader.worker_init_fn.inner is prepare
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_what_has_no_workers_is_left_alone() -> None:
    with outlasting([1, 2]):
        pass
