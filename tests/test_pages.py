"""README.md and docs/: every block of code runs as printed, or says beside it why it does not.

The Python blocks of a page run in order, as one program. Shell blocks run in a folder in which
``.venv/bin`` has the commands; what their ``pip install`` would bring is there already, and so
are the programs that Python blocks above them name in their first line, ``# train.py``. A comment
``<!-- not run: why -->`` above a block keeps it from being run. Blocks of ``text`` are what
something prints.
"""

from __future__ import annotations

import configparser
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import invalidate_caches
from pathlib import Path

import pytest

from eventtrain import EventBus, Runner

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
PLUGINS = {"prometheus": "prometheus_plugin", "yours": "plugin_template"}
"""The packages in ``examples/`` by the names of their plugins."""
FENCE = re.compile(
    r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A block of code on a page; ``why_not`` says why it does not run."""

    page: Path
    line: int
    language: str
    text: str
    why_not: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start(3)) + 1
        yield Block(page, line, found[2], found[3], found[1])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = [block for block in BLOCKS if block.why_not is None]
SHELL = [block for block in RUN if block.language in ("sh", "console")]
TRACKERS = [ROOT / "docs" / "callbacks" / f"{name}.md" for name in ("mlflow", "wandb")]
"""Pages that tests/trackers runs: what these import warns of much."""
PROGRAMS = [
    page
    for page in PAGES
    if page not in TRACKERS and any(b.page == page and b.language == "python" for b in RUN)
]


def install(plugin: str, site: Path) -> None:
    """Install one of the example packages, as pip would leave it."""
    source = ROOT / "examples" / PLUGINS[plugin]
    setup = configparser.ConfigParser()
    setup.read(source / "setup.cfg")
    name, version = setup["metadata"]["name"], setup["metadata"]["version"]
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    entries = setup["options.entry_points"]["eventtrain.plugins"]
    (info / "entry_points.txt").write_text(f"[eventtrain.plugins]{entries}\n")
    for module in source.glob("*.py"):
        shutil.copy(module, site)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where the package of the pages is installed."""
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    install("prometheus", tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    invalidate_caches()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run_program(page: Path) -> dict[str, object]:
    """Run the Python blocks of a page in this process: importing torch takes longer than most."""
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        for block in RUN:
            if block.page == page and block.language == "python":
                placed = "\n" * (block.line - 1) + block.text  # tracebacks show the page's lines
                exec(compile(placed, str(page), "exec"), names)
    except ModuleNotFoundError as error:
        if "eventtrain[" not in str(error):
            raise
        pytest.skip(str(error))
    return names


@pytest.mark.parametrize("page", PROGRAMS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page: Path, folder: Path) -> None:
    run_program(page)
    if page.parent.name == "callbacks":
        assert list(folder.iterdir()) == []


def test_the_plugin_on_the_page_of_plugins_works(folder: Path, learner, monkeypatch) -> None:
    register = run_program(ROOT / "docs" / "plugins.md")["register"]
    bus, sent = EventBus(), []
    register(bus, every=2)
    bus.on("after_upload", lambda run: sent.append(run.n_iter))
    Runner(bus=bus).fit(2, learner)
    assert len(sent) == 3


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_shell_block_runs_and_prints_what_is_shown(block: Block, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    work, site = tmp_path / "work", tmp_path / "site"
    commands = {
        "python": 'exec "$PYTHON" "$@"',
        "eventtrain": 'exec "$PYTHON" -m eventtrain "$@"',
        "torchrun": 'exec "$PYTHON" -m torch.distributed.run "$@"',
        "pip": "",
    }
    (work / ".venv" / "bin").mkdir(parents=True)
    for name, line in commands.items():
        (work / ".venv" / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (work / ".venv" / "bin" / name).chmod(0o755)
    for plugin in PLUGINS:
        if re.search(rf"\b{plugin}\b", block.text):
            install(plugin, site)
    for name, text in programs_above(block).items():
        (work / name).write_text(text)
    environment = {
        **os.environ,
        "PATH": f"{work / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
    }
    for command, shown in commands_in(block):
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            cwd=work,
            env=environment,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if shown:
            assert re.fullmatch(pattern_of(shown), masked(done.stdout), re.DOTALL), done.stdout


def programs_above(block: Block) -> dict[str, str]:
    """The files that a block has at hand: those that blocks above it name in their first line.

    Where none is called ``train.py``, that is the example of the README.
    """
    programs: dict[str, str] = {}
    for each in RUN:
        named = re.match(r"# (\w+\.py)\n", each.text)
        if named and each.page == block.page and each.line < block.line:
            programs[named[1]] = programs.get(named[1], "") + each.text
    return {"train.py": next(b.text for b in RUN if b.language == "python"), **programs}


def commands_in(block: Block) -> list[tuple[str, str]]:
    """The commands of a block, each with what the page shows that it prints."""
    if block.language == "sh":
        commands = re.findall(r"^.*<<'END'.*\n(?:.*\n)*?END$|^.+$", block.text, re.MULTILINE)
        return [(command, "") for command in commands]
    return [
        (each.partition("\n")[0], each.partition("\n")[2])
        for each in re.split(r"^\$ ", block.text, flags=re.MULTILINE)
        if each
    ]


def masked(text: str) -> str:
    """The text, but for numbers and the width of columns."""
    lines = re.sub(r"\d+(\.\d+)?", "#", text).rstrip().splitlines()
    return "\n".join(re.sub(r" +", " ", line).rstrip() for line in lines)


def pattern_of(shown: str) -> str:
    """A pattern of what is printed, where a line of dots stands for any lines."""
    lines = masked(shown).splitlines()
    return "\n".join(".*" if line.strip() == "..." else re.escape(line) for line in lines)


def test_every_block_is_of_a_known_kind() -> None:
    assert {block.language for block in BLOCKS} <= {"python", "sh", "console", "text"}


def test_every_reason_stands_above_a_block() -> None:
    said = sum(page.read_text(encoding="utf-8").count("<!-- not run") for page in PAGES)
    assert said == len(BLOCKS) - len(RUN)


def test_most_blocks_run() -> None:
    unrun = [str(block) for block in BLOCKS if block.why_not and block.language != "text"]
    assert len(unrun) < 9  # those that install packages, or need some that are heavy


def test_the_lines_of_one_batch_are_those_of_the_loop() -> None:
    (lines,) = (b.text for b in BLOCKS if b.text.startswith("self.pred = self.learn.call"))
    source = [line.strip() for line in inspect.getsource(Runner.one_batch).splitlines()]
    shown = [line.partition("#")[0].strip() for line in lines.splitlines()]
    assert [line for line in shown if line not in (*source, "...")] == []
