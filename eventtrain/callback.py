"""Callbacks: objects whose methods, named after events, are handlers."""

from __future__ import annotations

import copy
import inspect
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from .background_options import parted
from .bus.event_bus import events_of
from .bus.handlers import Handler, Options, Ranks, is_among
from .bus.receivers import Receiver, why_not_run
from .copies import Emptied, attribute_not_pickled, without_weak_references
from .errors import CallbackError, did_you_mean
from .events import event_names
from .foreign_names import OTHER_HOOKS as OTHER_HOOKS, named_here
from .handler_options import handler as handler, options_of

if TYPE_CHECKING:
    from .distributed.participation import Engine
    from .state import RunState

_EVENT_NAMES = event_names()
_FIELDS = frozenset(("loss", "pred", "xb", "yb", "batch"))


def camel2snake(name: str) -> str:
    """Turn ``"AvgStatsCallback"`` into ``"avg_stats_callback"``."""
    split = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", split).lower()


def listify(value: Any) -> list[Any]:
    """Return ``value`` as a new list: empty for ``None``, one item for a string or non-iterable."""
    if value is None:
        return []
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [value]
    return list(value)


class _FieldOfTheRun:
    """An attribute that the loop keeps on the run: read from there, never written here."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, callback: Callback | None, owner: type) -> Any:
        return self if callback is None else callback.__getattr__(self.name)

    def __set__(self, callback: Callback, value: object) -> None:
        raise CallbackError(_does_nothing(type(callback), self.name))


def _does_nothing(owner: type, name: str) -> str:
    return (
        f"{owner.__name__}.{name} would stay on the callback, where the loop does not look: write "
        f"run.{name} = ... (self.run.{name} = ...); for a value of your own choose another name"
    )


class Callback:
    """Base class: define methods named after events and pass an instance to ``Runner``.

    A method takes ``(self)`` or ``(self, run)``. Reading an attribute that the
    callback lacks reads it from the runner (``self.loss`` is ``self.run.loss``);
    writing stays on the callback, and writing ``loss``, ``pred``, ``xb``, ``yb`` or ``batch``
    there is an error, as the loop would not see it: write ``run.loss``.

    A method that overrides a handler keeps its options; see ``handler``.

    Attributes:
        priority: Priority of all its handlers, unless ``@handler(priority=...)`` says otherwise.
        name: The class's name without ``Callback``, in snake case; ``run.<name>`` is
            the callback. Assign another to use two of a class.
        ranks: Of several processes, which run its handlers; see ``EventBus.on``.
        held_in_run: Names of attributes that hold, while a run is under way, what cannot be
            copied (a file, a hook, a thread); empty between runs.
        checkpoint_folder: From where ``fit(resume="auto")`` goes on, if the callback
            saves checkpoints.
        counts_within_batch: Whether running a batch a second time would count it twice, when a
            handler cancelled the fit within it. Where it is ``True`` and there is a
            ``Checkpoint``, ``state_dict`` is called after every batch: it must be small, read
            nothing from the device, and hold no list whose tensors are changed in place.
    """

    priority: float = 0
    ranks: Ranks = "all"
    counts_within_batch: bool = False
    held_in_run: tuple[str, ...] = ()
    checkpoint_folder: Path | None = None

    loss = _FieldOfTheRun()
    pred = _FieldOfTheRun()
    xb = _FieldOfTheRun()
    yb = _FieldOfTheRun()
    batch = _FieldOfTheRun()

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for attribute in dir(cls):
            _check_attribute(cls, attribute)

    @cached_property
    def name(self) -> str:
        """The name under which the runner shows this callback."""
        return camel2snake(re.sub(r"Callback$", "", type(self).__name__) or "callback")

    @property
    def run(self) -> RunState | None:
        """The runner this callback was given to last; ``None`` before that, or once it is gone."""
        # Weak, so that a runner on a shared bus ends with its last user.
        reference: Callable[[], RunState | None] | None = self.__dict__.get("_run")
        return None if reference is None else reference()

    def set_runner(self, run: RunState) -> None:
        """Attach to ``run``; the runner does this itself."""
        self.__dict__["_run"] = weakref.ref(run)

    def __getattr__(self, name: str) -> Any:
        own = type(self).__name__
        if name.startswith("__") or name == "_run":
            raise AttributeError(f"{own!r} object has no attribute {name!r}")
        run = self.run
        if run is None:
            raise AttributeError(
                f"{own!r} object has no attribute {name!r}, and it is not attached to a runner "
                "that might have it"
            )
        try:
            return getattr(run, name)
        except AttributeError as error:
            raise AttributeError(
                f"neither the callback {own!r} nor its runner has {name!r}: {error}"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        held = [name for name in self.held_in_run if self.__dict__.get(name)]
        if held:
            raise TypeError(
                f"{self!r} cannot be copied or pickled while a run uses it (it holds "
                f"{', '.join(held)}): do it before the fit, or after it"
            )
        state: Any = super().__getstate__()
        attributes, slots = state if isinstance(state, tuple) else (state, {})
        # What it knows weakly, as its runner, is another's: a copy has yet to be given one.
        found = {key: v for key, v in ((attributes or {}) | slots).items() if key != "_run"}
        return without_weak_references(found)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for key, value in state.items():
            is_slot = inspect.ismemberdescriptor(inspect.getattr_static(type(self), key, None))
            if is_slot:
                setattr(self, key, value)
            else:
                self.__dict__[key] = value

    def __copy__(self) -> Self:
        state = self.__getstate__()
        empty = {key: v.kind() for key, v in state.items() if isinstance(v, Emptied)}
        made = type(self).__new__(type(self))
        made.__setstate__({**state, **empty})
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self).__new__(type(self))
        memo[id(self)] = made  # before its attributes, which may refer to it
        state = {}
        for key, value in self.__getstate__().items():
            try:
                state[key] = copy.deepcopy(value, memo)
            except TypeError as error:
                raise TypeError(f"{self!r} cannot be copied: {key}: {error}") from error
        made.__setstate__(state)
        return made

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        # Only pickle asks for it, as copies are made above.
        if type(self).__reduce__ is object.__reduce__:
            cause = attribute_not_pickled(self, self.__getstate__())
            if cause is not None:
                raise TypeError(f"{self!r} cannot be pickled: {cause}")
        return super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def fit_ends_after_steps(self) -> int | None:
        """Optimizer steps after which this callback ends a fit: schedules and bars end there."""
        return None

    @property
    def shows_rows(self) -> bool:
        """Whether it shows the rows of the history, so that nobody need print them besides."""
        return False

    @property
    def phase_columns(self) -> Sequence[str]:
        """Columns that this callback writes for the phase, without ``train_`` or ``valid_``.

        ``run.log`` refuses their names. None by default.
        """
        return ()

    @property
    def batches_per_step(self) -> int:
        """How many batches this callback has a step of the optimizer made of; 1 by default."""
        return 1

    def joined_engine(self) -> Engine | None:
        """Return what trains the model on several processes, if this callback brings it.

        Called when a run begins. ``None`` (default) where it has nothing to do with that.
        """
        return None

    @property
    def runs_here(self) -> bool:
        """Whether this process is one of those that run the handlers; see ``ranks``."""
        return is_among(self.ranks, self.run)

    def report_parts(self) -> dict[str, Any]:
        """Return what a report of the run takes from this callback; nothing by default.

        Any of ``"events"`` (lines of an event log), ``"rows"`` and ``"batches"`` (dictionaries),
        ``"timing"`` (rows as ``Timing`` has them), ``"checkpoints"`` (records). Of several
        callbacks that have the same, the first one's is taken.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep of this callback; nothing by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned.

        Raises:
            ValueError: There is something to load, and the class does not say how.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {list(state)}")

    def state_for_rank(
        self, states: Sequence[dict[str, Any]], rank: int, size: int, phase: str | None
    ) -> dict[str, Any]:
        """Return the state with which a rank goes on where the number of processes is another one.

        By default each keeps its own, and one that was not there gets that of rank 0. A callback
        that adds something up on each rank, to be added up over all later, must say more.

        Args:
            states: What ``state_dict`` returned on each rank of the run that was saved.
            rank: This one.
            size: How many there are now.
            phase: The phase in which the run goes on; ``None`` between epochs.

        Raises:
            ValueError: It cannot go on there.
        """
        return states[rank] if rank < len(states) else states[0]

    def why_not_load(self, state: Mapping[str, Any], run: RunState) -> str | None:
        """Say why a fit cannot go on from a state, before anything is changed by it.

        Args:
            state: What ``state_dict`` returned in the run that was saved.
            run: It is about to begin; ``run.epochs`` and the learner are there.

        Returns:
            A sentence that says what to do, or ``None`` (default) if it can.
        """
        return None

    def validated_weights(self) -> Mapping[str, Any] | None:
        """Return the weights that this epoch was validated with, if this callback lent them.

        A callback that puts weights of its own into the model in ``begin_validate``, and the
        trained ones back in ``after_validate``, says so here: what is measured with the weights
        that it lent is saved, and gone back to, with them.

        Returns:
            Parameters and buffers by name, as in ``named_parameters()`` and ``named_buffers()``;
            ``None`` (default) where the model was validated with the weights that are trained.
        """
        return None

    def around_evaluation(self) -> AbstractContextManager[Any]:
        """Return what surrounds model and loss where they are computed anew for the same batch.

        An optimizer that needs a closure (``LBFGS``) does so several times a step, without events.
        A callback that has them computed in a way of its own between ``begin_batch`` and
        ``after_loss`` must say it here too. By default nothing.
        """
        return nullcontext()

    def handlers(self, plugin: str | None = None) -> list[Handler]:
        """Return one handler for each event this callback serves.

        Args:
            plugin: The plugin that brought it, for messages.

        Raises:
            CallbackError: A method takes other arguments than ``(self)`` or ``(self, run)``,
                or calling it would not run its body, as with ``yield``.
            TypeError: A method has options of the background, and does not run there.
        """
        result = []
        for attribute in vars(self).keys() & _EVENT_NAMES:
            if not hasattr(type(self), attribute):
                raise CallbackError(
                    f"{self!r} was given an attribute {attribute}, which nothing calls: handlers "
                    f"are methods of the class; subscribe a function with run.on({attribute!r}, fn)"
                )
        for attribute in dir(type(self)):
            marked = options_of(type(self), attribute)
            is_method = inspect.getattr_static(type(self), attribute) is not None
            if not is_method or (marked is None and attribute not in _EVENT_NAMES):
                continue
            event, options = marked or (None, {})
            own = {"priority": self.priority, "ranks": self.ranks, "name": self.name}
            plain, waiting = parted(options)
            merged, bound = Options(**{**own, **plain}), getattr(self, attribute)
            receiver = _as_receiver(bound, f"{type(self).__name__}.{attribute}")
            events = (attribute,) if event is None else events_of(event)
            if waiting is None:
                result += [
                    Handler(e, receiver, merged, origin=bound, plugin=plugin) for e in events
                ]
            else:
                from .background import Background  # here: it needs torch

                background = Background(receiver, waiting)
                result += background.handlers(events, merged, bound, plugin)
        return result


def _check_attribute(cls: type, attribute: str) -> None:
    """Refuse what would do nothing, though its name says that it does something."""
    method = inspect.getattr_static(cls, attribute)
    is_own, marked = attribute in vars(cls), options_of(cls, attribute)
    if attribute in _FIELDS and is_own and not (callable(method) or hasattr(method, "__get__")):
        raise CallbackError(_does_nothing(cls, attribute))
    if method is None:  # what is inherited is taken away
        return
    if marked is not None or attribute in _EVENT_NAMES:
        if isinstance(method, (property, cached_property)) or not (
            callable(method) or hasattr(method, "__get__")
        ):
            raise CallbackError(
                f"{cls.__name__}.{attribute} has the place of a handler and is a "
                f"{type(method).__name__}, which nothing calls: write a method"
            )
        return
    if not callable(method) and not hasattr(method, "__func__"):
        return
    if is_own and attribute in OTHER_HOOKS:
        raise CallbackError(
            f"{cls.__name__}.{attribute} is a hook of another framework, which nothing "
            f"calls here: {OTHER_HOOKS[attribute]}"
        )
    if attribute.startswith(("begin_", "after_")):
        hint = named_here(attribute) or did_you_mean(attribute, _EVENT_NAMES)
        raise CallbackError(
            f"{cls.__name__}.{attribute} looks like an event, but there is none of that "
            f"name.{hint} For an event of your own, "
            f"decorate the method with @handler(event={attribute!r})."
        )


def _as_receiver(method: Callable[..., object], name: str) -> Receiver:
    """Return ``method``, which goes by ``name``, in the form that takes the run."""
    refusal = why_not_run(method)
    if refusal is not None:
        raise CallbackError(f"{name} {refusal}")
    signature = inspect.signature(method)
    if not signature.parameters:
        return lambda run: method()
    try:
        signature.bind(object())
    except TypeError:
        raise CallbackError(
            f"{name}{signature} cannot be a handler: it is called with the run, or with nothing"
        ) from None
    return method
