"""``eventtrain events``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..events import ALWAYS, EVENTS
from ..text_table import text_table

if TYPE_CHECKING:
    import click

_FIELDS = ("name", "scope", "kind", "fields", "meaning")
_VERBS = {"opening": "opens", "point": "in", "closing": "closes"}


def make() -> click.Command:
    """Make the command."""
    import click

    @click.command()
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead.")
    def events(as_json: bool) -> None:
        """List the events: where they fire, what a handler can read there, what they mean."""
        if as_json:
            rows = [{field: getattr(event, field) for field in _FIELDS} for event in EVENTS]
            click.echo(json.dumps(rows, indent=2))
        else:
            from ..bus.event_bus import EventBus
            from ..reports.picture import picture

            click.echo("\n".join([picture(EventBus()), "", *_table()]))

    return events


def _table() -> Iterator[str]:
    yield "Fields of the run that are valid, besides " + ", ".join(ALWAYS) + ":"
    yield ""
    rows = []
    for event in EVENTS:
        rows.append((event.name, f"{_VERBS[event.kind]} {event.scope}: {event.meaning}"))
        rows.append(("", ", ".join(event.fields)))
    yield text_table(rows)
