"""Callbacks that ship with eventtrain, one file each."""

from .avg_stats import AvgStats, AvgStatsCallback
from .event_log import EventLog

__all__ = ["AvgStats", "AvgStatsCallback", "EventLog"]
