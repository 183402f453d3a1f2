"""``eventtrain replay``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def make() -> click.Command:
    """Make the command."""
    import click

    @click.command()
    @click.argument(
        "file", type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
    )
    def replay(file: Path) -> None:
        """Draw the run that an EventLog wrote into FILE.

        One line an event, indented by scope; scopes that repeat are drawn once,
        with their number. Outcomes and cancellations stand beside the events.
        `eventtrain train --log` writes such a file.
        """
        from ..reports.replay import replay as draw

        click.echo(draw(file))

    return replay
