"""The state of metrics in the middle of a phase, for a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def metric_state(metric: Any) -> dict[str, Any]:
    """Return what ``metric`` has gathered since it was reset.

    Args:
        metric: A torchmetrics metric or collection; or any object, whose ``state_dict``
            is taken where it has one.
    """
    parts = dict(_torchmetrics(metric))
    if not parts:
        state: dict[str, Any] = metric.state_dict() if hasattr(metric, "state_dict") else {}
        return state
    return {
        name: {"states": dict(part.metric_state), "updates": part.update_count}
        for name, part in parts.items()
    }


def set_metric_state(metric: Any, state: dict[str, Any]) -> None:
    """Put back what ``metric_state`` returned."""
    parts = dict(_torchmetrics(metric))
    if not parts:
        if state:
            metric.load_state_dict(state)
        return
    for name, part in parts.items():
        for key, value in state[name]["states"].items():
            setattr(part, key, value)
        # It is read only from outside, and without it compute() warns and caches.
        part._update_count = state[name]["updates"]
        part._computed = None


def _torchmetrics(metric: Any) -> Iterator[tuple[str, Any]]:
    """Find the metrics in a module: itself, or the members of a collection, by their names."""
    if hasattr(metric, "named_modules"):
        for name, part in metric.named_modules():
            if hasattr(part, "metric_state") and hasattr(part, "update_count"):
                yield name, part
