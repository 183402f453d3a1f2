"""Plugins as users get them: built, installed by pip, run in another process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "prometheus_plugin"
pytestmark = pytest.mark.slow  # each installs a package, and starts Python anew
TEMPLATE = ROOT / "examples" / "plugin_template"
HOSTILE = {
    "import_error": "import nonsense_that_is_nowhere",
    "wrong_object": "plugin = 42",
    "halfway": """
        def plugin(bus):
            bus.on("after_step", lambda run: None)
            raise RuntimeError("halfway")
    """,
    "taken_event": "def plugin(bus): bus.declare('after_step')",
    "exit": "raise SystemExit(3)",
    "failing_handler": """
        from eventtrain import Callback
        class Plugin(Callback):
            def after_step(self):
                raise ConnectionError("the network is gone")
        plugin = Plugin
    """,
}
BROKEN = {
    "import_error": "ModuleNotFoundError: No module named 'nonsense_that_is_nowhere'",
    "wrong_object": "TypeError: it resolves to 42",
    "halfway": "RuntimeError: halfway",
    "taken_event": "ValueError: the bus declares event 'after_step' already",
    "exit": "SystemExit: 3",
}
TRAIN = """
    import sys, logging
    import torch
    from torch import nn
    from eventtrain import AvgStatsCallback, DataBunch, Learner, PluginError, Runner

    logging.basicConfig()
    model = nn.Linear(2, 1)
    batch = (torch.ones(2, 2), torch.zeros(2, 1))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    learn = Learner(model, opt, nn.functional.mse_loss, DataBunch([batch] * 4, [batch]))
    try:
        run = Runner(AvgStatsCallback(report=None), {arguments})
        print(run.fit(2, learn).outcome)
    except PluginError as error:
        print("PluginError:", error)
"""


def setup_cfg(name: str) -> str:
    return textwrap.dedent(f"""
        [metadata]
        name = eventtrain-{name}
        version = 0.3
        [options]
        py_modules = hostile_{name}
        [options.entry_points]
        eventtrain.plugins =
            {name} = hostile_{name}:plugin
    """)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example and the hostile packages, installed there by pip."""
    # Not imported: it takes the place of a distutils that somebody may have loaded already.
    if find_spec("setuptools") is None:
        pytest.skip("needs setuptools to build packages")
    work = tmp_path_factory.mktemp("packages")
    # Copies, as building leaves files behind.
    ignored = shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    sources = [
        Path(shutil.copytree(folder, work / folder.name, ignore=ignored))
        for folder in (EXAMPLE, TEMPLATE)
    ]
    for name, code in HOSTILE.items():
        source = work / name
        source.mkdir()
        (source / "setup.cfg").write_text(setup_cfg(name))
        shutil.copy(EXAMPLE / "pyproject.toml", source)
        (source / f"hostile_{name}.py").write_text(textwrap.dedent(code))
        sources.append(source)
    target = work / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(target), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


def train(site: Path, arguments: str, cwd: Path, **environ: str) -> str:
    program = textwrap.dedent(TRAIN).replace("{arguments}", arguments)
    path = os.pathsep.join([str(site), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environ},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def samples(path: Path) -> dict[str, float]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_the_example_package_exports_the_metrics_of_a_run(site: Path, tmp_path: Path) -> None:
    assert "completed" in train(site, "plugins=['prometheus']", tmp_path)
    values = samples(tmp_path / "eventtrain.prom")
    assert values["eventtrain_running"] == 0
    assert values["eventtrain_steps_total"] == 8
    assert values["eventtrain_epoch"] == 1
    assert values['eventtrain_metric{name="valid_loss"}'] >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["eventtrain.prom"]


def test_the_example_package_takes_options(site: Path, tmp_path: Path) -> None:
    train(site, "plugins={'prometheus': {'path': 'other.prom', 'every': 1}}", tmp_path)
    assert (tmp_path / "other.prom").exists()


def test_the_template_works_as_it_is(site: Path, tmp_path: Path) -> None:
    output = train(site, "plugins={'yours': {'every': 4}}", tmp_path)
    assert output.splitlines() == ["4 batches, 4 steps", "8 batches, 8 steps", "completed"]


def test_the_environment_adds_the_example_to_an_unchanged_program(site, tmp_path: Path) -> None:
    train(site, "", tmp_path, EVENTTRAIN_PLUGINS="prometheus")
    assert (tmp_path / "eventtrain.prom").exists()


@pytest.mark.parametrize(("name", "cause"), BROKEN.items())
def test_a_hostile_package_is_named_with_the_cause(
    name: str, cause: str, site: Path, tmp_path: Path
) -> None:
    output = train(site, f"plugins=['{name}']", tmp_path)
    assert f"PluginError: plugin '{name}' of eventtrain-{name} 0.3" in output
    assert cause in output


def test_all_of_them_together_do_not_end_a_run_that_is_told_to_go_on(site, tmp_path: Path) -> None:
    output = train(
        site, "plugins='all', plugins_on_error='warn', plugin_errors='disable'", tmp_path
    )
    assert "completed" in output
    assert "the network is gone" in output
    assert output.count("could not be loaded") == len(BROKEN)
    assert (tmp_path / "eventtrain.prom").exists()


def test_an_unknown_plugin_lists_those_there_are(site: Path, tmp_path: Path) -> None:
    output = train(site, "plugins=['promtheus']", tmp_path)
    assert "Did you mean 'prometheus'?" in output


def eventtrain(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from eventtrain.cli import main; code = main(); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])},
        timeout=120,
    )


def test_the_list_of_plugins_tells_the_broken_ones_without_importing_torch(
    site: Path, tmp_path: Path
) -> None:
    done = eventtrain(site, tmp_path, "plugins")
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert "prometheus  (eventtrain-prometheus " in done.stdout
    assert "options: path='eventtrain.prom', every=100" in done.stdout
    for name, cause in BROKEN.items():
        assert f"{name}  (eventtrain-{name} 0.3)\n  hostile_{name}:plugin" in done.stdout
        assert f"  broken: {cause}" in done.stdout
    assert done.stdout.endswith(f"{len(BROKEN)} broken\n")


def test_training_with_an_installed_plugin_needs_its_name_only(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    done = eventtrain(site, tmp_path, "train", "--plugin", "prometheus", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert samples(tmp_path / "eventtrain.prom")["eventtrain_steps_total"] == 23
