"""``eventtrain why``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def make() -> click.Command:
    """Make the command."""
    import click

    @click.command()
    @click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
    def why(run: Path, as_json: bool) -> None:
        """Say why a run stopped: how it ended, who asked, from which line, and how far it came.

        RUN is the folder that the run wrote into, or its event log. What an EventLog, a
        JSONLLogger or CSVLogger and a Checkpoint left there is read, in RUN and in folders
        right inside of it, after a crash or a kill too. Nothing is written.
        """
        from ..reports.run_facts import facts_of_folder, plain_json
        from ..reports.why import why as reasons
        from ..reports.why_text import why_text

        facts = facts_of_folder(run)
        click.echo(plain_json(reasons(facts)) if as_json else why_text(facts))

    return why
