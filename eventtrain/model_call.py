"""Calling a model as it wants to be called, and finding the loss that it has computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .data.weights import form_of

Forward = Callable[[Any, Any], Any]
"""``forward(model, batch)`` returns what the model predicts."""


class ModelCall:
    """Calls a model with what it takes, in place of ``model(xb)``.

    Args:
        model: What is called, DDP around the model say.
        forward: The user's; ``None`` passes the input itself.
        run: Whose batch it is.
        by_keys: Whether a mapping is passed by its keys.
    """

    def __init__(self, model: Any, forward: Forward | None, run: Any, *, by_keys: bool) -> None:
        self._model = model
        self._forward = forward
        self._run = run
        self._by_keys = by_keys

    def __call__(self, xb: Any) -> Any:
        """Return what the model predicts for the batch of the run, whose input is ``xb``."""
        if self._forward is not None:
            return self._forward(self._model, batch_as_it_is(self._run))
        by_keys = self._by_keys and isinstance(xb, Mapping)
        return self._model(**xb) if by_keys else self._model(xb)


def batch_as_it_is(run: Any) -> Any:
    """Return the batch of a run, with what handlers have made of its input and its target."""
    batch, xb, yb = run.batch, run.xb, run.yb
    if xb is yb:
        return xb
    is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    return batch if is_pair and batch[0] is xb and batch[1] is yb else (xb, yb)


def own_loss(pred: Any, model: str, *, in_train: bool) -> Any:
    """Return the loss that a model has computed itself.

    Args:
        pred: What the model returned.
        model: The name of its class, for messages.
        in_train: Whether there must be a loss, and may be several.

    Returns:
        ``pred.loss``, or ``pred["loss"]``, or ``pred`` itself where it is one number; in training,
        where the model gave a mapping of losses, these with their sum at ``"loss"``; else ``None``.

    Raises:
        TypeError: There must be a loss, and there is none.
    """
    loss = pred if _is_loss(pred) and not pred.ndim else getattr(pred, "loss", None)
    if loss is None and isinstance(pred, Mapping):
        loss = pred.get("loss")
        if loss is None and in_train and _are_losses(pred):
            loss = pred
    if loss is None and in_train:
        raise TypeError(
            f"there is no loss to train {model} with: the Learner has loss_func=None, so the model "
            "must return one, alone, as out.loss, as out['loss'] or as a mapping of losses, all of "
            f"them scalar tensors of floating point, and returned {form_of(pred)}. {_remedy(pred)}"
        )
    if isinstance(loss, Mapping) and "loss" not in loss and _are_losses(loss):
        return {"loss": sum(loss.values()), **loss}
    return loss


def whole_loss(loss: Any, run: Any) -> Any:
    """Return a loss as one number; of a mapping the whole, whose parts the run is told."""
    if not isinstance(loss, Mapping):
        return loss
    return total_loss(loss)[0] if run is None else run.take_losses(loss)


def total_loss(losses: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the loss among several, and the others, which are its parts.

    Args:
        losses: With the whole at ``"loss"``.

    Raises:
        TypeError: There is no whole, or a part is no single number.
    """
    if "loss" not in losses:
        names = ", ".join(map(repr, losses)) or "nothing"
        raise TypeError(
            f"a mapping of losses has what is trained on at 'loss', and this one has {names}: "
            "return {'loss': ..., **parts}, the sum of the parts, say"
        )
    parts = {str(name): part for name, part in losses.items() if name != "loss"}
    for name, part in parts.items():
        if not _is_number(part):
            raise TypeError(
                f"part {name!r} of the loss is of {form_of(part)}: a mapping that loss_func "
                "returns has a scalar tensor at each name; leave out what is none, or take its mean"
            )
    return losses["loss"], parts


def _remedy(pred: Any) -> str:
    if isinstance(pred, (tuple, list)):
        for place, part in enumerate(pred):
            if _is_loss(part):
                return f"If it is part {place}: loss_func=lambda pred, yb: pred[{place}]"
    return "Pass the labels in the batch, or a loss_func(pred, yb)"


def _are_losses(losses: Mapping[str, Any]) -> bool:
    """Whether all are losses, and none a count or a rate that stands beside them."""
    return bool(losses) and all(map(_is_loss, losses.values()))


def _is_loss(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()


def _is_number(value: Any) -> bool:
    return (isinstance(value, Tensor) and value.numel() == 1) or isinstance(value, (int, float))
