"""The ``eventtrain`` command.

Click is optional, and so is all that a command needs besides: everything is
imported where it is used, so that help comes at once and a missing package
costs one line instead of a traceback.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

_INSTALL = 'pip install "eventtrain[demo]"'


def main() -> int:
    """Run the command that the arguments name.

    Returns:
        The exit code: 0, 1 after an error, 2 for a wrong command line, and 128
        plus the signal's number after a signal, as shells have it.
    """
    try:
        import click
    except ModuleNotFoundError:
        print(f"eventtrain: the command line needs click: {_INSTALL}", file=sys.stderr)
        return 1
    try:
        # Click's own standalone mode would answer Ctrl-C with exit code 1.
        code = _program().main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 128 + signal.SIGINT
    return code if isinstance(code, int) else 0


def _program() -> click.Group:
    import click

    from . import __version__

    @click.group(
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        epilog="Try: eventtrain demo",
    )
    @click.version_option(__version__, message="eventtrain %(version)s")
    def eventtrain() -> None:
        """Event-bus training for PyTorch."""

    for make in _COMMANDS:
        eventtrain.add_command(make())
    return eventtrain


def _demo() -> click.Command:
    import click

    @click.command(context_settings={"show_default": True})
    @click.option("--epochs", type=click.IntRange(min=1), default=25, help="Passes over the data.")
    @click.option("--lr", type=float, default=0.5, callback=_positive, help="Learning rate of SGD.")
    @click.option("--batch-size", type=click.IntRange(min=1), default=32, help="Images in a batch.")
    @click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        default=0,
        help="Fixes the first weights and the order of batches.",
    )
    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        default="./eventtrain-demo",
        metavar="DIR",
        help="Folder for loss.png, made if it is not there.",
    )
    def demo(epochs: int, lr: float, batch_size: int, seed: int, out: Path) -> int:
        """Train a small model on handwritten digits and draw its loss curves.

        The images come with scikit-learn, so nothing is downloaded; it takes a
        few seconds on a CPU. Ctrl-C ends it early, with a picture of what there is.
        """
        try:
            from .demo import DemoError, run_demo

            return run_demo(epochs=epochs, lr=lr, batch_size=batch_size, seed=seed, out=out)
        except ModuleNotFoundError as error:
            package = str(error.name).partition(".")[0].replace("sklearn", "scikit-learn")
            raise click.ClickException(f"the demo needs {package}: {_INSTALL}") from error
        except DemoError as error:
            raise click.ClickException(str(error)) from error

    return demo


def _positive(context: click.Context, option: click.Parameter, value: float) -> float:
    import click

    if not (math.isfinite(value) and value > 0):
        raise click.BadParameter(f"{value} is not a positive number.")
    return value


_COMMANDS: tuple[Callable[[], Any], ...] = (_demo,)
"""One function a command, in the order in which help lists them."""
