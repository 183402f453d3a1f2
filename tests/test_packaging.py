"""What is built from the tree holds what it should, and can be installed, editable or not."""

from __future__ import annotations

import email.message
import email.parser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

import eventtrain

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {
    *("bench", "cli", "demo", "dev", "docs", "jobs", "mlflow", "notebook", "optuna", "ray"),
    *("report", "test", "trackers", "wandb", "watch"),
}

TYPED = """\
from eventtrain import Runner

reveal_type(Runner().token)
"""

pytestmark = [
    pytest.mark.skipif(
        not (find_spec("build") and find_spec("pip") and find_spec("setuptools")),
        reason="building needs the packages build, pip and setuptools: pip install -e '.[test]'",
    ),
]


class Editable(NamedTuple):
    """An editable install.

    Attributes:
        clone: What was installed, a folder that is called eventtrain.
        site: The ``site-packages`` of its virtual environment.
        python: The interpreter there.
    """

    clone: Path
    site: Path
    python: Path


def run(
    *arguments: str, cwd: Path, path: str = "", program: Path | str = sys.executable, **env: str
) -> str:
    """Run Python, or another program, with ``path`` as PYTHONPATH; return what it printed."""
    done = subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **env},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_tree(target: Path) -> Path:
    """Copy the tree, because building leaves folders behind."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    return Path(shutil.copytree(ROOT, target, ignore=ignored))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was built from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    run(
        *("-m", "build", "--no-isolation", "--outdir", str(folder)),
        cwd=copy_tree(folder / "tree"),
        PYTHONWARNINGS="error",  # such as what setuptools is going to drop
    )
    return folder


def install_editable(made: Editable, **env: str) -> None:
    """Install the clone into its virtual environment, without what it depends on."""
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    run(
        *("-m", "pip", "install", *options, "--editable", str(made.clone)),
        cwd=made.clone.parent,
        program=made.python,
        **env,
    )


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Editable:
    """An editable install in a virtual environment that borrows all other packages."""
    folder = tmp_path_factory.mktemp("editable").resolve()
    clone = copy_tree(folder / "eventtrain")
    venv.create(folder / "venv", symlinks=os.name != "nt")
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run("-c", where, cwd=folder, program=python).strip())
    # Folders that a .pth file names come last, and .pth files in them do not count.
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    made = Editable(clone, site, python)
    install_editable(made)
    return made


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    """The wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.parser.Parser().parsestr(archive.read(name).decode())


def sources(folder: str = "eventtrain") -> set[str]:
    """Every module in a folder, as a path from the root of the tree."""
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}


def install(wheel: Path, target: Path) -> None:
    """Unpack the wheel as pip does, without what it depends on."""
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target))
    run("-m", "pip", "install", *options, str(wheel), cwd=target.parent)


def test_the_wheel_holds_every_module_the_type_marker_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    benchmarks = {f"eventtrain/{name}" for name in sources("benchmarks")}
    page = {f"eventtrain/reports/page.{ending}" for ending in ("css", "js")}
    assert names == sources() | benchmarks | page | {"eventtrain/py.typed"}


def test_the_sdist_holds_what_it_takes_to_test_it_and_nothing_else(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = [member.name for member in archive.getmembers() if member.isfile()]
    names = {name.partition("/")[2] for name in members if ".egg-info/" not in name}
    tree = built / "tree"
    folders = ("benchmarks", "docs", "eventtrain", "examples", "tests")
    files = {
        path.relative_to(tree).as_posix()
        for folder in folders
        for path in (tree / folder).rglob("*")
        if path.is_file()
    }
    others = {
        "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "PKG-INFO",
        "README.md", "SECURITY.md", "constraints.txt", "mkdocs.yml", "pyproject.toml", "setup.cfg",
        "setup.py",
    }  # fmt: skip
    assert names == files | others


def test_the_metadata_names_every_extra(metadata: email.message.Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS


def test_installing_without_extras_asks_for_torch_and_blinker_only(
    metadata: email.message.Message,
) -> None:
    plain = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.partition(">")[0].partition("<")[0] for line in plain) == [
        "blinker",
        "torch",
    ]


def test_the_version_is_the_packages_own(metadata: email.message.Message) -> None:
    assert metadata["Version"] == eventtrain.__version__


def test_the_classifiers_claim_what_the_readme_says_is_tested(
    metadata: email.message.Message,
) -> None:
    text = metadata.get_payload()
    (system, pythons) = re.findall(r"Tested on (\w+) with Python ([\d., and]+\d)", text)[0]
    prefixes = ("Operating System ::", "Programming Language :: Python :: 3.")
    lines = metadata.get_all("Classifier", [])
    claimed = [line.rpartition(" :: ")[2] for line in lines if line.startswith(prefixes)]
    assert claimed == [system, *re.findall(r"3\.\d+", pythons)]


def test_what_several_places_must_say_is_the_same_in_all() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    python = config["options"]["python_requires"].removeprefix(">=")
    assert config["mypy"]["python_version"] == python
    assert project["tool"]["ruff"]["target-version"] == f"py{python.replace('.', '')}"
    # An extra names what it needs, whatever another extra names.
    lines = "\n".join(config["options.extras_require"].values()).splitlines()
    wanted = {line for line in lines if line and not line.startswith("eventtrain[")}
    packages = [re.split(r"[<>=]", line)[0] for line in wanted]
    assert sorted(packages) == sorted(set(packages)), sorted(wanted)
    assert set(project["build-system"]["requires"]) <= wanted


def test_the_licence_travels_with_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.endswith("LICENSE") for name in archive.namelist())


def test_the_licence_is_named_as_an_expression(metadata: email.message.Message) -> None:
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]


def test_the_installed_wheel_can_be_imported(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install(wheel, target)
    program = "import eventtrain; print(eventtrain.__file__); eventtrain.Runner()"
    printed = run("-W", "error", "-c", program, cwd=tmp_path, path=str(target))
    assert Path(printed.strip()) == target / "eventtrain" / "__init__.py"


def test_the_installed_wheel_brings_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        assert "eventtrain = eventtrain.cli:main" in archive.read(name).decode()


def test_the_installed_wheel_brings_the_benchmarks(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install(wheel, target)
    printed = run(
        *("-m", "eventtrain", "bench", "emit", "--quick", "--json", str(tmp_path / "found.json")),
        cwd=tmp_path,
        path=str(target),
    )
    assert "one emission, 10 idle handlers" in printed
    # The code is not in a repository's working tree, even if its environment is.
    assert json.loads((tmp_path / "found.json").read_text())["environment"]["commit"] is None


# An editable install


@pytest.mark.parametrize("place", ["elsewhere", "in the clone", "beside the clone"])
def test_an_editable_install_can_be_imported_from_any_folder(
    editable: Editable, place: str, tmp_path: Path
) -> None:
    # Beside the clone, Python sees a folder without __init__.py that has the package's name.
    folders = {"in the clone": editable.clone, "beside the clone": editable.clone.parent}
    code = "import eventtrain; print(eventtrain.__file__); from eventtrain import Runner"
    printed = run(
        *("-W", "error", "-c", code),
        cwd=folders.get(place, tmp_path),
        program=editable.python,
    )
    assert Path(printed.strip()) == editable.clone / "eventtrain" / "__init__.py"


def test_an_editable_install_is_a_path_that_editors_can_follow(editable: Editable) -> None:
    (file,) = editable.site.glob("*eventtrain*.pth")
    assert file.read_text().split() == [str(editable.clone)]


def test_setuptools_warns_of_nothing_in_an_editable_install(editable: Editable) -> None:
    # Not of every warning: pip itself uses what Python deprecates.
    install_editable(editable, PYTHONWARNINGS="error::UserWarning")


def test_mypy_finds_the_types_of_an_editable_install(editable: Editable, tmp_path: Path) -> None:
    if find_spec("mypy") is None:
        pytest.skip("needs mypy: pip install -e '.[test]'")
    # Torch has no part in the question, and takes ten times as long to read as all the rest.
    settings, cache = tmp_path / "mypy.ini", tmp_path / "cache"
    settings.write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")
    options = ("--strict", "--config-file", str(settings), "--cache-dir", str(cache))
    for folder in (tmp_path, editable.clone.parent):
        printed = run(*("-m", "mypy", *options, "-c", TYPED), cwd=folder, program=editable.python)
        assert 'Revealed type is "eventtrain.cancellation.token.CancellationToken"' in printed


def test_pyright_finds_the_types_of_an_editable_install(editable: Editable, tmp_path: Path) -> None:
    pyright = shutil.which("pyright")
    if pyright is None:
        pytest.skip("needs pyright, which no extra brings")
    options = ("--pythonpath", str(editable.python))
    for folder in (tmp_path, editable.clone.parent):
        (folder / "typed.py").write_text(TYPED)
        printed = run(*options, "typed.py", cwd=folder, program=pyright)
        assert 'is "CancellationToken"' in printed


def test_an_editable_install_brings_the_command_and_the_benchmarks(
    editable: Editable, tmp_path: Path
) -> None:
    script = editable.python.with_name("eventtrain")
    printed = run("bench", "--help", cwd=tmp_path, program=script)
    assert printed.startswith("usage: eventtrain bench")
