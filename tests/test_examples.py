"""The scripts in examples/ run as their docstrings say, and do what they claim."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow  # each is a program of its own


def run_example(name: str, *arguments: str) -> str:
    """Run an example with warnings as errors and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def mnist_folder() -> Path:
    """The folder that holds MNIST's files."""
    named = Path(os.environ.get("EVENTTRAIN_DATA") or ROOT.parent / "shared" / "data" / "mnist")
    for folder in (named, named / "mnist"):
        if any(folder.glob("train-images-idx3-ubyte*")):
            return folder
    pytest.skip("MNIST is not here; set EVENTTRAIN_DATA to a folder that holds its files")


def test_the_mnist_example_reaches_93_percent_in_one_epoch(mnist_folder: Path) -> None:
    printed = run_example("mnist.py", "--data", str(mnist_folder), "--epochs", "1")
    match = re.search(r"validation loss and accuracy: \[(.*), (.*)\]", printed)
    assert match is not None
    assert float(match[2]) >= 0.93


@pytest.mark.slow
def test_the_convolutional_example_draws_saves_and_goes_on(
    mnist_folder: Path, tmp_path: Path
) -> None:
    arguments = ("mnist_cnn.py", "--data", str(mnist_folder), "--out", str(tmp_path), "--epochs")
    printed = run_example(*arguments, "1")
    assert float(printed.rpartition(":")[2]) >= 0.97
    for name in ("lr_finder.png", "loss.png", "schedules.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    again = run_example(*arguments, "1", "--resume")  # there is nothing left to do
    assert again.splitlines()[-1] == printed.splitlines()[-1]


def test_the_convolutional_example_of_no_epoch_says_nothing_of_accuracy(
    mnist_folder: Path, tmp_path: Path
) -> None:
    arguments = ("mnist_cnn.py", "--data", str(mnist_folder), "--out", str(tmp_path))
    assert "accuracy" not in run_example(*arguments, "--resume", "--epochs", "0")


def test_the_stopping_example_counts_to_ten_and_no_further() -> None:
    lines = run_example("stop_after_ten.py").splitlines()
    assert [line for line in lines if line.isdigit()] == [str(n) for n in range(1, 11)]


def test_the_stopping_example_prints_who_cancelled_and_why() -> None:
    *_, result, record = run_example("stop_after_ten.py").splitlines()
    assert result == "cancelled after 10 steps: ten steps are enough"
    assert record.startswith(
        "Cancellation(scope='fit', reason='ten steps are enough', by='test', event='after_step', "
        "epoch=0, batch=9, "
    )


def test_the_own_loop_example_learns_the_distribution_and_stops_by_the_token() -> None:
    printed = run_example("own_loop.py")
    match = re.search(r"^after: mean (.*), std (.*)$", printed, re.MULTILINE)
    assert match is not None
    # A sample of its own, so a little more room than the example's condition leaves.
    assert float(match[1]) == pytest.approx(4.0, abs=0.25)
    assert float(match[2]) == pytest.approx(1.25, abs=0.25)
    assert "are close enough', by='stop_when_close', event='after_step'" in printed


def run_on_two(torchrun: Any, name: str, *arguments: str) -> str:
    """Have torchrun run an example on two ranks and return what they printed."""
    done = torchrun(str(ROOT / "examples" / name), *arguments, EVENTTRAIN_DATA="")
    assert done.returncode == 0, done.stderr
    printed: str = done.stdout
    return printed


def test_the_ddp_example_trains_on_two_processes_and_prints_once(torchrun: Any) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    *_, row, last = run_on_two(torchrun, "mnist_ddp.py", "--epochs", "3").splitlines()
    assert row.split()[0] == "2"
    match = re.fullmatch(r"1437 images, 2 processes, accuracy (.*)", last)
    assert match is not None
    assert float(match[1]) > 0.8


def test_the_fsdp2_example_writes_the_same_alone_and_on_two_processes(torchrun: Any) -> None:
    arguments = ("transformer_fsdp2.py", "--epochs", "1", "--letters", "8000")
    together = run_on_two(torchrun, *arguments).splitlines()
    alone = run_example(*arguments).splitlines()
    losses = [[float(x) for x in lines[1].split()[1:3]] for lines in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    assert len("\n".join(together[2:])) == 201


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_every_example_says_how_to_run_it(path: Path) -> None:
    docstring = path.read_text(encoding="utf-8").split('"""')[1]
    assert f"python examples/{path.name}" in docstring
