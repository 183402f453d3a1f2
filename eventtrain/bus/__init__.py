"""The event bus: knows blinker, and nothing of torch."""

from .event_bus import EventBus
from .signals import Signal

__all__ = ["EventBus", "Signal"]
