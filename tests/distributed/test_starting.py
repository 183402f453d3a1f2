"""The same script trains in every way in which several processes can be started."""

from __future__ import annotations

from pathlib import Path

import pytest
from agents import Told, agents, free_port, start

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("starting_program.py")


# By srun's variables, and in groups that the user makes


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Two processes as srun starts them, which nothing tells where to meet but their job."""
    folder = tmp_path_factory.mktemp("tasks")
    job = {
        "SLURM_JOB_ID": str(free_port()),  # the port that all meet at hangs on it
        "SLURM_NTASKS": "2",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "OTHER_PORT": str(free_port()),
    }
    command = [str(PROGRAM), str(folder), "in groups"]
    places = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    return start([(command, {**job, **place}) for place in places], folder, 2)


@pytest.mark.parametrize("group", ["found", "file", "tcp"])
def test_tasks_of_srun_train_to_equal_weights_in_any_group(tasks: Told, group: str) -> None:
    first, second = (told[group]["completed"] for told in tasks)
    assert (first["outcome"], first["steps"]) == ("completed", 24)
    assert first["weights"] == second["weights"] == tasks[0]["found"]["completed"]["weights"]
    assert [told["place"] for told in (first, second)] == [[0, 2, 0], [1, 2, 1]]


@pytest.mark.parametrize("group", ["found", "file", "tcp"])
def test_a_fit_that_one_task_cancels_ends_on_all_at_one_place(tasks: Told, group: str) -> None:
    first, second = (told[group]["cancelled"] for told in tasks)
    assert (first["outcome"], first["by"]) == ("cancelled", [1])
    assert (first["steps"], first["weights"]) == (second["steps"], second["weights"])


@pytest.mark.parametrize("group", ["found", "file", "tcp"])
def test_it_goes_on_from_there_in_any_group(tasks: Told, group: str) -> None:
    for told in tasks:
        assert told[group]["resumed"]["weights"] == told[group]["completed"]["weights"]


# By torchrun, on one machine and on two


@pytest.fixture(scope="module")
def two_agents(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return agents(2, 2, PROGRAM, tmp_path_factory.mktemp("two"), "train")


@pytest.fixture(scope="module")
def one_agent(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return agents(1, 4, PROGRAM, tmp_path_factory.mktemp("one"), "train")


def test_two_agents_train_to_the_weights_of_one_bit_for_bit(
    two_agents: Told, one_agent: Told
) -> None:
    for told in (*two_agents, *one_agent):
        assert told["completed"]["outcome"] == "completed"
        assert told["completed"]["weights"] == one_agent[0]["completed"]["weights"]


def test_a_fit_that_one_rank_cancels_ends_on_two_machines_at_one_place(two_agents: Told) -> None:
    cancelled = [told["cancelled"] for told in two_agents]
    assert [told["outcome"] for told in cancelled] == ["cancelled"] * 4
    assert [told["by"] for told in cancelled] == [[3]] * 4
    assert len({(told["steps"], tuple(told["weights"])) for told in cancelled}) == 1


def test_two_agents_go_on_from_there_as_one_does_bit_for_bit(
    two_agents: Told, one_agent: Told
) -> None:
    for told in (*two_agents, *one_agent):
        assert told["resumed"]["outcome"] == "completed"
        assert told["resumed"]["steps"] == told["completed"]["steps"]
        assert told["resumed"]["weights"] == one_agent[0]["completed"]["weights"]


def test_one_process_of_each_machine_is_its_local_zero(two_agents: Told, one_agent: Told) -> None:
    def who(agents: Told, ranks: str) -> list[int]:
        return [i for i, told in enumerate(agents) if ranks in told["completed"]["ran"]]

    assert [who(two_agents, ranks) for ranks in ("zero", "local_zero")] == [[0], [0, 2]]
    assert [who(one_agent, ranks) for ranks in ("zero", "local_zero")] == [[0], [0]]


def test_the_run_and_its_world_have_one_notion_of_the_rank(two_agents: Told, tasks: Told) -> None:
    completed = [told["completed"] for told in two_agents] + [
        told["found"]["completed"] for told in tasks
    ]
    for told in completed:
        assert told["place"][:2] == told["world"]


# In a worker of Ray Train


def test_workers_of_ray_train_are_ranks(
    tmp_path_factory: pytest.TempPathFactory, one_agent: Told
) -> None:
    pytest.importorskip("ray.train.torch", reason="needs Ray Train (extra 'ray')")
    folder = tmp_path_factory.mktemp("ray")
    # Ray keeps a token in the home folder.
    environment = {"HOME": str(folder), "RAY_TMPDIR": "/tmp", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [str(PROGRAM.with_name("ray_program.py")), str(folder), "train"]
    told = start([(command, environment)], folder, 2)
    assert [each["completed"]["place"] for each in told] == [[0, 2, 0], [1, 2, 1]]
    assert [each["cancelled"]["by"] for each in told] == [[1], [1]]
    expected = one_agent[0]["completed"]["weights"]
    for each in told:
        assert each["completed"]["weights"] == pytest.approx(expected, abs=1e-6)
    assert told[0]["cancelled"]["weights"] == told[1]["cancelled"]["weights"]
