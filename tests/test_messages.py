"""What beginners write, and the remedy that the message names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from eventtrain import (
    AvgStatsCallback,
    Callback,
    DataBunch,
    DataError,
    Dataset,
    Learner,
    PluginError,
    Runner,
    TensorLoader,
    accuracy,
    get_data,
    get_dls,
    get_model,
)
from eventtrain.callbacks import (
    EMA,
    SWA,
    Checkpoint,
    EarlyStopping,
    GradientAccumulation,
    GradientClip,
    LRScheduler,
    MixedPrecision,
    OneCycle,
    ToDevice,
)
from eventtrain.events import event_names
from eventtrain.foreign_names import OTHER_HOOKS
from eventtrain.submodules import choose_submodules

MODEL = nn.Linear(2, 2)
OPT = torch.optim.SGD(MODEL.parameters(), 0.1)
DATA = DataBunch([])
ROWS = Dataset(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))


class Answering(nn.Linear):
    """A model that returns always the same."""

    def __init__(self, answer: object) -> None:
        super().__init__(2, 2)
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer


def learner_of(**changed: Any) -> Learner:
    parts = {"model": MODEL, "opt": OPT, "loss_func": nn.CrossEntropyLoss(), "data": DATA}
    return Learner(**{**parts, **changed})


WRITTEN: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: Runner(EMA(), GradientClip(1.0)), TypeError, r"Runner\(\[first, second\]\)"),
    (lambda: Runner([EMA]), TypeError, r"got the class EMA: pass EMA\(\.\.\.\)"),
    (lambda: Runner([print]), TypeError, r"run\.on\(event, function\)"),
    (lambda: Runner().on(print), TypeError, r"on\('after_loss', print\).*@run\.on"),
    (lambda: Runner().fit(learner_of(), 1), TypeError, r"fit\(epochs, learn\)"),
    (lambda: Runner().fit(1, MODEL), TypeError, r"Learner\(model, opt, loss_func, data\)"),
    (lambda: Runner().fit(1, learner_of(), resume=True), TypeError, "path or 'auto', got True"),
    (lambda: Runner().fit(1, learner_of(), resume=3), TypeError, "path or 'auto', got 3: 'auto'"),
    (lambda: Runner().fit(1, learner_of(), resume=b"ck"), TypeError, "path or 'auto', got b'ck'"),
    (lambda: learner_of(opt=torch.optim.SGD), TypeError, "opt is the class SGD"),
    (lambda: learner_of(loss_func=nn.MSELoss), TypeError, "loss_func is the class MSELoss"),
    (lambda: learner_of(model=nn.Linear), TypeError, "model is the class Linear"),
    (lambda: learner_of(model=OPT, opt=MODEL), TypeError, "model and opt are swapped"),
    (lambda: learner_of(loss_func=DATA, data=nn.MSELoss()), TypeError, "are swapped"),
    (lambda: learner_of(opt=print, loss_func=OPT), TypeError, "opt and loss_func are swapped"),
    (lambda: learner_of(loss_func=0.5), TypeError, "a function as loss_func of the L.*got 0.5"),
    (lambda: learner_of(opt=MODEL.parameters()), TypeError, r"got a generator: torch\.optim"),
    (lambda: learner_of(opt=[OPT]), TypeError, "an optimizer as opt.*list: one opt.*have names"),
    (lambda: learner_of(model=[MODEL, MODEL]), TypeError, "got a list: put.*one nn.ModuleDict"),
    (lambda: learner_of(model=MODEL.parameters()), TypeError, "function as model.*a generator"),
    (
        lambda: learner_of(opt=torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)),
        ValueError,
        r"SGD has 2 parameters, and none of them is one of Linear.*SGD\(model\.parameters",
    ),
    (lambda: AvgStatsCallback(torch.tensor(0.5)), TypeError, "pass accuracy itself"),
    (lambda: AvgStatsCallback(nn.MSELoss), TypeError, "MSELoss is a class: pass an instance"),
    (lambda: LRScheduler(StepLR(OPT, 1)), TypeError, r"LRScheduler\(lambda opt: StepLR\(opt, "),
    (lambda: LRScheduler(StepLR), TypeError, r"StepLR takes more.*LRScheduler\(lambda opt: StepLR"),
    (lambda: ToDevice("gpu"), ValueError, "'cuda'.*or leave it out"),
    (lambda: Runner(learner_of()), TypeError, r"passed to fit, run\.fit\(epochs, learn\)"),
    (lambda: Runner(MODEL), TypeError, r"Learner\(model, opt, loss_func, data\)"),
    (lambda: Runner((EMA(), None)), TypeError, r"None: leave it out, as in Runner\(\[cb for"),
    (lambda: Runner([[EMA()], GradientClip(1.0)]), TypeError, r"Runner\(\[\*first, second\]\)"),
    (lambda: Runner("ema"), TypeError, r"Runner\(plugins=\['ema'\]\)"),
    (lambda: Runner([int]), TypeError, "got the class int"),
    (lambda: Runner(cb_funcs=[lambda: None]), TypeError, "returned None: it must return a cal"),
    (lambda: Runner(cb_funcs=EMA()), TypeError, "functions that make a callback"),
    (lambda: Runner(plugins=[EMA()]), TypeError, r"by name.*callbacks go first, Runner\(\["),
    (lambda: Runner(bus=1), TypeError, "must be an EventBus.*leave it out"),
    (lambda: Runner().fit(1.0, learner_of()), TypeError, "epochs must be a whole number, got 1.0"),
    (lambda: Runner().fit(None, learner_of()), TypeError, "epochs must be a whole number, got No"),
    (lambda: Runner().fit("3", learner_of()), TypeError, "epochs must be a whole number, got '3'"),
    (lambda: Runner().fit(-1, learner_of()), ValueError, "epochs must be at least 0"),
    (lambda: Runner().fit(True, learner_of()), TypeError, "epochs must be a whole number, got Tr"),
    (lambda: Runner().fit(1, learner_of(), token=1), TypeError, "a CancellationToken, got 1"),
    (lambda: Runner().validate(MODEL), TypeError, r"validate takes a Learner.*Learner\(model, "),
    (lambda: Runner().predict(MODEL, []), TypeError, r"predict takes a Learner.*Learner\(model"),
    (lambda: Runner().predict([], learner_of()), TypeError, r"predict\(learn, dl\)"),
    (lambda: Runner().model, AttributeError, r"learn\.model"),
    (lambda: Runner().fit(1, learner_of(opt=[OPT])), TypeError, "got a list: one optimizer.*one_b"),
    (lambda: Runner().fit(1, learner_of(opt={"a": OPT})), TypeError, "nobody says which steps"),
    (
        lambda: Runner().fit(1, learner_of(opt=MODEL.parameters())),
        TypeError,
        r"needs an optimizer.*SGD\(model\.parameters\(\), lr=0\.1\), say",
    ),
    (lambda: Runner().fit(1, learner_of(opt=StepLR(OPT, 1))), TypeError, "callback LRScheduler"),
    (lambda: Runner().fit(1, learner_of(loss_func="mse")), TypeError, "cross_entropy, say"),
    (lambda: Runner().fit(1, learner_of(loss_func=X)), TypeError, "and not what it returns"),
    (lambda: get_dls(X, Y), TypeError, r"look like inputs and targets: get_dls\(Dataset\(x, y\), "),
    (lambda: get_dls(ROWS, ROWS, batch_size=4), TypeError, "get_dls calls it bs"),
    (lambda: TensorLoader(X.numpy(), Y), TypeError, r"not ndarray: torch\.as_tensor\(x\)"),
    (
        lambda: AvgStatsCallback(accuracy, nn.functional.mse_loss),
        TypeError,
        r"report is called with each line.*AvgStatsCallback\(\[first, second\]\)",
    ),
    (lambda: AvgStatsCallback(accuracy, 3), TypeError, "report is called with each line.*, got 3"),
    (lambda: Checkpoint(None), TypeError, "folder must be a path, got None"),
    (lambda: SWA(lr="0.1"), TypeError, "lr must be a number, got '0.1'"),
    (lambda: SWA(lr=[0.1, -1]), ValueError, "lr must be at least 0, got -1"),
    (lambda: choose_submodules(MODEL, 3), TypeError, "modules, their names or a function, not 3"),
    (lambda: choose_submodules(MODEL, None), TypeError, "names or a function, not None"),
    (lambda: AvgStatsCallback("accuracy"), TypeError, "pass accuracy itself, say"),
    (lambda: AvgStatsCallback([None]), TypeError, "pass accuracy itself, say, and"),
    (lambda: MixedPrecision("float16"), ValueError, "write 'bf16' or 'fp16', or torch"),
    (lambda: MixedPrecision(torch.float32), ValueError, "without MixedPrecision all is in float32"),
    (lambda: get_model(DATA, lr="0.1"), TypeError, "lr must be a number, got '0.1'"),
    (lambda: get_model(DATA, nh=0.5), TypeError, "nh must be a whole number of units"),
    (lambda: OneCycle("0.1"), TypeError, "max_lr must be a number, got '0.1'"),
    (lambda: GradientClip("1"), TypeError, "norm must be a number, got '1'"),
    (lambda: GradientAccumulation(2.5), TypeError, "n must be a whole number of batches"),
    (lambda: EarlyStopping(accuracy), TypeError, "monitor must be a key of run.history's rows"),
    (lambda: EarlyStopping(mode="maximize"), ValueError, "mode must be 'min' or 'max'"),
    (lambda: get_dls(ROWS, ROWS, "64"), TypeError, "batch size must be a whole number, got '64'"),
    (lambda: get_data("mnsit"), DataError, "Did you mean 'mnist'"),
    (lambda: Runner().on("epoch_end", print), KeyError, "Here it is called 'after_epoch'"),
    (lambda: Runner().on("on_train_end", print), KeyError, "Here it is called 'after_fit'"),
    (lambda: Runner().on("Events.EPOCH_COMPLETED", print), KeyError, "is called 'after_epoch'"),
    (lambda: Runner().on("after_los", print), KeyError, "Did you mean 'after_loss'"),
    (lambda: Runner().on("after_loss", EMA()), TypeError, "is not callable"),
    (lambda: Runner().on("after_loss", lambda: None), TypeError, "lambda run: "),
    (
        lambda: Runner().on("after_loss", print, before="later"),
        ValueError,
        r"names 'later'.*Subscribe it first, or subscribe it with after='print'",
    ),
    (
        lambda: Runner().on("after_loss", print, after="later"),
        ValueError,
        r"names 'later'.*subscribe it with before='print'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("write", "kind", "message"), WRITTEN, ids=[w[2] for w in WRITTEN])
def test_the_message_names_the_remedy(
    write: Callable[[], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        write()


def test_early_stopping_without_metrics_says_who_writes_them(learner: Learner) -> None:
    with pytest.raises(ValueError, match=r"there are: none.*AvgStatsCallback"):
        Runner(EarlyStopping()).fit(1, learner)


def test_a_plugin_option_that_there_is_not_is_answered_with_those_there_are(
    install: Callable[..., str], call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    install(
        """
        from eventtrain import Callback

        class Demo(Callback):
            def __init__(self, every: int = 10, path: str = "") -> None: ...
        """
    )
    with pytest.raises(PluginError, match=r"no option 'evry'.*'every', 'path'.*mean 'every'"):
        Runner(plugins={"demo": {"evry": 5}})
    assert Runner(plugins={"demo": {"every": 5}}).cbs[-1].name == "demo"
    code, _, printed = call(
        *("train", "--plugin", "demo", "--plugin-option", "demo.evry=5"),
        *("--out", str(tmp_path / "out")),
    )
    assert code != 0
    assert "no option 'evry'" in printed and "Did you mean 'every'" in printed


@pytest.mark.parametrize(("target", "takes"), [("register", "'every'"), ("make", "none")])
def test_so_is_one_of_a_plugin_that_is_a_function(
    target: str, takes: str, install: Callable[..., str]
) -> None:
    install(
        """
        def register(bus, every=1): ...
        def make(): ...
        """,
        target=target,
    )
    with pytest.raises(PluginError, match=rf"no option 'evry' \(there are: {takes}\)"):
        Runner(plugins={"demo": {"evry": 5}})


class Carried:
    """A loss that goes on from that of the batch before."""

    last: Any = 0.0

    def __call__(self, pred: torch.Tensor, yb: torch.Tensor) -> torch.Tensor:
        self.last = nn.functional.cross_entropy(pred, yb) + self.last
        return self.last


CARRIED = Carried()


class Asking(torch.optim.SGD):
    """Takes no step without a closure, and does not say so in its signature."""

    def step(self, closure: Any = None) -> Any:
        if closure is None:
            raise TypeError("step needs a closure")
        return super().step(closure)


class ByName(nn.Module):
    """Takes each part of a batch by its name, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = MODEL

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(x * mask[:, None])


NORMALIZED = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
X, Y = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
PAIR = r"a dict with the keys 'x', 'y'.*\(xb\['x'\], yb\['y'\]\), during=None"
RUN: list[tuple[dict[str, Any], list[Any], str]] = [
    ({}, [{"x": X, "y": Y}], PAIR),
    ({}, [(X, Y, Y)], r"a tuple of 3.*BatchTransform\(lambda xb, yb: \(xb\[0\], yb\[1\]\)"),
    ({"model": ByName()}, [{"x": X, "mask": Y}], r"takes these by name.*model\(\*\*batch\)"),
    ({"loss_func": nn.NLLLoss()}, [X], r"the whole batch, as it is no pair.*yield \(inputs"),
    ({}, ["text"], "xb is a str.*text has to be tokenized"),
    ({}, [(X.numpy(), Y)], "xb is a ndarray.*a DataLoader makes them of arrays"),
    ({}, [(X.double(), Y)], r"float64 tensor.*of torch\.float32.*xb\.float\(\), during=None"),
    ({}, [(X.to(torch.uint8), Y)], r"a uint8 tensor of shape.*xb\.float\(\) / 255"),
    ({}, [(X, Y.float())], r"Labels of classes are int64: yb\.long\(\)"),
    ({}, [(X, Y[:, None])], r"one dimension: yb\.squeeze\(1\)"),
    ({}, [(X, nn.functional.one_hot(Y))], r"are floats: yb\.float\(\), or yb\.argmax\(1\)"),
    ({}, [(X, Y + 1)], "pred has 2 classes, so labels go from 0 to 1"),
    ({}, [(X, Y - 1)], "pred has 2 classes, so labels go from 0 to 1"),
    ({"loss_func": nn.BCEWithLogitsLoss()}, [(X, X.long())], r"floats: yb\.float\(\)"),
    ({"loss_func": nn.BCELoss()}, [(X * 9, X)], "binary_cross_entropy_with_logits"),
    ({}, [((X, X), Y)], "is a tuple of 2: one argument, which forward.* first, second = xb"),
    ({}, [(torch.randn(4, 2, 3), Y)], r"put nn\.Flatten\(\) before the first"),
    ({"model": NORMALIZED}, [(X[:1], Y[:1])], "two rows or more: drop_last=True"),
    ({"model": nn.Conv2d(1, 1, 2)}, [(torch.randn(4, 3, 3), Y)], r"xb\.unsqueeze\(1\) adds"),
    ({"opt": Asking(MODEL.parameters())}, [(X, Y)], "Asking.*a closure.*optimizer_step"),
    ({"loss_func": CARRIED}, [(X, Y), (X, Y)], r"gone through once.*detach\(\) what is carried"),
    ({"loss_func": lambda p, y: None}, [(X, Y)], "loss_func lacks a return"),
    ({"loss_func": lambda p, y: p.sum().item()}, [(X, Y)], r"without \.item\(\) or float\(\)"),
    ({"loss_func": lambda p, y: p}, [(X, Y)], r"shape \[4, 2\].*reduction='mean'"),
    ({"loss_func": lambda p, y: p.sum().detach()}, [(X, Y)], r"has no gradient: .* \.detach"),
    ({"loss_func": lambda p, y: [p.sum()]}, [(X, Y)], "a list of 1.*return one tensor"),
    ({"model": Answering(None)}, [(X, Y)], r"returned None: its forward\(\) lacks a return"),
    ({"model": Answering({"logits": X})}, [(X, Y)], r"pred, a dict.*out\['logits'\]"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "batches", "message"), RUN, ids=[row[2] for row in RUN])
def test_what_torch_raises_in_a_batch_has_a_note_with_the_remedy(
    parts: dict[str, Any], batches: list[Any], message: str
) -> None:
    if "model" in parts:
        parts = {**parts, "opt": torch.optim.SGD(parts["model"].parameters(), 0.1)}
    with pytest.raises(Exception) as caught:
        Runner().fit(1, learner_of(**parts, data=DataBunch(batches)))
    (note,) = (note for note in caught.value.__notes__ if "raised in" not in note)
    assert re.search(message, note)


def test_a_loss_that_is_no_tensor_is_told_where_a_callback_stumbles_over_it() -> None:
    learner = learner_of(loss_func=lambda pred, yb: 1.0, data=DataBunch([(X, Y)]))
    run = Runner()
    run.on("after_loss", lambda run: run.loss.detach())
    with pytest.raises(AttributeError) as caught:
        run.fit(1, learner)
    assert any("without .item() or float()" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("event", ["after_pred", "after_loss", "after_backward", "after_batch"])
def test_what_a_handler_raises_has_its_own_note_alone(event: str) -> None:
    def fail(run: Runner) -> None:
        raise ValueError("of its own")

    run = Runner()
    run.on(event, fail)
    with pytest.raises(ValueError, match="of its own") as caught:
        run.fit(1, learner_of(data=DataBunch([(X, Y)], [(X, Y)])))
    assert len(caught.value.__notes__) == 1


def test_early_stopping_on_a_wrong_name_lists_the_right_ones_in_the_first_row(
    learner: Learner,
) -> None:
    run = Runner([AvgStatsCallback(accuracy), EarlyStopping("val_loss")])
    with pytest.raises(ValueError, match=r"'train_loss', 'train_accuracy', 'valid_loss', 'valid_a"):
        run.fit(2, learner)
    assert len(run.history) == 1


@pytest.mark.parametrize("hook", sorted(OTHER_HOOKS))
def test_a_hook_of_another_framework_is_told_with_ours(hook: str) -> None:
    with pytest.raises(TypeError, match=f"Mine.{hook} is a hook of another framework") as caught:
        type("Mine", (Callback,), {hook: lambda self: None})
    ours = str(caught.value).split()
    remedies = {*event_names(), "one_batch", "state_dict,", "load_state_dict", "Learner"}
    assert remedies & set(ours)


@pytest.mark.parametrize("hook", ["after_forward", "before_forward", "epoch_end", "on_test_start"])
def test_hooks_without_on_in_their_name_are_told_too(hook: str) -> None:
    with pytest.raises(TypeError, match=r"after_pred|begin_batch|after_epoch|begin_validate"):
        type("Mine", (Callback,), {hook: lambda self: None})


def test_a_helper_of_such_a_name_in_a_class_above_is_left_alone() -> None:
    class Base:
        def training_step(self) -> None: ...

    class Mine(Callback, Base): ...

    assert Mine().name == "mine"


def test_an_optimizer_with_parameters_of_the_loss_function_is_taken() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    loss = Loss()
    opt = torch.optim.SGD(loss.parameters(), 0.1)
    assert learner_of(loss_func=loss, opt=opt).opt is opt


def test_a_metric_function_is_taken() -> None:
    assert AvgStatsCallback(accuracy).train_stats.names == ["loss", "accuracy"]
