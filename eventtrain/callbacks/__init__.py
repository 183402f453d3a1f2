"""Callbacks that ship with eventtrain, one file each."""

from .avg_stats import AvgStats, AvgStatsCallback

__all__ = ["AvgStats", "AvgStatsCallback"]
