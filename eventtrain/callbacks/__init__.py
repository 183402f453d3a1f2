"""Callbacks that ship with eventtrain, one file each."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .activation_checkpointing import ActivationCheckpointing
    from .activation_stats import ActivationStats
    from .avg_stats import AvgStats, AvgStatsCallback
    from .batch_transform import BatchTransform
    from .channels_last import ChannelsLast
    from .checkpoint import Checkpoint
    from .compilation import Compile
    from .csv_logger import CSVLogger
    from .cutmix import CutMix
    from .device_stats import DeviceStats
    from .early_stopping import EarlyStopping
    from .ema import EMA
    from .event_log import EventLog
    from .freeze import Freeze
    from .grad_stats import GradStats
    from .gradient_accumulation import GradientAccumulation
    from .gradient_clip import GradientClip
    from .history import History
    from .jsonl_logger import JSONLLogger
    from .label_smoothing import LabelSmoothing
    from .lr_finder import LRFinder
    from .lr_scheduler import LRScheduler
    from .max_steps import MaxSteps
    from .mixed_precision import MixedPrecision
    from .mixup import Mixup
    from .one_cycle import OneCycle
    from .param_scheduler import (
        ParamScheduler,
        combine_scheds,
        cos_1cycle_anneal,
        sched_cos,
        sched_exp,
        sched_lin,
        sched_none,
    )
    from .progress import Progress
    from .recorder import Recorder
    from .reduce_lr_on_plateau import ReduceLROnPlateau
    from .seed import Seed
    from .stop_file import StopFile
    from .swa import SWA
    from .tensorboard import TensorBoard
    from .terminate_on_nan import TerminateOnNaN
    from .throughput import Throughput
    from .time_limit import TimeLimit
    from .timing import Timing
    from .to_device import ToDevice

# Type checkers would take any name for one that is there.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "activation_checkpointing": ["ActivationCheckpointing"],
            "activation_stats": ["ActivationStats"],
            "avg_stats": ["AvgStats", "AvgStatsCallback"],
            "batch_transform": ["BatchTransform"],
            "channels_last": ["ChannelsLast"],
            "checkpoint": ["Checkpoint"],
            "compilation": ["Compile"],
            "csv_logger": ["CSVLogger"],
            "cutmix": ["CutMix"],
            "device_stats": ["DeviceStats"],
            "early_stopping": ["EarlyStopping"],
            "ema": ["EMA"],
            "event_log": ["EventLog"],
            "freeze": ["Freeze"],
            "grad_stats": ["GradStats"],
            "gradient_accumulation": ["GradientAccumulation"],
            "gradient_clip": ["GradientClip"],
            "history": ["History"],
            "jsonl_logger": ["JSONLLogger"],
            "label_smoothing": ["LabelSmoothing"],
            "lr_finder": ["LRFinder"],
            "lr_scheduler": ["LRScheduler"],
            "max_steps": ["MaxSteps"],
            "mixed_precision": ["MixedPrecision"],
            "mixup": ["Mixup"],
            "one_cycle": ["OneCycle"],
            "param_scheduler": [
                "ParamScheduler",
                "combine_scheds",
                "cos_1cycle_anneal",
                "sched_cos",
                "sched_exp",
                "sched_lin",
                "sched_none",
            ],
            "progress": ["Progress"],
            "recorder": ["Recorder"],
            "reduce_lr_on_plateau": ["ReduceLROnPlateau"],
            "seed": ["Seed"],
            "stop_file": ["StopFile"],
            "swa": ["SWA"],
            "tensorboard": ["TensorBoard"],
            "terminate_on_nan": ["TerminateOnNaN"],
            "throughput": ["Throughput"],
            "time_limit": ["TimeLimit"],
            "timing": ["Timing"],
            "to_device": ["ToDevice"],
        },
    )

__all__ = [
    "EMA",
    "SWA",
    "ActivationCheckpointing",
    "ActivationStats",
    "AvgStats",
    "AvgStatsCallback",
    "BatchTransform",
    "CSVLogger",
    "ChannelsLast",
    "Checkpoint",
    "Compile",
    "CutMix",
    "DeviceStats",
    "EarlyStopping",
    "EventLog",
    "Freeze",
    "GradStats",
    "GradientAccumulation",
    "GradientClip",
    "History",
    "JSONLLogger",
    "LRFinder",
    "LRScheduler",
    "LabelSmoothing",
    "MaxSteps",
    "MixedPrecision",
    "Mixup",
    "OneCycle",
    "ParamScheduler",
    "Progress",
    "Recorder",
    "ReduceLROnPlateau",
    "Seed",
    "StopFile",
    "TensorBoard",
    "TerminateOnNaN",
    "Throughput",
    "TimeLimit",
    "Timing",
    "ToDevice",
    "combine_scheds",
    "cos_1cycle_anneal",
    "sched_cos",
    "sched_exp",
    "sched_lin",
    "sched_none",
]
