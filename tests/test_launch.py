"""How a process was started is told from its environment, and from nothing that merely looks so."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import Any

import pytest

from eventtrain.launch import Launch, found_launch, found_local_rank

TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
"""What srun gives to the last of four tasks on two machines."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: Any) -> Any:
    """Sets variables in an environment that tells of nothing."""
    for name in os.environ:
        if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") or name.startswith(("SLURM_", "MASTER_")):
            monkeypatch.delenv(name)

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in TASK.items() if name not in names}


def test_a_process_of_which_nothing_is_told_is_alone() -> None:
    assert found_launch() is None


def test_torchruns_variables_tell_all(environment: Any) -> None:
    environment(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", MASTER_ADDR="host", MASTER_PORT="29500")
    assert found_launch() == Launch("torch", 3, 4, 1, "host", 29500)


def test_a_task_of_srun_finds_place_host_and_port(environment: Any) -> None:
    environment(**TASK)
    assert found_launch() == Launch("srun", 3, 4, 1, "node07", 15000 + (4711 * 16 + 2) % 15000)


def test_what_the_user_says_of_the_meeting_point_goes_before_what_slurm_does(
    environment: Any,
) -> None:
    environment(**TASK, MASTER_ADDR="10.0.0.1", MASTER_PORT="1234")
    found = found_launch()
    assert found is not None
    assert (found.address, found.port) == ("10.0.0.1", 1234)


@pytest.mark.parametrize(
    "variables",
    [
        without("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"),
        {**without("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"), "SLURM_PROCID": "0"},
        {**TASK, "SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"},
        {**TASK, "SLURM_STEP_ID": "4294967291", "SLURM_PROCID": "0"},
        {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {**TASK, "RANK": "0", "WORLD_SIZE": "1"},
    ],
    ids=[
        "the shell of salloc",
        "a batch script",
        "the shell of salloc in a step",
        "a batch script in a step",
        "a step of one task",
        "the user says so",
    ],
)
def test_what_is_in_a_job_and_no_task_of_srun_is_alone(
    environment: Any, variables: dict[str, str]
) -> None:
    environment(**variables)
    assert found_launch() is None


SAYS = "import os; from eventtrain.launch import found_launch; print(found_launch() is None)"


def at_a_terminal(program: str, **variables: str) -> str:
    """What a program prints that has a terminal for its standard input."""
    ours, its = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdin=its,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **TASK, "SLURM_PTY_PORT": "1234", **variables},
        )
    finally:
        os.close(ours)
        os.close(its)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_typed_into_a_shell_that_srun_has_started_is_alone() -> None:
    assert at_a_terminal(SAYS, SLURM_TASK_PID=str(os.getpid())) == "True"


def test_a_task_that_has_the_terminal_itself_is_one_of_several() -> None:
    itself = f"import os; os.environ['SLURM_TASK_PID'] = str(os.getpid()); {SAYS}"
    assert at_a_terminal(itself) == "False"


def test_a_task_that_a_shell_at_a_terminal_has_started_with_srun_is_one_of_several(
    environment: Any,
) -> None:
    environment(**TASK, SLURM_PTY_PORT="1234")  # inherited; its standard input is no terminal
    done = subprocess.run(
        [sys.executable, "-c", SAYS], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert done.stdout == b"False\n", done.stderr


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("node7,node8", "node7"),
        ("node[07-09,12],gpu1", "node07"),
        ("node[3,5]", "node3"),
        ("rack[1-2]node[03-04]", "rack1node03"),
        ("a-b.example.org,c", "a-b.example.org"),
        ("10-0-0-[1-4]", "10-0-0-1"),
        ("", None),
    ],
)
def test_the_first_host_of_a_list_is_where_all_meet(
    environment: Any, hosts: str, first: str | None
) -> None:
    environment(**{**TASK, "SLURM_STEP_NODELIST": hosts})
    found = found_launch()
    assert found is not None
    assert found.address == first


def test_steps_of_one_job_meet_at_ports_of_their_own(environment: Any) -> None:
    ports = set()
    for step in range(16):
        environment(**{**TASK, "SLURM_STEP_ID": str(step)})
        found = found_launch()
        assert found is not None
        ports.add(found.port)
    assert len(ports) == 16


def test_without_a_job_no_port_is_known(environment: Any) -> None:
    environment(**without("SLURM_JOB_ID"))
    found = found_launch()
    assert found is not None
    assert found.port is None


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, which must be below WORLD_SIZE=2"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK='one'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "x"}, "MASTER_PORT='x'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK='-1'"),
        ({**TASK, "SLURM_PROCID": "4"}, "SLURM_PROCID=4, which must be below SLURM_STEP_NUM_TASKS"),
    ],
)
def test_an_environment_that_makes_no_sense_is_named(
    environment: Any, variables: dict[str, str], why: str
) -> None:
    environment(**variables)
    with pytest.raises(ValueError, match=why):
        found_launch()


def test_the_number_on_this_machine_is_told_by_either(environment: Any) -> None:
    assert found_local_rank(5) == 5
    environment(**TASK)
    assert found_local_rank(5) == 1
    environment(LOCAL_RANK="0")
    assert found_local_rank(5) == 0
