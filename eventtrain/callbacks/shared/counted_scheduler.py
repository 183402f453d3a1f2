"""Schedulers that are told how far the fit is (timm's), stepped as torch's are."""

from __future__ import annotations

from typing import Any, Literal

from torch.optim import lr_scheduler as torch_schedulers


def is_told(scheduler: Any) -> bool:
    """Whether it is a scheduler of timm's, or one like them."""
    return callable(getattr(scheduler, "step_update", None)) and hasattr(scheduler, "t_in_epochs")


class CountedScheduler:
    """Counts for a scheduler that is told the number of updates or epochs.

    Args:
        scheduler: One for which ``is_told`` holds.
        by: When it is going to be stepped, after each ``"batch"`` or after each ``"epoch"``.

    Attributes:
        scheduler: As given.
        optimizer: Its optimizer.
        count: How often it has been stepped.

    Raises:
        ValueError: ``scheduler`` goes by epochs and ``by`` says batches, or the reverse.
        TypeError: ``scheduler`` must be told a metric.
    """

    def __init__(self, scheduler: Any, by: Literal["batch", "epoch"]) -> None:
        name, in_epochs = type(scheduler).__name__, bool(scheduler.t_in_epochs)
        within = getattr(scheduler, "lr_scheduler", None)
        if isinstance(within, torch_schedulers.ReduceLROnPlateau):
            raise TypeError(f"a {name} must be told a metric: use the callback ReduceLROnPlateau")
        if in_epochs != (by == "epoch"):
            own, other = ("epoch", "updates") if in_epochs else ("batch", "epochs")
            raise ValueError(
                f"{name} has t_in_epochs={in_epochs}, and step={by!r} would never change a rate: "
                f'write LRScheduler(..., step="{own}"), or make it with lengths in {other} and '
                f"t_in_epochs={not in_epochs}"
            )
        self.scheduler, self.optimizer, self.count = scheduler, scheduler.optimizer, 0
        self._tell = scheduler.step if in_epochs else scheduler.step_update

    def step(self) -> None:
        """Tell the scheduler the next number.

        Raises:
            ValueError: A parameter group was added, for which it has no base value.
        """
        groups, values = self.optimizer.param_groups, self.scheduler.base_values
        if len(groups) != len(values):
            raise ValueError(f"it has {len(values)} base values")
        self.count += 1
        self._tell(self.count)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, the count, and where it ends if it says so.

        Functions that it was given are not in it: they are those of the one that loads it.
        """
        own = self.scheduler.state_dict().items()
        state = {key: each for key, each in own if not callable(each)}
        state["count"] = self.count
        length = getattr(self.scheduler, "get_cycle_length", None)
        return state if length is None else {**state, "total_iters": length()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        own = {key: each for key, each in state.items() if key not in ("count", "total_iters")}
        self.scheduler.load_state_dict(own)
        self.count = state["count"]
