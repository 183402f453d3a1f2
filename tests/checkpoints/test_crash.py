"""Runs that are killed at any moment go on from a whole checkpoint to the same weights.

``EVENTTRAIN_KILLS=2000 python -m pytest tests/test_crash.py`` kills more often than the default.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("EVENTTRAIN_KILLS", "200"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_every_killed_run_goes_on_to_the_weights_of_the_run_that_was_not(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), str(KILLS)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["processes_that_failed"] == 0, done.stderr
    assert found["runs_that_ended_with_other_weights"] == 0
    assert found["runs_that_ended"] > 0
    assert found["kills_while_a_file_was_written"] > 0
    assert found["kills"] == KILLS


def train(folder: Path, weights: Path, *, resume: bool, asynchronous: bool = False) -> None:
    """Train in this process, and leave the weights in a file."""
    import torch
    from torch import nn

    from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, TensorLoader
    from eventtrain.atomic_file import replace_file
    from eventtrain.callbacks import Checkpoint

    torch.manual_seed(0)
    x, y = torch.randn(96, 8), torch.randint(0, 3, (96,))
    data = DataBunch(TensorLoader(x[:64], y[:64], bs=8, shuffle=True), TensorLoader(x[64:], y[64:]))
    model = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 3))
    opt = torch.optim.AdamW(model.parameters(), lr=0.01)
    learn = Learner(model, opt, nn.functional.cross_entropy, data)
    checkpoint = Checkpoint(folder, every_steps=2, every_epochs=1, asynchronous=asynchronous)
    run = Runner([AvgStatsCallback(report=None), checkpoint])
    run.fit(4, learn, resume="auto" if resume else None)
    replace_file(weights, lambda file: torch.save(model.state_dict(), file))


def in_a_child(
    folder: Path,
    weights: Path,
    *,
    resume: bool,
    asynchronous: bool = False,
    lifetime: float = math.inf,
    writes: float = math.inf,
) -> int | None:
    """Train in a fork, and return how it ended, ``None`` for killed.

    It is killed after ``lifetime`` seconds, or while the ``writes``-th file is written.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # as of a checkpoint that is damaged
                train(folder, weights, resume=resume, asynchronous=asynchronous)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    start, seen = time.monotonic(), set[Path]()
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        seen.update(folder.glob(".*.part") if math.isfinite(writes) else ())
        if len(seen) >= writes or time.monotonic() - start >= lifetime:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.0001)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main(folder: Path, kills: int) -> None:
    """Kill runs until there were ``kills``, and print what was seen as JSON."""
    import torch

    torch.set_num_threads(1)
    chance = random.Random(0)
    expected, weights = folder / "expected.pt", folder / "weights.pt"
    # In this process: what a run imports is imported once for all children.
    train(folder / "uninterrupted", expected, resume=False)
    start = time.monotonic()
    assert in_a_child(folder / "timed", weights, resume=False) == 0
    longest = time.monotonic() - start
    right = torch.load(expected, weights_only=True)
    found = dict.fromkeys(
        ["kills", "kills_while_a_file_was_written", "runs_that_ended",
         "runs_that_ended_with_other_weights", "processes_that_failed"], 0
    )  # fmt: skip
    checkpoints = folder / "checkpoints"
    while found["kills"] < kills or not found["runs_that_ended"]:
        lifetime = writes = math.inf
        if found["kills"] >= kills:
            pass  # the last one may end
        elif found["kills"] % 2:
            writes = chance.randint(1, 8)
        else:
            lifetime = chance.uniform(0, longest)
        code = in_a_child(
            checkpoints,
            weights,
            resume=True,
            asynchronous=chance.random() < 0.5,
            lifetime=lifetime,
            writes=writes,
        )
        if code is None:
            found["kills"] += 1
            part = list(checkpoints.glob(".*.part")) if checkpoints.is_dir() else []
            found["kills_while_a_file_was_written"] += bool(part)
        elif code:
            found["processes_that_failed"] += 1
            break
        else:
            found["runs_that_ended"] += 1
            got = torch.load(weights, weights_only=True)
            same = all(torch.equal(value, got[key]) for key, value in right.items())
            found["runs_that_ended_with_other_weights"] += not same
            shutil.rmtree(checkpoints)
            weights.unlink()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
