"""Profiling of a bus, under the path at which others import it."""

from .bus.profiling import MAX_SPANS, Profile

__all__ = ["MAX_SPANS", "Profile"]
