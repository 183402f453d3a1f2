"""HTML out of texts that somebody else wrote: all of them pass through here, and none as markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any


def escaped(value: Any) -> str:
    """Return a text so that it cannot be markup; characters that are not printed become spaces."""
    text = str(value)
    return html.escape("".join(c if c.isprintable() or c == "\n" else " " for c in text))


def element(tag: str, value: Any, kind: str = "") -> str:
    """Return an element around a text."""
    return f"<{tag}{_class(kind)}>{escaped(value)}</{tag}>"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], differing: bool = False) -> str:
    """Return a table that scrolls by itself where the page is narrow.

    Args:
        head: Titles of the columns.
        rows: Cells; numbers stand to the right.
        differing: Whether to mark rows whose cells, less the first, are not all the same.
    """
    lines = []
    for row in rows:
        marked = differing and len(set(map(str, row[1:]))) > 1
        cells = "".join(_cell(value) for value in row)
        lines.append(f"<tr{_class('differs' if marked else '')}>{cells}</tr>")
    titles = "".join(element("th", title) for title in head)
    body = "".join(lines)
    return (
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def bullets(texts: Iterable[Any]) -> str:
    """Return a list of texts."""
    return f"<ul>{''.join(element('li', text) for text in texts)}</ul>"


def section(title: str, *parts: str) -> str:
    """Return a titled part of a page; nothing where it has no content."""
    content = "".join(parts)
    return f"<section>{element('h2', title)}{content}</section>" if content else ""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return element("td", f"{value:.5g}", "number")
    if isinstance(value, int) and not isinstance(value, bool):
        return element("td", value, "number")
    return element("td", "" if value is None else value)


def _class(kind: str) -> str:
    return f' class="{escaped(kind)}"' if kind else ""
