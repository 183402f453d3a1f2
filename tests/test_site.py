"""The site: it builds, its links hold, all that is public is in it, and it asks nobody else."""

from __future__ import annotations

import functools
import http.server
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from eventtrain.cli import COMMANDS
from eventtrain.events import EVENTS

pytest.importorskip("material", reason="needs Material for MkDocs (extra 'docs')")
pytest.importorskip("mkdocstrings", reason="needs mkdocstrings (extra 'docs')")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("eventtrain", "eventtrain.callbacks", "eventtrain.data", "eventtrain.distributed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LOADED = {"src", "data", "poster", "srcset"}
"""Attributes whose file a browser loads by itself."""


class Html(HTMLParser):
    """The anchors of a page, where it leads, and what it has a browser load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        for name, value in attributes:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name == "href":
                self.links.append(value or "")
                if tag == "link":
                    self.loads.append(value or "")
            elif name in LOADED:
                self.loads.append(value or "")
                self.links.append(value or "")
            elif name == "style":
                self.loads += of_style(value or "")


def of_style(text: str) -> list[str]:
    """What a style sheet has a browser load."""
    found = re.findall(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""", text)
    return [first or second for first, second in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as a warning would fail it."""
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    """Every page by its file."""
    return {path: Html(path) for path in sorted(site.rglob("*.html"))}


def anchors_of(pages: dict[Path, Html]) -> set[str]:
    return {anchor for page in pages.values() for anchor in page.anchors}


def test_every_public_name_has_an_anchor(pages: dict[Path, Html]) -> None:
    names = [
        f"{package}.{name}"
        for package in PACKAGES
        for name in importlib.import_module(package).__all__
    ]
    assert len(names) > 100
    assert [name for name in names if name not in anchors_of(pages)] == []


def test_the_methods_of_a_run_are_described_on_its_page(
    site: Path, pages: dict[Path, Html]
) -> None:
    anchors = pages[site / "reference" / "eventtrain" / "Runner.html"].anchors
    named = ("fit", "validate", "predict", "iterate", "report", "on", "log", "one_batch")
    assert {f"eventtrain.Runner.{name}" for name in named} <= anchors


def test_every_event_and_every_command_is_described(site: Path, pages: dict[Path, Html]) -> None:
    events = pages[site / "reference" / "events.html"].anchors
    assert [event.name for event in EVENTS if event.name not in events] == []
    commands = pages[site / "reference" / "commands.html"].anchors
    names = [module.__name__.rpartition(".")[2] for module in COMMANDS]
    assert [name for name in names if name not in commands] == []


def test_arguments_stand_in_tables(site: Path) -> None:
    text = (site / "reference" / "eventtrain.callbacks" / "EarlyStopping.html").read_text()
    assert "Parameters:" in text
    assert "patience" in text
    assert "Args:" not in text


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Html]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            start = site if parts.path.startswith("/") else path.parent
            target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            fragment = unquote(parts.fragment)
            is_anchor = not fragment or target not in pages or fragment in pages[target].anchors
            if not (target.exists() and is_anchor):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_every_page_that_is_written_is_on_the_site(site: Path) -> None:
    written = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in written if not (site / page.with_suffix(".html")).exists()] == []
    assert not list(site.rglob("*.py"))


def test_nothing_is_asked_of_another_host(site: Path, pages: dict[Path, Html]) -> None:
    asked = {str(path): page.loads for path, page in pages.items()}
    asked |= {str(path): of_style(path.read_text()) for path in site.rglob("*.css")}
    foreign = [
        f"{path}: {url}"
        for path, urls in asked.items()
        for url in urls
        if urlsplit(url).netloc and urlsplit(url).scheme != "data"
    ]
    assert foreign == []


def test_the_search_knows_the_callbacks_and_not_the_code_of_examples(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text()
    assert "reference/eventtrain.callbacks/EarlyStopping.html" in index
    assert "repository/examples/own_loop.py.html" not in index


def test_a_page_is_light_or_dark(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert 'data-md-color-scheme="default"' in text
    assert 'data-md-color-scheme="slate"' in text


def test_the_program_of_the_first_steps_has_few_lines() -> None:
    text = (ROOT / "docs" / "getting_started.md").read_text()
    given, added, *_ = re.findall(r"```python\n# train\.py\n(.*?)```", text, re.DOTALL)
    assert len(given.splitlines()) + len(added.splitlines()) < 20
    assert len([line for line in added.splitlines() if line]) <= 4


# In a browser


class OwnHostAlone(http.server.SimpleHTTPRequestHandler):
    """Serves the site so that a browser refuses, aloud, to ask any other host."""

    def end_headers(self) -> None:
        policy = "default-src 'self' 'unsafe-inline' data: blob:"
        self.send_header("Content-Security-Policy", policy)
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where a server of this process has the site."""
    serve = functools.partial(OwnHostAlone, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def opened(url: str, profile: Path) -> tuple[str, list[str]]:
    """What a browser makes of a page, and what its console says."""
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--dump-dom", url,
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(
    "page", ["index.html", "getting_started.html", "reference/eventtrain/Runner.html"]
)
def test_a_browser_opens_a_page_without_errors(page: str, address: str, tmp_path: Path) -> None:
    dom, said = opened(f"{address}/{page}", tmp_path / "profile")
    assert said == []
    assert "js" in re.findall(r'<html[^>]*class="([^"]*)"', dom)[0].split()  # its script has run


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_page_that_fails_or_asks_another_host_is_noticed(
    site: Path, address: str, tmp_path: Path
) -> None:
    page = site / "failing.html"
    hosts = "".join(
        f"<script src='{scheme}://x.test/x.js'></script>" for scheme in ("http", "https")
    )
    page.write_text(f"{hosts}<script>nothing()</script>")
    try:
        _, said = opened(f"{address}/failing.html", tmp_path / "profile")
    finally:
        page.unlink()
    for complaint in ("nothing is not defined", "http://x.test/x.js", "https://x.test/x.js"):
        assert any(complaint in line for line in said), said
