"""What all ranks do together for a checkpoint: what fails on one is raised on all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..distributed.exchange import NO_EXCHANGE, NoExchange
from ..distributed.transport import is_of_transport
from ..errors import CheckpointError, RemoteError, describe


class Ranks:
    """This rank and the others, who do the same.

    Args:
        exchange: How they tell each other.
        rank: Which one this is.
        size: How many there are.
    """

    def __init__(self, exchange: NoExchange = NO_EXCHANGE, rank: int = 0, size: int = 1) -> None:
        self._exchange = exchange
        self.rank, self.size = rank, size

    @property
    def is_zero(self) -> bool:
        """Whether this is the one that speaks for all."""
        return self.rank == 0

    def for_thread(self) -> Ranks:
        """Return the same for a thread of its own."""
        return Ranks(self._exchange.for_thread(), self.rank, self.size)

    def together(self, what: str, do: Callable[[], Any]) -> list[Any]:
        """Do something on all ranks, wait until all have, and return what came of it on each.

        Args:
            what: That, for messages: ``"write checkpoint x.pt"``.
            do: Returns what can be written as JSON.

        Raises:
            CheckpointError: It has failed on a rank. All ranks raise it.
            RemoteError: A rank has failed in something else, or does not answer.
        """
        if self.size == 1:
            return [do()]
        own: Exception | None = None
        found = None
        try:
            found = do()
        except RemoteError:
            raise
        except Exception as error:
            if is_of_transport(error):
                raise  # the others hear of that by themselves
            own = error
        text = json.dumps([found, None if own is None else _text(own)])
        said = [json.loads(each) for each in self._exchange(text)]
        failed = [(rank, error) for rank, (_, error) in enumerate(said) if error is not None]
        if failed:
            texts = "; ".join(f"rank {rank}: {error}" for rank, error in failed[:8])
            raise CheckpointError(f"cannot {what}: {texts}") from own
        return [result for result, _ in said]


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, CheckpointError) else describe(error)
