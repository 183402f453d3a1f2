"""Callbacks that ship with eventtrain, one file each."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .activation_checkpointing import ActivationCheckpointing as ActivationCheckpointing
    from .activation_stats import ActivationStats as ActivationStats
    from .avg_stats import (
        AvgStats as AvgStats,
        AvgStatsCallback as AvgStatsCallback,
        OverAll as OverAll,
    )
    from .batch_transform import BatchTransform as BatchTransform
    from .channels_last import ChannelsLast as ChannelsLast
    from .checkpoint import Checkpoint as Checkpoint
    from .compilation import Compile as Compile
    from .csv_logger import CSVLogger as CSVLogger
    from .cutmix import CutMix as CutMix
    from .device_stats import DeviceStats as DeviceStats
    from .distributed import Distributed as Distributed
    from .early_stopping import EarlyStopping as EarlyStopping
    from .ema import EMA as EMA
    from .event_log import EventLog as EventLog
    from .freeze import Freeze as Freeze
    from .grad_stats import GradStats as GradStats
    from .gradient_accumulation import GradientAccumulation as GradientAccumulation
    from .gradient_clip import GradientClip as GradientClip
    from .history import History as History
    from .jsonl_logger import JSONLLogger as JSONLLogger
    from .label_smoothing import LabelSmoothing as LabelSmoothing
    from .lr_finder import LRFinder as LRFinder
    from .lr_scheduler import LRScheduler as LRScheduler
    from .max_steps import MaxSteps as MaxSteps
    from .mixed_precision import MixedPrecision as MixedPrecision
    from .mixup import Mixup as Mixup
    from .mlflow import MLflow as MLflow
    from .one_cycle import OneCycle as OneCycle
    from .optuna_pruning import OptunaPruning as OptunaPruning
    from .param_scheduler import (
        ParamScheduler as ParamScheduler,
        combine_scheds as combine_scheds,
        cos_1cycle_anneal as cos_1cycle_anneal,
        sched_cos as sched_cos,
        sched_exp as sched_exp,
        sched_lin as sched_lin,
        sched_none as sched_none,
    )
    from .progress import Progress as Progress
    from .recorder import Recorder as Recorder
    from .reduce_lr_on_plateau import ReduceLROnPlateau as ReduceLROnPlateau
    from .seed import Seed as Seed
    from .split_on_oom import SplitOnOOM as SplitOnOOM
    from .stop_file import StopFile as StopFile
    from .swa import SWA as SWA
    from .tensorboard import TensorBoard as TensorBoard
    from .terminate_on_nan import TerminateOnNaN as TerminateOnNaN
    from .throughput import Throughput as Throughput
    from .time_limit import TimeLimit as TimeLimit
    from .timing import Timing as Timing
    from .to_device import ToDevice as ToDevice
    from .wandb import WandB as WandB

# Type checkers would take any name for one that is there.
if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
