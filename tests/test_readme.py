"""The README: its example is what it says, and what it lists is what there is."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventtrain import Callback, EventBus, Runner
from eventtrain.events import EVENTS, SCOPES
from eventtrain.state import RunState

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_the_complete_example_runs_as_printed(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    example = blocks("python")[0]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "cancelled because 95 % is enough" in done.stdout


def test_the_complete_example_has_about_twenty_lines() -> None:
    assert len(blocks("python")[0].splitlines()) <= 22


def test_a_handler_class_from_the_readme_can_be_used() -> None:
    text = next(t for t in blocks("python") if "class LossTrace" in t)
    names: dict[str, object] = {"Runner": Runner}
    exec(text, names)
    run = names["run"]
    assert isinstance(run, Runner)
    assert isinstance(run.loss_trace, Callback)


def test_there_are_two_commands_and_each_is_one_line() -> None:
    commands = blocks("sh")
    assert len(commands) == 2
    assert all(len(command.strip().splitlines()) == 1 for command in commands)
    assert commands[0].strip().endswith("eventtrain demo")
    assert commands[1].strip().endswith("-m pytest -n auto")


def test_the_picture_has_the_events_in_the_order_of_the_table() -> None:
    picture = next(text for text in blocks("text") if text.startswith("begin_fit"))
    training = picture[: picture.index("begin_validate")]
    shown = re.findall(r"\b(?:begin|after)_\w+", training)
    table = [event.name for event in EVENTS]
    assert set(shown) <= set(table)
    assert shown == sorted(shown, key=table.index)


def test_every_scope_is_in_the_line_of_the_scopes() -> None:
    line = re.search(r"the scopes are\n`(.*?)`", README)
    assert line is not None
    assert re.findall(r"\w+", line[1]) == [scope for scope in SCOPES if scope != "predict"]


def test_every_option_of_on_is_in_the_table_with_its_default() -> None:
    parameters = set(inspect.signature(EventBus.on).parameters) - {"self", "event", "fn"}
    rows = re.findall(r"^\| (`.*?) \|", README, re.MULTILINE)
    shown = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert parameters <= shown


def test_every_field_of_the_run_is_listed() -> None:
    internal = {"phase_log", "emit", "scope", "result"}
    fields = {name for name in RunState.__slots__ if not name.startswith("_")} - internal
    fields |= {name for name in vars(RunState) if isinstance(vars(RunState)[name], property)}
    for name in fields:
        assert f"`{name}`" in README or f"`run.{name}`" in README, name


def test_the_files_that_the_readme_links_to_exist() -> None:
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target
