"""The command line on several processes: all train, one prints, saves and tells."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from eventtrain.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FAILING = """
import os, torch
from eventtrain import DataBunch, Learner, TensorLoader

def make(seed):
    def loss(out, y):
        if os.environ["RANK"] == "1":
            raise ValueError("no luck")
        return torch.nn.functional.mse_loss(out, y)

    model = torch.nn.Linear(3, 1)
    loader = TensorLoader(torch.randn(8, 3), torch.randn(8, 1), bs=4)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Learner(model, opt, loss, DataBunch(loader, None))
"""


def run_on_two(torchrun: Any, *arguments: str, **options: Any) -> tuple[int, str, str]:
    """Have torchrun start the command line on two ranks; exit code, stdout and stderr."""
    done = torchrun("-m", "eventtrain", *arguments, **options)
    return done.returncode, done.stdout, done.stderr


def test_train_divides_the_model_prints_once_and_saves_it_whole(
    torchrun: Any, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    code, printed, said = run_on_two(
        torchrun, "train", "--epochs", "1", "--strategy", "fsdp2", "--out", str(tmp_path)
    )
    assert code == 0, said
    first, heads, row, saved = printed.splitlines()
    assert first.endswith("on cpu, 2 processes")
    assert heads.split()[0] == "epoch" and row.split()[0] == "0"
    assert saved == f"saved in {tmp_path}: config.toml, history.json, model.pt"
    history = json.loads((tmp_path / "history.json").read_text())
    assert (history["processes"], history["strategy"], history["steps"]) == (2, "fsdp2", 23)
    state = torch.load(tmp_path / "model.pt")
    assert [tuple(value.shape) for value in state.values()] == [(50, 64), (50,), (10, 50), (10,)]


def test_what_fails_on_one_rank_is_told_by_it_and_by_rank_zero(
    torchrun: Any, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(FAILING)
    target = f"{tmp_path / 'nets.py'}:make"
    code, _, said = run_on_two(
        torchrun, "train", "--data", target, "--metric", "none", "--out", str(tmp_path)
    )
    assert code == 1
    lines = [line for line in said.splitlines() if "Error: " in line and "no luck" in line]
    assert sorted(lines) == [
        "Error: rank 1 failed: ValueError: no luck (epoch 0, batch 0)",
        "rank 1: Error: ValueError: no luck",
    ]


def test_doctor_has_the_ranks_meet_and_prints_one_report_with_all_devices(torchrun: Any) -> None:
    code, printed, said = run_on_two(torchrun, "doctor", "--json")
    assert code == 0, said
    processes = json.loads(printed)["processes"]
    assert "gloo" in processes["backends"]
    assert (processes["started_by"], processes["world_size"]) == ("torch", 2)
    assert [told["local_rank"] for told in processes["ranks"]] == [0, 1]
    assert all("cpu_threads" in told for told in processes["ranks"])


@pytest.mark.parametrize(
    ("number", "is_for_all"),
    [(signal.SIGINT, True), (signal.SIGTERM, False)],
    ids=["Ctrl-C", "SIGTERM to torchrun"],
)
def test_a_signal_ends_the_training_of_all_and_saves_what_there_is(
    torchrun: Any, tmp_path: Path, number: signal.Signals, is_for_all: bool
) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")

    def interrupt(process: Any) -> None:
        end = time.monotonic() + 50
        log = tmp_path / "events.jsonl"
        while not log.exists() or b"after_batch" not in log.read_bytes():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number) if is_for_all else process.send_signal(number)

    arguments = ("train", "--epochs", "1000", "--log-events", "--out", str(tmp_path))
    code, printed, said = run_on_two(torchrun, *arguments, meanwhile=interrupt)
    assert code != 0
    assert f"saved in {tmp_path}" in printed, said
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["outcome"] == "cancelled"
    assert history["reason"] == number.name
    assert torch.load(tmp_path / "model.pt")


def test_no_option_of_train_is_taken_by_torchrun_for_its_own() -> None:
    from torch.distributed.run import get_args_parser

    from eventtrain.commands.train import make

    for option in make().params:
        if not isinstance(option, click.Option) or option.name == "log_events":
            continue
        for name in option.opts:
            words = ["-m", "eventtrain", "train", name, "x"]
            assert get_args_parser().parse_args(words).training_script_args == words[2:]
    words = ["-m", "eventtrain", "train", "--log-events"]
    assert get_args_parser().parse_args(words).training_script_args == words[2:]


@pytest.fixture
def as_rank(monkeypatch: Any, capsys: Any) -> Any:
    """Calls the command line as one of two ranks; exit code and all that was printed."""

    def call(rank: int, *arguments: str) -> tuple[int, str]:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(sys, "argv", ["eventtrain", *arguments])
        code = main()
        return code, "".join(capsys.readouterr())

    return call


@pytest.mark.parametrize(
    "arguments", [["events"], ["explain"], ["plugins"], ["train", "--help"], ["--version"]]
)
def test_what_does_not_train_is_done_by_rank_zero_alone(as_rank: Any, arguments: list[str]) -> None:
    code, printed = as_rank(0, *arguments)
    assert code == 0 and printed
    assert as_rank(1, *arguments) == (0, "")


@pytest.mark.parametrize("command", ["demo", "bench"])
def test_what_is_for_one_process_is_refused_once(as_rank: Any, command: str) -> None:
    code, printed = as_rank(0, command)
    assert code == 1 and "without torchrun" in printed
    assert as_rank(1, command) == (1, "")


def test_a_wrong_command_line_is_told_once(as_rank: Any) -> None:
    code, printed = as_rank(0, "train", "--epochs", "none")
    assert code == 2 and "--epochs" in printed
    assert as_rank(1, "train", "--epochs", "none") == (2, "")


def test_an_environment_that_makes_no_sense_takes_a_line(as_rank: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("MASTER_PORT", "x")
    code, printed = as_rank(0, "events")
    assert (code, printed.count("\n")) == (1, 1) and "MASTER_PORT='x'" in printed


def test_doctor_says_why_the_ranks_cannot_meet(as_rank: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    code, printed = as_rank(0, "doctor")
    assert code == 1
    assert re.search(r"problem: rank 0 of 2 has not met the others: .*MASTER_ADDR", printed)
    code, printed = as_rank(1, "doctor")
    assert (code, printed.count("\n")) == (1, 1) and printed.startswith("rank 1: problem: ")


def test_doctor_tells_that_what_is_in_a_job_is_alone(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setattr(sys, "argv", ["eventtrain", "doctor"])
    assert main() == 0
    printed = capsys.readouterr().out
    assert re.search(r"^environment +SLURM_JOB_ID=4711 SLURM_NTASKS=4$", printed, re.MULTILINE)
    assert re.search(r"^processes +1 \(alone\)$", printed, re.MULTILINE)
