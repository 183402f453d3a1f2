"""Leaving out of a snapshot what nobody trains, and putting it back from the model at hand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError
from ..optimizers import parameter_groups
from ..state import RunState
from .batch_print import batch_print
from .compatibility import state_of
from .names import plain_name

_MODELS = ("model", "training_model")


class WholeModel:
    """Keeps a snapshot as it is."""

    def check(self, run: RunState) -> None:
        """See that there is something to leave out."""

    def of(self, content: dict[str, Any], run: RunState) -> dict[str, Any]:
        """Return what of a snapshot of ``run`` is to be saved."""
        return content


class TrainablePart(WholeModel):
    """Leaves out the parameters that need no gradient and are in no optimizer.

    By a sum over each of these it is seen, when a run goes on, that the model has the same ones.
    They are read once a fit.
    """

    def __init__(self) -> None:
        self._prints: dict[str, dict[str, Any]] = {}

    def check(self, run: RunState) -> None:
        """See that there is something to leave out.

        Raises:
            ValueError: There is nothing, or the parameters lie divided over processes.
        """
        self._prints = {}
        frozen = frozen_parameters(run)
        if not frozen:
            raise ValueError(
                "Checkpoint(trainable_only=True) leaves out parameters that need no gradient and "
                "are in no optimizer, and there are none: call requires_grad_(False) on those that "
                "are not trained, and give the optimizer the others alone"
            )
        if any(hasattr(each, "to_local") for each in frozen.values()):
            raise ValueError(
                "Checkpoint(trainable_only=True) cannot be used where FSDP2 has divided the "
                "model: leave it out, and all is saved, each process its own part"
            )

    def of(self, content: dict[str, Any], run: RunState) -> dict[str, Any]:
        """Return a snapshot without the values of what nobody trains."""
        frozen = frozen_parameters(run)
        names = {plain_name(name) for name in frozen}
        for name, parameter in frozen.items():
            self._prints.setdefault(plain_name(name), _print_of(parameter))
        found = {**content, "frozen": {name: self._prints[name] for name in sorted(names)}}
        for key in _MODELS:
            if key in content:
                kept = [(k, v) for k, v in content[key].items() if plain_name(k) not in names]
                found[key] = _like(content[key], kept)
        return found


def frozen_parameters(run: RunState) -> dict[str, Tensor]:
    """Return the parameters of the model that nobody trains, by their names."""
    if not isinstance(run.model, nn.Module):
        return {}
    held = {id(p) for _, group in parameter_groups(run.opt) for p in group["params"]}
    named = run.model.named_parameters(remove_duplicate=False)
    return {name: p for name, p in named if not p.requires_grad and id(p) not in held}


def with_frozen_part(content: dict[str, Any], run: RunState, origin: str) -> dict[str, Any]:
    """Return a snapshot with what was left out, as the model of ``run`` has it.

    Args:
        content: What was read.
        run: Its model has the weights that nobody has trained.
        origin: Where the content comes from, for messages.

    Raises:
        CheckpointError: The model has others, or lies divided over processes.
    """
    prints: Mapping[str, Mapping[str, Any]] = content.get("frozen", {})
    if not prints:
        return content
    own = {plain_name(name): (name, value) for name, value in state_of(run.model).items()}
    if any(hasattr(value, "to_local") for _, value in own.values()):
        raise CheckpointError(
            f"{origin} holds what is trained alone (trainable_only=True), and FSDP2 has divided "
            'this model: resume without that, or with Distributed("ddp")'
        )
    strange = [name for name in prints if name not in own]
    strange = strange or [n for n in prints if _print_of(own[n][1]) != prints[n]]
    if strange:
        more = f", and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise CheckpointError(
            f"{origin} holds what is trained alone (trainable_only=True), and this model has other "
            f"values in what is not: {', '.join(strange[:3])}{more}. Load the weights into it that "
            "the fit began with, and resume then"
        )
    found = dict(content)
    for key in _MODELS:
        if key in content:
            found[key] = _like(content[key], [*content[key].items(), *(own[n] for n in prints)])
    return found


def _print_of(value: Any) -> dict[str, Any]:
    found = batch_print(value.detach())[0]
    return {key: found.get(key) for key in ("kind", "shape", "content")}


def _like(state: Mapping[str, Any], items: list[tuple[str, Any]]) -> OrderedDict[str, Any]:
    """Return a state dictionary of other items, with what this one knows of versions."""
    found = OrderedDict(items)
    if hasattr(state, "_metadata"):
        found._metadata = state._metadata  # type: ignore[attr-defined]
    return found
