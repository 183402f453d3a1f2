"""What trains a model on several processes: torch's DDP and FSDP2, put where the loop calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import distributed as dist, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ..optimizers import named_optimizers
from ..submodules import Choice, choose_submodules, fill
from .arrival_order import ArrivalOrder
from .groups import ALONE, Group, require_all_ranks


def is_wrapped(model: Any) -> bool:
    """Whether the user has put a model into DDP or FSDP2 already."""
    return isinstance(model, (DistributedDataParallel, FSDPModule))


def broadcast_from_zero(tensors: Iterable[torch.Tensor]) -> None:
    """Fill tensors in place with those of rank 0; on every rank the same, in the same order."""
    require_all_ranks("a broadcast")
    for tensor in tensors:
        if nn.parameter.is_lazy(tensor):
            continue
        value = tensor.detach().contiguous()
        # gloo carries no truth values, and only what is contiguous.
        dist.broadcast(value.view(torch.uint8) if value.dtype is torch.bool else value, 0)
        if value.data_ptr() != tensor.data_ptr():
            fill(tensor.detach(), value)


def put_shards_back(model: Any) -> None:
    """Have the parameters of FSDP2 be the parts that a rank keeps, and not gathered ones.

    The forward pass leaves the outermost ones gathered, for a backward pass that does not come in
    a validation. What is written into them then is lost; what an optimizer, an average or a
    callback holds are the parts.
    """
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, FSDPModule):
            module.reshard()


class CalledThrough(nn.Module):
    """What DDP holds of a model that is called through something else.

    DDP prepares, calls what it holds, and shares a gradient as soon as a parameter has it: what
    stands in between may fail and begin again, and the other ranks only wait.

    Args:
        model: The user's.
        call: What calls it.
    """

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.call = call
        name = "_ddp_params_and_buffers_to_ignore"  # where torch keeps what a user has left out
        setattr(self, name, [f"model.{each}" for each in getattr(model, name, ())])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns."""
        return self.call(*args, **kwargs)


class Replicated:
    """What is called for a model that has a copy on every rank: DDP around it, where it is trained.

    DDP is made when it is needed, as it is of the parameters that are trained then, and made
    anew for others. Without gradients the model itself is called, which needs no other rank.

    Args:
        model: The user's.
        mesh: Of the ranks that have copies; all by default.

    Attributes:
        calls: How often DDP was called.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh | None = None) -> None:
        self.model = model
        self.calls = 0
        self._mesh = mesh
        self._syncs = True
        self._syncs_buffers = True
        self._around: Any = None
        self._trained: list[int] = []
        self._order = ArrivalOrder()
        self._make_call: Callable[[nn.Module], Callable[..., Any]] | None = None
        self._call: Callable[..., Any] = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call DDP, or the model itself where there are no gradients."""
        if not torch.is_grad_enabled():
            return self._call(*args, **kwargs)
        if self._around is None:
            self._put_around()
        if self._syncs and not self._order.is_known:
            self._order.record(self.model)
        self.calls += 1
        return self._around(*args, **kwargs)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "what the loop calls for a model on several processes cannot be copied or pickled: it "
            "belongs to one run. Copy the model"
        )

    def call_through(self, make: Callable[[nn.Module], Callable[..., Any]] | None) -> None:
        """Have the model be called through something else, within DDP.

        Args:
            make: Returns what calls the model that it is given; ``None`` has it called by itself.
        """
        self._make_call = make
        self._call = self.model if make is None else make(self.model)
        self._around = None

    def followed_by(self, model: nn.Module) -> Replicated:
        """Return what is called for another model of the same run, in the same way."""
        found = Replicated(model, self._mesh)
        found.call_through(self._make_call)
        return found

    @property
    def require_backward_grad_sync(self) -> bool:
        """Whether the next backward pass averages the gradients; DDP's name for it."""
        return self._syncs

    @require_backward_grad_sync.setter
    def require_backward_grad_sync(self, is_on: bool) -> None:
        self._syncs = is_on
        if isinstance(self._around, DistributedDataParallel):
            self._around.require_backward_grad_sync = is_on

    @property
    def require_forward_param_sync(self) -> bool:
        """Whether the next forward pass has the buffers of rank 0; DDP's name for it."""
        around = self._around
        if isinstance(around, DistributedDataParallel):
            self._syncs_buffers = bool(around.require_forward_param_sync)
        return self._syncs_buffers

    @require_forward_param_sync.setter
    def require_forward_param_sync(self, is_on: bool) -> None:
        self._syncs_buffers = is_on
        if isinstance(self._around, DistributedDataParallel):
            self._around.require_forward_param_sync = is_on

    @property
    def arrival_order(self) -> list[str]:
        """See ``ArrivalOrder.names``; to be set before there was a batch."""
        return self._order.names

    @arrival_order.setter
    def arrival_order(self, names: list[str]) -> None:
        if self._around is None:
            self._order.names = names

    def follow_the_model(self) -> None:
        """Have other parameters averaged, if others are trained since DDP was made."""
        if self._around is not None and self._trained != self._trained_now():
            self._around, self._order = None, ArrivalOrder()

    def _trained_now(self) -> list[int]:
        return [id(p) for p in self.model.parameters() if p.requires_grad]

    def _put_around(self) -> None:
        self._trained = self._trained_now()
        if not self._trained:
            self._around = self._call  # there is nothing to average
            return
        held = self.model if self._make_call is None else CalledThrough(self.model, self._call)
        # Where a group of batches is resumed in its middle, each rank has buffers of its own.
        self._around = DistributedDataParallel(
            held, device_mesh=self._mesh, init_sync=self._syncs_buffers
        )
        if self._order.is_known:
            self._order.show(self._around, self.model)
        self._around.require_backward_grad_sync = self._syncs
        self._around.require_forward_param_sync = self._syncs_buffers


class Replicas:
    """DDP: a whole model on every rank, gradients averaged in the backward pass.

    Args:
        lost_after: See ``Distributed``.
        mesh: Of the ranks that have copies; all by default.

    Attributes:
        group: This process's; alone until ``join``.
        wrapped: What is called for the model of the run; ``None`` where it is the user's own.
    """

    def __init__(self, lost_after: float, mesh: DeviceMesh | None = None) -> None:
        self.lost_after = lost_after
        self.group: Group = ALONE
        self.wrapped: Replicated | None = None
        self._has_wrapped = False
        self._mesh = mesh

    def prepare(self, learn: Any) -> None:
        """Have the loop call DDP for the model, which stays ``learn.model``.

        Raises:
            TypeError: The model is no ``nn.Module``.
        """
        _require_module(learn.model)
        # A run inside of another one with the same learner finds it wrapped.
        self._has_wrapped = not isinstance(learn.model_wrapped, Replicated)
        if self._has_wrapped and not is_wrapped(learn.model):
            learn.wrap_model(self._wrap)

    def _wrap(self, model: Any) -> Any:
        _require_module(model)
        if is_wrapped(model):
            self.wrapped = None
        elif self.wrapped is None:
            self.wrapped = Replicated(model, self._mesh)
        else:  # the model was replaced
            self.wrapped = self.wrapped.followed_by(model)
        return self.wrapped or model

    def release(self, learn: Any) -> None:
        """Have the loop call the model itself, if this is what has changed that."""
        if self._has_wrapped:
            learn.wrap_model(None)
        self._has_wrapped = False
        self.wrapped = None


class Shards:
    """FSDP2: each rank keeps a part of every parameter, gathered where it is needed.

    Args:
        lost_after: See ``Distributed``.
        shard: Which parts of the model are gathered at a time, besides the rest of it.
        mesh: Over which they are divided; all ranks by default.

    Attributes:
        group: This process's; alone until ``join``.
    """

    wrapped: Replicated | None = None

    def __init__(
        self, lost_after: float, shard: Choice | None = None, mesh: DeviceMesh | None = None
    ) -> None:
        self.lost_after = lost_after
        self.group: Group = ALONE
        self._shard = shard
        self._mesh = mesh

    def prepare(self, learn: Any) -> None:
        """Divide the model among the ranks, in place; one that is divided already stays.

        Raises:
            TypeError: The model is no ``nn.Module``, or the optimizer is made already.
        """
        model = learn.model
        _require_module(model)
        put_shards_back(model)
        if is_wrapped(model):
            return
        optimizers = (opt for _, opt in named_optimizers(learn.opt))
        made = [opt for opt in optimizers if isinstance(opt, torch.optim.Optimizer)]
        if made:
            kind = type(made[0]).__name__
            raise TypeError(
                f"Distributed('fsdp2') replaces the parameters of {type(model).__name__}, and "
                f"{kind} has been made of the old ones: give Learner a factory, as in "
                f"lambda params: torch.optim.{kind}(params, lr=0.1), or a model that fully_shard "
                "was called on before"
            )
        broadcast_from_zero([*model.parameters(), *model.buffers()])
        mesh = self._mesh or init_device_mesh(_device_type(model), (self.group.world_size,))
        for part in self._parts(model):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def _parts(self, model: nn.Module) -> list[nn.Module]:
        """Return what is sharded by itself, the inner ones first."""
        if self._shard is not None:
            chosen = list(choose_submodules(model, self._shard).values()) if self._shard else []
        else:
            lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
            chosen = [m for each in lists for m in each if any(True for _ in m.parameters())]
        wanted = {id(module) for module in chosen if module is not model}
        return [module for module in reversed(list(model.modules())) if id(module) in wanted]

    def release(self, learn: Any) -> None:
        """Do nothing: the model stays divided, for the optimizer is, too."""


def _require_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"Distributed needs a model that is an nn.Module, got {type(model).__name__}: its "
            "parameters are what the processes train together"
        )


def _device_type(model: nn.Module) -> str:
    first = next(model.parameters(), None)
    return "cpu" if first is None else first.device.type
