"""Trackers where several processes train: one of them writes, and what it writes is of all."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import ranks_program
import torch
from wandb_file import read

pytest.importorskip("wandb", reason="needs wandb (extra 'wandb')")
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs gloo",
)


@pytest.fixture(scope="module")
def told(server: Any, torchrun: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ranks")
    own = {f"WANDB_{name}_DIR": str(folder / "own") for name in ("DATA", "CACHE", "CONFIG")}
    done = torchrun(ranks_program.__file__, server.uri, str(folder), limit=200.0, **own)
    assert done.returncode == 0, done.stderr
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_rank_zero_alone_writes_the_rows_of_all(strategy: str, told: Any, server: Any) -> None:
    folder, ranks = told
    one, other = (rank[strategy] for rank in ranks)
    assert other["ids"] == [None, None]
    assert one["history"] == other["history"]
    losses = [row["valid_loss"] for row in one["history"]]
    assert server.runs(strategy) == one["ids"][:1]
    points = server.points(one["ids"][0], "valid_loss")
    assert points == list(zip([3, 6], losses, strict=True))
    (written,) = (folder / strategy / "wandb").glob("offline-run-*")
    assert [row["valid_loss"] for row in read(written)["rows"]] == losses
    assert server.run(one["ids"][0])["params"]["processes"] == "2"
    assert os.listdir(folder / strategy) == ["wandb"]
