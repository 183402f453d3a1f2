"""What MkDocs is told besides ``docs/``: the README, files that pages link to, the reference.

The first page is the README. What a page links to outside of ``docs/`` becomes a page of its own:
texts as they are, code with its lines, a folder as a list of its files. The reference has what the
packages export, so that a new name is there by itself.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("eventtrain", "eventtrain.callbacks", "eventtrain.data", "eventtrain.distributed")
"""A name that several of them export is described where it comes first."""
WITH_INHERITED = ("Runner",)
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
REMARK = re.compile(r"^<!--[^\n]*-->\n", re.MULTILINE)
PICTURES = (".png", ".svg", ".jpg", ".gif")
LANGUAGES = {".py": "python", ".cfg": "ini", ".toml": "toml", ".sh": "sh", ".txt": "text"}
NOT_LISTED = re.compile(r"\.|__pycache__$|build$|dist$|.*\.egg-info$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and name all pages of a folder in the navigation."""
    written = {join("docs", file.src_uri) for file in files.documentation_pages()}
    for path in _reached({*written, "README.md", "CHANGELOG.md", "CONTRIBUTING.md"}) - written:
        uri = _uri_of(path)
        if path.startswith("docs/") and not uri.startswith("repository/"):
            continue  # a picture in docs/, which is there already
        if path.endswith(PICTURES):
            file = File.generated(config, uri, abs_src_path=str(ROOT / path))
        else:
            file = File.generated(config, uri, content=_shown(path))
        files.append(file)
    for uri, text in _reference().items():
        files.append(File.generated(config, uri, content=text))
    uris = [file.src_uri for file in files.documentation_pages()]
    config.nav = [each for item in config.nav or [] for each in _unfolded(item, uris)]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page in ``docs/`` to the pages that are made here."""
    if page.file.generated_by is not None:
        return markdown
    return _with_links(markdown, join("docs", page.file.src_uri))


# Files of the repository


def _uri_of(path: str) -> str:
    """The page that shows a path of the repository."""
    if path == "README.md":
        return "index.md"
    if (ROOT / path).is_dir():
        return f"repository/{path}/files.md"
    if path.startswith("docs/") and path.endswith((".md", *PICTURES)):
        return path[len("docs/") :]
    ending = "" if path.endswith((".md", *PICTURES)) else ".md"
    return f"repository/{path}{ending}"


def _target(link: str, path: str) -> str | None:
    """The path of the repository that a link in a file leads to, if it leads to one."""
    target = normpath(join(dirname(path), link))
    return target if "://" not in link and (ROOT / target).exists() else None


def _reached(paths: set[str]) -> set[str]:
    """The paths, and those that can be reached from them by links."""
    reached: set[str] = set()
    waiting = set(paths)
    while waiting:
        path = waiting.pop()
        reached.add(path)
        if (ROOT / path).is_dir() or path.endswith(".md"):
            found = {_target(link[1], path) for link in LINK.finditer(_text_of(path))}
            waiting |= {each for each in found if each is not None} - reached
    return reached


def _text_of(path: str) -> str:
    """The Markdown of a text or of a folder, with links as they are in the repository."""
    if not (ROOT / path).is_dir():
        return (ROOT / path).read_text(encoding="utf-8")
    names = sorted(each.name for each in (ROOT / path).iterdir() if not NOT_LISTED.match(each.name))
    # A folder's links are like those of a file that lies beside it.
    base = path.rpartition("/")[2]
    return "\n".join([f"# {path}", "", *(f"- [{name}]({base}/{name})" for name in names)])


def _shown(path: str) -> str:
    """The Markdown of the page that shows a path."""
    if (ROOT / path).is_dir() or path.endswith(".md"):
        return _with_links(_text_of(path), path)
    text = (ROOT / path).read_text(encoding="utf-8").rstrip()
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    language = LANGUAGES.get(Path(path).suffix, "text")
    head = f"---\ntitle: {path}\nsearch:\n  exclude: true\n---\n"
    return f'{head}\n# {path}\n\n{fence}{language} linenums="1"\n{text}\n{fence}\n'


def _with_links(text: str, path: str) -> str:
    """Lead the links of a file's text to pages, and leave out remarks to those who edit it."""
    here = dirname(_uri_of(path)) or "."

    def led(link: re.Match[str]) -> str:
        target = _target(link[1], path)
        return link[0] if target is None else f"]({relpath(_uri_of(target), here)}{link[2] or ''})"

    return LINK.sub(led, REMARK.sub("", text))


def _unfolded(item: Any, uris: list[str]) -> Iterator[Any]:
    """An item of the navigation, where ``FOLDER/`` stands for the pages of that folder."""
    if isinstance(item, str):
        inside = [uri for uri in uris if item.endswith("/") and uri.startswith(item)]
        in_order = sorted(inside, key=lambda uri: (not uri.endswith("/index.md"), uri.lower()))
        yield from in_order or [item]
        return
    for title, value in item.items():
        if isinstance(value, list):
            yield {title: [each for inner in value for each in _unfolded(inner, uris)]}
        elif value.endswith("/"):
            yield {title: list(_unfolded(value, uris))}
        else:
            yield {title: value}


# The reference


def _reference() -> dict[str, str]:
    """The pages of the reference: a list for each package, a page for each class."""
    pages = {
        "reference/events.md": "\n".join(_events()),
        "reference/commands.md": "\n".join(_commands()),
    }
    homes: dict[int, list[str]] = {}
    """The names of each object, by its identity: the first is where it is described."""
    values: dict[str, Any] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            values[f"{package}.{name}"] = value
            homes.setdefault(id(value), []).append(f"{package}.{name}")
    for package in PACKAGES:
        own = {name: value for name, value in values.items() if name.rpartition(".")[0] == package}
        first = inspect.getdoc(importlib.import_module(package)) or ""
        lines = [f"# {package}", "", first, "", "| name | what it is |", "| --- | --- |"]
        entries: list[str] = []
        for name, value in own.items():
            names = homes[id(value)]
            lines.append(f"| [`{name.rpartition('.')[2]}`][{names[0]}] | {_in_a_line(value)} |")
            if names[0] != name:
                continue
            if _has_a_page(value):
                title = name.rpartition(".")[2]
                text = "\n".join([f"---\ntitle: {title}\n---", "", *_entry(names, 1)])
                pages[f"reference/{package}/{title}.md"] = text
            else:
                entries += _entry(names, 2)
        pages[f"reference/{package}/index.md"] = "\n".join([*lines, "", *entries])
    return pages


def _has_a_page(value: Any) -> bool:
    return isinstance(value, type) and not issubclass(value, BaseException)


def _in_a_line(value: Any) -> str:
    """What an object is, by the first sentence of its description."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return f"a {type(value).__name__}"
    text = (inspect.getdoc(value) or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def _entry(names: list[str], level: int) -> Iterator[str]:
    """What has mkdocstrings describe an object, which may have other names besides."""
    yield "".join(f'<a id="{name}"></a>' for name in names[1:])
    yield ""
    yield f"::: {names[0]}"
    yield "    options:"
    yield f"      heading_level: {level}"
    if names[0].rpartition(".")[2] in WITH_INHERITED:
        yield "      inherited_members: true"
    yield ""


def _events() -> Iterator[str]:
    from eventtrain.events import ALWAYS, EVENTS

    yield "# Events"
    yield ""
    yield "In the order in which they first fire. What a handler can read on the run anywhere: "
    yield ", ".join(f"`{field}`" for field in ALWAYS) + "."
    yield ""
    yield "| event | scope | kind | when | to be read besides |"
    yield "| --- | --- | --- | --- | --- |"
    for event in EVENTS:
        fields = ", ".join(f"`{field}`" for field in event.fields)
        name = f'<a id="{event.name}"></a>`{event.name}`'
        yield f"| {name} | `{event.scope}` | {event.kind} | {event.meaning} | {fields} |"


def _commands() -> Iterator[str]:
    import click

    from eventtrain.cli import COMMANDS

    yield "# Commands"
    yield ""
    yield "What `eventtrain COMMAND --help` prints."
    for module in COMMANDS:
        command = module.make()
        context = click.Context(
            command, info_name=f"eventtrain {command.name}", max_content_width=100
        )
        yield f"\n## {command.name}\n\n```text\n{command.get_help(context)}\n```"
