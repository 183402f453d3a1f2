"""The optimizers of a learner: one, several by their names, or functions that make them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import did_you_mean
from .submodules import choose_submodules


def named_optimizers(opt: Any) -> Iterator[tuple[str | None, Any]]:
    """Yield each optimizer with its name, ``None`` for one that is alone.

    This is the one place that knows how several are kept.

    Args:
        opt: ``learn.opt``.
    """
    if isinstance(opt, Mapping):
        yield from opt.items()
    else:
        yield None, opt


def parameter_groups(opt: Any) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yield each parameter group with the name of its optimizer; none where one has none."""
    for name, each in named_optimizers(opt):
        for group in getattr(each, "param_groups", ()):
            yield name, group


def names_in_text(opt: Mapping[str, Any]) -> str:
    """Return the names of several optimizers for a message, ``"'g' and 'd'"``."""
    names = [repr(name) for name in opt]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def why_no_such_name(name: Any, opt: Any) -> str:
    """Say why no optimizer has a name, and which there are."""
    if not isinstance(opt, Mapping):
        return (
            f"there is no optimizer {name!r}: the Learner has one, {type(opt).__name__}, without a "
            f'name. Leave the name out, or pass Learner(model, {{"{name}": ...}}, ...)'
        )
    return (
        f"there is no optimizer {name!r} in the Learner, which has {names_in_text(opt)}."
        f"{did_you_mean(name, opt)}"
    )


def can_step(opt: Any) -> bool:
    """Whether something can be stepped as an optimizer."""
    return hasattr(opt, "step") and hasattr(opt, "zero_grad")


def is_factory(opt: Any) -> bool:
    """Whether something is a function that makes an optimizer of parameters."""
    return callable(opt) and not isinstance(opt, type) and not can_step(opt)


def needs_closure(opt: Any) -> bool:
    """Whether ``opt.step`` cannot be called without a function that computes the loss anew."""
    try:
        parameters = list(inspect.signature(opt.step).parameters.values())
    except (AttributeError, TypeError, ValueError):  # it has none, or nobody knows how it is called
        return False
    # A scheduler puts a function in the place of the method that looks like the plain one.
    parameters = [each for each in parameters if each.name != "self"]
    first = parameters[0] if parameters else None
    return (
        first is not None
        and first.name == "closure"
        and first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
        and first.default is first.empty
    )


def is_made(opt: Any) -> bool:
    """Whether there is nothing left for ``make_optimizers`` to make."""
    return not any(is_factory(each) or _is_of_part(each) for _, each in named_optimizers(opt))


def make_optimizers(opt: Any, model: Any) -> Any:
    """Return what the factories in ``opt`` make, with what is there already.

    Args:
        opt: What the learner was given.
        model: A factory gets its parameters; one that stands with the name of a part,
            those of the part.

    Raises:
        TypeError: A factory returns something else.
    """
    if not isinstance(opt, Mapping):
        return _made("opt of the Learner", opt, model) if is_factory(opt) else opt
    made = {}
    for name, each in opt.items():
        what = f"opt[{name!r}] of the Learner"
        if _is_of_part(each):
            part, factory = each
            (module,) = choose_submodules(model, part).values()
            made[name] = _made(what, factory, module)
        else:
            made[name] = _made(what, each, model) if is_factory(each) else each
    return made


def _made(what: str, factory: Callable[[Any], Any], module: Any) -> Any:
    made = factory(module.parameters())
    if not can_step(made):
        raise TypeError(
            f"{what} is a function that must return an optimizer, and returned "
            f"{made!r}: as in lambda params: torch.optim.SGD(params, lr=0.1)"
        )
    return made


def _is_of_part(opt: Any) -> bool:
    return isinstance(opt, tuple) and len(opt) == 2 and isinstance(opt[0], str)


def check_optimizers(opt: Any, model: Any, loss_func: Any, *, is_to_train: bool) -> None:
    """See that optimizers are what they are to be, and train this model.

    Args:
        opt: What the learner was given. One that is alone may be missing, and is judged where
            it is needed.
        model: Whose parameters they are to train.
        loss_func: One that is a module may have parameters, too.
        is_to_train: Whether they are about to be used; else their parameters may be others yet.

    Raises:
        TypeError: One of several is no optimizer, or nobody can know which parameters it is for.
        ValueError: There is none, one trains nothing of the model, or two have a parameter in
            common.
    """
    if isinstance(opt, Mapping):
        _check_mapping(opt, model)
    if not is_to_train:
        return
    for name, each in named_optimizers(opt):
        if isinstance(each, torch.optim.Optimizer):
            _check_that_it_trains(name, each, model, loss_func)
    if isinstance(opt, Mapping):
        _check_that_none_is_shared(opt, model)


def _check_mapping(opt: Mapping[Any, Any], model: Any) -> None:
    if not opt:
        raise ValueError(
            "opt of the Learner is an empty mapping: it has an optimizer at each name, "
            '{"g": torch.optim.Adam(model.generator.parameters()), ...}'
        )
    for name, each in opt.items():
        if not (isinstance(name, str) and name):
            raise TypeError(f"the name of an optimizer is a text, got {name!r}")
        if isinstance(each, type):
            raise TypeError(
                f"opt[{name!r}] is the class {each.__name__}: pass an instance of it, "
                f"{each.__name__}(...)"
            )
        if isinstance(each, torch.optim.lr_scheduler.LRScheduler):
            raise TypeError(
                f"opt[{name!r}] is the scheduler {type(each).__name__}: pass the optimizer, and "
                f"the scheduler to a callback LRScheduler(..., optimizer={name!r})"
            )
        if _is_of_part(each):
            _check_part(name, each, model)
        elif is_factory(each) and not isinstance(each, nn.Module):
            _check_lone_factory(name, opt, model)
        elif isinstance(each, nn.Module) or not can_step(each):
            raise TypeError(f"opt[{name!r}] must be an optimizer, got a {type(each).__name__}")
        elif needs_closure(each):
            raise TypeError(
                f"opt[{name!r}] is {type(each).__name__}, which takes its steps with a closure: "
                "what that is to compute for one of several optimizers is not known. Give it a "
                "Learner of its own, or step it in a one_batch of yours with "
                f"self.opt[{name!r}].step(closure), and leave it out of the mapping"
            )


def _check_part(name: str, part: tuple[str, Any], model: Any) -> None:
    if not is_factory(part[1]):
        raise TypeError(
            f"opt[{name!r}] must have a function that makes an optimizer behind the name of a "
            f"part, got {part[1]!r}: ({part[0]!r}, lambda params: torch.optim.Adam(params))"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"opt[{name!r}] names a part, and the model is no nn.Module")
    choose_submodules(model, part[0])  # says which there are, if there is no such part


def _check_lone_factory(name: str, opt: Mapping[str, Any], model: Any) -> None:
    if len(opt) == 1:
        return
    parts = [key for key, _ in model.named_children()] if isinstance(model, nn.Module) else []
    example = parts[0] if parts else "<part>"
    raise TypeError(
        f"opt[{name!r}] is a function that makes an optimizer, and with several optimizers nobody "
        f"knows which parameters it is to get: say for which part of the model, as in "
        f'{{"{name}": ("{example}", lambda params: torch.optim.Adam(params)), ...}}. The parts of '
        f"{type(model).__name__} are {', '.join(parts) or 'none'}; or make the optimizer before"
    )


def _check_that_it_trains(name: str | None, opt: torch.optim.Optimizer, *parts: Any) -> None:
    """Refuse an optimizer of another model: it would train nothing, and no one would know."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    if not isinstance(parts[0], nn.Module):
        return  # a function may call modules that nobody knows of
    own = {id(p) for module in modules for p in module.parameters()}
    held = {id(p) for p in _parameters_of(opt)}
    if own and held and not own & held:
        where = "" if name is None else f"opt[{name!r}], "
        raise ValueError(
            f"{where}{type(opt).__name__} has {len(held)} parameters, and none of them is one of "
            f"{type(modules[0]).__name__}: make it of the model's own, after whatever replaces "
            "them, as in torch.optim.SGD(model.parameters(), lr=0.1)"
        )


def _check_that_none_is_shared(opt: Mapping[str, Any], model: Any) -> None:
    """Refuse a parameter of two optimizers: the step of one would drop the other's gradient."""
    owners: dict[int, str] = {}
    names = (
        {id(p): key for key, p in model.named_parameters()} if isinstance(model, nn.Module) else {}
    )
    for name, each in opt.items():
        for parameter in _parameters_of(each):
            other = owners.setdefault(id(parameter), name)
            if other != name:
                called = names.get(id(parameter), f"of shape {list(parameter.shape)}")
                raise ValueError(
                    f"the parameter {called} is in two optimizers, {other!r} and {name!r}: the "
                    "step of either would zero the gradient that the other waits for. Give each "
                    "the parameters of its own part, as in Adam(model.generator.parameters())"
                )


def _parameters_of(opt: Any) -> list[Tensor]:
    return [p for _, group in parameter_groups(opt) for p in group["params"]]
