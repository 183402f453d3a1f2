"""Event-bus training for PyTorch: ordered handlers, cancellation with a reason."""

from typing import TYPE_CHECKING

from .lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .bus import EventBus, Signal
    from .callback import Callback, TrainEvalCallback, camel2snake, handler, listify
    from .callbacks import AvgStats, AvgStatsCallback, EventLog
    from .cancellation import Cancellation, CancellationToken, Scope
    from .checkpoint_files import load_checkpoint
    from .data import DataBunch, Dataset, TensorLoader, get_dls
    from .datasets import get_data
    from .errors import (
        CallbackError,
        CheckpointError,
        DataError,
        EmptyLoaderError,
        EventTrainError,
        OrderError,
        PluginError,
        ScopeNotOpenError,
        UnknownEventError,
    )
    from .events import EVENTS, Event
    from .handlers import Subscription
    from .learner import Learner, accuracy, get_model
    from .runner import Runner
    from .state import FitResult

__version__ = "0.1.0"

# Type checkers would take any name for one that is there.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "bus": ["EventBus", "Signal"],
            "callback": ["Callback", "TrainEvalCallback", "camel2snake", "handler", "listify"],
            "callbacks.avg_stats": ["AvgStats", "AvgStatsCallback"],
            "callbacks.event_log": ["EventLog"],
            "cancellation": ["Cancellation", "CancellationToken", "Scope"],
            "checkpoint_files": ["load_checkpoint"],
            "data": ["DataBunch", "Dataset", "TensorLoader", "get_dls"],
            "datasets": ["get_data"],
            "errors": [
                "CallbackError",
                "CheckpointError",
                "DataError",
                "EmptyLoaderError",
                "EventTrainError",
                "OrderError",
                "PluginError",
                "ScopeNotOpenError",
                "UnknownEventError",
            ],
            "events": ["EVENTS", "Event"],
            "handlers": ["Subscription"],
            "learner": ["Learner", "accuracy", "get_model"],
            "runner": ["Runner"],
            "state": ["FitResult"],
        },
    )

__all__ = [
    "EVENTS",
    "AvgStats",
    "AvgStatsCallback",
    "Callback",
    "CallbackError",
    "Cancellation",
    "CancellationToken",
    "CheckpointError",
    "DataBunch",
    "DataError",
    "Dataset",
    "EmptyLoaderError",
    "Event",
    "EventBus",
    "EventLog",
    "EventTrainError",
    "FitResult",
    "Learner",
    "OrderError",
    "PluginError",
    "Runner",
    "Scope",
    "ScopeNotOpenError",
    "Signal",
    "Subscription",
    "TensorLoader",
    "TrainEvalCallback",
    "UnknownEventError",
    "accuracy",
    "camel2snake",
    "get_data",
    "get_dls",
    "get_model",
    "handler",
    "listify",
    "load_checkpoint",
]
