"""``eventtrain report``."""

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
        "runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN..."
    )
    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        default="./report.html",
        show_default=True,
        metavar="FILE.html",
        help="Where the page goes; one that is there is replaced.",
    )
    @click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON array, and write no page."
    )
    def report(runs: tuple[Path, ...], out: Path, as_json: bool) -> None:
        """Write a page about a run, or about several side by side, that opens without a network.

        RUN is the folder that a run wrote into, or its event log; `eventtrain why` reads the same.
        The page has curves, learning rates, where the time went, every cancellation and failure
        with who, why and where, attempts that were resumed, environment and configuration; and
        it says what is missing and which callback would have told. --json needs no plotly.
        """
        from ..reports.run_facts import facts_of_folder, named_apart, plain_json

        if not as_json and out.suffix.lower() not in (".html", ".htm"):
            raise click.BadParameter(f"{out} does not end in .html.", param_hint="'--out'")
        found = named_apart([facts_of_folder(run) for run in runs])
        if as_json:
            from ..reports.page import data_of

            click.echo(plain_json([data_of(run) for run in found]))
            return
        from ..reports.run_report import write_report

        click.echo(f"report: {write_report(found, out)}")

    return report
