"""Numbers that processes have in common: sums, and what each of them has, once a phase.

The loop and the callbacks ask ``run.world``. It is ``ONE_PROCESS`` where a process is alone, which
asks nobody. All methods of a ``World`` but those that say so are collective: every process calls
them, in the same order, or all wait for ever. So they are called in events, which fire in every
process, and never where a run has failed (``run.outcome``), as the others have not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed as dist

from ..data.global_order import SharedBatches
from ..data.sharding import order_print, shares_of
from ..data.weights import weight_of
from ..errors import DataError
from .exchange import NO_EXCHANGE, NoExchange
from .gradient_sync import NO_SYNC, GradientSync, NoSync
from .groups import require_all_ranks


class OneProcess:
    """What a process that is alone has in common with others: its own numbers, as they are.

    Attributes:
        rank: Which process this is, from 0.
        size: How many there are.
        gradient_sync: Turns the sharing of gradients on and off.
        exchange: Text for text with all other processes, through a store: a wait ends where one of
            them has failed.
    """

    rank = 0
    size = 1
    gradient_sync: NoSync = NO_SYNC
    exchange: NoExchange = NO_EXCHANGE

    def sums(self, numbers: Sequence[Any]) -> list[Any]:
        """Return each number's sum over all processes.

        Args:
            numbers: As many in each process; floats, or tensors without dimensions on any device.

        Returns:
            Where there are several processes, floats, added up in float64; else ``numbers``.
        """
        return list(numbers)

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return the numbers of each process, by rank; each has as many."""
        return [[float(number) for number in numbers]]

    def average(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Fill tensors in place with their means over all processes.

        Args:
            tensors: As many, of the same shapes, in each process.
            weight: What those of this process count; where all count 0, they stay as they are.
        """

    def has_share(self, run: Any) -> bool:
        """Whether a row of the batch is this process's own, and not one that stands in.

        Not collective. Asked for in training or validation.
        """
        return True

    def weight_of(self, run: Any) -> float | Tensor:
        """Return what the loss of this process's share of the batch is a mean of; not collective.

        It is 0 where the share is empty and a row of another's stands in.
        """
        weight = None if run.learn is None else run.learn.weight
        return weight_of(run.batch, weight)

    def whole_weight_of(self, run: Any) -> float | Tensor:
        """Return what the loss over all shares of the batch is a mean of, equal in all processes.

        A tensor stays on its device.
        """
        return run.weight  # type: ignore[no-any-return]

    def weigh_every_batch(self) -> None:
        """Have each training batch's whole weight be known, as somebody needs it."""

    def begin_batch(self, run: Any) -> None:
        """Begin to ask for the weight of a training batch over all processes, if it is needed."""

    def share_of_mean(self, run: Any) -> float | Tensor:
        """Return by what to multiply the loss for gradients of the mean over the whole batch."""
        return 1

    def check_loader(self, loader: Any) -> None:
        """See that all processes are about to train on the same batches of ``loader``.

        Raises:
            DataError: They have other lengths, batch sizes or orders. All processes raise it.
        """


ONE_PROCESS = OneProcess()
"""What ``run.world`` is where a process is alone."""


class World(OneProcess):
    """Several processes of a group.

    Args:
        group: The process group; ``None`` (default) is torch's default one, of all processes.
        gradient_sync: Of the model that is trained.
        exchange: Of the run; without one, nothing is to be exchanged but numbers.
    """

    def __init__(
        self,
        group: Any = None,
        gradient_sync: NoSync | None = None,
        exchange: NoExchange = NO_EXCHANGE,
    ) -> None:
        self.group = group
        self.exchange = exchange
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.gradient_sync = gradient_sync or GradientSync(None, group)
        self.device = device_of(group)
        self._is_weighed = False
        self._asked: tuple[Any, Any, Any] | None = None  # for which batch, the answer, the work

    def sums(self, numbers: Sequence[Any]) -> list[Any]:
        """See ``OneProcess.sums``: one all-reduce, and one reading by the host."""
        require_all_ranks("run.world.sums")
        if not numbers:
            return []  # in all processes
        total = torch.stack([self._here(number) for number in numbers])
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """See ``OneProcess.gather``: one all-gather."""
        require_all_ranks("run.world.gather")
        if not numbers:
            return [[] for _ in range(self.size)]
        own = torch.tensor([float(n) for n in numbers], dtype=torch.float64, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(rows, own, group=self.group)
        return torch.stack(rows).tolist()

    def average(self, tensors: Sequence[Tensor], weight: float) -> None:
        """See ``OneProcess.average``: one all-reduce."""
        require_all_ranks("run.world.average")
        # What counts for nothing may be NaN.
        parts = [t.detach().double() * weight if weight else torch.zeros_like(t) for t in tensors]
        flat = [part.to(self.device, torch.float64).flatten() for part in parts]
        total = torch.cat([*flat, self._here(weight).view(1)])
        dist.all_reduce(total, group=self.group)
        if not total[-1]:
            return
        means = torch.split(total[:-1] / total[-1], [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.detach().copy_(mean.view(tensor.shape))

    def _here(self, number: Any) -> Tensor:
        if not isinstance(number, Tensor):
            # Filled, not copied from the host: a copy would wait for the device.
            return torch.full((), float(number), dtype=torch.float64, device=self.device)
        return number.detach().reshape(()).to(self.device, non_blocking=True).double()

    def has_share(self, run: Any) -> bool:
        """See ``OneProcess.has_share``."""
        shares = _shares_in(run)
        return shares is None or bool(shares.rows_of_share(run.batch_index))

    def weight_of(self, run: Any) -> float | Tensor:
        """See ``OneProcess.weight_of``."""
        return super().weight_of(run) if self.has_share(run) else 0

    def weigh_every_batch(self) -> None:
        """See ``OneProcess.weigh_every_batch``."""
        self._is_weighed = True

    def begin_batch(self, run: Any) -> None:
        """See ``OneProcess.begin_batch``.

        It is called before the forward pass, which goes on meanwhile. What it is needed for is a
        weight of the user's own, and callbacks that count (``weigh_every_batch``). The samples of
        batches that are shared out here are known without asking.
        """
        self._asked = None
        if run.in_train and (run.learn.weight is not None or self._is_weighed):
            self._ask(run)

    def _ask(self, run: Any) -> tuple[Any, Any, Any]:
        key = run.place_of_batch()
        shares = _shares_in(run) if run.learn.weight is None else None
        if shares is not None:
            self._asked = key, shares.rows_of_batch(run.batch_index), None
        else:
            require_all_ranks("run.world.whole_weight_of")
            weight = self._here(run.weight).clone()
            work = dist.all_reduce(weight, group=self.group, async_op=True)
            self._asked = key, weight, work
        return self._asked

    def whole_weight_of(self, run: Any) -> float | Tensor:
        """See ``OneProcess.whole_weight_of``; collective if nobody has asked in this batch."""
        asked = self._asked
        if asked is None or asked[0] != run.place_of_batch():
            asked = self._ask(run)
        key, weight, work = asked
        if work is not None:
            work.wait()  # on a GPU it is the stream that waits, and not the host
            self._asked = key, weight, None
        return weight  # type: ignore[no-any-return]

    def share_of_mean(self, run: Any) -> float | Tensor:
        """See ``OneProcess.share_of_mean``.

        That is ``weight * size / whole weight``, as gradients are averaged over all processes.
        Collective where weights are asked for. Shares of loaders that cut for themselves count
        alike, unless their weights are asked for.
        """
        if run.learn.weight is None and not self._is_weighed and _shares_in(run) is None:
            return 1
        own, whole = run.weight, self.whole_weight_of(run)
        if not isinstance(whole, Tensor):
            return float(own * self.size / whole)
        return self._here(own) * self.size / torch.where(whole == 0, 1.0, whole)

    def check_loader(self, loader: Any) -> None:
        """See ``OneProcess.check_loader``: one all-gather."""
        rows = self.gather(order_print(loader))
        for what, values in zip(_PRINT, zip(*rows, strict=True), strict=True):
            if len(set(values)) == 1:
                continue
            listed = ", ".join(f"rank {rank}: {value:g}" for rank, value in enumerate(values))
            raise DataError(
                f"the training loaders of the processes differ in their {what} ({listed}): all "
                "must run the same number of batches of one order. Make them of the same data with "
                "the same arguments in every process, without a condition on the rank"
            )


def joined_world() -> OneProcess:
    """Return the processes of torch's default group, outside of a run; this one, without such."""
    is_there = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return World() if is_there else ONE_PROCESS


_PRINT = (
    "number of batches (-1 where it is not certain)",
    "batch size",
    "seed (-1: there is none)",
    "generator's state",
    "epoch",
)


def _shares_in(run: Any) -> SharedBatches | None:
    """Return what knows the shares of the batch of ``run``."""
    if run.learn is None or run.batch_index is None or run.phase not in ("train", "validate"):
        return None
    return shares_of(run.data.train_dl if run.phase == "train" else run.data.valid_dl)


def device_of(group: Any = None) -> torch.device:
    """Return the device on which numbers travel in a group: the CPU where it can be."""
    backends = str(dist.get_backend_config(group))
    kinds = [pair.partition(":")[0] for pair in backends.split(",")]
    if "cpu" in kinds or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
