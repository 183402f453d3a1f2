"""Lower rates when a number in the history stops getting better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim import lr_scheduler as torch_schedulers

from ..arguments import real_number, whole_number
from ..callback import handler
from .shared.readings import monitored
from .shared.schedulers import SchedulerCallback, stand_in

if TYPE_CHECKING:
    from ..runner import Runner

_WORDS = {"mode": ("min", "max"), "threshold_mode": ("rel", "abs")}


class ReduceLROnPlateau(SchedulerCallback):
    """Tells ``torch.optim.lr_scheduler.ReduceLROnPlateau`` a metric after every epoch.

    An epoch without a step of the optimizer is passed over, and one that was cut short and
    left no such metric.

    Args:
        monitor: A key of ``run.history``'s rows, which ``AvgStatsCallback`` and others
            fill in. Default ``"valid_loss"``.
        **options: torch's: ``mode``, ``factor``, ``patience``, ``threshold``,
            ``threshold_mode``, ``cooldown``, ``min_lr``, ``eps``.

    Raises:
        TypeError, ValueError: An option is unknown or out of range.
        ValueError: After an epoch: its row has no such key.
        TypeError: After an epoch: what its row holds there is no number.
    """

    def __init__(self, monitor: str = "valid_loss", **options: Any) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be a key of run.history's rows, got {monitor!r}")
        _check_numbers(options)
        # torch knows best which options it takes.
        torch_schedulers.ReduceLROnPlateau(stand_in(*options.values()), **options)
        super().__init__()
        self.monitor, self.options = monitor, options
        self._is_cut_short = False

    def make_for(self, run: Runner) -> Any:
        """Return torch's scheduler with the options."""
        return torch_schedulers.ReduceLROnPlateau(run.opt, **self.options)

    def begin_epoch(self, run: Runner) -> None:
        """Start over with what the epoch is known to lack."""
        super().begin_epoch(run)
        self._is_cut_short = False

    @handler(["after_cancel_train", "after_cancel_validate"])
    def note_cancellation(self, run: Runner) -> None:
        """Expect no metric of this epoch."""
        self._is_cut_short = True

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, and whether the epoch was cut short."""
        state = super().state_dict()
        return {**state, "is_cut_short": self._is_cut_short} if state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned.

        Raises:
            ValueError: There is no scheduler yet: it is made in ``begin_fit``.
        """
        super().load_state_dict(state)
        self._is_cut_short = state.get("is_cut_short", False)

    def after_epoch(self, run: Runner) -> None:
        """Step the scheduler with the metric, if the epoch counts."""
        if not self.epoch_counts(run):
            return
        row = run.history[-1]
        if self.monitor in row:
            self.scheduler.step(monitored(run, self.monitor, "ReduceLROnPlateau"))
        elif run.outcome == "completed" and not self._is_cut_short:
            keys = ", ".join(key for key in row if key != "epoch") or "none"
            raise ValueError(
                f"ReduceLROnPlateau(monitor={self.monitor!r}): the epoch's row in run.history has "
                f"no such key (there are: {keys}). AvgStatsCallback fills in the losses"
            )


def _check_numbers(options: dict[str, Any]) -> None:
    """Refuse what torch would take, to fail of it after an epoch."""
    for name, value in options.items():
        if name in ("patience", "cooldown"):
            options[name] = whole_number(name, value, 0, "epochs")
        elif name in ("factor", "threshold", "eps"):
            real_number(name, value)
        elif name == "min_lr":
            for rate in value if isinstance(value, (list, tuple)) else [value]:
                real_number(name, rate)
        elif name in _WORDS and value not in _WORDS[name]:
            raise ValueError(
                f"{name} must be {' or '.join(map(repr, _WORDS[name]))}, got {value!r}"
            )
