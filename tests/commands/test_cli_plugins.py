"""The commands plugins and explain, and training with plugins, as a user meets them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Install = Callable[..., str]
Call = Callable[..., tuple[int, str, str]]

STEPS = """
    from eventtrain import Callback, handler

    class Demo(Callback):
        priority = -80

        def __init__(self, path="steps.txt", every=1):
            self.path, self.every = path, every

        @handler(during="train")
        def after_batch(self):
            self.steps = self.run.steps

        def after_fit(self):
            with open(self.path, "w") as file:
                file.write(f"{self.steps} {self.every!r}")
"""
RUNS = """
from eventtrain import Runner

run = Runner()

@run.on("after_loss", priority=7)
def mine(run): ...

def make():
    print("made")
    return run

number = 3
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs.py").write_text(RUNS)


# plugins


def test_without_plugins_the_list_says_how_to_get_one(call: Call, monkeypatch) -> None:
    monkeypatch.setattr("eventtrain.reports.plugin_reports.installed_plugins", list)
    code, stdout, stderr = call("plugins")
    assert (code, stderr) == (0, "")
    assert "no plugins are installed" in stdout
    assert "eventtrain.plugins" in stdout


def test_the_list_shows_package_object_options_and_handlers(install: Install, call: Call) -> None:
    module = install(STEPS)
    code, stdout, stderr = call("plugins")
    assert (code, stderr) == (0, "")
    lines = stdout.splitlines()
    first = lines.index("demo  (demo-package 1.2)")
    assert lines[first + 1 : first + 5] == [
        f"  {module}:Demo (Callback class)",
        "  options: path='steps.txt', every=1",
        "  after_batch  [-80] demo  during=train",
        "  after_fit    [-80] demo",
    ]


def test_a_broken_plugin_is_listed_with_its_reason_in_a_line_and_counted(
    install: Install, call: Call
) -> None:
    install("raise RuntimeError('two\\n lines')")
    code, stdout, _ = call("plugins")
    assert code == 0
    assert "  broken: RuntimeError: two lines\n" in stdout
    assert stdout.endswith("1 broken\n")


def test_the_list_as_json_is_json_whatever_plugins_print(install: Install, call: Call) -> None:
    install(STEPS + "\n    print('noise')")
    code, stdout, stderr = call("plugins", "--json")
    (found,) = [each for each in json.loads(stdout) if each["name"] == "demo"]
    assert (code, stderr, found["status"]) == (0, "noise\n", "ok")
    assert [row["event"] for row in found["handlers"]] == ["after_batch", "after_fit"]


# train --plugin


def train(call: Call, *arguments: str) -> tuple[int, str, str]:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    return call("train", "--epochs", "1", "--out", "out", *arguments)


def test_a_plugin_takes_part_in_training_when_asked(
    install: Install, call: Call, tmp_path: Path
) -> None:
    install(STEPS)
    code, _, stderr = train(call, "--plugin", "demo")
    assert (code, stderr) == (0, "")
    assert (tmp_path / "steps.txt").read_text() == "23 1"


def test_installed_plugins_take_no_part_unasked(
    install: Install, call: Call, tmp_path: Path
) -> None:
    install(STEPS)
    assert train(call)[0] == 0
    assert not (tmp_path / "steps.txt").exists()


@pytest.mark.parametrize(
    ("text", "value"), [("10", "10"), ("word", "'word'"), ("[1, 2]", "[1, 2]"), ("a=b", "'a=b'")]
)
def test_options_reach_the_plugin_as_literals_or_as_text(
    text: str, value: str, install: Install, call: Call, tmp_path: Path
) -> None:
    install(STEPS)
    settings = ("--plugin-option", f"demo.every={text}", "--plugin-option", "demo.path=other.txt")
    assert train(call, "--plugin", "demo", *settings)[0] == 0
    assert (tmp_path / "other.txt").read_text() == f"23 {value}"


@pytest.mark.parametrize("setting", ["every=1", "demo.every", "demo.=3", ".every=3", "demo.a b=3"])
def test_a_malformed_option_is_refused(setting: str, install: Install, call: Call) -> None:
    install(STEPS)
    code, _, stderr = train(call, "--plugin", "demo", "--plugin-option", setting)
    assert code == 2
    assert "NAME.KEY=VALUE" in stderr


def test_an_option_for_a_plugin_that_is_not_asked_for_is_refused(
    install: Install, call: Call
) -> None:
    install(STEPS)
    code, _, stderr = train(call, "--plugin-option", "demo.every=1")
    assert code == 2
    assert "add --plugin demo" in stderr


def test_an_unknown_plugin_is_refused_before_anything_is_trained(
    install: Install, call: Call, tmp_path: Path
) -> None:
    install(STEPS)
    code, stdout, stderr = train(call, "--plugin", "dmeo")
    assert (code, stdout) == (1, "")
    assert "Did you mean 'demo'?" in stderr
    assert stderr.count("\n") == 1


def test_a_failing_plugin_can_be_kept_from_ending_the_training(
    install: Install, call: Call, tmp_path: Path
) -> None:
    install(STEPS.replace("self.steps = self.run.steps", "1 / 0"))
    code, _, stderr = train(call, "--plugin", "demo")
    assert code == 1
    assert "ZeroDivisionError" in stderr
    code, stdout, _ = train(call, "--plugin", "demo", "--plugin-errors", "disable")
    # after_fit fails too: there are no steps to write.
    assert code == 0
    assert "saved in out: config.toml, history.json, model.pt" in stdout


# explain


def rows(stdout: str) -> list[list[str]]:
    return [re.split(r"  +", line) for line in stdout.splitlines()]


def test_explain_shows_the_run_of_train_with_plugins_in_true_order(
    install: Install, call: Call
) -> None:
    install(STEPS)
    code, stdout, stderr = call("explain", "--plugin", "demo")
    assert (code, stderr) == (0, "")
    found = [(row[0], row[2]) for row in rows(stdout)]
    assert ("begin_fit", "train_eval") in found
    assert found.index(("begin_fit", "train_eval")) < found.index(("begin_fit", "avg_stats"))
    assert found[-1] == ("after_fit", "demo")
    assert "demo of demo-package 1.2" in stdout


@pytest.mark.parametrize("name", ["run", "make"])
def test_explain_takes_a_run_of_the_users(name: str, call: Call) -> None:
    code, stdout, _ = call("explain", f"runs.py:{name}", "--event", "after_loss")
    assert code == 0
    assert [row[:4] for row in rows(stdout)[1:]] == [["after_loss", "1", "mine", "7"]]


def test_explain_as_json_is_json_whatever_the_file_prints(call: Call) -> None:
    code, stdout, stderr = call("explain", "runs.py:make", "--event", "after_loss", "--json")
    (row,) = json.loads(stdout)
    assert (code, stderr) == (0, "made\n")
    assert (row["handler"], row["priority"], row["position"]) == ("mine", 7, 1)


def test_explain_can_draw_the_loop(call: Call) -> None:
    stdout = call("explain", "runs.py:run", "--picture")[1]
    assert stdout.splitlines()[0] == "begin_fit"
    assert "[7] mine" in stdout


MISUSED: dict[str, tuple[list[str], int, str]] = {
    "event": (["--event", "after_bach"], 1, "Did you mean 'after_batch'?"),
    "file": (["nowhere.py:run"], 1, "there is no file nowhere.py"),
    "name": (["runs.py:mkae"], 1, "Did you mean 'make'?"),
    "form": (["runs.py"], 2, "PATH.py:RUN"),
    "kind": (["runs.py:number"], 1, "a function that returns one was expected"),
    "both": (["runs.py:run", "--plugin", "demo"], 2, "says itself which it loads"),
    "picture": (["--picture", "--json"], 2, "--picture goes with neither"),
}


@pytest.mark.parametrize("case", MISUSED)
def test_misuse_of_explain_is_told_in_a_few_lines(case: str, call: Call) -> None:
    arguments, expected, text = MISUSED[case]
    code, stdout, stderr = call("explain", *arguments)
    assert (code, stdout) == (expected, "")
    assert text in " ".join(stderr.split())
    assert "Traceback" not in stderr


def test_explaining_trains_nothing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr("eventtrain.runner.Runner.fit", fit)
    assert call("explain")[0] == 0
