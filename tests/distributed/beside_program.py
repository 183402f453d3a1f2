"""What ranks do that step through a fit, or have handlers beside the loop; see ``forked_ranks``."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forked_ranks import serve


def fit_with(
    on: Callable[[Any], object] = lambda run: None,
    loop: Callable[[Any, Any], object] | None = None,
    cbs: Any = (),
) -> dict[str, Any]:
    """Train for two epochs, by ``loop(run, learn)``, and tell all about it."""
    import train_program as program

    from eventtrain import DataBunch, Distributed, Learner, Runner

    run = Runner([Distributed(lost_after=20), *cbs])
    closed: list[str] = []
    on(run)
    for event in ("after_train", "after_epoch", "fit_failed", "after_cancel_fit", "after_fit"):
        run.on(event, lambda run, event=event: closed.append(event))
    data = DataBunch(program.loader(), program.loader())
    learn = Learner(program.model(), program.sgd, program.mse_loss, data)
    told: dict[str, Any] = {"error": None, "notes": []}
    try:
        loop(run, learn) if loop else run.fit(program.EPOCHS, learn)
    except (Exception, KeyboardInterrupt) as error:
        told["error"] = f"{type(error).__name__}: {error}"
        told["notes"] = getattr(error, "__notes__", [])
    result = run.result
    assert result is not None
    return {
        **told,
        "outcome": result.outcome,
        "reason": result.reason,
        "by": [asked.rank for asked in result.cancellations],
        "steps": result.steps,
        "closed": closed,
        "weights": program.weights(learn.model),
    }


def stepped(
    body: Callable[[Any], object] = lambda moment: None,
    on: Callable[[Any], object] = lambda run: None,
    **options: Any,
) -> dict[str, Any]:
    """Step through the fit; a body that returns True leaves it."""
    moments: list[Any] = []

    def loop(run: Any, learn: Any) -> None:
        for moment in run.iterate(2, learn, **options):
            moments.append((moment.epoch, moment.phase, moment.batch_index))
            if body(moment):
                break

    told = fit_with(on, loop)
    return {**told, "moments": moments, "again": fit_with()["outcome"]}


def steps(folder: Path) -> Any:
    return {**stepped(), "fitted": fit_with()["weights"]}


def is_there(moment: Any, rank: int, n_iter: int) -> bool:
    return bool(moment.rank == rank and moment.in_train and moment.n_iter == n_iter)


def leaves(folder: Path) -> Any:
    return stepped(lambda moment: is_there(moment, 1, 3))


def leaves_in_validation(folder: Path) -> Any:
    """No collective of a batch keeps ranks together there."""
    return stepped(lambda moment: moment.rank == 1, during="validate")


def all_leave(folder: Path) -> Any:
    return stepped(lambda moment: moment.n_iter == 3)


def lets_go(folder: Path) -> Any:
    """One rank asks for the first moments alone, and then forgets the fit."""

    def loop(run: Any, learn: Any) -> None:
        moments = run.iterate(2, learn)
        next(moments)
        if run.rank == 0:
            for _ in moments:
                pass

    return fit_with(loop=loop)


def raises(folder: Path) -> Any:
    def body(moment: Any) -> None:
        if is_there(moment, 1, 2):
            raise ValueError("of the body")

    return stepped(body)


def cancels(folder: Path) -> Any:
    def body(moment: Any) -> None:
        if is_there(moment, 0, 2):
            moment.token.cancel("epoch", "by the body")

    return stepped(body)


def is_interrupted(folder: Path) -> Any:
    """Ctrl-C comes to one rank in the body, which takes it."""

    def body(moment: Any) -> None:
        if is_there(moment, 1, 2):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                while True:
                    pass
            except KeyboardInterrupt:
                pass

    return stepped(body)


def has_a_failing_handler(folder: Path) -> Any:
    def boom(run: Any) -> None:
        if is_there(run, 1, 2):
            raise ValueError("of a handler")

    told = dict[str, Any]()
    moments: list[Any] = []

    def loop(run: Any, learn: Any) -> None:
        for moment in run.iterate(2, learn):
            moments.append(moment.n_iter)

    told.update(fit_with(lambda run: run.on("after_loss", boom), loop))
    return {**told, "moments": moments}


def works_off(folder: Path) -> Any:
    """With room for one record, so that the loop waits."""
    seen: dict[str, list[Any]] = {"all": [], "zero": [], "method": []}

    from eventtrain import Callback, handler

    class Writer(Callback):
        ranks = "zero"

        @handler(background=True, queue=1, tensors="pred", during="train")
        def after_loss(self, record: Any) -> None:
            seen["method"].append([record.n_iter, len(record.pred)])

    def subscribe(run: Any) -> None:
        options = {"background": True, "during": "train"}
        run.on("after_batch", lambda r: seen["all"].append(r.n_iter), queue=1, **options)
        run.on("after_loss", lambda r: seen["zero"].append(r.n_iter), ranks="zero", **options)

    return {**fit_with(subscribe, cbs=[Writer()]), "seen": seen}


def fails_beside(folder: Path) -> Any:
    def fail(record: Any) -> None:
        if record.rank == 1 and record.n_iter == 2:
            raise ValueError("beside the loop")

    return fit_with(
        lambda run: run.on("begin_batch", fail, background=True, during="train", name="writer")
    )


def fails_at_the_end(folder: Path) -> Any:
    def fail(record: Any) -> None:
        if record.rank == 1 and record.epoch == 1:
            raise ValueError("beside the loop")

    return fit_with(lambda run: run.on("after_epoch", fail, background=True, name="writer"))


def calls_a_collective(folder: Path) -> Any:
    def subscribe(run: Any) -> None:
        run.on("after_train", lambda record: run.world.sums([1]), background=True, name="adds")

    return fit_with(subscribe)


def deeds() -> Mapping[str, Callable[[Path], object]]:
    return {
        "steps": steps,
        "leaves": leaves,
        "leaves in validation": leaves_in_validation,
        "all leave": all_leave,
        "lets go": lets_go,
        "raises": raises,
        "cancels": cancels,
        "is interrupted": is_interrupted,
        "has a failing handler": has_a_failing_handler,
        "works off": works_off,
        "fails beside": fails_beside,
        "fails at the end": fails_at_the_end,
        "calls a collective": calls_a_collective,
    }


if __name__ == "__main__":
    serve(deeds)
