"""The part that a process takes in a run on several: boundaries, failures, what all must do alike.

Who is alone takes none: ``TAKES_NO_PART`` does nothing, and ``Alone`` has its data in the order
that several have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch

from ..bus.dispatch import raising_handler
from ..bus.handlers import place_of
from ..cancellation import CancellationToken, Scope, Unwind
from ..data.bunch import DataBunch
from ..data.sharding import shard_data
from ..errors import RemoteError
from .agreed_scopes import AgreedScope
from .agreement import AGREED, Agreement
from .gradient_sync import GradientSync
from .groups import Group
from .reductions import ONE_PROCESS, OneProcess, World
from .tallies import Tallies
from .transport import is_of_transport

BOUNDARIES = frozenset((*AGREED, "batch"))
SOON = 5.0
"""Seconds in which a rank that fails has said why, once its connections are gone."""


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

    def set_up(self, run: Any, learn: Any) -> None:
        """Make the model one of all ranks, and give each its share of the data."""
        self._undo.append(partial(self._engine.release, learn))
        self._engine.prepare(learn)
        run.world = world = World(gradient_sync=GradientSync(learn.model_wrapped))
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
    """

    def __init__(self, run: Any, token: CancellationToken, engine: Engine) -> None:
        self._run, self._token, self._engine = run, token, engine
        self._common = Common(engine)
        self._outermost: Scope | None = None
        self._explained: BaseException | None = None

    def __enter__(self) -> None:
        """Begin to agree with the others."""
        group, lost_after = self._engine.group, self._engine.lost_after
        name = group.name_of_next_run()
        self._tallies = Tallies(group, name, lost_after, self._raise_failure)
        self._agreement = Agreement(
            group.connect,
            name,
            self._token,
            rank=group.rank,
            world_size=group.world_size,
            lost_after=lost_after,
        )

    def make_scope(self, token: CancellationToken, name: str, owner: object) -> Scope:
        """Return a scope that asks this part."""
        return AgreedScope(self, token, name, owner)

    def prepare(self, learn: Any) -> None:
        """Have the engine make the model ready, and give this rank its share of the data."""
        self._common.set_up(self._run, learn)

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
                self._tallies.compare(self._run.steps)
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

    # Failing

    def explain(self, error: BaseException) -> BaseException:
        """Return why this rank fails: ``error``, of which all are told, or another rank's."""
        if self._explained is error or isinstance(error, (RemoteError, Unwind)):
            return error
        if is_of_transport(error):
            remote = self._find_remote_failure() or RemoteError(
                f"the connection to another rank has broken, and none has said why, as when a "
                f"process is killed: {error}"
            )
            remote.__cause__ = error
            self._explained = remote
            return remote
        self._explained = error
        self._agreement.fail(error, self._where(error))
        return error

    def _find_remote_failure(self) -> RemoteError | None:
        """Wait until it is known which rank has failed or is silent, or until a signal comes."""
        token, soon = self._run.token, time.monotonic() + SOON
        remote = self._hear_of_failure(lambda: time.monotonic() < soon)
        if remote is None and not token.is_interrupted:
            asking = Thread(target=self._ask_who_is_there, name="eventtrain-asking", daemon=True)
            asking.start()
            remote = self._hear_of_failure(asking.is_alive)
        return remote

    def _hear_of_failure(self, may_come: Callable[[], bool]) -> RemoteError | None:
        remote = self._agreement.remote_failure(0.1)
        while remote is None and may_come() and not self._run.token.is_interrupted:
            remote = self._agreement.remote_failure(0.1)
        return remote

    def _ask_who_is_there(self) -> None:
        with suppress(RemoteError):  # found by who has started this
            self._agreement.end()

    def _where(self, error: BaseException) -> str:
        handler, place = raising_handler(error), place_of(self._run)
        if handler is None:
            return place.removeprefix(", ")
        return f"handler {handler.name!r} of {handler.event!r}{place}"


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
        self._common.set_up(self._run, learn)

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
