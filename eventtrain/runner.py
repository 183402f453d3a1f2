"""The runner: what a run is made of, and what can be done with it. What it does is in ``loop``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

import torch

from .adoption import by_name, callback_of, made_by
from .arguments import flag
from .background_options import RunnerOptions
from .bus.event_bus import EventBus, Events
from .bus.handlers import OnError
from .bus.receivers import Receiver
from .bus.subscription import Subscription
from .callback import Callback, listify
from .cancellation import CancellationToken
from .data.batch import loader_length
from .data.bunch import check_loader
from .data.joining import join_batches
from .data.weights import listed_samples, sample_counts
from .distributed.gathering import gather_rows, sharing
from .errors import DataError
from .events import EventName
from .execution import RUNS_ALREADY, Execution
from .extent import asked_for
from .interlude import validate_between
from .interrupts import OnInterrupt
from .learner import Learner, Use
from .optimizer_modes import optimizer_modes_of
from .reports.picture import picture
from .resuming import find_start
from .rows import rows_every
from .state import FitResult
from .stepping import PLACES, Moments, Pause, as_generators
from .train_eval import TrainEvalCallback

if TYPE_CHECKING:
    from .bus.profiling import Profile
    from .plugins import Plugin, Requested

C = TypeVar("C", bound=Callback)
F = TypeVar("F", bound=Receiver)
During = Literal["train", "validate"] | None


class Runner(Execution):
    """Trains learners, and tells the handlers on its bus what is going on.

    Args:
        cbs: A callback or several.
        cb_funcs: Functions that make a callback, called here; one or several.
        bus: A bus to share with other runners; one of its own by default.
        plugins: Plugins to load: names, ``"all"``, or ``{name: options}``. Those that
            ``EVENTTRAIN_PLUGINS`` names are loaded besides, and those that
            ``EVENTTRAIN_DISABLE_PLUGINS`` names are not.
        plugins_on_error: When a plugin cannot be loaded, ``"raise"``, or ``"warn"``
            and go on without it.
        plugin_errors: The ``on_error`` of every handler that plugins bring
            (``"disable"`` keeps a run alive when a plugin fails); ``None``
            leaves it to the plugins.
        on_interrupt: What follows when Ctrl-C or SIGTERM has cancelled a run and
            all closing events have run: ``"raise"`` hands the signal to the
            handler that stood before (Python's own raises ``KeyboardInterrupt``),
            ``"return"`` returns the result.

    Attributes:
        bus: The ``EventBus``.
        cbs: The callbacks, ``TrainEvalCallback`` first; each is ``run.<its name>`` too.
        plugins: The plugins that were loaded.

    Raises:
        CallbackError: Two callbacks share a name, or one has a name of the runner's.
        PluginError: A plugin could not be loaded.
    """

    def __init__(
        self,
        cbs: Callback | Iterable[Callback] | None = None,
        cb_funcs: Callable[[], Callback] | Iterable[Callable[[], Callback]] | None = None,
        *,
        bus: EventBus | None = None,
        plugins: Requested = (),
        plugins_on_error: Literal["raise", "warn"] = "raise",
        plugin_errors: OnError | None = None,
        on_interrupt: OnInterrupt = "raise",
    ) -> None:
        if on_interrupt not in ("raise", "return"):
            raise ValueError(f"on_interrupt must be 'raise' or 'return', got {on_interrupt!r}")
        if not (bus is None or isinstance(bus, EventBus)):
            raise TypeError(
                f"bus must be an EventBus, got {bus!r}: leave it out for one of its own"
            )
        super().__init__(on_interrupt)
        self.bus = EventBus() if bus is None else bus
        made = [made_by(make) for make in listify(cb_funcs)]
        self.cbs: list[Callback] = []
        callbacks = [TrainEvalCallback(), *listify(cbs), *made]
        self._adopt(callbacks)
        handlers = [handler for callback in callbacks for handler in callback.handlers()]
        from .plugins import load_plugins  # here: it takes a while to import

        with self.bus.transaction():
            self.bus.attach(handlers, sender=self)
            self.plugins: list[Plugin] = load_plugins(
                plugins,
                self.bus,
                self,
                self._adopt,
                on_load_error=plugins_on_error,
                on_error=plugin_errors,
            )

    def _adopt(self, callbacks: Sequence[Callback]) -> None:
        """Take callbacks in under their names, all or none."""
        named, known = by_name(callbacks, self), len(self.cbs)
        try:
            for name, callback in named.items():
                setattr(self, name, callback)
                self.cbs.append(callback)
                callback.set_runner(self)
        except BaseException:
            del self.cbs[known:]
            for name in named:
                vars(self).pop(name, None)
            raise

    def __getitem__(self, kind: type[C]) -> C:
        """Return the callback of that class, with its type: ``run[AvgStatsCallback]``.

        Raises:
            LookupError: There is none, or more than one: these have names, ``run.avg_stats``.
            TypeError: ``kind`` is no class.
        """
        return callback_of(kind, self)

    @overload
    def on(self, event: Events, fn: Receiver, **options: Unpack[RunnerOptions]) -> Subscription: ...

    @overload
    def on(self, event: Events, **options: Unpack[RunnerOptions]) -> Callable[[F], F]: ...

    def on(self, event: Events, *fn: Any, **options: Any) -> Any:
        """Subscribe a handler to this runner's events; see ``EventBus.on``.

        Args:
            event: As for ``EventBus.on``.
            *fn: As there: the function, or nothing for a decorator.
            **options: As there, and: ``background=True`` has the handler run in a thread of its
                own, in the order of the events, with a frozen ``Record`` of the run in its place.
                ``queue`` records may wait (default 1000); ``full`` says what happens to one for
                which there is no room, ``"wait"`` (default: the loop waits) or ``"drop"``;
                ``tensors`` names what a record is to have copies of, of ``"pred"``, ``"xb"``,
                ``"yb"``, ``"batch"`` and ``"weight"``. What it raises is raised at the next
                closing event, and ``after_fit`` waits until it has worked off all of them.
        """

        def subscribe(event: Any, *fn: Any, **options: Any) -> Any:
            return self.bus.on(event, *fn, sender=self, **options)

        return self.backgrounds.subscribe(subscribe, event, fn, options)

    @overload
    def fit(
        self,
        epochs: int,
        learn: Learner,
        token: CancellationToken | None = None,
        resume: str | os.PathLike[str] | None = None,
        *,
        validate_every: int | None = None,
    ) -> FitResult: ...

    @overload
    def fit(
        self,
        *,
        steps: int,
        learn: Learner,
        token: CancellationToken | None = None,
        resume: str | os.PathLike[str] | None = None,
        validate_every: int | None = None,
    ) -> FitResult: ...

    def fit(
        self,
        epochs: int | None = None,
        learn: Learner | None = None,
        token: CancellationToken | None = None,
        resume: str | os.PathLike[str] | None = None,
        *,
        steps: int | None = None,
        validate_every: int | None = None,
    ) -> FitResult:
        """Train for some epochs or steps, validating where there is a loader for it.

        Args:
            epochs: How many; 0 fires ``begin_fit`` and ``after_fit`` alone.
            learn: What to train.
            token: Steers the fit; a new one by default. One that is cancelled
                already keeps the fit from starting: no event fires.
            resume: A checkpoint to go on from, or a folder of them, whose newest whole one
                is taken. ``"auto"`` stands for the folder of this run's ``Checkpoint``
                callback, and for a fresh start while that folder has none. ``epochs`` and
                ``steps`` count from the beginning of the run that was interrupted.
            steps: In place of ``epochs``: how many optimizer steps to take, over as many passes
                as it takes. The last pass ends with the last step, and a validation follows.
                Steps that were cancelled do not count.
            validate_every: Validate after every so many steps, between two batches, and at the
                end of the fit, in place of after each epoch. Each of these validations, with the
                training since the one before, is a row of ``run.history``. With a number that is
                never reached, ``validate_now`` alone says when. Default ``None``.

        Returns:
            How it ended; also in ``run.result``, and there after an exception too.

        Raises:
            TypeError: There is not one of ``epochs`` and ``steps``, or no learner.
            ValueError: A number is too small, or ``"auto"`` finds no ``Checkpoint``.
            CheckpointError: The checkpoint is missing, damaged or of another run.
            DataError: A loader gives no batch, or ``validate_every`` has no loader to validate on.
            RuntimeError: This runner is running already; or a fit by steps goes over the training
                loader, again and again, and takes none.
        """
        extent, rows = asked_for(epochs, learn, steps), rows_every(validate_every)
        learn = _checked_learner(learn, "fit")
        if resume is not None:
            for callback in self.cbs:
                callback.joined_engine()  # all processes go on from what the first one finds
        start = find_start(self, resume)
        put_optimizers_back = optimizer_modes_of(learn.opt, exact=False)
        try:
            return self.execute(learn, token, "fit", lambda: self.all_epochs(extent, rows), start)
        finally:
            put_optimizers_back()

    def validate_now(self) -> dict[str, Any]:
        """Validate within the fit that is under way, and go on as if nothing had been.

        It goes through the same bus and callbacks as any validation of the fit: ``EMA`` lends its
        averages, ``MixedPrecision`` and transforms do what they do. Afterwards the run stands
        where it stood: batch, ``pred``, ``loss``, phase, and each module of the model in its mode.

        It may be called in ``after_batch`` of a training batch, and outside of batches in an
        epoch: in ``begin_epoch``, ``begin_train`` and ``after_train``. In a fit with
        ``validate_every`` it completes a row of ``run.history``; without, the row is the epoch's,
        and what was measured is in what is returned alone.

        Returns:
            ``{"epoch", "step", ...}`` with what callbacks measured.

        Raises:
            RuntimeError: It was called from somewhere else.
            DataError: There is no validation loader.
        """
        return validate_between(self)

    def iterate(
        self, *args: Any, at: EventName = "after_batch", during: During = None, **kwargs: Any
    ) -> Moments:
        """Step through a fit: ``for moment in run.iterate(2, learn): ...``.

        Each time that ``at`` has fired and all of its handlers have run, the fit stands still and
        the body of the ``for`` gets the run. It is the fit that ``fit`` would be, in the same
        thread, to the bit. The body has the gradient mode and the signal handlers of its own
        surroundings, and may cancel. Leaving the ``for`` ends the fit as a cancellation: all
        closing events fire, and ``run.result`` is there. An exception of the body is the
        caller's, and none of the run's.

        Args:
            *args: As for ``fit``.
            at: An event at which nothing of a batch is under way: ``"after_batch"`` (default),
                ``"begin_fit"``, or ``begin_`` and ``after_`` of ``epoch``, ``train``, ``validate``.
            during: Only in this phase, ``"train"`` or ``"validate"``; in any by default.
            **kwargs: As for ``fit``.

        Returns:
            An iterator, which is a context manager too: ``with run.iterate(...) as moments:`` ends
            the fit where the block ends, and raises what its closing events have raised.

        Raises:
            UnknownEventError: There is no event ``at``.
            ValueError: It is another one.
            TypeError: This runner's class overrides what is stepped through.
            RuntimeError: This runner is running already.
        """
        self.bus.signal(at)  # which must be there
        if at not in PLACES:
            raise ValueError(f"a fit can stand still at {', '.join(PLACES)}, and not at {at}")
        for name in _STEPS:
            if getattr(type(self), name) is not getattr(Runner, name):
                raise TypeError(
                    f"run.iterate steps through the loop of Runner, and {type(self).__name__} has "
                    f"a {name} of its own: subscribe a handler, run.on({at!r}, ...), in its place"
                )
        if self.is_running:
            raise RuntimeError(RUNS_ALREADY)
        inspect.signature(self.fit).bind(*args, **kwargs)
        pause = Pause()
        stepped = as_generators({name: getattr(Runner, name) for name in _STEPS}, pause)

        def steps() -> Generator[Any, None, None]:
            last = float("-inf")
            with self.on(at, pause.note, during=during, priority=last, name="iterate"):
                yield from stepped["fit"](self, *args, **kwargs)

        return Moments(steps(), pause)

    def validate(self, learn: Learner, token: CancellationToken | None = None) -> FitResult:
        """Run the validation phase alone: no gradients, the model in evaluation mode.

        Returns:
            The result; ``history[0]`` holds what callbacks measured. The model is
            in the mode it was in before.

        Raises:
            DataError: ``learn.data`` has no validation loader.
        """
        _checked_learner(learn, "validate")
        if learn.data is None or learn.data.valid_dl is None:
            raise DataError("there is no validation loader: learn.data.valid_dl is None")

        def loop() -> None:
            self.start_row()
            self.validation_phase()

        return self.execute_in_modes(learn, token, "validate", loop)

    def predict(
        self,
        learn: Learner,
        dl: Iterable[Any],
        *,
        with_targets: bool = False,
        token: CancellationToken | None = None,
    ) -> Any:
        """Run the model over ``dl``: no gradients, evaluation mode, no loss.

        Predictions stay on the device until the last batch. A run that is
        cancelled returns the batches it finished, and ``run.result`` tells. On several
        processes each predicts its share, and gets all, in the order of the samples; a loader
        that cuts for itself gives each process its own alone.

        Args:
            learn: Its model is used.
            dl: Batches as for training; the model gets ``xb``.
            with_targets: Return ``(predictions, targets)``.
            token: As in ``fit``.

        Returns:
            The predictions for all batches, in order, on the CPU; an empty tensor when no
            batch was finished. Tensors are joined along the first dimension (numbers of
            single batches into one tensor), mappings and ``ModelOutput`` key by key, tuples
            place by place, lists with an element for each sample into one list. What does not
            fit together is a list with what each batch gave; nothing is padded. Targets
            are put together in the same way.

        Raises:
            TypeError: ``dl`` is no loader, or the model is missing.
            EmptyLoaderError: ``dl`` gives no batch.
        """
        if isinstance(dl, Learner):
            raise TypeError("predict takes the learner first: predict(learn, dl)")
        _checked_learner(learn, "predict")
        check_loader(dl, "dl")
        preds: list[Any] = []
        targets: list[Any] = []
        counts: list[frozenset[int]] = []
        listed: list[int] = []

        def loop() -> None:
            with sharing(dl, self.world) as own:
                self.iters = loader_length(own)
                with torch.no_grad(), self.scope.predict:
                    self.emit.begin_predict()
                    self.all_batches(own, one_batch)
                found.append(join_batches(preds, counts, listed=listed))
                found.append(join_batches(targets, counts))
                found[:] = gather_rows(found, own, len(preds), self.world)

        def one_batch() -> None:
            self.pred = learn.call_model(self.xb)
            self.emit.after_pred()
            counts.append(sample_counts(self.batch))
            listed.append(listed_samples(self.batch))
            preds.append(self.pred)
            if with_targets:
                targets.append(self.yb)

        found: list[Any] = []
        self.execute_in_modes(learn, token, "predict", loop)
        joined, joined_targets = found or [join_batches([], []), join_batches([], [])]
        return (joined, joined_targets) if with_targets else joined

    def report(
        self, path: str | os.PathLike[str] = "report.html", *, profile: Profile | None = None
    ) -> Path:
        """Write a page about the run: one file that opens in a browser without a network.

        It has what the callbacks know: curves and rates of ``History`` or ``Recorder``, the
        story of an ``EventLog``, the seconds of ``Timing``, the files of a ``Checkpoint``. What is
        missing stands in it, with the callback that would tell. ``eventtrain report`` makes the
        same of a folder. It may be called in a handler, and then waits for the device.

        Args:
            path: The file; one that is there is replaced. Default ``"report.html"``.
            profile: What ``run.bus.profile()`` gave, for the time of each handler.

        Returns:
            The absolute path of the file.

        Raises:
            ValueError: ``path`` does not end in ``.html``.
            ModuleNotFoundError: plotly is missing (``pip install "eventtrain[report]"``).
            OSError: The file cannot be written.
        """
        from .reports.run_report import report_of_run  # here: it takes a while to import

        return report_of_run(self, path, profile)

    def __repr__(self) -> str:
        state = "running" if self.is_running else "idle"
        return f"<Runner, {state}: {', '.join(callback.name for callback in self.cbs)}>"

    def picture(self, details: bool = False) -> str:
        """Draw the loop with the handlers of this run: what ``print(run)`` shows.

        Args:
            details: Give each handler a line, with its priority and filters. ``False`` (default)
                folds those of an event into one line, so that all fits on one screen.

        Returns:
            Lines of text, without a newline at the end.
        """
        return picture(self.bus, self, details=flag("details", details))

    def __str__(self) -> str:
        return self.picture()


_STEPS = (
    *("fit", "execute", "_timed", "all_epochs", "one_epoch", "training_phase", "validation_phase"),
    "all_batches",
)
"""Methods that ``iterate`` steps through, from the outermost in."""


def _checked_learner(learn: Any, use: Use) -> Learner:
    if not isinstance(learn, Learner):
        raise TypeError(
            f"{use} takes a Learner, got {learn!r}: Learner(model, opt, loss_func, data)"
        )
    learn.check(use)
    return learn
