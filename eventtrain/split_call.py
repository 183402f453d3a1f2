"""A model's call that is made in pieces where memory does not suffice, with the same gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .checkpoints.random_state import random_state, set_random_state
from .data.batch import model_device
from .data.weights import weight_of
from .errors import add_note
from .param_groups import trained_parameters
from .pieces import CannotBeCut, Joined, Range, cut, leaves_of, ranges, rows_of, with_leaves


class Limit:
    """How many rows a model is called with at once.

    Attributes:
        rows: At most so many; ``None`` while all have fit.
        lowered: Called with the rows of the call that did not fit, when ``rows`` was lowered.
    """

    def __init__(self, lowered: Callable[[int], object]) -> None:
        self.rows: int | None = None
        self.lowered = lowered

    def pieces_of(self, given: Any) -> list[Range]:
        """Return the pieces in which to call the model; none for a call as a whole.

        Raises:
            CannotBeCut: ``given`` has no rows.
        """
        if self.rows is None:
            return []
        rows = rows_of(given)
        return ranges(rows, self.rows) if rows > self.rows else []

    def lower(
        self, given: Any, error: torch.OutOfMemoryError, tried: Sequence[Range] | None = None
    ) -> None:
        """Halve the rows, unless that has been done since.

        Args:
            given: What a model was called with.
            error: What it has raised.
            tried: In what pieces; by default, in those that there are now.

        Raises:
            torch.OutOfMemoryError: It cannot be done: ``error``, with a note.
        """
        try:
            if tried is not None and list(tried) != self.pieces_of(given):
                return
            rows = rows_of(given)
        except CannotBeCut as reason:
            add_note(error, f"The batch cannot be split: {reason}.")
            raise error from None
        most = min(rows, self.rows or rows)
        if most == 1:
            add_note(error, "The batch cannot be split any further: one sample alone is too much.")
            raise error
        self.rows = (most + 1) // 2
        self.lowered(rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class State:
    """Random numbers, and the buffers of a model, as they are now.

    Args:
        model: The one that is about to be called.
    """

    def __init__(self, model: Any) -> None:
        buffers = model.buffers() if isinstance(model, nn.Module) else ()
        self._buffers = [(b, b.detach().clone()) for b in buffers if not nn.parameter.is_lazy(b)]
        self._random = random_state()

    def restore(self) -> None:
        """Put them back."""
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)
        set_random_state(self._random)

    def may_have_changed(self) -> bool:
        """Whether a call since then may have been another one than a second call would be."""
        return bool(self._buffers) or not _equal(self._random, random_state())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


class SplitCall:
    """Calls a model, in pieces where it must be.

    Args:
        model: What is called.
        run: Whose model it is.
        limit: How many rows at once.

    Attributes:
        function: What is called for it: the model itself.
        scale: Of the loss in the backward pass; ``None`` until that begins.
        loss: What the loss function returned for this batch.
    """

    def __init__(self, model: Any, run: Any, limit: Limit) -> None:
        self.model, self.run, self.limit = model, run, limit
        self.function: Callable[..., Any] = model
        self.scale: Tensor | None = None
        self.loss: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns for all rows."""
        given, before = (args, kwargs), State(self.model)
        while True:
            try:
                return self._call(given, before)
            except torch.OutOfMemoryError as error:
                self.limit.lower(given, error)
            except CannotBeCut as error:
                add_note(
                    error,
                    f"SplitOnOOM calls the model with at most {self.limit.rows} rows at a time: "
                    "leave it out, or make the loader's batches smaller",
                )
                raise
            before.restore()  # outside of "except", which holds on to what the call has made

    def note_scale(self, gradient: Tensor) -> None:
        """Keep the gradient of the loss that the loss function returned: a hook of it."""
        self.scale = gradient

    def _call(self, given: Any, before: State) -> Any:
        pieces = self.limit.pieces_of(given)
        has_graph = torch.is_grad_enabled() and self.run.in_train
        if not (pieces or has_graph):
            return self.function(*given[0], **given[1])
        work = self.work_on(given, before)
        if not pieces:
            out = work.call_whole()
            return out if work.hangs_on_graph() else work.cut_from_graph(out)
        joined = work.call_in(pieces)
        if not has_graph or not work.parameters:
            return joined.with_leaves(joined.leaves)
        if work.hangs_on_graph():
            raise CannotBeCut("something that the model is called with has a gradient of its own")
        return work.attach(joined.with_leaves(joined.leaves), joined.leaves)

    def work_on(self, given: Any, before: State) -> Work:
        """Return what makes one call, and goes back through it.

        Args:
            given: What the model is called with.
            before: What a call may change, as it was before.
        """
        # Also those that the model knows without owning them.
        held = {id(p): p for p in (*self.model.parameters(), *trained_parameters(self.run))}
        return Work(self, given, before, [p for p in held.values() if p.requires_grad])


class Work:
    """One call of a model, and the backward pass through it.

    Args:
        call: Whose it is.
        given: What the model is called with.
        before: What a call may change, as it was before.
        parameters: What gradients are for.
    """

    def __init__(
        self, call: SplitCall, given: Any, before: State, parameters: Sequence[Tensor]
    ) -> None:
        self._call, self._given, self._before = call, given, before
        self.parameters = list(parameters)
        self._ends = self.parameters  # through what the graph goes on to them
        self._has_taken_inputs = False
        self._pieces: Sequence[Range] = ()
        self._states: list[State] = []
        self._joined: Joined | None = None
        self._outs: list[Tensor] = []  # of a call as a whole, with its graph
        self._is_given: list[bool] = []  # which leaves have gradients
        self._returned = 0
        self._may_differ = False  # from a second call, which then needs a loss of its own
        kind = model_device(call.model).type
        self._autocast: dict[str, Any] = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }

    def take_inputs(self) -> None:
        """Have gradients go on to what the model is called with, too."""
        leaves = leaves_of(self._given)
        own = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in leaves]
        self._given = with_leaves(self._given, own)
        self._ends = [*self.parameters, *(leaf for leaf in leaves if leaf.requires_grad)]
        self.parameters = [*self.parameters, *(leaf for leaf in own if leaf.requires_grad)]
        self._has_taken_inputs = True

    def hangs_on_graph(self) -> bool:
        """Whether gradients go on to something else than parameters."""
        taken = self._has_taken_inputs
        return not taken and any(tensor.requires_grad for tensor in leaves_of(self._given))

    # Forward

    def call_whole(self) -> Any:
        """Call the model for all rows."""
        args, kwargs = self._given
        return self._call.function(*args, **kwargs)

    def call_in(self, pieces: Sequence[Range]) -> Joined:
        """Call the model for each piece, without a graph."""
        self._pieces, self._states, outs = pieces, [], []
        with torch.no_grad():
            for piece in pieces:
                self._states.append(State(self._call.model))
                args, kwargs = cut(self._given, piece)
                outs.append(self._call.function(*args, **kwargs))
            self._joined = Joined(outs, pieces, self.shares)
        self._may_differ = self._before.may_have_changed()
        return self._joined

    def shares(self) -> list[Any]:
        """Return how much of the batch each piece is, by what its loss is a mean of.

        Raises:
            CannotBeCut: That cannot be known.
        """
        run = self._call.run
        weight = run.learn.weight
        if weight is None:
            counts: list[Any] = [end - first for first, end in self._pieces]
        else:
            if rows_of(run.batch) != self._pieces[-1][1]:
                raise CannotBeCut("the batch has other rows than what the model is called with")
            counts = [weight_of(cut(run.batch, piece), weight) for piece in self._pieces]
        whole = sum(counts)
        return [count / whole for count in counts]

    def cut_from_graph(self, out: Any) -> Any:
        """Return what the model has returned, through a place from which to begin again."""
        leaves = leaves_of(out)
        if not any(leaf.requires_grad for leaf in leaves):
            return out
        self._may_differ = self._before.may_have_changed()
        self._outs = [leaf for leaf in leaves if leaf.requires_grad]
        return self.attach(out, leaves)

    def attach(self, form: Any, leaves: list[Tensor]) -> Any:
        """Have the backward pass of what is returned be this object's."""
        is_whole = bool(self._outs)
        self._is_given = [
            leaf.requires_grad if is_whole else leaf.is_floating_point() for leaf in leaves
        ]
        given = [leaf for leaf, is_given in zip(leaves, self._is_given, strict=True) if is_given]
        outs = [leaf.detach() for leaf in given]
        attached = iter(_Attached.apply(self, outs, *self._ends))  # type: ignore[no-untyped-call]
        found = with_leaves(
            form,
            [
                next(attached) if is_given else leaf
                for leaf, is_given in zip(leaves, self._is_given, strict=True)
            ],
        )
        self._returned = id(found)
        return found

    # Backward

    def backward(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients of ``parameters``, in smaller pieces if memory does not suffice."""
        while True:
            try:
                return self._go_back(gradients)
            except torch.OutOfMemoryError as error:
                self._call.limit.lower(self._given, error, self._pieces)
                if self._may_differ:
                    self.require_same_loss(error)
            # Outside of "except", which holds on to what the attempt has made.
            after = State(self._call.model)
            self._before.restore()
            joined = self.call_in(self._call.limit.pieces_of(self._given))
            if self._may_differ:
                gradients = self._gradients_anew(joined)
            else:  # others may have drawn since
                after.restore()

    def _go_back(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        if self._outs:
            outs, self._outs = self._outs, []
            return self._gradients_of(outs, gradients)
        rest = iter(gradients)
        every = [next(rest) if is_given else None for is_given in self._is_given]
        after = State(self._call.model)
        total: list[Tensor | None] = [None] * len(self.parameters)
        try:
            if self._joined is None:  # the graph of the whole has been gone through before
                return self._gradients_of(self._called(self._before), every)
            for index, (piece, state) in enumerate(zip(self._pieces, self._states, strict=True)):
                outs = self._called(state, piece)
                found = self._gradients_of(outs, self._joined.part_of(every, index))
                total = [_sum(*pair) for pair in zip(total, found, strict=True)]
        finally:
            after.restore()
        return total

    def _called(self, state: State, piece: Range | None = None) -> list[Tensor]:
        """Call the model once more, as it was called in ``state``, for a piece or for all."""
        state.restore()
        with torch.enable_grad(), torch.autocast(**self._autocast):
            # In here: gradients go back through the cut to what is given.
            given = self._given if piece is None else cut(self._given, piece)
            return leaves_of(self._call.function(*given[0], **given[1]))

    def _gradients_of(
        self, outs: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        pairs = [
            (out, gradient)
            for out, gradient in zip(outs, gradients, strict=True)
            if gradient is not None and out.requires_grad
        ]
        if not pairs:
            return [None] * len(self.parameters)
        found = torch.autograd.grad(
            [out for out, _ in pairs],
            self.parameters,
            [gradient for _, gradient in pairs],
            allow_unused=True,
        )
        return list(found)

    def require_same_loss(self, error: torch.OutOfMemoryError) -> None:
        """See that the loss can be computed anew, with the random numbers of the pieces.

        Raises:
            torch.OutOfMemoryError: It cannot: ``error``, with a note.
        """
        run, loss, scale = self._call.run, self._call.loss, self._call.scale
        expected = None if loss is None or scale is None else loss * scale
        is_own = id(run.pred) == self._returned and expected is not None
        if is_own and torch.allclose(run.loss, expected, rtol=1e-3):  # type: ignore[arg-type]
            return
        add_note(
            error,
            "The batch cannot be split at this point: the model draws random numbers, or has "
            "buffers, and handlers have made another loss of what it returned, which cannot be "
            "computed anew. "
            f"SplitOnOOM(rows={self._call.limit.rows}) splits from the start",
        )
        raise error

    def _gradients_anew(self, joined: Joined) -> list[Tensor | None]:
        """Return the gradients of what the model has returned now, by other random numbers."""
        run = self._call.run
        leaves = [
            leaf.detach().requires_grad_() if is_given else leaf
            for leaf, is_given in zip(joined.leaves, self._is_given, strict=True)
        ]
        with torch.enable_grad(), torch.autocast(**self._autocast):
            loss = run.learn.compute_loss(joined.with_leaves(leaves), run.yb)
        given = [leaf for leaf in leaves if leaf.requires_grad]
        return list(torch.autograd.grad(loss, given, self._call.scale, allow_unused=True))


class _Attached(torch.autograd.Function):
    """Stands for the graph of a model's call, which the backward pass may have to make anew."""

    @staticmethod
    def forward(ctx: Any, work: Work, outs: list[Tensor], *held: Tensor) -> tuple[Tensor, ...]:
        ctx.work = work
        ctx.set_materialize_grads(False)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.work.backward(gradients)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one + other if one is not None and other is not None else one if other is None else other
