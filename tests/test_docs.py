"""The pages: everything that is listed anywhere is listed in full."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import eventtrain
from benchmarks import SUITES
from benchmarks.peers.registry import load_adapters
from eventtrain import Callback, callbacks, cli
from eventtrain.events import EVENTS
from eventtrain.foreign_names import named_here

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PAGES = sorted((ROOT / "docs" / "callbacks").glob("*.md"))
TEXTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *BENCHMARKS.glob("**/*.md")})
CALLBACK_FILES = {path.stem for path in Path(callbacks.__file__).parent.glob("[!_]*.py")}
HOMES = {name: getattr(callbacks, name).__module__.rpartition(".")[2] for name in callbacks.__all__}
"""The file of each name that the package of callbacks exports."""
CLASSES = [
    name
    for name in callbacks.__all__
    if isinstance(getattr(callbacks, name), type) and issubclass(getattr(callbacks, name), Callback)
]
COMMANDS = [module.__name__.rpartition(".")[2] for module in cli.COMMANDS]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_every_name_of_a_callbacks_file_is_shown_on_the_page_of_that_file() -> None:
    pages = {page.stem: "".join(examples(page)) for page in PAGES}
    unseen = [
        f"{name}: docs/callbacks/{file}.md"
        for name, file in HOMES.items()
        if not re.search(rf"\b{name}\b", pages.get(file, ""))
    ]
    assert unseen == []


def test_every_callback_has_a_row_that_leads_to_its_page() -> None:
    rows = [line for line in read("docs/callbacks.md").splitlines() if line.startswith("|")]
    links = {link for row in rows for link in re.findall(r"\[\w+\]\([^)]+\)", row)}
    assert [name for name in CLASSES if f"[{name}](callbacks/{HOMES[name]}.md)" not in links] == []


def test_every_file_of_a_callback_is_exported() -> None:
    assert CALLBACK_FILES - set(HOMES.values()) == set()


def test_every_file_of_a_callback_has_tests_of_its_own() -> None:
    tests = {path.name for path in (ROOT / "tests/callbacks").glob("test_*.py")}
    assert [file for file in sorted(CALLBACK_FILES) if f"test_{file}.py" not in tests] == []


def test_the_changelog_names_every_callback() -> None:
    changelog = read("CHANGELOG.md")
    assert [name for name in CLASSES if not re.search(rf"\b{name}\b", changelog)] == []


def test_every_file_that_makes_a_command_is_registered() -> None:
    files = {
        path.stem
        for path in (Path(cli.__file__).parent / "commands").glob("[!_]*.py")
        if "\ndef make()" in path.read_text(encoding="utf-8")
    }
    assert files == set(COMMANDS)


def test_every_command_has_a_row_in_the_readme() -> None:
    section = read("README.md").partition("\n## Command line\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)[ `]", section, re.MULTILINE) == COMMANDS


def test_the_changelog_names_every_command() -> None:
    changelog = " ".join(read("CHANGELOG.md").split())
    assert [name for name in COMMANDS if f"eventtrain {name}" not in changelog] == []


def test_every_benchmark_suite_is_listed() -> None:
    modules = [*BENCHMARKS.glob("[!_]*.py"), *BENCHMARKS.glob("[!_]*/__init__.py")]
    files = {
        path.parent.name if path.stem == "__init__" else path.stem
        for path in modules
        if "\ndef run(options: Options)" in path.read_text(encoding="utf-8")
    }
    assert files == set(SUITES)


def test_every_benchmark_suite_has_a_row_in_the_benchmarks_page() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", read("benchmarks/README.md"), re.MULTILINE)
    assert [name for name in SUITES if name not in rows] == []


def test_the_changelog_names_every_benchmark_suite() -> None:
    changelog = read("CHANGELOG.md")
    assert [name for name in SUITES if f"`{name}`" not in changelog] == []


def test_every_peer_has_a_row_in_both_tables_of_the_peers_page() -> None:
    page = read("benchmarks/peers/README.md")
    rows = re.findall(r"^\| ([^|`]+?) \|", page, re.MULTILINE)
    assert [name for name in load_adapters() if rows.count(name) != 2] == []


def test_the_version_of_every_peer_is_pinned_where_it_is_installed() -> None:
    folder = BENCHMARKS / "peers"
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("requirements*.txt")]
    pins = "\n".join([read("benchmarks/peers/README.md"), *texts])
    packages = {peer.package for peer in load_adapters().values()} - {"eventtrain"}
    assert [name for name in sorted(packages) if f"{name}==" not in pins] == []


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tests_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"\btests/[a-z_/]+\.py\b", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_citation_has_the_version_of_the_package() -> None:
    assert f"\nversion: {eventtrain.__version__}\n" in read("CITATION.cff")


def test_the_hooks_on_the_page_of_ways_over_are_those_that_messages_know() -> None:
    section = read("docs/ways_over.md").partition("\n## The hooks\n")[2].partition("\n## ")[0]
    known = {event.name for event in EVENTS}
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    hooks = [
        (here.strip(" `"), hook)
        for here, *others in rows
        for cell in others
        for hook in re.findall(r"`(\w+)`", cell)
    ]
    assert len(hooks) > 60
    wrong = [
        (here, hook)
        for here, hook in hooks
        if hook not in known and f"called {here!r}" not in named_here(hook)
    ]
    assert wrong == []
