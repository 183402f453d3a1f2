"""The ``eventtrain`` command.

Click is optional, and so is all that a command needs besides: everything is
imported where it is used, so that help comes at once and a missing package
costs one line instead of a traceback.
"""

from __future__ import annotations

import signal
import sys
import traceback
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .commands import bench, demo, doctor, events, explain, plugins, replay, report, train, why
from .errors import EventTrainError, RemoteError
from .launch import found_launch

if TYPE_CHECKING:
    import click

COMMANDS = (demo, train, replay, why, report, explain, events, plugins, bench, doctor)
"""In the order in which help lists them."""

_MODULES = {"demo": ("sklearn", "matplotlib", "tqdm")}
"""What the extra ``demo`` brings for a command, besides click."""

_EPILOG = """\b
Try: eventtrain demo
Completion of commands and options by the shell:
  bash  eval "$(_EVENTTRAIN_COMPLETE=bash_source eventtrain)"
  zsh   eval "$(_EVENTTRAIN_COMPLETE=zsh_source eventtrain)"
  fish  _EVENTTRAIN_COMPLETE=fish_source eventtrain | source
"""


def main() -> int:
    """Run the command that the arguments name.

    Of several processes, those that train all do, and rank 0 alone does anything else. Errors are
    told by the rank that has them, and by rank 0.

    Returns:
        The exit code: 0, 1 after an error, 2 for a wrong command line, and 128
        plus the signal's number after a signal, as shells have it.
    """
    try:
        launch = found_launch()
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    rank = 0 if launch is None else launch.rank
    if rank and _is_for_one(sys.argv[1:]):
        return 0
    try:
        import click
    except ModuleNotFoundError:
        return _without_click(sys.argv[1:])
    settings = {"traceback": False}
    try:
        # Click's own standalone mode would answer Ctrl-C with exit code 1.
        code = _program(settings).main(prog_name="eventtrain", standalone_mode=False)
    except click.Abort:
        return 128 + signal.SIGINT
    except Exception as error:
        code = error.exit_code if isinstance(error, click.ClickException) else 1
        if rank and _is_told_by_zero(error):
            return code
        if settings["traceback"]:
            traceback.print_exception(error)
        if isinstance(error, click.ClickException):
            error.show()
        else:
            who = f"rank {rank}: " if rank else ""
            print(f"{who}{_in_short(error, traced=settings['traceback'])}", file=sys.stderr)
        return code
    return code if isinstance(code, int) else 0


def _is_for_one(arguments: list[str]) -> bool:
    """Whether rank 0 alone does what the arguments say: all but to train, and to examine."""
    command = next((each for each in arguments if not each.startswith("-")), None)
    is_help = not {"-h", "--help", "--version"}.isdisjoint(arguments)
    return is_help or command not in ("train", "demo", "bench", "doctor")


def _is_told_by_zero(error: Exception) -> bool:
    """Whether rank 0 prints the same: of the command line, or of another rank that has failed."""
    import click

    if isinstance(error, RemoteError):
        return bool(error.ranks) and 0 not in error.ranks
    return isinstance(error, click.ClickException)


def _without_click(arguments: list[str]) -> int:
    """Run ``doctor``, which is to tell what is missing, or say what the others need."""
    if arguments[:1] == ["doctor"]:
        return doctor.main(arguments[1:])
    extra = "cli" if all(map(find_spec, _MODULES.get(" ".join(arguments[:1]), ()))) else "demo"
    print(
        f'eventtrain: the command line needs click: pip install "eventtrain[{extra}]"',
        file=sys.stderr,
    )
    return 1


def _program(settings: dict[str, bool]) -> click.Group:
    import click

    from . import __version__

    def keep(context: click.Context, option: click.Parameter, value: bool) -> None:
        settings["traceback"] = value

    @click.group(
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        epilog=_EPILOG,
    )
    @click.version_option(__version__, message="eventtrain %(version)s")
    @click.option(
        "--traceback",
        is_flag=True,
        expose_value=False,
        callback=keep,
        help="Show where an error comes from.",
    )
    def eventtrain() -> None:
        """Event-bus training for PyTorch."""

    for module in COMMANDS:
        eventtrain.add_command(module.make())
    return eventtrain


def _in_short(error: Exception, *, traced: bool) -> str:
    """Say in a line or two what went wrong.

    Messages of eventtrain's own name the remedy; others may need the traceback.
    """
    expected = isinstance(error, (EventTrainError, OSError, ModuleNotFoundError))
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "blinker"):
        return f"Error: {error.name} is missing: `eventtrain doctor` says what to install"
    if expected and str(error):
        return f"Error: {error}"
    message: Any = str(error).strip().partition("\n")[0]
    line = f"Error: {type(error).__name__}" + (f": {message}" if message else "")
    if traced:
        return line
    return f"{line}\n(eventtrain --traceback COMMAND ... shows where it comes from)"
