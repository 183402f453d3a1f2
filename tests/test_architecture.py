"""The shape of the package: floors, imports, names, and one vocabulary."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import eventtrain
import eventtrain.callbacks
from eventtrain.events import EVENTS, SCOPES

PACKAGE = Path(eventtrain.__file__).parent
ROOT = PACKAGE.parent
FLOORS = {
    "arguments": 0,
    "atomic_file": 0,
    "lazy_exports": 0,
    "priorities": 0,
    "errors": 0,
    "events": 0,
    "cancellation": 0,
    "ordering": 0,
    "receivers": 0,
    "handlers": 1,
    "dispatch": 1,
    "explain": 1,
    "binding": 1,
    "interrupts": 1,
    "spans": 1,
    "profiling": 1,
    "signals": 1,
    "bus": 1,
    "picture": 1,
    "callback": 2,
    "plugins": 2,
    "plugin_reports": 2,
    "batch": 2,
    "data": 2,
    "mnist": 2,
    "datasets": 2,
    "learner": 2,
    "replay": 2,
    "submodules": 2,
    "param_groups": 2,
    "scheduler_callback": 2,
    "discriminative": 2,
    "mixing": 2,
    "readings": 2,
    "metric_state": 2,
    "random_state": 2,
    "checkpoint_files": 2,
    "plain_data": 2,
    "compatibility": 2,
    "snapshot": 2,
    "restore_point": 2,
    "state": 2,
    "runner": 3,
    "callbacks": 3,
    "demo": 4,
    "commands": 4,
    "cli": 4,
    "__main__": 4,
}
# Within a floor, each may import those that stand before it above.
RANK = {name: rank for rank, name in enumerate(FLOORS)}


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Top-level names that a file imports, and whether they are ours; typing-only ones left out."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((name.name.split(".")[0], False) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names = [node.module] if node.module else [name.name for name in node.names]
                found.extend((str(name).split(".")[0], True) for name in names if name[0] != "_")
            elif node.module:
                parts = node.module.split(".")
                ours = parts[0] == "eventtrain" and len(parts) > 1
                found.append((parts[1] if ours else parts[0], ours))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


FILES = sorted(path for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
CALLBACK_FILES = sorted((PACKAGE / "callbacks").glob("[!_]*.py"))


def test_every_module_has_a_floor() -> None:
    modules = {path.stem for path in FILES} | {"callbacks"}
    assert modules <= set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_run_downward(path: Path) -> None:
    above = [name for name, ours in imports_of(path) if ours and RANK[name] >= RANK[path.stem]]
    assert above == []


@pytest.mark.parametrize("path", CALLBACK_FILES, ids=lambda path: path.stem)
def test_callbacks_do_not_import_each_other(path: Path) -> None:
    siblings = {other.stem for other in CALLBACK_FILES}
    assert not [name for name, ours in imports_of(path) if ours and name in siblings]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_floors_below_two_do_not_know_torch(path: Path) -> None:
    if FLOORS[path.stem] < 2:
        assert "torch" not in {name for name, _ in imports_of(path)}


def test_only_signals_know_blinker() -> None:
    users = [path.stem for path in FILES if ("blinker", False) in imports_of(path)]
    assert users == ["signals"]


def test_importing_every_name_imports_nothing_optional() -> None:
    program = "import sys, json; from eventtrain import *; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    optional = {"sklearn", "matplotlib", "tqdm", "click", "torchmetrics"}
    torch_alone = subprocess.run(
        [sys.executable, "-c", program.replace("from eventtrain import *", "import torch")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (optional & loaded) - set(json.loads(torch_alone.stdout))


@pytest.mark.parametrize("package", [eventtrain, eventtrain.callbacks], ids=lambda p: p.__name__)
def test_a_package_exports_what_it_lists_sorted_and_nothing_else(package: ModuleType) -> None:
    tree = ast.parse(Path(str(package.__file__)).read_text())
    for_type_checkers = {
        alias.name
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (lazy,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and len(n.args) == 2]
    at_run_time = {name for names in ast.literal_eval(lazy.args[1]).values() for name in names}
    assert for_type_checkers == at_run_time == set(package.__all__)
    assert package.__all__ == sorted(package.__all__, key=lambda n: (not n.isupper(), n))


def test_every_public_name_has_a_docstring() -> None:
    missing = [n for n in eventtrain.__all__ if not getattr(eventtrain, n).__doc__]
    assert missing == []


def test_no_module_is_called_by_a_name_that_says_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "manager", "common", "misc", "core", "base"}
    assert not vague & {path.stem for path in PACKAGE.rglob("*.py")}


def test_every_scope_opens_and_closes_with_events_of_its_name() -> None:
    names = {event.name for event in EVENTS}
    for scope in SCOPES:
        assert f"begin_{scope}" in names
        assert f"after_{scope}" in names
        assert f"after_cancel_{scope}" in names


def test_the_loop_fires_every_event_of_the_table() -> None:
    text = "".join((PACKAGE / name).read_text() for name in ("runner.py", "binding.py"))
    by_scopes = {"fit_failed"} | {event.name for event in EVENTS if event.kind == "closing"}
    for event in EVENTS:
        assert event.name in by_scopes or f"emit.{event.name}()" in text, event.name


def test_the_readme_shows_every_event_of_the_picture() -> None:
    readme = (ROOT / "README.md").read_text()
    for event in EVENTS:
        assert event.name in readme, event.name
