"""One order of the samples for all processes, of whose batches each takes its share."""

from __future__ import annotations

import hashlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..arguments import flag, whole_number
from ..errors import DataError, EmptyLoaderError


@dataclass(frozen=True, slots=True)
class Share:
    """Which samples of each global batch are a process's own: every ``world_size``-th.

    Args:
        rank: From the how-manieth on, counted from 0.
        world_size: How many processes there are.

    Raises:
        TypeError, ValueError: One is no whole number, or there is no such rank.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        whole_number("world_size", self.world_size, 1, "processes")
        if whole_number("rank", self.rank, 0) >= self.world_size:
            raise ValueError(
                f"rank must be below world_size, got rank {self.rank} of {self.world_size}"
            )

    def rows(self, size: int) -> int:
        """Return how many samples of a global batch of ``size`` are this process's own."""
        return len(range(self.rank, size, self.world_size))

    def cut(self, rows: Any) -> Any:
        """Return the share of ``rows``, those of a global batch, at least one.

        A process whose share is empty has to take part in what all do together (a forward and a
        backward pass). It gets a row that is another's: with ``rows() == 0`` for it, it counts
        for nothing.
        """
        own = rows[self.rank :: self.world_size]
        if len(own):
            return own
        row = self.rank % len(rows)
        return rows[row : row + 1]


ALL = Share()
"""The share of a process that is alone."""


def order_of_epoch(n: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of ``range(n)``, int64 [n] on the CPU, the same on every machine.

    It depends on ``seed`` and ``epoch`` alone. They are mixed: were they added up, epoch 1 of
    seed 0 would be epoch 0 of seed 1.
    """
    mixed = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little"))
    return torch.randperm(n, generator=generator)


def count_batches(n: int, bs: int, drop_last: bool) -> int:
    """Return the number of global batches in an epoch of ``n`` samples."""
    full, rest = divmod(n, bs)
    return full + (rest > 0 and not drop_last)


def global_batches(n: int, bs: int, drop_last: bool, start: int = 0) -> Iterator[slice]:
    """Yield the places of the global batches in the order of an epoch, from ``start`` on."""
    end = n - n % bs if drop_last else n
    return (slice(first, min(first + bs, end)) for first in range(start, end, bs))


class SharedBatches(ABC):
    """Batches in one order for all processes, of which this one takes its share.

    Args:
        share: Of this process.

    Attributes:
        batch_size: Samples in a batch, over all processes.
        drop_last: Whether a last batch of fewer samples is left out.
        shuffle: Whether each epoch has an order of its own.
        seed: On which, with the epoch, that order depends; ``None`` where it is drawn.
        generator: From which it is drawn; ``None`` for torch's global one.
        has_seed_of_run: Whether ``seed`` is a run's; see ``use_seed_of_run``.
        epoch: Whose order comes next; see ``set_epoch``.
        share: The ``Share`` of this process.
    """

    batch_size: int
    drop_last: bool
    shuffle: bool
    seed: int | None
    generator: torch.Generator | None

    def __init__(self, share: Share = ALL) -> None:
        self.share = share
        self.has_seed_of_run = False
        self.epoch = 0
        self._start = 0

    @abstractmethod
    def _count(self) -> int:
        """Return the number of samples in an epoch, over all processes."""

    def require_batches(self, what: str) -> None:
        """See that there is a batch.

        Args:
            what: The name of the samples, for the message.

        Raises:
            EmptyLoaderError: There is none.
        """
        if len(self) == 0:
            n = self._count()
            lack = f"no full batch of {self.batch_size} (drop_last=True)" if n else "no batch"
            raise EmptyLoaderError(f"{n} {what} make {lack}")

    def shard(self, rank: int, world_size: int) -> None:
        """Give each batch's share of a process alone, from the next epoch on.

        Raises:
            TypeError, ValueError: There is no such rank.
        """
        self.share = Share(rank, world_size)

    def use_seed_of_run(self, seed: int | None) -> None:
        """Have orders be those of a run's seed, where neither a seed nor a generator was given.

        Args:
            seed: Takes the place of an earlier one of a run; ``None`` to have none of a run again.
        """
        if self.has_seed_of_run or (self.seed is None and self.generator is None):
            self.seed, self.has_seed_of_run = seed, seed is not None

    def order_form(self) -> dict[str, int | bool | None]:
        """Return what decides which samples are in which batch of the next epoch, as plain data.

        Returns:
            ``samples``, the number of them, and ``batch_size``, both over all processes;
            ``drop_last``, ``shuffle``, ``seed``, ``epoch``; and ``generator``, the CRC-32 sum of
            its state. It is equal in all processes, whatever their number is.
        """
        drawn: Any = None
        if self.shuffle and self.generator is not None:
            drawn = zlib.crc32(self.generator.get_state().numpy())  # type: ignore[arg-type]
        return {
            "samples": self._count(),
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "shuffle": self.shuffle,
            "seed": self.seed if self.shuffle else None,
            "epoch": self.epoch if self.shuffle else None,
            "generator": drawn,
        }

    def set_epoch(self, epoch: int) -> None:
        """Have the next order be that of ``epoch``, where there is a seed; a run does so."""
        self.epoch = whole_number("epoch", epoch, 0)

    def start_at(self, samples: int) -> None:
        """Have the next epoch, and it alone, begin behind its first ``samples`` ones.

        Args:
            samples: Counted over all processes, so that it means the same for any number of them.

        Raises:
            TypeError, ValueError: It is no whole number, or negative.
        """
        self._start = whole_number("samples", samples, 0)

    def take_start(self) -> int:
        """Return where the epoch that is asked for begins; the next one begins at 0."""
        start, self._start = self._start, 0
        return start

    def rows_of_share(self, batch: int) -> int:
        """Return how many samples of a batch, counted from 0, are this process's own."""
        return self.share.rows(self.rows_of_batch(batch))

    def rows_of_batch(self, batch: int) -> int:
        """Return how many samples a batch has over all processes."""
        return max(0, min(self.batch_size, self._count() - batch * self.batch_size))

    def __len__(self) -> int:
        """The exact number of batches in an epoch, the same for every share."""
        return count_batches(self._count(), self.batch_size, self.drop_last)


class GlobalBatchSampler(SharedBatches, Sampler[list[int]]):
    """Batches of indices for a ``DataLoader``, cut so that all processes run the same batches.

    ``DataLoader(dataset, batch_sampler=GlobalBatchSampler(dataset, bs=64))`` has batches of 64 on
    one process, and on four each takes 16 of the same 64. One permutation for each seed and epoch
    holds for all processes; the batch ``b`` is ``order[b * bs : (b + 1) * bs][rank::world_size]``.
    So every sample comes once in an epoch, whatever the number of processes is and whenever it
    changes. Nothing is padded: the shares of a batch may differ by one sample. Where a last batch
    has fewer samples than there are processes, those without one get a row of the others', to take
    part with; ``rows_of_share`` tells that it counts for nothing.

    Args:
        n: The data set, or how many samples it has.
        bs: Samples in a batch, over all processes. Default 64.
        shuffle: Draw a new order each epoch. Default ``True``.
        seed: On which, with the epoch, the order depends. It must be the same in all processes.
            Default 0.
        drop_last: Leave out a last batch of fewer than ``bs`` samples. Default ``False``.
        generator: CPU generator to draw the order from in place of ``seed``; it must be in the
            same state in all processes. Default ``None``.
        rank: This process, counted from 0, the default; ``shard`` sets it afterwards.
        world_size: How many processes there are. Default 1; ``shard`` sets it afterwards.

    Iterating gives a list of indices for each batch.

    Attributes:
        batch_size: ``bs``. Like ``shuffle``, ``seed`` and ``drop_last`` it may be changed; the
            next epoch follows.
        epoch: Whose order comes next; see ``set_epoch``.
        share: The ``Share`` of this process.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of range.
        EmptyLoaderError: There is no sample, or with ``drop_last`` no full batch.
    """

    seed: int

    def __init__(
        self,
        n: int | Sized,
        bs: int = 64,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._samples = n if isinstance(n, Sized) else whole_number("n", n, 0, "samples")
        self.batch_size = whole_number("the batch size", bs, 1)
        self.shuffle = flag("shuffle", shuffle)
        self.seed = whole_number("seed", seed, 0)
        self.drop_last = flag("drop_last", drop_last)
        self.generator = checked_generator(generator)
        super().__init__(Share(rank, world_size))
        self.require_batches("samples")

    def _count(self) -> int:
        return self._samples if isinstance(self._samples, int) else len(self._samples)

    def __iter__(self) -> Iterator[list[int]]:
        # Not a generator: what is drawn is drawn now, and "start" is for this iterator alone.
        start = self.take_start()
        n, share = self._count(), self.share
        if not self.shuffle:
            order = torch.arange(n)
        elif self.generator is not None:
            order = torch.randperm(n, generator=self.generator)
        else:
            order = order_of_epoch(n, self.seed, self.epoch)
        places = global_batches(n, self.batch_size, self.drop_last, start)
        return (share.cut(order[place]).tolist() for place in places)


def checked_generator(generator: torch.Generator | None) -> torch.Generator | None:
    """Return a generator for an order.

    Raises:
        ValueError: It is not on the CPU, where one seed gives one order for every device.
    """
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"the order is drawn on the CPU, but the generator is on {generator.device}"
        )
    return generator


def shared_order(seed: int | None, generator: torch.Generator | None, share: Share) -> None:
    """Refuse a shuffled order that processes which share its batches would each draw differently.

    Raises:
        DataError: It would be drawn from the random numbers that each process has of its own.
    """
    if seed is None and generator is None and share.world_size > 1:
        raise DataError(
            f"{share.world_size} processes would each draw an order of their own: give the loader "
            "a seed= that is the same in all of them, or a generator= in the same state"
        )
