"""The shape of the package: floors, imports, names, and one vocabulary."""

from __future__ import annotations

import ast
import graphlib
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import blinker
import pytest

import eventtrain
import eventtrain.callbacks
import eventtrain.data
from eventtrain.bus.connections import PRIVATE_NAMES
from eventtrain.events import EVENTS, SCOPES

PACKAGE = Path(eventtrain.__file__).parent
ROOT = PACKAGE.parent

HOUSE = """
    lazy_exports  arguments  atomic_file  errors  around  copies  events  foreign_names
    priorities
    text_table  launch
    cancellation.records  cancellation.token  cancellation.scope  cancellation  wakeup
    interrupts
    distributed.paths  distributed.log  distributed.standing  distributed.boundary
    distributed.watcher  distributed.poster  distributed.agreement  distributed.exchange
    distributed.patience  distributed
    bus.locking  bus.receivers  bus.ordering  bus.filters  bus.handlers  bus.phases
    bus.subscription  bus.dispatch  bus.sending  bus.running  bus.connections  bus.copying
    bus.binding  bus.restoring  bus.signals  bus.explain  bus.spans  bus.profiling  bus.event_bus
    bus  profiling
    data.batch  data.weights  data.joining  data.global_order  data.loaders  data.lengths
    data.worker_signals  data.workers  data.bunch  data.sharding  data.mnist  data.datasets  data
    host_reading  weighted_sums
    distributed.meeting  distributed.groups  distributed.gradient_sync  distributed.reductions
    distributed.global_mean  distributed.gathering  over_all  distributed.transport
    distributed.tallies  distributed.connections  distributed.failures  distributed.agreed_scopes
    distributed.participation
    distributed.arrival_order
    submodules  optimizers  optimizer_modes  distributed.engines  discriminative  model_call
    steppers  learner  extent  rows  phase_log  state
    diagnosis  background_options  record  background  param_groups
    handler_options  callback  train_eval  plugins
    checkpoints.plain_data  checkpoints.records  checkpoints.form  checkpoints.shard_metadata
    checkpoints.shards  checkpoints.files  checkpoints.rank_states  checkpoints.reading
    checkpoints.pace  checkpoints.ranks  checkpoints.folder  checkpoints.random_state
    checkpoints.loader_state  checkpoints.loader_form  checkpoints.stateful_loaders
    checkpoints.batch_print  checkpoints.loader_place  checkpoints.names
    checkpoints.optimizer_state  checkpoints.compatibility  checkpoints.trainable_part
    checkpoints.snapshot  checkpoints.kept_tensors  checkpoints.save_point
    checkpoints.restore_point  checkpoints
    checkpoint_files
    pieces  split_call  split_units  resuming  interlude  loop  stepping
    reports.picture  reports.event_lines  reports.replay  reports.plugin_reports
    reports.about  reports.about_run  reports.attempts  reports.found_files  reports.row_files
    reports.run_folder  reports.run_facts  reports.why  reports.why_text  reports.charts
    reports.html_text  reports.page_parts  reports.page  reports.run_report  reports
    adoption  execution  runner
    callbacks.shared  callbacks  eventtrain
    commands  cli  __main__
"""
"""Every file imports only from floors that stand before its own. A package without a dot
stands for all files in it that are not named."""
FLOORS = HOUSE.split()
SIBLINGS_MAY_MEET = ("callbacks.shared", "commands")


def module_of(path: Path) -> str:
    """The name of a file below the package, ``bus.signals``; a package's own is the package's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "eventtrain"


FILES = sorted(path for path in PACKAGE.rglob("*.py") if "benchmarks" not in path.parts)
MODULES = {module_of(path) for path in FILES}
CALLBACK_FILES = sorted((PACKAGE / "callbacks").glob("[!_]*.py"))


def floor_of(module: str) -> str:
    while module not in FLOORS:
        module = module.rpartition(".")[0]
        assert module, "it has no floor"
    return module


def rank_of(module: str) -> int:
    return FLOORS.index(floor_of(module))


def imported_by(path: Path) -> tuple[set[str], set[str]]:
    """Our modules, and the packages of others, that a file imports; for type checkers too."""
    package = path.relative_to(PACKAGE).parent.parts
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            parts = [*package[: len(package) - node.level + 1], node.module or ""]
            base = ".".join(filter(None, parts))
            names = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
            ours |= (names & MODULES) or {base or "eventtrain"}
    return ours, others


def test_every_floor_of_the_house_is_there() -> None:
    assert [floor for floor in FLOORS if floor not in MODULES] == []


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_downward(path: Path) -> None:
    module = module_of(path)
    own = floor_of(module)
    may_meet = path.name == "__init__.py" or own in SIBLINGS_MAY_MEET
    above = [
        name
        for name in imported_by(path)[0]
        if rank_of(name) > rank_of(module) or (floor_of(name) == own and not may_meet)
    ]
    assert above == []


FOREIGN = {
    *("_buffers", "_parameters", "_metadata", "_version", "_iterator", "_schedulers"),  # torch's
    *("_foreach_copy_", "_foreach_mul_", "_profiler_enabled", "_execution_engine"),  # torch's
    "_get_default_store",  # torch's
    *("_computed", "_update_count"),  # torchmetrics'
    *("_getframe", "_make", "_exit"),  # Python's
    *PRIVATE_NAMES["blinker.Signal"],
}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_file_reads_a_private_name_of_another(path: Path) -> None:
    def is_private(name: str) -> bool:
        return name.startswith("_") and not name.endswith("__")

    nodes = list(ast.walk(ast.parse(path.read_text())))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    own |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    read = {node.attr for node in attributes if is_private(node.attr)}
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    imported = {a.name for node in imports for a in node.names if is_private(a.name)}
    assert (read - own - FOREIGN) | imported == set()


def test_blinker_has_the_private_names_that_are_used() -> None:
    owners = {"blinker.Signal": blinker.Signal}
    for owner, names in PRIVATE_NAMES.items():
        holder = owners.get(owner) or importlib.import_module(owner)
        instance = holder() if isinstance(holder, type) else holder
        assert [name for name in names if not hasattr(instance, name)] == []


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_context_manager_of_contextlib_writes_on_the_users_exceptions(path: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "lineno")]
    decorators = [each for node in nodes for each in getattr(node, "decorator_list", [])]
    names = {ast.unparse(each).rpartition(".")[2] for each in decorators}
    assert "contextmanager" not in names, "eventtrain.around.around writes nothing on them"


def test_no_files_import_each_other_in_a_circle() -> None:
    files = [path for path in FILES if path.name != "__init__.py"]
    graph = {module_of(path): imported_by(path)[0] for path in files}
    graphlib.TopologicalSorter(graph).prepare()  # raises, and names the circle


@pytest.mark.parametrize("path", CALLBACK_FILES, ids=module_of)
def test_callbacks_do_not_import_each_other(path: Path) -> None:
    siblings = {module_of(other) for other in CALLBACK_FILES}
    assert not imported_by(path)[0] & siblings


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_the_bus_and_what_is_below_it_do_not_know_torch(path: Path) -> None:
    if rank_of(module_of(path)) <= rank_of("bus"):
        assert "torch" not in imported_by(path)[1]


def test_only_connections_know_blinker() -> None:
    users = {module_of(path) for path in FILES if "blinker" in imported_by(path)[1]}
    assert users == {"bus.connections"}


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


@pytest.mark.parametrize(
    "package", [eventtrain, eventtrain.callbacks, eventtrain.data], ids=lambda p: p.__name__
)
def test_a_package_exports_what_it_lists_sorted(package: ModuleType) -> None:
    assert package.__all__ == sorted(package.__all__, key=lambda n: (not n.isupper(), n))
    assert [name for name in package.__all__ if getattr(package, name, None) is None] == []


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


def asked_of(owner: str) -> set[str]:
    """What loop and runner read from ``emit`` or ``scope``, in code and not in docstrings."""
    nodes = [
        node
        for name in ("loop.py", "runner.py")
        for node in ast.walk(ast.parse((PACKAGE / name).read_text()))
    ]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    return {node.attr for node in attributes if ast.unparse(node.value) in (owner, f"self.{owner}")}


def test_the_loop_fires_every_event_of_the_table() -> None:
    fired = asked_of("emit")
    by_scopes = {"fit_failed"} | {event.name for event in EVENTS if event.kind == "closing"}
    assert [event.name for event in EVENTS if event.name not in fired | by_scopes] == []


def test_the_loop_opens_every_scope_of_the_table() -> None:
    assert set(SCOPES) - asked_of("scope") == set()


def test_the_readme_shows_every_event_of_the_picture() -> None:
    readme = (ROOT / "README.md").read_text()
    for event in EVENTS:
        assert event.name in readme, event.name
