"""The loop: what is done with a batch, a phase, an epoch, a fit, and the events around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from .data.batch import batch_parts, device_to_move_to, loader_length, move_to
from .data.lengths import check_count
from .data.sharding import set_epoch
from .extent import Epochs
from .resuming import FromTheStart
from .rows import EpochRows
from .state import RunState
from .steppers import NO_STEP


class Loop(RunState):
    """The algorithm, from the fit down to the step.

    As pseudocode, events on the right::

        fit:                                            begin_fit
            for each epoch, or until enough steps:      begin_epoch
                train:                                  begin_train
                    for each batch:                     begin_batch
                        pred = model(xb)                after_pred
                        loss = loss_func(pred, yb)      after_loss
                        loss.backward()                 after_backward
                        step:                           begin_step
                            opt.step()
                                                        after_step
                        opt.zero_grad()
                                                        after_batch
                                                        after_train
                validate: as train, up to the loss      begin_validate ... after_validate
                                                        after_epoch   after_row
                                                        after_fit

    Every ``with scope.X`` fires ``after_X`` when it is left, however that happens, and
    before it ``after_cancel_X`` when it was cancelled. Every ``emit.X()`` is a place where
    a cancellation takes effect.

    Attributes:
        starting_point: Where the run starts: at its beginning, or where it is resumed.
        extent: How long the fit is: so many epochs, or so many steps.
        rows: What a row of the history is of, and so when validations come.
    """

    starting_point: FromTheStart
    extent: Epochs
    rows: EpochRows
    learn: Any  # a Learner, always, where this code runs

    def all_epochs(self, extent: Epochs, rows: EpochRows) -> None:
        """Run a whole fit."""
        start, passes = self.starting_point, extent.passes(self)
        self.extent, self.epochs, self.total_steps = extent, extent.epochs, extent.steps
        self.rows, self.validate_every = rows, rows.every
        rows.check(self)
        start.check(self)
        try:
            with self.scope.fit:
                self.emit.begin_fit()
                start.enter_fit(self)
                for epoch in passes:
                    self.one_epoch(epoch)
        finally:
            rows.end_fit(self)

    def one_epoch(self, epoch: int) -> None:
        """Train, and validate where there is a loader for it."""
        scope = self.scope.epoch
        try:
            with self.rows.of_epoch(self), scope:
                self.epoch = epoch  # in here: what ends the fit may be heard of before it begins
                self.rows.begin_epoch(self)
                self.emit.begin_epoch()
                if not self.starting_point.enter_epoch(self):
                    self.training_phase()
                if self.rows.ends_with_validation(self):
                    self.validation_phase()
                    self.rows.end_validation(self)
        finally:
            self.epochs_done += self.epoch == epoch and scope.outcome == "completed"

    def training_phase(self) -> None:
        """Run the training batches."""
        set_epoch(self.data.train_dl, self.epoch or 0)
        self.iters = self.train_iters = loader_length(self.data.train_dl)
        with self.scope.train:
            self.emit.begin_train()
            self.all_batches(self.data.train_dl)

    def validation_phase(self) -> None:
        """Run the validation batches, without gradients: a phase for each of the loaders."""
        for name in self.starting_point.validations(self):
            with self.validating_on(name):
                self.iters = loader_length(self.data.valid_dl)
                with torch.no_grad(), self.scope.validate:
                    self.emit.begin_validate()
                    self.all_batches(self.data.valid_dl)

    def all_batches(self, dl: Iterable[Any], one_batch: Callable[[], None] | None = None) -> None:
        """Run ``one_batch``, by default the method, for every batch of ``dl``, each in its scope.

        Raises:
            EmptyLoaderError: ``dl`` gives no batch.
            DataError: ``dl`` ends before its own length, which is exact.
        """
        one_batch = one_batch or self.one_batch
        length = loader_length(dl)  # now: afterwards it may have changed
        scope, emit, device = self.scope.batch, self.emit, device_to_move_to(self.model)
        batches, done = self.starting_point.rest_of(dl, self)
        batches = self.extent.up_to_end(self.rows.between(batches, self), self)
        self.batch_index = done - 1 if done else None
        try:
            for self.batch_index, self.batch in enumerate(batches, done):
                if device is not None:
                    self.batch = move_to(self.batch, device)
                self.xb, self.yb = batch_parts(self.batch)
                self.pred = self.loss = None
                with scope:
                    try:
                        emit.begin_batch()
                        one_batch()
                    finally:
                        if self.in_train:
                            self.n_iter += 1
            if not self.extent.cuts(self):
                _check_end(dl, length, self)
        finally:
            self.batch_index = None

    def one_batch(self) -> None:
        """Do with ``self.xb`` and ``self.yb`` what the algorithm does with a batch.

        Override it for another algorithm, with ``self.emit`` and ``self.scope`` as here. This
        is what callbacks count on, in every phase:

        - Call the model as ``self.learn.call_model(xb)``, or, another way, as
          ``self.learn.model_wrapped``: on several processes that has the
          gradients averaged; set ``self.pred``, and then fire ``after_pred``. Compute the loss, set
          ``self.loss`` (a scalar, all parts added up), and then fire ``after_loss``. Averages
          take it from there; until then, precision has both computed under autocast.
        - Return then, unless ``self.in_train``.
        - Read ``self.loss`` anew for ``backward()``: accumulation has weighted it, and float16
          scaled it. Fire ``after_backward``, which puts it back.
        - Step with ``self.optimizer_step()``, never with ``opt.step()``: ``begin_step`` is where
          gradients are unscaled and clipped, and where a group waits for its last batch.

        Of several optimizers, ``self.optimizer_step("g")`` steps one. With ``MixedPrecision``, a
        further loss is passed through ``run.mixed_precision.scale``, an optimizer that is none of
        the learner's through ``run.mixed_precision.step``; leaving out what it counts on is an
        error.
        """
        emit = self.emit
        self.pred = self.learn.call_model(self.xb)
        emit.after_pred()
        self.loss = self.learn.compute_loss(self.pred, self.yb)
        emit.after_loss()
        if not self.in_train:
            return
        self.loss.backward()
        emit.after_backward()
        self.optimizer_step()

    def optimizer_step(self, name: str | None = None) -> None:
        """Take a step in a scope of its own, and zero the gradients if it was taken.

        Args:
            name: Which of several optimizers steps. Its gradients alone are zeroed: what the
                backward pass has left in those of the others stays, as it does in torch.

        Raises:
            TypeError, ValueError: There are several and none was named, or none is called so.
        """
        opt, taken = self.learn.steppers[name], NO_STEP
        try:
            with self.scope.step as step:
                self.emit.begin_step()
                opt.step()
                taken = opt
                self.steps += 1
            if step.outcome == "completed":
                self.emit.after_step()
        finally:
            # Gradients that were applied must not be there for the next step, whatever
            # has been cancelled meanwhile.
            taken.zero_grad()


def _check_end(dl: Iterable[Any], length: int | None, run: Loop) -> None:
    """See that a loader that has run out had something, and did not lose its end."""
    count = 0 if run.batch_index is None else run.batch_index + 1
    epoch = "" if run.epoch is None else f" in epoch {run.epoch}"
    name = "" if run.valid_name is None else f" {run.valid_name!r}"
    check_count(dl, count, length, f"the {run.phase} loader{name}{epoch}")
