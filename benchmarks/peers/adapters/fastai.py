"""fastai."""

from __future__ import annotations

from ..registry import peer
from ..work import Fit, Work

HOOKS = {
    "begin_batch": "before_batch",
    "after_pred": "after_pred",
    "after_loss": "after_loss",
    "after_backward": "after_backward",
    "after_step": "after_step",
    "after_batch": "after_batch",
}


@peer("fastai", package="fastai", hooks=HOOKS)
def prepare(work: Work) -> Fit:
    """``Learner`` with ``TrainEvalCallback`` only; the validation set is empty.

    Without ``Recorder``, ``CastToTensor`` and progress bar.
    """
    from fastai.callback.core import Callback, TrainEvalCallback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    learn = Learner(
        DataLoaders(work.batches, []),
        work.model,
        loss_func=work.loss_func,
        opt_func=OptimWrapper(opt=work.opt),
        lr=work.lr,
        default_cbs=False,
        cbs=[TrainEvalCallback(), *work.callbacks(Callback, HOOKS.values(), "self")],
    )
    return lambda: learn.fit(1)
