"""``eventtrain explain``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from .plugin_options import make_runner, plugin_options

if TYPE_CHECKING:
    import click

    from ..runner import Runner


def make() -> click.Command:
    """Make the command."""
    import click

    @click.command()
    @click.argument("target", required=False, metavar="[PATH.py:RUN]")
    @plugin_options
    @click.option("--event", metavar="NAME", help="Only the handlers of this event.")
    @click.option("--picture", "as_picture", is_flag=True, help="Draw the loop with its handlers.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead.")
    def explain(
        target: str | None, event: str | None, as_picture: bool, as_json: bool, **plugins: Any
    ) -> None:
        """Show every handler of a run in true order, without training.

        RUN is a Runner in PATH.py, or a function there that returns one; the file is
        imported, so training must stand behind `if __name__ == "__main__":`. Without
        it, the run is the one that `eventtrain train` makes with these plugins.
        """
        if as_picture and (event or as_json):
            raise click.UsageError("--picture goes with neither --event nor --json.")
        if target is not None and any(plugins.values()):
            raise click.UsageError(
                "the plugin options are for the run of `eventtrain train`; the one in "
                f"{target} says itself which it loads, or EVENTTRAIN_PLUGINS does."
            )
        with redirect_stdout(sys.stderr):  # what the file or a plugin prints is no explanation
            run = _run_of(target) if target is not None else _run_of_train(plugins)
        if as_picture:
            click.echo(run.picture(details=True))
            return
        explanation = run.bus.explain(event)
        if as_json:
            click.echo(json.dumps(explanation.to_dicts(), indent=2))
        else:
            click.echo(str(explanation))

    return explain


def _run_of_train(plugins: dict[str, Any]) -> Runner:
    from ..callbacks import AvgStatsCallback
    from ..learner import accuracy

    return make_runner([AvgStatsCallback(accuracy)], **plugins)


def _run_of(target: str) -> Runner:
    import click

    from ..errors import CallbackError
    from ..runner import Runner
    from .factory import find_in_file, split_target

    parts = split_target(target)
    if parts is None:
        raise click.BadParameter(
            f"{target!r} is not of the form PATH.py:RUN.", param_hint="'[PATH.py:RUN]'"
        )
    found = find_in_file(*parts)
    run = found if isinstance(found, Runner) or not callable(found) else found()
    if not isinstance(run, Runner):
        raise CallbackError(
            f"{target} is {type(run).__name__!r}, where an eventtrain.Runner or a function "
            "that returns one was expected"
        )
    return run
