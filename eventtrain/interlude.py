"""A validation in the midst of a fit, after which all is as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .around import around
from .errors import DataError
from .optimizer_modes import optimizer_modes_of
from .resuming import FromTheStart
from .train_eval import modes_of, set_modes


def validate_between(run: Any) -> dict[str, Any]:
    """Validate within the fit that is under way; see ``Runner.validate_now``."""
    _check_place(run)
    run.token.check()
    outer = run.in_interlude
    run.in_interlude = True
    try:
        with run.rows.aside(run) as row:
            with _put_back(run):
                run.validation_phase()
            run.rows.end_validation(run)
            return dict(row)
    finally:
        run.in_interlude = outer


@around
def _put_back(run: Any) -> Iterator[None]:
    """Have the run stand in the end where it stands now: batch, phase, modes, weights."""
    moment, modes, start = run.moment(), modes_of(run.model), run.starting_point
    put_optimizers_back = optimizer_modes_of(run.opt, exact=True)
    batch = run.scope.batch
    outcome = batch.outcome  # in after_batch, of a batch that others are to hear of yet
    # What is to be resumed is a phase of the loop's own.
    run.starting_point = FromTheStart()
    run.starting_point.loader_forms = start.loader_forms
    try:
        yield
    finally:
        run.starting_point = start
        set_modes(modes)
        put_optimizers_back()
        run.go_back_to(moment)
        batch.outcome = outcome


def _check_place(run: Any) -> None:
    """Refuse a call from where the loop could not go on.

    Raises:
        RuntimeError: It comes from there.
        DataError: There is no validation loader.
    """
    scopes: tuple[str, ...] = run.token.open_scopes if run.is_running else ()
    is_within = "fit" in scopes and scopes[-1] in ("epoch", "train")
    if not is_within or run.in_interlude or run.phase == "validate":
        where = f"inside of {' > '.join(scopes)}" if scopes else "outside of a fit"
        if scopes and is_within:
            where = "while a validation is under way, or closing"
        raise RuntimeError(
            f"validate_now was called {where}: call it in a fit, in after_batch of a training "
            "batch, or outside of batches, in begin_epoch, begin_train or after_train. Without a "
            "fit, run.validate(learn) validates"
        )
    if run.data.valid_dl is None:
        raise DataError("there is no validation loader: learn.data.valid_dl is None")
