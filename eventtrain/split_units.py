"""A model that FSDP2 has divided, in which each part is called in pieces by itself.

A part is what gathers its parameters at a time. Between the gathering and the end of its forward
pass, and so in the backward pass, no other rank has to do with it: there it may fail and begin
again, as often as it takes, while the others wait in their next gathering, and no longer. A part
that has others within gathers for these in its midst, and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from .errors import add_note
from .pieces import CannotBeCut
from .split_call import Limit, SplitCall, State, Work


def innermost_units(model: nn.Module) -> dict[str, nn.Module]:
    """Return the parts, by name, that gather their parameters and have no such part within."""
    return {
        name: module
        for name, module in model.named_modules()
        if [each for each in module.modules() if isinstance(each, FSDPModule)] == [module]
    }


def split_units(model: nn.Module, run: Any, limit: Limit) -> Callable[[], None]:
    """Have each innermost part be called in pieces where memory does not suffice.

    Args:
        model: What ``fully_shard`` was called on.
        run: Whose model it is.
        limit: How many rows at once.

    Returns:
        What takes it back.
    """
    held: list[tuple[nn.Module, Any, UnitCall]] = []
    for name, unit in innermost_units(model).items():
        own = vars(unit).get("forward")
        unit.forward = call = UnitCall(name, unit, run, limit)
        held.append((unit, own, call))

    def take_back() -> None:
        while held:
            unit, own, call = held.pop()
            if vars(unit).get("forward") is not call:
                continue  # somebody has put back what stood there before that
            del unit.forward
            if own is not None:
                unit.forward = own

    return take_back


class UnitCall(SplitCall):
    """Calls one part, with the parameters that it has gathered.

    Args:
        name: How the part is called in the model.
        unit: The part.
        run: Whose model it is.
        limit: How many rows at once.
    """

    def __init__(self, name: str, unit: nn.Module, run: Any, limit: Limit) -> None:
        super().__init__(unit, run, limit)
        self.function = unit.forward
        self.name = name

    def work_on(self, given: Any, before: State) -> Work:
        """See ``SplitCall.work_on``.

        Raises:
            RuntimeError: Its parameters are divided otherwise, too.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if any(isinstance(p, DTensor) for p in parameters):
            raise RuntimeError(
                f"SplitOnOOM cannot call {self.name or 'the model'} in pieces: parameters of it "
                "are divided otherwise too, as for tensor parallelism, and processes compute each "
                "call together. Leave SplitOnOOM out"
            )
        return _UnitWork(self, given, before, parameters)


class _UnitWork(Work):
    """One call of a part: gradients go on to what came before it."""

    def __init__(
        self, call: UnitCall, given: Any, before: State, parameters: list[torch.Tensor]
    ) -> None:
        super().__init__(call, given, before, parameters)
        self.take_inputs()

    def shares(self) -> NoReturn:
        """Refuse numbers: nobody knows what they are a mean of."""
        raise CannotBeCut("a part of the model returns a number")

    def require_same_loss(self, error: torch.OutOfMemoryError) -> NoReturn:
        """Refuse a part whose pieces may compute something else: what is behind it was computed."""
        add_note(
            error,
            "The batch cannot be split in the backward pass: this part of the model draws random "
            "numbers, or has buffers, and parts behind it have been computed of those. "
            "SplitOnOOM(rows=...) splits from the start",
        )
        raise error
