"""Callbacks that ship with eventtrain, one file each."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .avg_stats import AvgStats, AvgStatsCallback
    from .event_log import EventLog

# Type checkers would take any name for one that is there.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "avg_stats": ["AvgStats", "AvgStatsCallback"],
            "event_log": ["EventLog"],
        },
    )

__all__ = ["AvgStats", "AvgStatsCallback", "EventLog"]
