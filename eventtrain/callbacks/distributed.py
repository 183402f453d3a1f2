"""Trains on several processes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal

from ..arguments import real_number
from ..callback import Callback, handler
from ..distributed.engines import (
    Replicas,
    Shards,
    broadcast_from_zero,
    is_wrapped,
    put_shards_back,
)
from ..distributed.global_mean import GlobalMean
from ..distributed.groups import joined_group
from ..errors import DesyncError
from ..events import EventName
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE
from ..submodules import Choice

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from ..distributed.participation import Engine
    from ..runner import Runner

Strategy = Literal["ddp", "fsdp2"]

_AROUND_PHASES: tuple[EventName, ...] = (
    *("begin_fit", "begin_train", "after_train"),
    *("begin_validate", "after_validate", "begin_predict", "after_predict"),
)


class Distributed(Callback):
    """Trains the model on all processes of a group, with torch's own DDP or FSDP2.

    The group is torch's default one, or is made when a run begins if ``RANK`` is set, as
    ``torchrun`` does; NCCL carries what is on CUDA, gloo the rest. A process that is alone
    trains as without this callback, so the same script runs in both ways; but loaders that shuffle
    have the order that they have on several processes, so that a run can go on with another number.

    All events fire on all ranks, and all leave ``fit``, ``epoch``, ``train``, ``validate`` and
    ``predict`` at the same boundary, whichever rank cancels them; ``batch`` and ``step`` are each
    rank's own, and must be cancelled on all alike.

    Args:
        strategy: ``"ddp"`` (default): every rank has the whole model. The loop calls DDP, and
            ``run.model`` stays the module that you have made. ``"fsdp2"``: every rank has a part of
            it; ``fully_shard`` changes the module in place, so ``Learner`` takes an optimizer
            factory. A model that is wrapped or sharded already is trained as it is.
        shard: For ``"fsdp2"``, the submodules that are gathered one at a time: names, modules or
            ``rule(name, module)``, as ``Freeze`` takes them; ``()`` for none. By default what is in
            each ``nn.ModuleList``.
        mesh: A ``DeviceMesh``; one dimension over all ranks by default.
        lost_after: Seconds within which every rank must answer when one asks, however busy its
            loop is. Default 60.

    Raises:
        ValueError: There is no such strategy, ``shard`` is given for ``"ddp"``, or ``lost_after``
            is not positive.
        RemoteError: In a run: another rank has failed, or does not answer.
        DesyncError: In a run: the ranks have not cancelled the same batches and steps, or the model
            was called past DDP.
    """

    def __init__(
        self,
        strategy: Strategy = "ddp",
        *,
        shard: Choice | None = None,
        mesh: DeviceMesh | None = None,
        lost_after: float = 60.0,
    ) -> None:
        if strategy not in ("ddp", "fsdp2"):
            raise ValueError(f"Distributed takes 'ddp' or 'fsdp2', got {strategy!r}")
        if shard is not None and strategy != "fsdp2":
            raise ValueError("shard= is for Distributed('fsdp2'): with DDP a rank has all of it")
        lost_after = real_number("lost_after", lost_after)
        if not 0 < lost_after < threading.TIMEOUT_MAX:
            raise ValueError(f"lost_after must be a positive number of seconds, got {lost_after!r}")
        self.strategy = strategy
        self.lost_after = lost_after
        self._engine: Replicas | Shards = (
            Replicas(lost_after, mesh) if strategy == "ddp" else Shards(lost_after, shard, mesh)
        )
        self._began_at = (0, 0)
        self._mean = GlobalMean()

    def joined_engine(self) -> Engine:
        """Return what trains, once this process has joined its group."""
        self._engine.group = joined_group()
        return self._engine

    @handler(priority=BEFORE_EVERYONE)
    def begin_fit(self, run: Runner) -> None:
        """Start from the weights of rank 0."""
        if self._is_replicated(run):
            broadcast_from_zero([*run.model.parameters(), *run.model.buffers()])

    @handler("begin_train", priority=BEFORE_EVERYONE)
    def compare_loaders(self, run: Runner) -> None:
        """See that all ranks are about to train on the same batches."""
        self._mean = GlobalMean(run.world)
        run.world.check_loader(run.data.train_dl)

    @handler(during="train", priority=AFTER_EVERYONE)
    def begin_batch(self, run: Runner) -> None:
        """Ask for the weight of the whole batch, where it has to be asked for."""
        self._mean.begin_batch(run)

    @handler(during="train", priority=AFTER_EVERYONE + 1)
    def after_loss(self, run: Runner) -> None:
        """Weight the loss by this rank's share of the batch, where shares are unequal."""
        self._mean.weight_loss(run)

    @handler(event=["after_backward", "after_batch"], priority=BEFORE_EVERYONE - 1)
    def put_loss_back(self, run: Runner) -> None:
        """Show the loss as it was."""
        self._mean.put_loss_back(run)

    @handler(priority=AFTER_EVERYONE)
    def begin_train(self, run: Runner) -> None:
        """Have those parameters averaged that are trained now."""
        wrapped: Any = run.learn.model_wrapped if self._is_replicated(run) else None
        if wrapped is not None:
            wrapped.follow_the_model()
            self._began_at = (wrapped.calls, run.steps)

    @handler(priority=BEFORE_EVERYONE)
    def after_train(self, run: Runner) -> None:
        """See that what was trained was called through DDP."""
        self._mean = GlobalMean()  # the one of this phase holds on to the model
        wrapped = self._engine.wrapped
        if wrapped is None or run.outcome == "failed":
            return
        calls, steps = self._began_at
        if wrapped.calls == calls and run.steps > steps:
            raise DesyncError(
                "no batch of this training phase has called the model through DDP, so each rank "
                "has trained for itself: in one_batch, call self.learn.model_wrapped, not "
                "self.model, where there are gradients"
            )

    @handler(event=["begin_validate", "begin_predict"], priority=BEFORE_EVERYONE)
    def share_buffers(self, run: Runner) -> None:
        """Have all ranks use the buffers of rank 0, running statistics say."""
        if not self._engine.group.is_alone:
            broadcast_from_zero(run.model.buffers())

    @handler(event=_AROUND_PHASES, priority=BEFORE_EVERYONE + 1)
    def put_shards_back(self, run: Runner) -> None:
        """Have others find the parameters that are trained, where FSDP2 has gathered them."""
        put_shards_back(run.model)

    def _is_replicated(self, run: Runner) -> bool:
        """Whether there are other ranks with copies of a model that this callback keeps alike."""
        is_ours = self.strategy == "ddp" and not is_wrapped(run.model)
        return is_ours and not self._engine.group.is_alone
