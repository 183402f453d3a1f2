"""The benchmarks run and say what they promise to say; how fast anything is, is not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import SUITES
from benchmarks.measure import Group, Target

ROOT = Path(__file__).resolve().parents[1]
SPREAD = {"median", "min", "max"}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("suite", SUITES)
def test_suite_runs_and_writes_the_documented_keys(suite: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    done = bench(suite, "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert set(result) == {"schema", "environment", "suites"}
    assert set(result["environment"]) == {
        "date", "eventtrain", "commit", "python", "torch", "cpu", "cpus", "load", "system",
        "torch_threads", "gc", "seed", "quick",
    }  # fmt: skip
    assert result["environment"]["torch_threads"] == 1
    assert list(result["suites"]) == [suite]
    found = result["suites"][suite]
    assert set(found) == {"groups", "targets", "notes"}
    for group in found["groups"]:
        assert set(group) == {"title", "unit", "baseline", "variants"}
        assert group["baseline"] in group["variants"]
        for variant in group["variants"].values():
            assert set(variant) == {"time", "ratio", "difference", "seconds"}
            assert all(set(variant[key]) == SPREAD for key in ("time", "ratio", "difference"))
    assert found["targets"]
    for target in found["targets"]:
        assert set(target) == {"text", "value", "limit", "unit", "at_least", "passed"}
        assert f"{'PASS' if target['passed'] else 'MISS'}  {target['text']}" in done.stdout


def test_training_in_the_data_suite_equals_the_hand_written_loop() -> None:
    done = bench("data", "--quick")
    lines = [line for line in done.stdout.splitlines() if "bit for bit" in line]
    assert len(lines) == 2
    assert all("yes" in line and "NO" not in line for line in lines)


def test_unknown_suite_is_refused_by_name() -> None:
    done = bench("emti")
    assert done.returncode == 2
    assert "emti" in done.stderr


def test_figures_are_compared_within_their_round() -> None:
    group = Group("title", "ms", {"hand": [0.001, 0.010, 0.002], "ours": [0.002, 0.020, 0.004]})
    ratio, difference = group.ratio("ours"), group.difference("ours")
    assert (ratio.min, ratio.median, ratio.max) == pytest.approx((2, 2, 2))
    assert (difference.min, difference.median, difference.max) == pytest.approx((1, 2, 10))


def test_a_target_may_be_a_floor_or_a_ceiling() -> None:
    assert Target("at most", 1.0, 1.0).passed
    assert not Target("at most", 1.1, 1.0).passed
    assert Target("at least", 10.0, 10.0, at_least=True).passed
    assert not Target("at least", 9.9, 10.0, at_least=True).passed
