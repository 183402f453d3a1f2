"""``eventtrain train``."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..launch import Launch, found_launch
from .configuration import configurable, tables_of
from .options import positive
from .plugin_options import plugin_options, requested

if TYPE_CHECKING:
    import click

    from ..callbacks.distributed import Strategy
    from ..learner import Learner
    from ..runner import Runner
    from ..state import FitResult

BATCH_SIZE, LR = 64, 0.5


def make() -> click.Command:
    """Make the command."""
    import click

    @click.command()
    @click.option(
        "--data",
        default="digits",
        show_default=True,
        metavar="digits|mnist|PATH.py:FACTORY",
        help="What to train on.",
    )
    @click.option(
        "--epochs",
        type=click.IntRange(min=1),
        default=5,
        show_default=True,
        help="Passes over the data.",
    )
    @click.option(
        "--steps",
        type=click.IntRange(min=1),
        help="Optimizer steps in all, in the place of epochs.",
    )
    @click.option(
        "--validate-every",
        type=click.IntRange(min=1),
        metavar="STEPS",
        help="Steps from one validation to the next; by default one follows each epoch.",
    )
    @click.option(
        "--resume",
        metavar="auto|PATH",
        help="Go on from a checkpoint; auto: from the newest of the callback Checkpoint, if any.",
    )
    @click.option(
        "--lr", type=float, callback=positive, help=f"Learning rate; {LR} for digits and MNIST."
    )
    @click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help=f"Samples in a batch; {BATCH_SIZE} for digits and MNIST.",
    )
    @click.option(
        "--metric",
        type=click.Choice(["accuracy", "none"]),
        default="accuracy",
        show_default=True,
        help="What to measure besides the loss; accuracy needs class labels.",
    )
    @click.option(
        "--device",
        default="auto",
        show_default=True,
        help="cpu, cuda, cuda:1, mps; auto takes a GPU if there is one.",
    )
    @click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        default=0,
        show_default=True,
        help="Fixes the first weights and the order of batches.",
    )
    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        default="./eventtrain-run",
        show_default=True,
        metavar="DIR",
        help="Folder for the results, made if it is not there.",
    )
    @click.option(
        "--strategy",
        type=click.Choice(["ddp", "fsdp2"]),
        default="ddp",
        show_default=True,
        help="How several processes train one model: a copy on each, or a part.",
    )
    @plugin_options
    @click.option(
        # torchrun takes --log for one of its own, though it stands behind the program.
        *("--log", "--log-events", "log_events"),
        is_flag=True,
        help="Log every event to events.jsonl too; under torchrun, only the longer name works.",
    )
    @configurable
    @click.pass_context
    def train(context: click.Context, /, **options: Any) -> int:
        """Train a model and save what it learned.

        DIR gets history.json (outcome, and a row of averages an epoch),
        model.pt (the model's state_dict) and config.toml; with --log,
        events.jsonl, which `eventtrain replay` draws. Ctrl-C ends the training early and saves what
        there is; the exit code is then 130.

        On digits and MNIST, a network with one hidden layer is trained. FACTORY
        is a function in PATH.py that returns an eventtrain.Learner with model,
        optimizer, loss and data of yours. If it has parameters called
        batch_size, lr or seed, it is given what these options say; what was
        left out only where the parameter has no default of its own.

        CONFIG is a TOML file with these options by their names, and with the
        tables [arguments] for FACTORY, [callbacks.NAME] for those that ship, or
        ["PATH.py:NAME"] for yours, and [plugins.NAME]. --set goes above it, and
        the options of the command line above both. DIR/config.toml says
        everything that counted, and can be passed as CONFIG again.

        Started by torchrun or srun, the processes train together: BATCH-SIZE counts
        the samples over all of them, and the first one prints and saves.
        """
        return _train(tables=tables_of(context), **_of_one_length(context, options))

    return train


def _of_one_length(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with epochs or steps: the command line's, else those of CONFIG."""
    import click

    epochs, steps = (context.get_parameter_source(name) for name in ("epochs", "steps"))
    if options["steps"] is None:
        return options
    if epochs is steps:
        raise click.UsageError("epochs and steps: a training has one length, give one of them.")
    if epochs is click.core.ParameterSource.COMMANDLINE:
        return {**options, "steps": None}
    return {**options, "epochs": None}


def _train(
    *,
    tables: dict[str, dict[str, Any]],
    out: Path,
    log_events: bool,
    strategy: Strategy,
    plugins: Sequence[str],
    plugin_settings: Sequence[str],
    plugin_errors: Any,
    **options: Any,
) -> int:
    import torch

    from ..callbacks import EventLog
    from ..runner import Runner
    from .configuration import resolved, save
    from .results import prepare, save_history, save_model

    tables = {**tables, "plugins": requested(tables["plugins"], plugins, plugin_settings)}
    of_the_run = {"out": str(out), "strategy": strategy, "log_events": log_events}
    text = resolved({**options, **of_the_run, "plugin_errors": plugin_errors}, tables)
    # First: who fails later is noticed by the others.
    together, is_zero = _joined(found_launch(), strategy, options["seed"])
    if is_zero:
        prepare(out)
    target = _device(options["device"], is_alone=not together)
    torch.manual_seed(options["seed"])
    is_divided = bool(together) and strategy == "fsdp2"
    learn = _learner(options, tables["arguments"], is_divided=is_divided)
    if hasattr(learn.model, "to"):
        learn.model.to(target)
    logs = [EventLog(out / "events.jsonl")] if log_events else []
    run = Runner(
        [*together, *_callbacks(options["metric"], tables), *logs],
        plugins=tables["plugins"],
        plugin_errors=plugin_errors,
        on_interrupt="return",
    )
    if is_zero:
        save(out, text)  # not before all is found to be right: an earlier run may have left one
        print(f"{learn!r} on {target}" + (f", {run.world_size} processes" if together else ""))
    told = {"data": options["data"], "seed": options["seed"], "device": str(target)}
    told |= {f"asked_{unit}": options[unit] for unit in ("epochs", "steps") if options[unit]}
    if together:
        told.update(processes=run.world_size, strategy=strategy)
    try:
        result = _fit(run, learn, **options)
    finally:
        if run.result is not None and is_zero:  # after a failure too
            save_history(out, run.result, told)
    written = ["config.toml", "history.json", *save_model(out, learn.model, is_writer=is_zero)]
    if is_zero:
        _tell(result, options, out, [*written, *(["events.jsonl"] if log_events else [])])
    if together:
        torch.distributed.barrier()  # the writer is busy: nobody is to hang up on it
        torch.distributed.destroy_process_group()
    if result.outcome == "cancelled" and result.reason in ("SIGINT", "SIGTERM"):
        return 128 + signal.Signals[result.reason]
    return 0


def _callbacks(metric: str, tables: dict[str, Any]) -> list[Any]:
    from ..callbacks import AvgStatsCallback
    from ..learner import accuracy
    from .configuration import made_callbacks

    asked = made_callbacks(tables)
    if any(isinstance(callback, AvgStatsCallback) for callback in asked):
        return asked
    return [AvgStatsCallback(accuracy if metric == "accuracy" else None), *asked]


def _fit(
    run: Runner,
    learn: Learner,
    *,
    epochs: int | None,
    steps: int | None,
    resume: str | None,
    validate_every: int | None,
    **options: object,
) -> FitResult:
    if epochs is not None:
        return run.fit(epochs, learn, resume=resume, validate_every=validate_every)
    assert steps is not None
    return run.fit(steps=steps, learn=learn, resume=resume, validate_every=validate_every)


def _tell(result: FitResult, options: dict[str, Any], out: Path, written: list[str]) -> None:
    if result.outcome == "cancelled":
        done = f"{result.epochs} of {options['epochs']} epochs"
        if options["steps"] is not None:
            done = f"{result.steps} of {options['steps']} steps"
        print(f"ended early by {result.reason} after {done}")
    print(f"saved in {out}: {', '.join(written)}")


def _joined(launch: Launch | None, strategy: Strategy, seed: int) -> tuple[list[Any], bool]:
    """Join the other processes; return the callbacks for that, and whether this one prints."""
    if launch is None:
        return [], True
    from ..callbacks import Distributed, Seed
    from ..distributed.groups import joined_group

    # What is dropped out of a model is to differ from process to process.
    return [Distributed(strategy), Seed(seed)], joined_group().is_zero


def _device(text: str, *, is_alone: bool) -> Any:
    import click
    import torch

    if text == "auto":
        gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        gpus["mps"] = gpus["mps"] and is_alone  # nothing carries its tensors between processes
        return torch.device(next((name for name, there in gpus.items() if there), "cpu"))
    try:
        device = torch.device(text)
        torch.empty(1, device=device).zero_()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise click.BadParameter(
            f"{text!r} is no device that torch can use here. `eventtrain doctor` lists those "
            "there are.",
            param_hint="'--device'",
        ) from error
    if device.index is not None and not is_alone and device.type != "cpu":
        raise click.BadParameter(
            f"{text!r} is one device, and each of several processes has its own: "
            f"--device {device.type}",
            param_hint="'--device'",
        )
    return device


def _learner(options: dict[str, Any], arguments: dict[str, Any], *, is_divided: bool) -> Learner:
    import click

    data, lr, batch_size = (options[name] for name in ("data", "lr", "batch_size"))
    if data in ("digits", "mnist"):
        if arguments:
            raise click.UsageError(
                f"[arguments] are those of a FACTORY, and {data} is none: "
                f"{', '.join(arguments)} would go nowhere."
            )
        return _built_in(data, lr or LR, batch_size or BATCH_SIZE, is_divided)
    from .factory import call_factory, split_target

    target = split_target(data)
    if target is None:
        raise click.BadParameter(
            f"{data!r} is none of digits, mnist and PATH.py:FACTORY.", param_hint="'--data'"
        )
    given = {"lr": lr, "batch_size": batch_size, "seed": options["seed"]}
    defaults = {"lr": LR, "batch_size": BATCH_SIZE, "seed": options["seed"]}
    return call_factory(*target, given, defaults, arguments)


def _built_in(name: str, lr: float, batch_size: int, is_divided: bool) -> Learner:
    from functools import partial

    from torch.nn.functional import cross_entropy
    from torch.optim import SGD

    from ..data import DataBunch, Dataset, get_data, get_dls
    from ..learner import Learner, get_model

    x_train, y_train, x_valid, y_valid = get_data(name)
    loaders = get_dls(Dataset(x_train, y_train), Dataset(x_valid, y_valid), batch_size)
    data = DataBunch(*loaders, c=10)
    model, opt = get_model(data, lr=lr)
    # Divided among processes, the parameters are others when the run has begun.
    factory = partial(SGD, lr=lr) if is_divided else None
    return Learner(model, factory or opt, cross_entropy, data)
