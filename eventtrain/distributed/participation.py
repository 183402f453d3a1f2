"""The part that a process takes in a run on several: boundaries, failures, what all must do alike.

Who is alone takes none: ``TAKES_NO_PART`` does nothing, and ``Alone`` has its data in the order
that several have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch

from ..bus.handlers import place_of
from ..cancellation import CancellationToken, Scope, Unwind
from ..data.bunch import DataBunch
from ..data.sharding import shard_data
from ..errors import DesyncError, RemoteError
from ..interrupts import hear_at_once
from .agreed_scopes import AgreedScope
from .agreement import AGREED, Agreement
from .connections import cut, own_ends
from .exchange import Exchange
from .failures import Failures
from .gradient_sync import GradientSync
from .groups import Group
from .patience import Patience
from .reductions import ONE_PROCESS, OneProcess, World
from .tallies import Tallies

BOUNDARIES = frozenset((*AGREED, "batch"))


class Engine(Protocol):
    """What trains on several processes; the part that is taken sees to when."""

    group: Group
    lost_after: float

    def prepare(self, learn: Any) -> None:
        """Make the model one that is trained by all, before an optimizer is made for it."""
        ...

    def release(self, learn: Any) -> None:
        """Let go of what was prepared."""
        ...


class Common:
    """What the ranks of a run have in common while it goes on: model, data and numbers.

    Args:
        engine: What trains the model.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._undo: list[Callable[[], object]] = []

    def set_up(self, run: Any, learn: Any, exchange: Exchange) -> None:
        """Make the model one of all ranks, and give each its share of the data."""
        self._undo.append(exchange.close)
        self._undo.append(partial(self._engine.release, learn))
        self._engine.prepare(learn)
        run.world = world = World(
            gradient_sync=GradientSync(learn.model_wrapped), exchange=exchange
        )
        self._undo.append(partial(setattr, run, "world", ONE_PROCESS))
        if learn.data is not None:
            self._undo.append(share_data(learn.data, world))

    def take_down(self) -> None:
        """Put all back as it was."""
        while self._undo:
            self._undo.pop()()


def share_data(data: DataBunch, world: OneProcess) -> Callable[[], None]:
    """Give this process its share of every batch; return what puts the data back; collective."""
    seed = int(world.gather([torch.initial_seed() % 2**31])[0][0])  # that of rank 0
    return shard_data(data, world.rank, world.size, seed)


class NoPart:
    """The part of a process that is alone: none. Every method is one of ``Participation``."""

    def make_scope(self, token: CancellationToken, name: str, owner: object) -> Scope:
        """Return a plain scope."""
        return Scope(token, name, owner)

    def prepare(self, learn: Any) -> None:
        """Do nothing."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Do nothing."""


TAKES_NO_PART = NoPart()


class Alone(NoPart):
    """The part of a process that is alone and may go on as several: data in the order of those."""

    def __init__(self) -> None:
        self._put_back: Callable[[], None] | None = None

    def prepare(self, learn: Any) -> None:
        """Have the loaders follow the order that they would have on several processes."""
        if learn.data is not None:
            self._put_back = share_data(learn.data, ONE_PROCESS)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Put the data back."""
        put_back, self._put_back = self._put_back, None
        if put_back is not None:
            put_back()


class Participation(NoPart):
    """One rank's part in one run.

    A context manager around the loop: when that is left, it comes to the end with all others, or
    tells them why it failed. An exception that was raised because another rank has failed, in a
    collective that broke, is replaced by a ``RemoteError`` in the innermost scope.

    Args:
        run: Whose loop it is; for messages, and for the steps that it has taken.
        token: That of the run.
        engine: What trains the model.

    Attributes:
        explain: See ``Failures.explain``.
    """

    def __init__(self, run: Any, token: CancellationToken, engine: Engine) -> None:
        self._run, self._token, self._engine = run, token, engine
        self._common = Common(engine)
        self._outermost: Scope | None = None
        self._exchanges = 0

    def __enter__(self) -> None:
        """Begin to agree with the others."""
        group, lost_after = self._engine.group, self._engine.lost_after
        self._name = name = group.name_of_next_run()
        self._tallies = Tallies(group, name, lost_after, self._raise_failure)
        self._agreement = Agreement(
            group.connect,
            name,
            self._token,
            rank=group.rank,
            world_size=group.world_size,
            lost_after=lost_after,
            cut=partial(cut, ports=group.store_ports()),
            put_back=group.put_back,
        )
        self.explain = Failures(self._run, self._agreement).explain
        hear_at_once(self._token)

    def make_scope(self, token: CancellationToken, name: str, owner: object) -> Scope:
        """Return a scope that asks this part."""
        return AgreedScope(self, token, name, owner)

    def prepare(self, learn: Any) -> None:
        """Have the engine make the model ready, and give this rank its share of the data.

        Where a token was cancelled before the run began, on whatever rank, none of them begins.

        Raises:
            RemoteError: Another rank has failed.
        """
        asked = World().gather([self._agreement.is_asked])
        if any(row[0] for row in asked):
            return self._agreement.take_what_was_asked()
        self._agreement.begin(own_ends())
        self._common.set_up(self._run, learn, self.new_exchange())

    def new_exchange(self) -> Exchange:
        """Return a way to tell the other ranks something, for one run by this part's token."""
        self._exchanges += 1
        group = self._engine.group
        return Exchange(
            group.connect,
            f"{self._name}/{self._exchanges}",
            rank=group.rank,
            world_size=group.world_size,
            watch=lambda: Patience(self._agreement, self._token),
        )

    # For the scopes

    def enter(self, scope: Scope) -> None:
        """Be a boundary, if the scope is one that all open alike.

        Raises:
            RemoteError: Another rank has failed.
        """
        if scope.name in BOUNDARIES:
            if self._outermost is None:
                self._outermost = scope
            self._agreement.enter(scope)

    def come_to_end(self, scope: Scope, error: BaseException | None) -> BaseException | None:
        """Leave with all others; return what the scope closes with.

        That is the cancellation that all have agreed on, a ``RemoteError`` where another rank is
        the reason of ``error`` or has failed, a ``DesyncError``, or ``error`` itself.
        """
        if error is not None and not isinstance(error, Unwind):
            return self.explain(error)
        try:
            if scope.name == "train":
                self._tallies.compare(self._run.steps, lambda: self._require_all_here(scope))
            if error is None and scope.name in AGREED:
                self._agreement.leave(scope)
                if scope is self._outermost:
                    self._agreement.end()
        except BaseException as failure:  # an interrupt too: the scope is closed with it
            return self.explain(failure)
        return error

    def was_left(self, scope: Scope) -> None:
        """Count what was cancelled here, by this rank alone as far as it knows.

        Raises:
            DesyncError: The others have not cancelled the same batch.
            RemoteError: Another rank has failed.
        """
        run = self._run
        if scope.name in ("batch", "step") and scope.outcome == "cancelled" and run.in_train:
            place = place_of(run)
            self._tallies.count(scope.name, place)
            if scope.name == "batch":
                self._tallies.meet(place)

    def _require_all_here(self, scope: Scope) -> None:
        self._raise_failure()
        if self._agreement.has_gone_on(scope):
            rank, run = self._engine.group.rank, self._run
            raise DesyncError(
                f"the training of rank {rank} in epoch {run.epoch} has ended after "
                f"{run.n_iter - run.epoch_began_at} batches, and another rank has begun a further "
                "one, in which it waits for this rank: the loaders of all ranks must give the "
                "same number of batches",
                [rank],
            )

    # Around the loop

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Come to the end of the run with all others, or tell them why not.

        Raises:
            RemoteError: Another rank has failed.
        """
        failure = error
        try:
            if error is None or isinstance(error, Unwind):
                self._agreement.end()
            else:
                failure = self.explain(error)
        except RemoteError as remote:
            failure = remote
        finally:
            self._tallies.close()
            self._common.take_down()
            self._agreement.close()
        if failure is None:
            self._raise_failure()
        elif failure is not error:
            raise failure

    def _raise_failure(self) -> None:
        failure = self._agreement.failure
        if failure is not None:
            raise RemoteError(str(failure), failure.ranks)


class Guest(NoPart):
    """The part of a run inside of another one by the same token, whose boundaries are its own.

    Args:
        run: The one inside.
        host: The part of the other one.
        engine: What trains this run's model.
    """

    def __init__(self, run: Any, host: Participation, engine: Engine) -> None:
        self._host, self._common = host, Common(engine)
        self._run = run

    def make_scope(self, token: CancellationToken, name: str, owner: object) -> Scope:
        """Return a scope that asks the part of the host."""
        return self._host.make_scope(token, name, owner)

    def prepare(self, learn: Any) -> None:
        """Have the engine make the model ready, and give this rank its share of the data."""
        self._common.set_up(self._run, learn, self._host.new_exchange())

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Let go of model and data; what has happened is told by the scopes around."""
        self._common.take_down()


_parts: WeakValueDictionary[int, Participation] = WeakValueDictionary()
"""By the id of the token, which holds its part by ``agree`` for as long as that lasts."""


def take_part(run: Any, token: CancellationToken, engine: Engine) -> NoPart:
    """Return the part that this process takes in a run.

    A run inside of another one's scopes, by the same token, is that one's guest.
    """
    if engine.group.is_alone:
        return Alone()
    host = _parts.get(id(token)) if token.agree is not None else None
    if host is not None:
        return Guest(run, host, engine)
    part = _parts[id(token)] = Participation(run, token, engine)
    return part
