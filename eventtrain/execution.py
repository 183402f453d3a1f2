"""One run of the loop: what is put in place for it, and put back however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from .background import Backgrounds
from .cancellation import CancellationToken, Scope
from .diagnosis import note_what_was_given
from .distributed.groups import found_group
from .distributed.participation import TAKES_NO_PART, NoPart, take_part
from .errors import CallbackError
from .extent import NOTHING
from .interrupts import Interrupts, OnInterrupt
from .learner import Learner
from .loop import Loop
from .optimizer_modes import optimizer_modes_of
from .optimizers import names_in_text, needs_closure
from .resuming import FromTheStart
from .rows import EpochRows
from .state import FitResult
from .train_eval import modes_of, set_modes

RUNS_ALREADY = "this runner is running already: inside a handler, use another one"


class Execution(Loop):
    """The loop with state, token, signal handlers and the other processes in place.

    Args:
        on_interrupt: See ``Runner``.

    Attributes:
        backgrounds: What runs handlers in threads of their own.
    """

    def __init__(self, on_interrupt: OnInterrupt) -> None:
        super().__init__()
        self.starting_point, self.extent, self.rows = FromTheStart(), NOTHING, EpochRows()
        self.on_interrupt = on_interrupt
        self.backgrounds = Backgrounds()

    def execute_in_modes(
        self, learn: Learner, token: CancellationToken | None, root: str, loop: Callable[[], None]
    ) -> FitResult:
        """Run ``loop`` and put the mode of every module, and of the optimizer, back."""
        modes = modes_of(learn.model)
        put_optimizers_back = optimizer_modes_of(learn.opt, exact=True)
        try:
            return self.execute(learn, token, root, loop)
        finally:
            set_modes(modes)
            put_optimizers_back()

    def execute(
        self,
        learn: Learner,
        token: CancellationToken | None,
        root: str,
        loop: Callable[[], None],
        start: FromTheStart | None = None,
    ) -> FitResult:
        """Run ``loop`` with state, token and signal handlers in place, and clean up after it."""
        if self.is_running:
            raise RuntimeError(RUNS_ALREADY)
        if not (token is None or isinstance(token, CancellationToken)):
            raise TypeError(
                f"token must be a CancellationToken, got {token!r}: CancellationToken()"
            )
        is_own = token is None
        token = CancellationToken() if token is None else token
        put_back, give_back = token.lend(), _nothing
        # Around everything: a signal that came while state is put in place or away would
        # raise in the middle of that, or be lost in a finalizer.
        with Interrupts(token, self.on_interrupt) as interrupts:
            self.is_running = True
            try:
                self.reset_counters()
                self.learn, self.token = learn, token
                give_back = learn.lend(self)
                self.starting_point = start or FromTheStart()
                for callback in self.cbs:
                    callback.set_runner(self)
                part = self._take_part(root)
                self.emit, self.scope = self.bus.bind(self, token, part.make_scope)
                return self._timed(loop, root, part)
            finally:
                self.is_running = False  # first: a second signal may raise in here
                self.backgrounds.stop()
                interrupts.run_has_ended()
                if is_own:
                    token.finish()
                put_back()
                give_back()
                self.starting_point, self.extent = FromTheStart(), NOTHING
                self.rows = EpochRows()
                self.drop_references()

    def _take_part(self, root: str) -> NoPart:
        """Return what this process does in a run on several; nothing where it is alone."""
        engines = [engine for cb in self.cbs if (engine := cb.joined_engine()) is not None]
        if len(engines) > 1:
            raise CallbackError(f"a run is trained by one Distributed, and this one has {engines}")
        if engines:
            return take_part(self, self.token, engines[0])
        group = found_group()
        if root == "fit" and not group.is_alone:
            raise RuntimeError(
                f"this is rank {group.rank} of {group.world_size} processes, and nothing has them "
                "train together: each would train for itself. Give the runner Distributed('ddp'), "
                "as in Runner([Distributed('ddp'), ...]), or start one process"
            )
        return TAKES_NO_PART

    def _timed(self, loop: Callable[[], None], root: str, part: NoPart) -> FitResult:
        """Run ``loop``, whose outermost scope is called ``root``, and keep the result of it."""
        scope: Scope = getattr(self.scope, root)
        if self.token.innermost is None:
            self.token.root = scope
        known, start = self.token.accepted, time.perf_counter()
        failure: BaseException | None = None
        try:
            with part:
                known = self.token.accepted  # less one, if all have yet to agree on that
                self._prepare(part, root)
                if self.token.pending is None:
                    loop()
        except BaseException as error:
            failure = error
            note_what_was_given(error, self)
            raise
        finally:
            seconds = time.perf_counter() - start
            self.result = result = self.summary(scope, known, failure, seconds)
            failure = None  # its traceback refers to this frame
        return result

    def _prepare(self, part: NoPart, root: str) -> None:
        """Have model and optimizer be those that are trained."""
        part.prepare(self.learn)
        if root == "fit" and self.token.pending is None:
            self.learn.make_optimizer()
            _check_stepping(self)


def _nothing() -> None:
    """There is nothing to give back yet."""


def _check_stepping(run: Execution) -> None:
    """Refuse optimizers that the loop could not step rightly.

    Those are several that nobody steps by name, and one with a closure where computing a batch
    anew is not known to be right.
    """
    kind = type(run)
    if kind.optimizer_step is not Loop.optimizer_step:
        return
    if isinstance(run.opt, Mapping) and kind.one_batch is Loop.one_batch:
        raise TypeError(
            f"the Learner has several optimizers, {names_in_text(run.opt)}, and nobody says which "
            "steps when: make a Runner of yours, class Own(Runner), with a one_batch that calls "
            f"self.optimizer_step({next(iter(run.opt))!r}) where that one is to step"
        )
    if not needs_closure(run.opt):
        return
    said = f"{type(run.opt).__name__} takes its steps with a closure, which computes the loss anew"
    if kind.one_batch is not Loop.one_batch:
        raise TypeError(
            f"{said} as the loop does, and {kind.__name__} has a one_batch of its own: override "
            "optimizer_step too, with self.opt.step(closure) in it, or have Learner(..., forward=) "
            "or loss_func do what is special"
        )
    if run.world.size > 1:
        raise TypeError(
            f"{said}, and decides by it, which would be another decision in each of the "
            f"{run.world.size} processes: train in one process, or use another optimizer"
        )
