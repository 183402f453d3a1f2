"""What happens to ranks in tests of failures and signals, see ``forked_ranks``."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forked_ranks import serve, tell

LOST_AFTER = 1.5


def at_third_batch(folder: Path, deed: Callable[[], object], who: int) -> Any:
    """What follows when a rank does something in a batch whose gradients are yet to be shared."""
    import train_program as program

    from eventtrain import Distributed

    def act(run: Any) -> None:
        if who == program.RANK and run.n_iter == 2 and run.in_train:
            tell(folder, "time", str(time.time()))
            deed()

    told = program.train(Distributed(lost_after=LOST_AFTER), on={"after_loss": act})
    told["after"] = time.time() - float((folder / "time").read_text())
    told.pop("weights")
    return told


def lives_on(folder: Path) -> Any:
    """Rank 0 catches what its fit raises, and keeps its group until the others are out."""
    import train_program as program

    told = at_third_batch(folder, program.fail, 0)
    end = time.monotonic() + 30
    while program.RANK == 0 and len(list(folder.glob("[12].json"))) < 2:
        assert time.monotonic() < end, "the others wait for this process"
        time.sleep(0.01)
    return told


def is_stopped(folder: Path) -> Any:
    return at_third_batch(folder, lambda: os.kill(os.getpid(), signal.SIGSTOP), 2)


def is_killed(folder: Path) -> Any:
    return at_third_batch(folder, lambda: os.kill(os.getpid(), signal.SIGKILL), 2)


def exits(folder: Path) -> Any:
    def leave() -> None:
        raise SystemExit(3)

    try:
        return at_third_batch(folder, leave, 2)
    except SystemExit as error:
        return {"error": repr(error)}


def ends_early(folder: Path) -> Any:
    """The loader of rank 2, whose length nobody knows, has a batch less."""
    import train_program as program

    class Stream:
        def __iter__(self) -> Any:
            return iter(batches[: 3 if program.RANK == 2 else 4])

    batches = program.loader()
    program.loader = Stream  # type: ignore[assignment]
    return at_third_batch(folder, lambda: None, 2)


def insists(folder: Path) -> Any:
    """Three Ctrl-C come to rank 2 while it waits at the end of training for rank 0."""
    import train_program as program

    from eventtrain import Distributed

    def slow(run: Any) -> None:
        if program.RANK == 0 and run.batch_index == 3 and run.in_train:
            tell(folder, "waits", "")
            time.sleep(3)

    def interrupt() -> None:
        while not (folder / "waits").exists():
            time.sleep(0.01)
        for _ in range(3):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

    if program.RANK == 2:
        threading.Thread(target=interrupt).start()
    try:
        told = program.train(Distributed(lost_after=20), on={"after_batch": slow})
    except KeyboardInterrupt:
        return {"error": "KeyboardInterrupt"}
    told.pop("weights")
    return told


def is_signalled(folder: Path) -> Any:
    """Trains with loader workers, and collectives that last, until a signal comes."""
    import torch
    import train_program as program
    from torch import distributed as dist, nn
    from torch.utils.data import DataLoader, TensorDataset

    from eventtrain import DataBunch, Distributed, Learner, Runner
    from eventtrain.callbacks import Checkpoint

    waits = folder.name == "one rank in a collective"
    rows = TensorDataset(torch.randn(4000, 3), torch.randn(4000, 1))
    loader = DataLoader(rows, batch_size=8, num_workers=2, multiprocessing_context="fork")
    save = Checkpoint(folder / "checkpoints", every_epochs=None)
    run = Runner([Distributed(), save], on_interrupt="return")
    closed: list[str] = []

    def slow(run: Any) -> None:
        if run.n_iter == 3:
            tell(folder, f"{program.RANK}.ready", "")
            if waits:
                time.sleep(2.0 * (program.RANK == 0))
        time.sleep(0.3 * (program.RANK == 0))

    run.on("after_loss", slow)
    for event in ("after_batch", "after_train", "after_epoch", "after_cancel_fit", "after_fit"):
        run.on(event, lambda run, event=event: closed.append(event))
    model = nn.Linear(3, 1)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    learn = Learner(model, sgd, nn.functional.mse_loss, DataBunch(loader, None))
    result = run.fit(1, learn)
    ended = time.time()
    dist.barrier()
    return {
        "outcome": result.outcome,
        "reason": result.reason,
        "records": [(each.scope, each.by, each.rank) for each in result.cancellations],
        "steps": result.steps,
        "closed": closed[-5:],
        "heard": result.cancellations[0].time,
        "ended": ended,
    }


def deeds() -> Mapping[str, Callable[[Path], object]]:
    signalled = ("one rank", "one rank in a collective", "all ranks", "the whole group")
    return {
        "lives on": lives_on,
        "is stopped": is_stopped,
        "is killed": is_killed,
        "exits": exits,
        "ends early": ends_early,
        "insists": insists,
        **dict.fromkeys(signalled, is_signalled),
    }


if __name__ == "__main__":
    serve(deeds)
