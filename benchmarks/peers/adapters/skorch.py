"""skorch."""

from __future__ import annotations

from typing import Any

from ..registry import peer
from ..work import Fit, Work

HOOKS = {
    "begin_batch": "on_batch_begin",
    "after_backward": "on_grad_computed",
    "after_batch": "on_batch_end",
}
DEFAULT_CALLBACKS = ("epoch_timer", "train_loss", "valid_loss", "print_log")


@peer("skorch", package="skorch", hooks=HOOKS)
def prepare(work: Work) -> Fit:
    """``NeuralNet`` without validation split, and with no callbacks of its own.

    Its history, one ``loss.item()`` a batch, is part of its loop and stays.
    """
    import torch
    from skorch import NeuralNet
    from skorch.callbacks import Callback

    class Net(NeuralNet):
        def initialize_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            self.optimizer_ = work.opt
            return self

        def get_iterator(self, dataset: Any, training: bool = False) -> Any:
            return work.batches

    idle = work.callbacks(Callback, HOOKS.values())
    net = Net(
        work.model,
        torch.nn.MSELoss,
        max_epochs=1,
        train_split=None,
        verbose=0,
        callbacks=[(f"idle{i}", each) for i, each in enumerate(idle)],
        **{f"callbacks__{name}": None for name in DEFAULT_CALLBACKS},
    ).initialize()
    x, y = (torch.stack(each) for each in zip(*work.batches, strict=True))
    return lambda: net.partial_fit(x, y)
