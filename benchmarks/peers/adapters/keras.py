"""Keras 3 on torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from ..registry import peer
from ..work import Fit, Work

HOOKS = {"begin_batch": "on_train_batch_begin", "after_batch": "on_train_batch_end"}


class Ready(DataLoader[Any]):
    """Yields ready batches as they are; Keras takes no plain iterable of tensors."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataset)


@peer("Keras", package="keras", hooks=HOOKS)
def prepare(work: Work) -> Fit:
    """``fit`` of a ``Model`` around the torch module, with a ``train_step`` of its own.

    Without metrics, progress bar and compilation. Its ``History`` stays.
    """
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.linear = work.model

        def call(self, x: Any) -> Any:
            return self.linear(x)

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            loss = work.loss_func(self(x), y)
            loss.backward()
            work.opt.step()
            work.opt.zero_grad()
            return {}

    model = Model()
    model.compile(optimizer=None, jit_compile=False)
    callbacks = work.callbacks(keras.callbacks.Callback, HOOKS.values())
    loader = Ready(work.batches, batch_size=None)
    return lambda: model.fit(loader, epochs=1, verbose=0, callbacks=callbacks)
