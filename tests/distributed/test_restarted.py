"""torchrun starts all ranks again when one is lost, and the run goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).with_name("restarted_program.py")
LIMIT = 60.0
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs gloo",
)


def torchrun(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What each of two ranks tells at the end."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--max-restarts", "3"]
    command += ["--monitor-interval", "0.1", str(PROGRAM), str(folder), *arguments]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # torchrun and its ranks have a session alone
        said, _ = process.communicate()
        raise AssertionError(f"it has not ended: {said}") from None
    assert process.returncode == 0, said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_a_run_that_lost_a_rank_twice_ends_with_the_weights_bit_for_bit(tmp_path: Path) -> None:
    whole = torchrun(tmp_path / "whole")
    lost = torchrun(tmp_path / "lost", "KILL")
    assert [each.pop("attempt") for each in whole] == [0, 0]
    assert [each.pop("attempt") for each in lost] == [2, 2]
    # The checkpoint of the last step before may not have been on the disk yet.
    assert {each.pop("began at") for each in lost} <= {7, 8, 9}
    assert {each.pop("began at") for each in whole} == {0}
    assert lost == whole
