"""A place between two batches from which a run can go on though the next batch has begun."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..state import RunState
from .batch_print import BatchSample
from .kept_tensors import KeptTensors
from .plain_data import plain_data
from .snapshot import counters_at, gradients_of, random_states, take_snapshot


class SavePoint:
    """What a batch changes before its step, as it was before that batch.

    A handler that cancels the fit within a batch leaves the parameters as the last whole step
    made them, while random numbers have been drawn, running means have moved, and callbacks
    have counted. Kept here, those of before go into the checkpoint, and the batch is run again
    when the run goes on: with the weights, bit for bit, that it would have had.

    Args:
        epoch, phase, batch: Where the run goes on; as for ``take_snapshot``.
        run: The run, which is there now, and has no gradients that wait for a step.
        tensors: The tensors of its model and loss function.
        loader_state: As for ``take_snapshot``.

    Attributes:
        steps: The optimizer steps taken so far.
        batches: The training batches that have ended so far.
        is_saved: Whether a checkpoint has been written of it, or of something later.
    """

    def __init__(
        self,
        run: RunState,
        tensors: KeptTensors,
        epoch: int,
        phase: str | None,
        batch: int,
        loader_state: Any = None,
    ) -> None:
        self.epoch, self.phase, self.batch = epoch, phase, batch
        self.steps, self.batches = run.steps, run.n_iter
        self.is_saved = False
        self._counters = counters_at(run, phase)
        self._rows = len(run.history)
        self._row = dict(run.history[-1])
        self._callbacks = {
            callback.name: _copied(callback.state_dict())
            for callback in run.cbs
            if callback.counts_within_batch
        }
        tensors.keep()
        self._tensors = tensors
        # One of several steps, and what it has left in the gradients of others stays.
        self._gradients = gradients_of(run) if isinstance(run.opt, Mapping) else {}
        self._random = random_states(run)
        self._last_batch = BatchSample(run.batch) if phase is not None and batch else None
        self._loader_state = loader_state

    def snapshot(
        self,
        run: RunState,
        phase_start: Mapping[str, Any] | None,
        loader_forms: list[dict[str, Any] | None],
    ) -> dict[str, Any]:
        """Return what ``take_snapshot`` would have returned there.

        Args:
            run: No step has been taken meanwhile.
            phase_start: As for ``take_snapshot``.
            loader_forms: As for ``take_snapshot``.
        """
        position = {"epoch": self.epoch, "phase": self.phase, "batch": self.batch}
        content = take_snapshot(
            run,
            **position,  # type: ignore[arg-type]
            phase_start=phase_start,
            loader_forms=loader_forms,
            loader_state=self._loader_state,
        )
        # The one that is there now is to be run again.
        content["last_batch"] = None if self._last_batch is None else self._last_batch.print()
        content["counters"] = self._counters
        content["history"][self._rows - 1 :] = [plain_data(self._row, "history")]
        for name, state in self._callbacks.items():
            content["callbacks"][name] = plain_data(state, f"callbacks[{name!r}]")
        content["random"] = self._random
        content["gradients"] = self._gradients
        self._put_buffers(run.model, content["model"], content["buffers"])
        self._put_buffers(run.loss_func, content["loss_func"])
        return content

    def _put_buffers(self, part: Any, *states: dict[str, Any]) -> None:
        for name, buffer in self._tensors.kept(part):
            for state in states:
                if name in state and buffer is None:
                    del state[name]  # the batch that is to be run again has made it
                elif name in state:
                    state[name] = buffer


def _copied(value: Any) -> Any:
    """Copy a state, but for tensors in lists: those are added to, and not changed."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return copy.copy(value)
