"""eventtrain itself."""

from __future__ import annotations

from ..registry import peer
from ..work import Fit, Work

EVENTS = (
    "begin_batch", "after_pred", "after_loss", "after_backward", "after_step", "after_batch",
)  # fmt: skip


@peer("eventtrain", package="eventtrain", hooks={event: event for event in EVENTS})
def prepare(work: Work) -> Fit:
    """A ``Runner`` without callbacks."""
    from eventtrain import DataBunch, Learner, Runner

    run = Runner()
    for event in EVENTS:
        for function in work.functions(event, "run"):
            run.on(event, function)
    learn = Learner(work.model, work.opt, work.loss_func, DataBunch(work.batches))
    return lambda: run.fit(1, learn)
