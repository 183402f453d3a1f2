"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import eventtrain

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def run_cli(
    *arguments: str, program: tuple[str, ...] = ("-m", "eventtrain")
) -> tuple[int, str, str]:
    """Run ``python -m eventtrain`` and return exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *program, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )
    return done.returncode, done.stdout, done.stderr


Call = Callable[..., tuple[int, str, str]]


def run_without(packages: str | list[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line where these packages cannot be imported."""
    missing = [packages] if isinstance(packages, str) else packages
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r})); "
        "from eventtrain.cli import main; sys.exit(main())"
    )
    return run_cli(*arguments, program=("-c", program))


def size_of(picture: Path) -> tuple[int, int]:
    """Decode a PNG file whole and return its width and height."""
    with Image.open(picture, formats=["PNG"]) as image:
        image.load()
        return image.size


def accuracy_in(printed: str) -> float:
    """Return the accuracy that the demo printed last."""
    return float(re.findall(r"^validation accuracy: (.*)$", printed, re.MULTILINE)[-1])


# The demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, str]:
    """One run of the demo with its defaults: its folder, exit code, stdout and stderr."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return out, *run_cli("demo", "--out", str(out))


def test_the_demo_succeeds(demo: tuple[Path, int, str, str]) -> None:
    _, code, _, stderr = demo
    assert code == 0, stderr


def test_the_demo_reaches_95_percent(demo: tuple[Path, int, str, str]) -> None:
    assert accuracy_in(demo[2]) > 0.95


def test_the_demo_prints_a_line_of_metrics_an_epoch(demo: tuple[Path, int, str, str]) -> None:
    numbers = re.findall(r"^ +(\d+)(?:  +[\d.]+){5}$", demo[2], re.MULTILINE)
    assert numbers == [str(epoch) for epoch in range(25)]


def test_the_demo_saves_a_picture_where_it_says(demo: tuple[Path, int, str, str]) -> None:
    picture = demo[0] / "loss.png"
    assert f"loss curves: {picture}\n" in demo[2]
    width, height = size_of(picture)
    assert width >= 800
    assert height >= 500


def test_the_demo_leaves_nothing_but_the_picture(demo: tuple[Path, int, str, str]) -> None:
    assert [path.name for path in demo[0].iterdir()] == ["loss.png"]


def test_the_progress_bar_leaves_nothing_where_there_is_no_terminal(
    demo: tuple[Path, int, str, str],
) -> None:
    assert demo[3] == ""
    assert "\r" not in demo[2]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_training(tmp_path: Path) -> None:
    arguments = ("demo", "--epochs", "1", "--seed", "7", "--out", str(tmp_path))
    first, second = (run_cli(*arguments)[1].splitlines()[-1] for _ in range(2))
    assert first == second


def test_a_picture_from_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_text("old")
    assert run_cli("demo", "--epochs", "1", "--out", str(tmp_path))[0] == 0
    assert size_of(tmp_path / "loss.png")[0] >= 800


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_early_with_a_picture(
    tmp_path: Path, number: signal.Signals, call_and_signal: Call
) -> None:
    code, stdout, stderr = call_and_signal(
        number, "demo", "--epochs", "1000000", "--out", "out", cwd=tmp_path
    )
    assert (code, stderr) == (128 + number, "")
    assert f"ended early by {number.name}" in stdout
    assert size_of(tmp_path / "out" / "loss.png")[0] >= 800


# Misuse


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--epochs", "many"),
        ("--batch-size", "0"),
        ("--lr", "0"),
        ("--lr", "-1"),
        ("--lr", "nan"),
        ("--lr", "inf"),
        ("--seed", "-1"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_option(
    option: str, value: str, tmp_path: Path, call: Call
) -> None:
    code, stdout, stderr = call("demo", option, value, "--out", str(tmp_path / "out"))
    assert code == 2
    assert stdout == ""
    assert f"Invalid value for '{option}'" in stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_command_is_refused(call: Call) -> None:
    code, _, stderr = call("dmeo")
    assert code == 2
    assert "No such command 'dmeo'" in stderr


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_where_the_folder_should_be_is_told_in_one_line_before_training(
    inside: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    code, stdout, stderr = run_cli("demo", "--out", str(tmp_path / "file" / inside))
    assert code == 1
    assert stdout == ""
    assert stderr.startswith("Error: cannot write ")
    assert stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_where_the_picture_should_be_is_told_in_one_line_before_training(
    tmp_path: Path,
) -> None:
    picture = tmp_path / "loss.png"
    picture.mkdir()
    code, stdout, stderr = run_cli("demo", "--out", str(tmp_path))
    assert (code, stdout) == (1, "")
    assert stderr.startswith(f"Error: cannot write {picture}: ")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("click", "click", "cli"),
        ("tqdm", "tqdm", "demo"),
        ("matplotlib", "matplotlib", "demo"),
        ("sklearn", "scikit-learn", "demo"),
    ],
)
def test_a_missing_package_is_told_in_one_line_with_the_extra_that_brings_it(
    module: str, package: str, extra: str, tmp_path: Path
) -> None:
    code, stdout, stderr = run_without(module, "demo", "--out", str(tmp_path))
    assert code == 1
    assert stdout == ""
    assert stderr.endswith(f'needs {package}: pip install "eventtrain[{extra}]"\n')
    assert stderr.count("\n") == 1


def test_without_click_the_extra_is_one_that_is_enough_for_the_command(tmp_path: Path) -> None:
    for arguments, others, extra in (
        (("demo", "--epochs", "1"), [], "cli"),
        (("demo", "--epochs", "1"), ["sklearn"], "demo"),
        (("explain",), ["sklearn"], "cli"),
        ((), [], "cli"),
    ):
        code, stdout, stderr = run_without(["click", *others], *arguments)
        assert (code, stdout) == (1, "")
        assert stderr == (
            f'eventtrain: the command line needs click: pip install "eventtrain[{extra}]"\n'
        )


@pytest.mark.parametrize("others", [[], ["torch"], ["torch", "blinker"]])
def test_the_doctor_needs_nothing_that_may_be_missing(others: list[str]) -> None:
    code, stdout, stderr = run_without(["click", *others], "doctor", "--json")
    report = json.loads(stdout)
    assert (code, stderr) == (int(bool(others)), "")
    assert report["ok"] == (not others)
    assert ("torch cannot be imported" in str(report["problems"])) == bool(others)


def test_the_doctor_without_click_says_what_it_says_with_it() -> None:
    assert run_without("click", "doctor") == run_cli("doctor")
    code, stdout, stderr = run_without("click", "doctor", "--help")
    assert (code, stderr) == (0, "")
    assert "--json" in stdout
    code, stdout, stderr = run_without("click", "doctor", "--jason")
    assert (code, stdout) == (2, "")
    assert "--jason" in stderr


# The rest


def test_version_prints_name_and_version() -> None:
    assert run_cli("--version") == (0, f"eventtrain {eventtrain.__version__}\n", "")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_commands(flag: str, call: Call) -> None:
    code, stdout, stderr = call(flag)
    assert (code, stderr) == (0, "")
    assert re.search(r"^ +demo +Train", stdout, re.MULTILINE)


def test_help_of_the_demo_shows_every_default(call: Call) -> None:
    code, stdout, _ = call("demo", "--help")
    assert code == 0
    for option in ("--epochs", "--lr", "--batch-size", "--seed", "--out"):
        assert option in stdout
    assert stdout.count("[default: ") == 5


def test_help_needs_none_of_the_demos_packages() -> None:
    program = (
        "import sys; from eventtrain.cli import main; code = main(); "
        "heavy = {'sklearn', 'matplotlib', 'eventtrain.commands.digits'} & sys.modules.keys(); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    assert run_cli("demo", "--help", program=("-c", program))[0] == 0
