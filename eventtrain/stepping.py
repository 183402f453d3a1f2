"""The loop as something to step through: the same source, compiled so that it can stand still.

A thread for the fit would have other signals, context variables, gradient and autocast modes than
the caller, and a loop of generators would cost every fit. So the functions of the loop are compiled
a second time, when somebody first steps through a fit, as generators: a call of one of them becomes
``yield from``, and behind each statement stands a place to pause. All runs in the caller's thread.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import textwrap
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch

from .cancellation import CancellationToken
from .interrupts import aside

PLACES = (
    *("begin_fit", "begin_epoch", "begin_train", "after_batch", "after_train"),
    *("begin_validate", "after_validate", "after_epoch"),
)
"""Events at which a fit can stand still: nothing of a batch is under way."""
LEFT = "the loop over run.iterate(...) was left"
"""The reason of the cancellation that ends a fit which nobody steps through any more."""
_INNER = "loop"
"""What one of the functions may call a parameter by which it gets another one."""


class _Left(BaseException):
    """Thrown into a fit that stands still and is to end."""


class Pause:
    """Says when the fit is to stand still, and gives the run to the caller then.

    Attributes:
        is_due: Whether it is to do so now.
        token: That of the run while it stands still, else ``None``.
    """

    def __init__(self) -> None:
        self.is_due = False
        self.token: CancellationToken | None = None
        self._is_left = False
        self._absorbed: Any = None
        self._grad_mode = torch.is_grad_enabled()

    def note(self, run: Any) -> None:
        """Have the fit stand still once the event has been told to all; a handler."""
        is_passing = run.token.pending is not None or run.outcome == "failed"
        is_aside = run.in_interlude or "predict" in run.token.open_scopes
        if not (is_passing or is_aside or self._is_left):
            self.is_due, self._absorbed = True, run.token.absorbed

    def give(self, run: Any) -> Iterator[Any]:
        """Yield the run, with the modes and signals of the caller; end the fit if it is left."""
        self.is_due = False
        if run.token.absorbed is not self._absorbed or "fit" not in run.token.open_scopes:
            return  # the scope in which the event fired was cancelled since
        own, self.token = torch.is_grad_enabled(), run.token
        try:
            with aside(run.token):
                torch.set_grad_enabled(self._grad_mode)
                yield run
        except _Left:
            self._is_left = True
        finally:
            self.token, self._grad_mode = None, torch.is_grad_enabled()
            torch.set_grad_enabled(own)
        run.token.check()


_held: set[Generator[Any, None, Any]] = set()
"""Fits that somebody steps through. Held here, as the garbage collector would close one before the
``Moments`` in the same circle, and so have the fit fail."""


class Moments(Iterator[Any]):
    """Gives a run at each of its moments; leaving the loop over it ends the fit.

    Attributes of the run tell where it stands. ``close`` ends the fit, and so does the end of a
    ``with`` block; without one, leaving the ``for`` does, as soon as nobody holds this object.

    Args:
        steps: Runs the fit from one moment to the next.
        pause: Knows where it stands still.
    """

    def __init__(self, steps: Generator[Any, None, Any], pause: Pause) -> None:
        self._steps, self._pause = steps, pause
        _held.add(steps)

    def __next__(self) -> Any:
        return next(self._steps)

    def __enter__(self) -> Moments:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the fit, if it is under way; all of its closing events fire."""
        token = self._pause.token
        _held.discard(self._steps)
        if token is None:  # it has not begun, or has ended
            self._steps.close()
            return
        token.cancel("fit", LEFT)
        # Not closed: of "yield from", Python closes the inner ones first, and would have each of
        # the outer ones fail.
        with suppress(StopIteration):
            self._steps.throw(_Left())

    def __del__(self) -> None:
        self.close()


def as_generators(
    functions: Mapping[str, Callable[..., Any]], pause: Pause
) -> dict[str, Callable[..., Generator[Any, None, Any]]]:
    """Return functions that do what ``functions`` do, and stand still on the way.

    Args:
        functions: Methods by their names, which call each other by these, on their ``self``.
        pause: When to stand still.

    Raises:
        RuntimeError: Their source is not there.
    """
    made: dict[str, Any] = {}
    for name, function in functions.items():
        assert isinstance(function, FunctionType)
        found: dict[str, Any] = {}
        exec(_compiled(function, frozenset(functions)), function.__globals__, found)
        made[name] = found["make"](made, pause)
    return made


@cache
def _compiled(function: FunctionType, names: frozenset[str]) -> CodeType:
    """Compile a function that makes the generator, with the lines that its source has."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except OSError as error:
        raise RuntimeError(
            f"run.iterate compiles the source of {function.__qualname__}, which is not there: "
            "install eventtrain with its source files"
        ) from error
    tree = ast.parse(source)
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    _Stepped(names).change(definition)
    make = ast.parse("def make(stepped, pause): pass").body[0]
    assert isinstance(make, ast.FunctionDef)
    back = ast.Return(ast.Name(definition.name, ast.Load()))
    make.body = [definition, back]
    tree.body = [make]
    flags = __future__.annotations.compiler_flag
    filename = function.__code__.co_filename
    tree = ast.fix_missing_locations(tree)
    made: CodeType = compile(tree, filename, "exec", flags, dont_inherit=True)
    return made


class _Stepped(ast.NodeTransformer):
    """Makes a generator of a function's definition."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._is_in_lambda = False

    def change(self, definition: ast.FunctionDef) -> None:
        definition.decorator_list = []
        definition.body = self._with_pauses([self.visit(each) for each in definition.body])

    def visit_Call(self, call: ast.Call) -> ast.expr:
        self.generic_visit(call)
        function = call.func
        if isinstance(function, ast.Attribute) and function.attr in self._names:
            owner = function.value
            stepped = ast.Subscript(
                ast.Name("stepped", ast.Load()), ast.Constant(function.attr), ast.Load()
            )
            call = ast.Call(stepped, [owner, *call.args], call.keywords)
        elif not (isinstance(function, ast.Name) and function.id == _INNER):
            return call
        return call if self._is_in_lambda else ast.YieldFrom(call)

    def visit_Lambda(self, function: ast.Lambda) -> ast.expr:
        outer, self._is_in_lambda = self._is_in_lambda, True
        self.generic_visit(function)
        self._is_in_lambda = outer
        return function

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        # Not where an exception may be on its way, as in "finally".
        if isinstance(node, (ast.With, ast.For, ast.While, ast.If, ast.Try)):
            node.body = self._with_pauses(node.body)
        return node

    def _with_pauses(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for statement in statements:
            found.append(statement)
            if isinstance(statement, (ast.Expr, ast.With, ast.If, ast.Try, ast.For)):
                found.append(_pause())
        return found


def _pause() -> ast.stmt:
    return ast.parse("if pause.is_due: yield from pause.give(self)").body[0]
