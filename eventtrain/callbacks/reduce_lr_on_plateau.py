"""Lower rates when a number in the history stops getting better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim import lr_scheduler as torch_schedulers

from ..arguments import real_number, whole_number
from .shared.monitored import Monitored, MonitoringCallback, checked_mode
from .shared.schedulers import SchedulerCallback, stand_in

if TYPE_CHECKING:
    from ..runner import Runner

_THRESHOLD_MODES = ("rel", "abs")


class ReduceLROnPlateau(MonitoringCallback, SchedulerCallback):
    """Tells ``torch.optim.lr_scheduler.ReduceLROnPlateau`` a metric after every epoch.

    In a fit with ``validate_every`` it does so after every validation, which ``patience`` counts.

    An epoch without a step of the optimizer is passed over, and one that was cut short and
    left no such metric, or the metric of a validation that was cancelled.

    Args:
        monitor: A key of ``run.history``'s rows, which ``AvgStatsCallback`` and others
            fill in. Default ``"valid_loss"``.
        optimizer: Which of several optimizers, ``"g"`` say. Default ``None``, for the one that
            there is.
        **options: torch's: ``mode``, ``factor``, ``patience``, ``threshold``,
            ``threshold_mode``, ``cooldown``, ``min_lr``, ``eps``. ``mode`` must be said for a
            key that is called accuracy, f1, auc or the like.

    Raises:
        TypeError, ValueError: An option is unknown or out of range.
        ValueError: After an epoch: its row has no such key.
        TypeError: After an epoch: what its row holds there is no number.
    """

    monitored: Monitored

    def __init__(
        self, monitor: str = "valid_loss", *, optimizer: str | None = None, **options: Any
    ) -> None:
        if "mode" in options:
            checked_mode(options["mode"])  # None is none of torch's
        self.monitored = Monitored(monitor, options.get("mode"), user="ReduceLROnPlateau")
        _check_numbers(options)
        # torch knows best which options it takes.
        torch_schedulers.ReduceLROnPlateau(stand_in(*options.values()), **options)
        super().__init__(optimizer)
        self.options = options

    def make_for(self, run: Runner) -> Any:
        """Return torch's scheduler with the options."""
        return torch_schedulers.ReduceLROnPlateau(self.opt_of(run), **self.options)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, and whether the epoch was cut short."""
        state = super().state_dict()
        return {**state, "is_cut_short": self.is_cut_short} if state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned.

        Raises:
            ValueError: There is no scheduler yet: it is made in ``begin_fit``.
        """
        super().load_state_dict(state)
        self.is_cut_short = state.get("is_cut_short", False)

    def end_row(self, run: Runner) -> None:
        """Step the scheduler with the metric, if the row counts."""
        by_epochs = run.validate_every is None
        counts = self.epoch_counts(run) if by_epochs else run.outcome == "completed"
        if not counts:
            return
        value = self.reading(run)
        if value is not None:
            self.advance(value)

    def take_in(self, groups: list[dict[str, Any]]) -> None:
        """Have groups that were added lowered too, where there is one ``min_lr`` for all."""
        least = self.options.get("min_lr")
        if isinstance(least, (list, tuple)):
            raise ValueError(f"min_lr has {len(least)} rates")


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
        elif name == "threshold_mode" and value not in _THRESHOLD_MODES:
            raise ValueError(
                f"{name} must be {' or '.join(map(repr, _THRESHOLD_MODES))}, got {value!r}"
            )
