"""The benchmarks run and say what they promise to say; how fast anything is, is not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import SUITES, environment, imports, kit, statement
from benchmarks.distributed import LIMIT_BYTECODES
from benchmarks.distributed.loops import FLAG
from benchmarks.distributed.ranks import interpreter_of, start
from benchmarks.measure import Group, Options, Target, compare, compare_clocks
from benchmarks.peers.registry import Peer

ROOT = Path(__file__).resolve().parents[2]
SPREAD = {"median", "min", "max"}
OWN_SUITES = [name for name in SUITES if name != "peers"]


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


@cache
def quick(suite: str) -> tuple[str, dict[str, Any]]:
    """What a suite prints, and its record."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        done = bench(suite, "--quick", "--json", str(file))
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("suite", OWN_SUITES)
def test_suite_runs_and_writes_the_documented_keys(suite: str) -> None:
    said, result = quick(suite)
    assert set(result) == {"schema", "complete", "environment", "suites"}
    assert set(result["environment"]) == {
        "date", "eventtrain", "commit", "python", "torch", "libraries", "cpu", "cpus", "load",
        "system", "device", "torch_threads", "gc", "seed", "quick",
    }  # fmt: skip
    assert result["environment"]["torch_threads"] == 1
    assert result["complete"]
    assert list(result["suites"]) == [suite]
    found = result["suites"][suite]
    assert set(found) == {"seconds", "groups", "targets", "notes"}
    for group in found["groups"]:
        assert set(group) == {"title", "unit", "baseline", "variants"}
        assert group["baseline"] in group["variants"]
        for variant in group["variants"].values():
            assert set(variant) == {"time", "ratio", "difference", "seconds", "parameters"}
            assert all(set(variant[key]) == SPREAD for key in ("time", "ratio", "difference"))
    assert found["targets"]
    for target in found["targets"]:
        assert set(target) == {"text", "value", "limit", "unit", "at_least", "passed"}
        assert f"{'PASS' if target['passed'] else 'MISS'}  {target['text']}" in said


@pytest.mark.slow
def test_a_batch_on_two_processes_asks_nothing_of_others_beyond_ddp() -> None:
    _, result = quick("distributed")
    targets = {
        target["text"]: target["value"] for target in result["suites"]["distributed"]["targets"]
    }
    for kind in ("store calls", "collectives", "device reads"):
        assert targets[f"{kind} a batch, beyond those of the hand-written DDP loop"] == 0
    assert targets["bytecodes a batch to agree"] < LIMIT_BYTECODES["to agree"]


@pytest.mark.slow
def test_what_a_batch_by_hand_asks_of_others_is_counted() -> None:
    said, _ = quick("distributed")
    assert f"{FLAG}, a batch: 2 collectives, 1 device reads, 0 store calls" in said


def test_a_framework_that_is_not_installed_is_named_and_not_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = Peer("Absent", "absent-framework", {}, lambda work: lambda: None)
    assert interpreter_of(peer) is None
    monkeypatch.setenv("EVENTTRAIN_BENCH_PYTHON_ABSENT", "another")
    assert interpreter_of(peer) == "another"


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_ranks_that_fail_are_reported_with_their_error(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '[rank0]: ValueError: no luck' >&2\nexit 3\n")
    python.chmod(0o755)
    told = start("eventtrain", Options(quick=True), str(python))
    assert told.found == {}
    assert told.problem == "its processes ended with 3: [rank0]: ValueError: no luck"


def test_the_readme_documents_every_suite_and_key() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    keys = ("schema", "complete", "environment", "libraries", "parameters", "seconds")
    for name in (*SUITES, *keys):
        assert f"`{name}`" in text, name


@pytest.mark.slow
def test_training_in_the_data_suite_equals_the_hand_written_loop() -> None:
    done = bench("data", "--quick")
    lines = [line for line in done.stdout.splitlines() if "bit for bit" in line]
    assert len(lines) == 2
    assert all("yes" in line and "NO" not in line for line in lines)


def test_a_library_that_is_not_installed_is_named_and_left_out() -> None:
    program = (
        "import sys; sys.modules['psygnal'] = None\n"
        "from benchmarks.command import main; sys.exit(main(['emit', '--quick'], 'bench'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "left out: psygnal" in done.stdout
    assert "psygnal emit" not in done.stdout


def test_the_callbacks_that_ship_are_left_out_where_one_lacks_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    suite = kit.run(Options(quick=True))
    assert suite.notes == ['left out: Progress needs tqdm: pip install "eventtrain[watch]"']
    assert suite.groups == suite.targets == []


def test_the_extra_for_benchmarks_brings_what_every_suite_needs() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    brought = config["options.extras_require"]["bench"]
    for package in ("pluggy", "psygnal", "matplotlib", "tqdm"):
        assert f"\n{package}>=" in brought


@pytest.mark.skipif(find_spec("psygnal") is None, reason="needs psygnal: '.[bench]' brings it")
def test_every_library_calls_every_handler() -> None:
    from benchmarks.libraries import BLINKER, PLUGGY, PSYGNAL, calls

    seen: list[Any] = []

    def first(run: Any) -> None:
        seen.append(run)

    def second(run: Any) -> None:
        seen.append(run)

    found, missing = calls([first, second])
    assert missing == []
    assert {BLINKER, PLUGGY, PSYGNAL} <= set(found)
    for text, theirs in found.values():
        seen.clear()
        exec(text, {"theirs": theirs, "run": "a run"})
        assert seen == ["a run", "a run"], text


def test_imports_are_timed_with_their_bytecode_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    printed, _ = imports.python("-c", "import sys; print(sys.dont_write_bytecode)")
    assert printed == "False\n"


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(which("git") is None, reason="needs git")
def test_a_commit_that_has_a_tag_is_recorded_as_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "eventtrain" / "__init__.py"
    file.parent.mkdir()
    file.write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "first")
    monkeypatch.setattr(environment, "eventtrain", SimpleNamespace(__file__=str(file)))
    assert environment._commit() == git(tmp_path, "rev-parse", "--short=12", "HEAD")
    file.write_text("changed = True")
    assert environment._commit() == git(tmp_path, "rev-parse", "--short=12", "HEAD") + "-dirty"


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


def test_variants_take_turns_in_an_order_that_shifts() -> None:
    order: list[str] = []

    def variant(name: str) -> Any:
        return lambda: order.append(name) or 1.0

    compare("title", "s", {name: variant(name) for name in "abc"}, rounds=3, warmup=0)
    assert "".join(order) == "abcbcacab"


def test_the_warm_up_does_not_count_and_the_fastest_pass_does() -> None:
    times = iter([9.0, 9.0, 3.0, 2.0])
    group = compare("title", "s", {"a": lambda: next(times)}, rounds=1, passes=2)
    assert group.rounds == {"a": [2.0]}


def test_one_disturbed_run_does_not_shorten_what_a_statement_is_timed_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[int] = []

    def pretend(text: str, names: Any) -> Any:
        def timed(count: int) -> float:
            counts.append(count)
            return 5.0 if len(counts) == 1 else count * 1e-6  # the machine was busy once

        return timed

    monkeypatch.setattr(statement, "_timed", pretend)
    statement.Statement("run()", 0.002)()
    assert counts[-1] == pytest.approx(2000, rel=0.01)


def test_several_clocks_are_kept_apart() -> None:
    found = compare_clocks({"a": lambda: {"wall": 2.0, "host": 1.0}}, rounds=2)
    assert found == {"wall": {"a": [2.0, 2.0]}, "host": {"a": [1.0, 1.0]}}
