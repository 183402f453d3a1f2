"""Every call of a model in a batch is under autocast, whoever makes it and wherever."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from eventtrain import DataBunch, Learner, Runner
from eventtrain.callbacks import Compile, LabelSmoothing, MixedPrecision, Mixup
from eventtrain.callbacks.shared.autocast_calls import AutocastCalls

HALF = torch.bfloat16
BATCHES = [(torch.randn(4, 5), torch.randint(0, 3, (4,))) for _ in range(3)]
IN_BATCH = ["begin_batch", "after_pred", "after_loss", "after_backward", "begin_step"]


class Encoded(nn.Module):
    """A model whose parts are called alone as well; its head computes in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        with torch.autocast("cpu", enabled=False):
            return self.head(x.float())


def learner_of(model: nn.Module | None = None, loss: Any = cross_entropy) -> Learner:
    torch.manual_seed(1)
    model = Encoded() if model is None else model
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Learner(model, opt, loss, DataBunch(BATCHES, BATCHES))


@pytest.fixture(autouse=True)
def no_autocast_stays() -> Iterator[None]:
    yield
    assert torch.autocast_increment_nesting() == 1
    torch.autocast_decrement_nesting()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("event", [*IN_BATCH, "after_step", "after_batch"])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_call_in_a_handler_is_in_half_precision(event: str, name: str) -> None:
    seen: set[torch.dtype] = set()

    def look_again(run: Runner) -> None:
        seen.add(run.model.encoder(run.batch[0]).dtype)
        seen.add(run.model.encoder[2](run.model.encoder[:2](run.batch[0])).dtype)
        assert not torch.is_autocast_enabled("cpu")

    run = Runner(precision := MixedPrecision(name))
    run.on(event, look_again)
    run.fit(1, learner_of())
    assert seen == {precision.dtype}


@pytest.mark.parametrize("phase", ["validate", "predict"])
def test_it_is_so_in_every_phase(phase: str) -> None:
    seen: set[torch.dtype] = set()
    run = Runner(MixedPrecision())
    run.on("after_pred", lambda run: seen.add(run.model.encoder(run.xb).dtype), during=phase)
    learner = learner_of()
    run.validate(learner)
    run.predict(learner, BATCHES)
    assert seen == {HALF}


def test_calls_outside_of_batches_are_left_alone() -> None:
    seen: set[torch.dtype] = set()
    run = Runner(MixedPrecision())
    for event in ("begin_fit", "begin_train", "after_train", "after_epoch", "after_fit"):
        run.on(event, lambda run: seen.add(run.model.encoder(BATCHES[0][0]).dtype))
    run.fit(1, learner_of())
    assert seen == {torch.float32}


def test_what_switches_autocast_off_for_itself_stays_in_single_precision() -> None:
    seen: set[torch.dtype] = set()

    def in_single(run: Runner) -> None:
        with torch.autocast("cpu", enabled=False):
            seen.add(run.model(run.xb).dtype)
            seen.add(run.model.encoder(run.xb).dtype)

    run = Runner(MixedPrecision())
    run.on("after_pred", lambda run: seen.add(run.pred.dtype))  # of the head
    run.on("after_loss", in_single)
    run.fit(1, learner_of())
    assert seen == {torch.float32}


def contrast(one: Tensor, other: Tensor) -> Tensor:
    logits = normalize(one.float()) @ normalize(other.float()).T
    return cross_entropy(logits, torch.arange(len(one)))


def test_two_views_of_a_batch_are_those_of_a_loop_by_hand() -> None:
    class Views(Runner):
        def one_batch(self) -> None:
            self.pred = self.model.encoder(self.xb), self.model.encoder(self.xb.flip(1))
            self.emit.after_pred()
            self.loss = contrast(*self.pred)
            self.emit.after_loss()
            if not self.in_train:
                return
            self.loss.backward()
            self.emit.after_backward()
            self.optimizer_step()
            second = self.model.encoder(self.xb.flip(1))  # after all events of the loop's own
            contrast(second, second.detach().flip(0)).backward()
            self.opt.step()
            self.opt.zero_grad()

    ours, theirs = learner_of(), learner_of()
    Views(MixedPrecision()).fit(2, ours)
    encoder = theirs.model.encoder
    for x, _ in BATCHES * 2:
        with torch.autocast("cpu", HALF):
            loss = contrast(encoder(x), encoder(x.flip(1)))
        loss.backward()
        theirs.opt.step()
        theirs.opt.zero_grad()
        with torch.autocast("cpu", HALF):
            second = encoder(x.flip(1))
        contrast(second, second.detach().flip(0)).backward()
        theirs.opt.step()
        theirs.opt.zero_grad()
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)


def test_another_model_is_put_under_autocast_by_hand() -> None:
    teacher, seen = nn.Linear(5, 3), set()

    def teach(run: Runner) -> None:
        with torch.no_grad(), run.mixed_precision.autocast():
            seen.add(teacher(run.xb).dtype)

    run = Runner(MixedPrecision())
    run.on("after_pred", teach)
    run.fit(1, learner_of())
    assert seen == {HALF}


def test_a_copy_that_was_made_of_the_model_is_put_under_autocast_too() -> None:
    copies: list[nn.Module] = []
    seen: set[torch.dtype] = set()

    def mean_teacher(run: Runner) -> None:
        if not copies:
            copies.append(copy.deepcopy(run.model))
        seen.add(copies[0].encoder(run.xb).dtype)

    run = Runner(MixedPrecision())
    run.on("after_pred", mean_teacher)
    run.fit(1, learner_of())
    assert seen == {HALF}
    assert copies[0].encoder(BATCHES[0][0]).dtype == torch.float32


def test_a_model_that_is_pickled_during_a_batch_loads_as_a_plain_one() -> None:
    saved: list[bytes] = []
    run = Runner(MixedPrecision())
    run.on("after_loss", lambda run: saved.append(pickle.dumps(run.model)), once=True)
    run.fit(1, learner_of())
    assert pickle.loads(saved[0]).encoder(BATCHES[0][0]).dtype == torch.float32


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()])
def test_a_loss_that_is_a_module_is_put_under_autocast(loss: nn.Module) -> None:
    seen: set[torch.dtype] = set()

    def again(run: Runner) -> None:
        target = torch.zeros(4, 3, dtype=HALF)
        seen.add(run.loss_func(torch.ones(4, 3, dtype=HALF), target).dtype)

    learner = learner_of(loss=lambda pred, y: pred.sum())
    learner.loss_func = loss
    learner.data = DataBunch([(x, torch.zeros(4, 3)) for x, _ in BATCHES], None)
    run = Runner(MixedPrecision())
    run.on("after_loss", again)
    run.fit(1, learner)
    with torch.autocast("cpu", HALF):
        expected = loss(torch.ones(4, 3, dtype=HALF), torch.zeros(4, 3, dtype=HALF)).dtype
    assert seen == {expected}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_call_that_fails_leaves_no_autocast(error: type[BaseException]) -> None:
    class Failing(Encoded):
        fails = False

        def forward(self, x: Tensor) -> Tensor:
            if self.fails:
                raise error
            return super().forward(x)

    def fail(run: Runner) -> None:
        run.model.fails = True
        try:
            run.model(run.xb)
        except error:
            run.model.fails = False

    after: list[bool] = []
    run = Runner(MixedPrecision())
    run.on("after_pred", fail)
    run.on("after_loss", lambda run: after.append(torch.is_autocast_enabled("cpu")))
    run.fit(1, learner_of(Failing()))
    assert after and not any(after)


def test_a_part_that_calls_itself_is_left_when_its_first_call_ends() -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor, depth: int = 2) -> Tensor:
            x = self.layer(x)
            inner = self(x, depth - 1) if depth else x
            assert inner.dtype == self.layer(x).dtype == HALF
            return inner

    run = Runner(MixedPrecision())
    run.on("after_loss", lambda run: run.model(run.xb))
    assert run.fit(1, learner_of(Recursive(), lambda p, y: p.float().sum())).steps == 3


def test_a_model_that_is_set_in_the_middle_is_put_under_autocast() -> None:
    seen: set[torch.dtype] = set()

    def exchange(run: Runner) -> None:
        run.learn.model = nn.Sequential(nn.Linear(5, 3))

    run = Runner(MixedPrecision())
    run.on("after_batch", exchange)
    run.on("after_loss", lambda run: seen.add(run.model(run.xb).dtype) if run.n_iter else None)
    run.validate(learner := learner_of(nn.Sequential(nn.Linear(5, 3))))
    run.on("after_pred", lambda run: seen.add(run.model(run.xb).dtype))
    run.validate(learner)
    assert seen == {HALF}


def wrapped(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("make", [wrapped, torch.jit.script, lambda model: lambda x: model(x)])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is (deprecated|not supported)")
def test_models_that_take_no_hooks_or_are_compiled_run_as_ever(make: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    learner = learner_of(model)
    learner.model = make(model)
    seen: set[torch.dtype] = set()
    run = Runner(MixedPrecision())
    run.on("after_pred", lambda run: seen.add(run.pred.dtype))
    assert run.fit(1, learner).steps == 3
    assert seen == {HALF}


def test_a_compiled_model_is_compiled_whole_with_its_hooks() -> None:
    torch.compiler.reset()  # it compiles nothing anew that others have had compiled too often
    run = Runner([MixedPrecision(), Compile(backend="eager", fullgraph=True)])
    seen: set[torch.dtype] = set()
    run.on("after_loss", lambda run: seen.add(run.model(run.xb).dtype))
    assert run.fit(1, learner_of(nn.Sequential(nn.Linear(5, 3)))).steps == 3
    assert seen == {HALF}


def test_losses_that_others_exchange_are_followed() -> None:
    learner = learner_of(loss=nn.CrossEntropyLoss())
    run = Runner([MixedPrecision("fp16"), LabelSmoothing(), Mixup()])
    assert run.fit(2, learner).steps == 6
    assert not learner.loss_func._forward_pre_hooks and not learner.loss_func._forward_hooks


def test_a_layer_deep_inside_has_no_hook() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    calls = AutocastCalls(HALF)
    calls.follow(model, cross_entropy)
    hooked = [bool(module._forward_pre_hooks) for module in model.modules()]
    assert hooked == [True, True, False, True]
    calls.let_go()
    assert not any(module._forward_pre_hooks for module in model.modules())
