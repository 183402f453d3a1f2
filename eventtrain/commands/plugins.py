"""``eventtrain plugins``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from textwrap import indent
from typing import TYPE_CHECKING

from ..text_table import text_table

if TYPE_CHECKING:
    import click

    from ..bus.explain import Row
    from ..reports.plugin_reports import PluginReport

_NONE = """no plugins are installed
A package brings one through an entry point in the group eventtrain.plugins; pip install it here."""


def make() -> click.Command:
    """Make the command."""
    import click

    @click.command()
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead.")
    def plugins(as_json: bool) -> None:
        """List the installed plugins: what brings them, what they offer, what is broken.

        Each is loaded for itself and without options onto a bus that nothing runs
        on. A broken one is listed with the reason and the exit code is 0 all the same.
        Nothing that is installed takes part in a run unasked: `eventtrain train
        --plugin NAME`, `Runner(plugins=["NAME"])` or EVENTTRAIN_PLUGINS=NAME ask for it.
        """
        from ..reports.plugin_reports import report_plugins

        reports = report_plugins()
        if as_json:
            click.echo(json.dumps([report.to_dict() for report in reports], indent=2))
        else:
            click.echo("\n".join(_lines(reports)) if reports else _NONE)

    return plugins


def _lines(reports: Sequence[PluginReport]) -> Iterator[str]:
    for report in reports:
        package = " ".join(filter(None, [report.distribution, report.version]))
        yield f"{report.name}  ({package or 'of an unknown package'})"
        kind = f" ({report.kind})" if report.kind else ""
        yield f"  {report.entry_point}{kind}"
        if report.options:
            yield f"  options: {', '.join(report.options)}"
        if report.status != "ok":
            reason = " ".join(str(report.reason).split())  # messages may have several lines
            yield f"  {report.status}: {reason}"
        if report.handlers:
            yield indent(text_table([(row.event, _details(row)) for row in report.handlers]), "  ")
        yield ""
    broken = sum(report.status == "broken" for report in reports)
    yield f"{len(reports)} installed, {broken} broken"


def _details(row: Row) -> str:
    parts = [f"[{row.priority:g}] {row.handler}", row.constraints, row.filter]
    return "  ".join(filter(None, parts))
