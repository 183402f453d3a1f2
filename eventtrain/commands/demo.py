"""``eventtrain demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..launch import found_launch
from .options import positive

if TYPE_CHECKING:
    import click

_INSTALL = 'pip install "eventtrain[demo]"'


def make() -> click.Command:
    """Make the command."""
    import click

    @click.command(context_settings={"show_default": True})
    @click.option("--epochs", type=click.IntRange(min=1), default=25, help="Passes over the data.")
    @click.option("--lr", type=float, default=0.5, callback=positive, help="Learning rate of SGD.")
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
        if found_launch() is not None:
            raise click.ClickException(
                "the demo is for one process: start it without torchrun or srun. "
                "`eventtrain train` trains on several"
            )
        try:
            from .digits import DemoError, run_demo

            return run_demo(epochs=epochs, lr=lr, batch_size=batch_size, seed=seed, out=out)
        except ModuleNotFoundError as error:
            package = str(error.name).partition(".")[0].replace("sklearn", "scikit-learn")
            raise click.ClickException(f"the demo needs {package}: {_INSTALL}") from error
        except DemoError as error:
            raise click.ClickException(str(error)) from error

    return demo
