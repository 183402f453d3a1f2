"""Signals that reach loader workers as well as the run: one cancellation, and a checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from eventtrain import CancellationToken, TensorLoader
from eventtrain.data.workers import batches_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="no process groups here"),
]

PROGRAM = """
import json, os, sys, time
from pathlib import Path

import torch
from torch import nn

from eventtrain import DataBunch, Learner, Runner
from eventtrain.callbacks import Checkpoint
from eventtrain.checkpoints.files import list_checkpoints

place, method, folder, persistent = sys.argv[1:]


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, index):
        if place in ("waiting for data", "in a guest"):
            time.sleep(0.1)
        return torch.randn(4), torch.randn(1)


class Held:
    \"\"\"A loader of the user's own around another one.\"\"\"

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)

    def __len__(self):
        return len(self.loader)


def main():
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(
        Rows(), batch_size=4, num_workers=2, multiprocessing_context=method,
        persistent_workers=persistent == "persistent", shuffle=True,
    )
    model = nn.Linear(4, 1)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    data = DataBunch(Held(loader) if persistent == "held" else loader, None)
    learn = Learner(model, opt, nn.functional.mse_loss, data)
    run = Runner(Checkpoint(folder), on_interrupt="return")
    guest = Runner()

    @(guest if place == "in a guest" else run).on("begin_batch")
    def tell(run):
        if run.batch_index == 3 and not run.epoch:
            workers = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
            print(json.dumps({"workers": workers.split()}), flush=True)

    if place == "in a guest":
        @run.on("after_loss", when=lambda run: run.n_iter == 2)
        def validate(run):
            learn = Learner(model, opt, run.learn.loss_func, DataBunch(loader, loader))
            guest.validate(learn, token=run.token)
    if place == "in a handler":
        run.on("after_loss", lambda run: time.sleep(0.2))
    if place == "computing":
        @run.on("after_loss")
        def compute(run):
            end = time.monotonic() + 0.2
            while time.monotonic() < end:
                torch.randn(50, 50) @ torch.randn(50, 50)

    result = run.fit(3, learn)
    saved = list_checkpoints(Path(folder))
    print(json.dumps({
        "outcome": result.outcome, "reason": result.reason, "steps": result.steps,
        "saved": [each.steps for each in saved],
    }), flush=True)


if __name__ == "__main__":
    main()
"""


class Run:
    """A program in a process group of its own, which trains with two workers."""

    def __init__(self, tmp_path: Path, place: str, method: str, kind: str = "plain") -> None:
        script = tmp_path / "train.py"
        script.write_text(PROGRAM)
        self.process = subprocess.Popen(
            [sys.executable, str(script), place, method, str(tmp_path / "ck"), kind],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        # The first children of the process are its workers; spawned ones have a helper besides.
        self.children = [int(pid) for pid in json.loads(self.process.stdout.readline())["workers"]]

    def signal_all(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def result(self) -> dict[str, Any]:
        try:
            out, err = self.process.communicate(timeout=45)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        assert self.process.returncode == 0, err
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result


def assert_cancelled(result: dict[str, Any], name: str) -> None:
    assert (result["outcome"], result["reason"]) == ("cancelled", name)
    assert result["steps"]
    assert result["saved"] == [result["steps"]]


PLACES = ["waiting for data", "in a handler", "computing"]


@pytest.mark.parametrize(
    ("number", "method"),
    [(signal.SIGTERM, "fork"), (signal.SIGTERM, "spawn"), (signal.SIGINT, "fork")],
)
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_to_the_whole_group_cancels_and_saves(
    place: str, number: signal.Signals, method: str, tmp_path: Path
) -> None:
    run = Run(tmp_path, place, method)
    run.signal_all(number)
    assert_cancelled(run.result(), number.name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_does_so_for_workers_of_a_run_inside_of_a_batch(
    number: signal.Signals, tmp_path: Path
) -> None:
    run = Run(tmp_path, "in a guest", "fork")
    run.signal_all(number)
    assert_cancelled(run.result(), number.name)


@pytest.mark.parametrize("kind", ["persistent", "held"])
def test_it_does_so_for_workers_of_any_loader(kind: str, tmp_path: Path) -> None:
    run = Run(tmp_path, "waiting for data", "fork", kind)
    run.signal_all(signal.SIGTERM)
    assert_cancelled(run.result(), "SIGTERM")


@pytest.mark.parametrize("place", PLACES)
def test_workers_that_die_first_do_not_outrank_the_signal(place: str, tmp_path: Path) -> None:
    run = Run(tmp_path, place, "fork")
    for worker in run.children:
        os.kill(worker, signal.SIGTERM)
    time.sleep(0.15)
    run.process.send_signal(signal.SIGTERM)
    assert_cancelled(run.result(), "SIGTERM")


@pytest.mark.parametrize("place", PLACES)
def test_a_worker_that_dies_alone_fails_the_run(place: str, tmp_path: Path) -> None:
    run = Run(tmp_path, place, "fork")
    os.kill(run.children[0], signal.SIGKILL)
    _, err = run.process.communicate(timeout=45)
    assert run.process.returncode == 1
    assert "DataLoader worker" in err


@pytest.mark.parametrize("loader", [[1], (1,), TensorLoader(torch.ones(1), None, 1)])
def test_a_loader_without_workers_is_iterated_as_it_is(loader: Any) -> None:
    assert batches_of(loader, CancellationToken()) is loader


def test_a_torch_loader_without_workers_is_iterated_as_it_is() -> None:
    loader: DataLoader[int] = DataLoader([1, 2])  # type: ignore[arg-type]
    assert batches_of(loader, CancellationToken()) is loader
