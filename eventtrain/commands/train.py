"""``eventtrain train``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..launch import Launch, found_launch
from .options import positive
from .plugin_options import make_runner, plugin_options

if TYPE_CHECKING:
    import click

    from ..callbacks.distributed import Strategy
    from ..learner import Learner

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
        *("--log", "--log-events", "log"),
        is_flag=True,
        help="Log every event to events.jsonl too; under torchrun, only the longer name works.",
    )
    def train(**options: Any) -> int:
        """Train a model and save what it learned.

        DIR gets history.json (outcome, and a row of averages an epoch) and
        model.pt (the model's state_dict); with --log, events.jsonl, which
        `eventtrain replay` draws. Ctrl-C ends the training early and saves what
        there is; the exit code is then 130.

        On digits and MNIST, a network with one hidden layer is trained. FACTORY
        is a function in PATH.py that returns an eventtrain.Learner with model,
        optimizer, loss and data of yours. If it has parameters called
        batch_size, lr or seed, it is given what these options say; what was
        left out only where the parameter has no default of its own.

        Started by torchrun or srun, the processes train together: BATCH-SIZE counts
        the samples over all of them, and the first one prints and saves.
        """
        return _train(**options)

    return train


def _train(
    *,
    data: str,
    epochs: int,
    lr: float | None,
    batch_size: int | None,
    metric: str,
    device: str,
    seed: int,
    out: Path,
    log: bool,
    strategy: Strategy,
    **plugins: Any,
) -> int:
    import torch

    from ..callbacks import AvgStatsCallback, EventLog
    from ..learner import accuracy
    from .results import prepare, save_history, save_model

    # First: who fails later is noticed by the others.
    together, is_zero = _joined(found_launch(), strategy, seed)
    if is_zero:
        prepare(out)
    target = _device(device, is_alone=not together)
    torch.manual_seed(seed)
    is_divided = bool(together) and strategy == "fsdp2"
    learn = _learner(data, lr=lr, batch_size=batch_size, seed=seed, is_divided=is_divided)
    if hasattr(learn.model, "to"):
        learn.model.to(target)
    callbacks = [*together, AvgStatsCallback(accuracy if metric == "accuracy" else None)]
    if log:
        callbacks.append(EventLog(out / "events.jsonl"))
    run = make_runner(callbacks, on_interrupt="return", **plugins)
    if is_zero:
        print(f"{learn!r} on {target}" + (f", {run.world_size} processes" if together else ""))
    about = {"data": data, "seed": seed, "device": str(target), "asked_epochs": epochs}
    if together:
        about.update(processes=run.world_size, strategy=strategy)
    try:
        result = run.fit(epochs, learn)
    finally:
        if run.result is not None and is_zero:  # after a failure too
            save_history(out, run.result, about)
    written = [
        "history.json",
        *save_model(out, learn.model, is_writer=is_zero),
        *(["events.jsonl"] if log else []),
    ]
    if is_zero and result.outcome == "cancelled":
        print(f"ended early by {result.reason} after {result.epochs} of {epochs} epochs")
    if is_zero:
        print(f"saved in {out}: {', '.join(written)}")
    if together:
        torch.distributed.barrier()  # the writer is busy: nobody is to hang up on it
        torch.distributed.destroy_process_group()
    if result.outcome == "cancelled" and result.reason in ("SIGINT", "SIGTERM"):
        return 128 + signal.Signals[result.reason]
    return 0


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


def _learner(
    data: str, *, lr: float | None, batch_size: int | None, seed: int, is_divided: bool
) -> Learner:
    import click

    if data in ("digits", "mnist"):
        return _built_in(data, lr or LR, batch_size or BATCH_SIZE, is_divided)
    from .factory import call_factory, split_target

    target = split_target(data)
    if target is None:
        raise click.BadParameter(
            f"{data!r} is none of digits, mnist and PATH.py:FACTORY.", param_hint="'--data'"
        )
    given = {"lr": lr, "batch_size": batch_size, "seed": seed}
    defaults = {"lr": LR, "batch_size": BATCH_SIZE, "seed": seed}
    return call_factory(*target, given, defaults)


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
