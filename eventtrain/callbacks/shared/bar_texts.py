"""What bars say, and how far they are, on terminals and in notebooks alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .fit_length import fit_length

if TYPE_CHECKING:
    from ...runner import Runner


@dataclass(frozen=True)
class Wanted:
    """What is asked of bars.

    Attributes:
        loss: Show the loss of the last batch, for which the host waits for the device.
        metrics: Names in ``run.history`` to show; ``None`` for four at most, losses first.
        leave: Leave the bar over the fit when it has ended.
    """

    loss: bool
    metrics: list[str] | None
    leave: bool

    def metrics_of(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return what to show of a row beside a bar."""
        if self.metrics is not None:
            return {name: row[name] for name in self.metrics if name in row}
        names = [name for name, value in row.items() if isinstance(value, float)]
        names.sort(key=lambda name: not name.endswith("loss"))
        return {name: row[name] for name in names[:4]}

    def show_loss(self, bar: Any, run: Runner) -> None:
        """Put the batch's loss beside a bar, where that is wanted and there is one."""
        if self.loss and run.loss is not None:
            bar.set_postfix_str(f"loss={float(run.loss.detach().mean()):.4g}", refresh=False)


def phase_text(run: Runner) -> str:
    """Return which phase of which epoch is under way."""
    epoch = "" if run.epoch is None else f"epoch {run.epoch} "
    name = "" if run.valid_name is None else f" {run.valid_name}"
    return f"{epoch}{run.phase}{name}"


def units_done(run: Runner) -> int:
    """Return how many epochs are done, or steps in a fit that goes by them."""
    return run.epoch or 0 if run.total_steps is None else run.steps


def batches_of(run: Runner) -> int | None:
    """Return the batches of the phase that begins; of training those up to the fit's end."""
    if run.phase != "train" or run.epoch is None:
        return run.iters
    whole = fit_length(run).batches
    return run.iters if run.iters is None or whole is None else min(run.iters, whole - run.n_iter)
