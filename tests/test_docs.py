"""The pages in docs/: every example runs, and every callback has a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eventtrain import callbacks

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "callbacks").glob("*.md"))


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_of_a_callback_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    monkeypatch.chdir(tmp_path)
    (example,) = examples(page)
    try:
        # In this process: importing torch takes longer than most of them.
        exec(compile(example, str(page), "exec"), {"__name__": "__main__"})
    except ModuleNotFoundError as error:
        if "eventtrain[" not in str(error):
            raise
        pytest.skip(str(error))
    assert list(tmp_path.iterdir()) == []


def test_every_callback_has_a_page_that_shows_it() -> None:
    shown = "".join(text for page in PAGES for text in examples(page))
    assert [name for name in callbacks.__all__ if name not in shown] == []


def test_every_callback_has_a_row_in_the_list() -> None:
    listing = (ROOT / "docs" / "callbacks.md").read_text(encoding="utf-8")
    rows = "\n".join(line for line in listing.split("\n") if line.startswith("|"))
    classes = [name for name in callbacks.__all__ if name[0].isupper() and name != "AvgStats"]
    assert [name for name in classes if not re.search(rf"\[{name}\]\(", rows)] == []


def test_every_file_of_a_callback_is_exported_and_has_tests() -> None:
    folder = Path(callbacks.__file__).parent
    files = {path.stem for path in folder.glob("[!_]*.py")}
    homes = {getattr(callbacks, name).__module__.rpartition(".")[2] for name in callbacks.__all__}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests/callbacks").glob("*.py")}
    assert files - homes == set()
    assert files - tested == set()


def test_the_changelog_names_every_callback() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    classes = [name for name in callbacks.__all__ if name[0].isupper()]
    assert [name for name in classes if name not in changelog] == []


def test_every_command_is_registered_and_has_a_row_in_the_readme() -> None:
    from eventtrain import cli

    files = {
        path.stem
        for path in (Path(cli.__file__).parent / "commands").glob("[!_]*.py")
        if "\ndef make()" in path.read_text(encoding="utf-8")
    }
    registered = {module.__name__.rpartition(".")[2] for module in cli.COMMANDS}
    rows = re.findall(r"^\| `(\w+)[ `]", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert files == registered
    assert files - set(rows) == set()


def test_every_benchmark_suite_is_listed_and_documented() -> None:
    from benchmarks import SUITES

    folder = ROOT / "benchmarks"
    suites = {
        path.stem
        for path in folder.glob("[!_]*.py")
        if "\ndef run(" in path.read_text(encoding="utf-8")
    }
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert suites - set(SUITES) == set()
    assert [name for name in SUITES if f"`{name}`" not in page] == []


def test_every_peer_is_named_in_the_benchmarks_page() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    adapters = (ROOT / "benchmarks" / "peers" / "adapters").glob("[!_]*.py")
    names = [
        name
        for path in adapters
        for name in re.findall(r"@peer\(\s*\"([^\"]+)\"", path.read_text(encoding="utf-8"))
    ]
    assert len(names) >= 9
    assert [name for name in names if name not in page] == []
