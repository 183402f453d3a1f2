"""torchrun starts all ranks again when one is lost, and the run goes on as if nothing had been."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).with_name("restarted_program.py")
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs gloo",
)


def told_by(torchrun: Any, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What each of two ranks tells at the end."""
    folder.mkdir()
    options = ["--max-restarts", "3", "--monitor-interval", "0.1"]
    done = torchrun(str(PROGRAM), str(folder), *arguments, options=options)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_a_run_that_lost_rank_zero_ends_with_the_weights_bit_for_bit(
    torchrun: Any, tmp_path: Path
) -> None:
    whole = told_by(torchrun, tmp_path / "whole")
    lost = told_by(torchrun, tmp_path / "lost", "KILL")
    assert [each.pop("attempt") for each in whole] == [0, 0]
    assert [each.pop("attempt") for each in lost] == [1, 1]
    # The checkpoint of the last step before may not have been on the disk yet.
    assert {each.pop("began at") for each in lost} <= {7, 8, 9}
    assert {each.pop("began at") for each in whole} == {0}
    assert lost == whole
