"""Event-bus training for PyTorch: ordered handlers, cancellation with a reason."""

from typing import TYPE_CHECKING

from .lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .bus import EventBus as EventBus, Signal as Signal
    from .bus.subscription import Subscription as Subscription
    from .callback import (
        Callback as Callback,
        camel2snake as camel2snake,
        handler as handler,
        listify as listify,
    )
    from .callbacks import (
        AvgStats as AvgStats,
        AvgStatsCallback as AvgStatsCallback,
        Distributed as Distributed,
        EventLog as EventLog,
    )
    from .cancellation import (
        Cancellation as Cancellation,
        CancellationToken as CancellationToken,
        Scope as Scope,
    )
    from .checkpoints.reading import load_checkpoint as load_checkpoint
    from .data import (
        DataBunch as DataBunch,
        Dataset as Dataset,
        GlobalBatchSampler as GlobalBatchSampler,
        TensorLoader as TensorLoader,
        get_data as get_data,
        get_dls as get_dls,
    )
    from .errors import (
        CallbackError as CallbackError,
        CheckpointError as CheckpointError,
        DataError as DataError,
        DesyncError as DesyncError,
        EmptyLoaderError as EmptyLoaderError,
        EventTrainError as EventTrainError,
        OrderError as OrderError,
        PluginError as PluginError,
        RemoteError as RemoteError,
        ScopeNotOpenError as ScopeNotOpenError,
        UncountableError as UncountableError,
        UnknownEventError as UnknownEventError,
    )
    from .events import EVENTS as EVENTS, Event as Event
    from .learner import Learner as Learner, accuracy as accuracy, get_model as get_model
    from .runner import Runner as Runner
    from .state import FitResult as FitResult
    from .train_eval import TrainEvalCallback as TrainEvalCallback

__version__ = "0.1.0"

# Type checkers would take any name for one that is there.
if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
