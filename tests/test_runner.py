"""The loop: its events, its state, its errors and what it leaves behind."""

from __future__ import annotations

import copy
import gc
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from eventtrain import (
    EVENTS,
    AvgStatsCallback,
    Callback,
    CallbackError,
    CancellationToken,
    DataBunch,
    DataError,
    EmptyLoaderError,
    EventBus,
    Learner,
    Runner,
    ScopeNotOpenError,
    TensorLoader,
    accuracy,
)

NAMES = [event.name for event in EVENTS]


def record(run: Runner, *events: str) -> list[str]:
    """Note the name of each of ``events`` (all by default) as it fires."""
    fired: list[str] = []
    for event in events or NAMES:
        run.on(event, lambda run, event=event: fired.append(event))
    return fired


def noted_batches(loaded: list[int], count: int = 3) -> Iterator[tuple[Tensor, Tensor]]:
    """Give batches, noting each in ``loaded`` as it is asked for."""
    for i in range(count):
        loaded.append(i)
        yield torch.ones(2, 5), torch.tensor([0, 1])


# Events


def test_the_events_of_a_fit_fire_in_the_order_of_the_picture(make_learner) -> None:
    run = Runner()
    fired = record(run)
    run.fit(1, make_learner(train=1, valid=1))
    assert fired == [
        "begin_fit",
        "begin_epoch",
        "begin_train",
        "begin_batch",
        "after_pred",
        "after_loss",
        "after_backward",
        "begin_step",
        "after_step",
        "after_batch",
        "after_train",
        "begin_validate",
        "begin_batch",
        "after_pred",
        "after_loss",
        "after_batch",
        "after_validate",
        "after_epoch",
        "after_row",
        "after_fit",
    ]


def test_without_a_validation_loader_there_is_no_validation_phase(make_learner) -> None:
    run = Runner()
    fired = record(run)
    run.fit(1, make_learner(valid=0))
    assert "begin_validate" not in fired


def test_no_epochs_fire_the_events_of_the_fit_alone(learner: Learner) -> None:
    run = Runner()
    fired = record(run)
    result = run.fit(0, learner)
    assert fired == ["begin_fit", "after_fit"]
    assert (result.outcome, result.epochs, result.steps) == ("completed", 0, 0)


def test_a_handler_can_tell_the_scope_of_its_event_from_the_token(learner: Learner) -> None:
    run = Runner()
    scopes: dict[str, set[str | None]] = {}
    for event in NAMES:
        run.on(event, lambda run, e=event: scopes.setdefault(e, set()).add(run.token.scope))
    run.fit(1, learner)
    assert scopes["begin_fit"] == {"fit"}
    assert scopes["after_loss"] == {"batch"}
    assert scopes["begin_step"] == {"step"}
    assert scopes["after_step"] == {"batch"}
    assert scopes["after_batch"] == {"train", "validate"}
    assert scopes["after_fit"] == {None}


# State


def test_mode_and_in_train_agree_in_every_event(learner: Learner) -> None:
    run = Runner()
    seen: dict[str, set[tuple[bool, bool]]] = {}
    for event in NAMES:
        run.on(
            event,
            lambda run, e=event: seen.setdefault(e, set()).add((run.in_train, run.model.training)),
        )
    learner.model.eval()
    run.fit(2, learner)
    for event in ("begin_fit", "begin_epoch", "begin_train", "after_step", "after_train"):
        assert seen[event] == {(True, True)}, event
    for event in ("begin_validate", "after_validate", "after_epoch", "after_fit"):
        assert seen[event] == {(False, False)}, event
    assert seen["after_batch"] == {(True, True), (False, False)}


def test_gradients_are_off_during_validation_only(learner: Learner) -> None:
    run = Runner()
    seen = set()
    run.on("after_loss", lambda run: seen.add((run.phase, torch.is_grad_enabled())))
    run.fit(1, learner)
    assert seen == {("train", True), ("validate", False)}


def test_pred_and_loss_are_none_until_computed_in_this_batch(learner: Learner) -> None:
    run = Runner()
    seen: list[tuple[bool, bool]] = []
    for event in ("begin_batch", "after_pred", "after_loss"):
        run.on(event, lambda run: seen.append((run.pred is None, run.loss is None)))
    run.fit(1, learner)
    assert seen == [(True, True), (False, True), (False, False)] * 5


def test_counters_count_what_their_names_say(learner: Learner) -> None:
    run = Runner()
    rows: list[tuple[Any, ...]] = []
    run.on(
        "after_batch",
        lambda run: rows.append((run.epoch, run.batch_index, run.n_iter, run.steps, run.iters)),
    )
    run.fit(2, learner)
    assert rows == [
        (0, 0, 1, 1, 3),
        (0, 1, 2, 2, 3),
        (0, 2, 3, 3, 3),
        (0, 0, 3, 3, 2),
        (0, 1, 3, 3, 2),
        (1, 0, 4, 4, 3),
        (1, 1, 5, 5, 3),
        (1, 2, 6, 6, 3),
        (1, 0, 6, 6, 2),
        (1, 1, 6, 6, 2),
    ]


def test_n_epochs_grows_by_a_fraction_with_every_batch(learner: Learner) -> None:
    run = Runner()
    seen: list[float] = []
    run.on("begin_fit", lambda run: seen.append(run.n_epochs))
    run.on("after_batch", lambda run: seen.append(run.n_epochs), during="train")
    run.on("after_epoch", lambda run: seen.append(run.n_epochs))
    run.fit(2, learner)
    assert seen == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 4 / 3, 5 / 3, 2, 2])


def test_a_second_fit_starts_clean(learner: Learner) -> None:
    run = Runner()
    run.on("after_step", lambda run: run.token.cancel("fit"), once=True)
    assert run.fit(1, learner).outcome == "cancelled"
    second = run.fit(1, learner)
    assert (second.outcome, second.cancellations, second.steps) == ("completed", (), 3)
    assert run.n_iter == 3


def test_a_change_of_the_learner_is_seen_at_its_next_use(learner: Learner) -> None:
    run = Runner()
    other = nn.Linear(5, 3)
    used: list[Any] = []
    other.register_forward_hook(lambda *_: used.append(run.batch_index))

    def swap(run: Runner) -> None:
        run.learn.model = other

    run.on("after_batch", swap, once=True)
    run.fit(1, learner)
    assert used == [1, 2, 0, 1]


def test_a_part_of_the_learner_may_be_replaced_through_the_run(learner: Learner) -> None:
    other = nn.Linear(5, 3)
    parts = {
        "model": other,
        "opt": torch.optim.SGD(other.parameters(), lr=0.1),
        "loss_func": nn.CrossEntropyLoss(),
        "data": DataBunch(list(learner.data.train_dl)[:1]),
    }
    run = Runner()

    @run.on("begin_epoch")
    def replace(run: Runner) -> None:
        for name, part in parts.items():
            setattr(run, name, part)

    before = other.weight.clone()
    assert run.fit(1, learner).steps == 1
    assert not torch.equal(other.weight, before)
    assert all(getattr(learner, name) is part for name, part in parts.items())
    with pytest.raises(AttributeError, match=r"there during a run only.*learn\.model"):
        run.model = other


def test_the_validation_loader_can_be_swapped_during_training(make_learner) -> None:
    learner, other = make_learner(), make_learner(valid=1)
    run = Runner()

    def swap(run: Runner) -> None:
        run.data.valid_dl = other.data.valid_dl

    run.on("after_train", swap)
    fired = record(run, "after_batch")
    run.fit(1, learner)
    assert len(fired) == 3 + 1


def test_a_handler_may_replace_the_inputs(learner: Learner) -> None:
    run = Runner()

    def zero(run: Runner) -> None:
        run.xb = torch.zeros_like(run.xb)

    seen: list[bool] = []
    run.on("begin_batch", zero)
    run.on("after_pred", lambda run: seen.append(torch.equal(run.pred[0], run.pred[1])))
    run.fit(1, learner)
    assert all(seen)


def test_state_of_a_run_is_asked_for_in_vain_between_runs(learner: Learner) -> None:
    run = Runner()
    run.fit(1, learner)
    assert run.learn is None
    with pytest.raises(AttributeError, match="during a run only"):
        _ = run.model


def test_the_token_between_fits_is_idle(learner: Learner) -> None:
    run = Runner()
    run.fit(1, learner)
    with pytest.raises(ScopeNotOpenError):
        run.token.cancel()


# Cancellation: the meanings that the seed's return values had


def test_cancelling_a_batch_after_backward_leaves_the_gradients_in_place(make_learner) -> None:
    learner = make_learner(train=1, valid=0)
    before = [p.clone() for p in learner.model.parameters()]
    run = Runner()
    run.on("after_backward", lambda run: run.token.cancel("batch"))
    result = run.fit(1, learner)
    assert result.steps == 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))


def test_cancelling_train_as_it_begins_still_validates(learner: Learner) -> None:
    run = Runner()
    run.on("begin_train", lambda run: run.token.cancel("train"))
    fired = record(run)
    run.fit(1, learner)
    assert fired[:6] == [
        "begin_fit",
        "begin_epoch",
        "after_cancel_train",
        "after_train",
        "begin_validate",
        "begin_batch",
    ]


def test_cancelling_an_epoch_as_it_begins_skips_training_and_validation(learner: Learner) -> None:
    run = Runner()
    run.on("begin_epoch", lambda run: run.token.cancel("epoch"), once=True)
    fired = record(run, "begin_train", "begin_validate", "after_cancel_epoch", "after_epoch")
    result = run.fit(2, learner)
    assert fired == [
        "after_cancel_epoch",
        "after_epoch",
        "begin_train",
        "begin_validate",
        "after_epoch",
    ]
    assert (result.outcome, result.epochs) == ("completed", 1)


def test_cancelling_the_fit_after_an_epoch_ends_it(learner: Learner) -> None:
    run = Runner()
    run.on("after_epoch", lambda run: run.token.cancel("fit", "good enough"))
    fired = record(run, "after_epoch", "after_cancel_fit", "after_fit")
    result = run.fit(5, learner)
    assert fired == ["after_epoch", "after_cancel_fit", "after_fit"]
    assert (result.outcome, result.reason, result.epochs) == ("cancelled", "good enough", 1)


def test_cancelling_a_step_skips_step_and_zero_grad_only(make_learner) -> None:
    learner = make_learner(train=2, valid=0)
    run = Runner()
    run.on("begin_step", lambda run: run.token.cancel("step"), when=lambda run: run.n_iter == 0)
    grads: list[Tensor] = []
    run.on("after_backward", lambda run: grads.append(run.model.weight.grad.clone()))
    fired = record(run, "after_cancel_step", "after_step", "after_batch")
    result = run.fit(1, learner)
    assert fired == ["after_cancel_step", "after_batch", "after_step", "after_batch"]
    assert result.steps == 1

    x, y = learner.data.train_ds.x, learner.data.train_ds.y
    model = make_learner(train=2, valid=0).model
    nn.functional.cross_entropy(model(x[:4]), y[:4]).backward()
    assert torch.equal(grads[0], model.weight.grad)
    nn.functional.cross_entropy(model(x[4:]), y[4:]).backward()
    assert torch.equal(grads[1], model.weight.grad)


def test_handlers_after_the_one_that_cancels_are_skipped(learner: Learner) -> None:
    run = Runner()
    reached: list[int] = []
    run.on("after_loss", lambda run: run.token.cancel("fit"), priority=1)
    run.on("after_loss", lambda run: reached.append(1))
    run.fit(1, learner)
    assert reached == []


def test_all_handlers_of_a_closing_event_run_after_a_cancellation(learner: Learner) -> None:
    run = Runner()
    reached: list[int] = []
    run.on("after_batch", lambda run: run.token.cancel("fit"), priority=1)
    run.on("after_batch", lambda run: reached.append(1))
    run.fit(1, learner)
    assert reached == [1]


def test_every_closing_event_can_read_its_outcome(learner: Learner) -> None:
    run = Runner()
    seen: dict[str, str | None] = {}
    run.on("after_loss", lambda run: run.token.cancel("train"), once=True)
    for event in ("after_batch", "after_train", "after_validate", "after_epoch", "after_fit"):
        run.on(event, lambda run, e=event: seen.setdefault(e, run.outcome))
    run.on("begin_validate", lambda run: seen.setdefault("begin_validate", run.outcome))
    run.fit(1, learner)
    assert seen == {
        "after_batch": "cancelled",
        "after_train": "cancelled",
        "begin_validate": None,
        "after_validate": "completed",
        "after_epoch": "completed",
        "after_fit": "completed",
    }


def test_a_token_cancelled_before_the_fit_keeps_it_from_starting(learner: Learner) -> None:
    token = CancellationToken()
    token.cancel(reason="never mind")
    run = Runner()
    fired = record(run)
    result = run.fit(1, learner, token=token)
    assert fired == []
    assert (result.outcome, result.reason) == ("cancelled", "never mind")


def test_a_token_can_steer_one_fit_after_another(make_learner) -> None:
    token = CancellationToken()
    run = Runner()
    run.on("after_step", lambda run: run.token.cancel("fit", "first"), once=True)
    first = run.fit(1, make_learner(), token=token)
    second = run.fit(1, make_learner(), token=token)
    assert (first.outcome, second.outcome) == ("cancelled", "completed")
    assert [len(first.cancellations), len(second.cancellations)] == [1, 0]
    assert [record.reason for record in token.history] == ["first"]


def test_a_long_handler_can_leave_at_a_check(learner: Learner) -> None:
    run = Runner()
    reached: list[str] = []

    def long(run: Runner) -> None:
        run.token.cancel("fit")
        run.token.check()
        reached.append("past the check")

    run.on("after_loss", long)
    assert run.fit(1, learner).outcome == "cancelled"
    assert reached == []


def test_a_check_in_a_closing_event_ends_that_handler_alone(learner: Learner) -> None:
    run = Runner()
    reached: list[str] = []

    def leave(run: Runner) -> None:
        run.token.cancel("fit")
        run.token.check()
        reached.append("past the check")

    run.on("after_batch", leave, priority=1)
    run.on("after_batch", lambda run: reached.append("the other handler"))
    assert run.fit(1, learner).outcome == "cancelled"
    assert reached == ["the other handler"]


def test_no_further_batch_is_loaded_after_a_cancellation(learner: Learner) -> None:
    loaded: list[int] = []
    learner.data = DataBunch(noted_batches(loaded))
    run = Runner()
    run.on("after_batch", lambda run: run.token.cancel("train"), once=True)
    run.fit(1, learner)
    assert loaded == [0]


def cancel_in_model(learner: Learner, run: Runner, scope: str) -> None:
    """Have the model ask for a cancellation while it computes, as a thread might."""
    learner.model.register_forward_hook(lambda *_: run.token.cancel(scope, "from outside"))


def test_a_request_from_between_events_skips_all_handlers_of_the_next(learner: Learner) -> None:
    run = Runner()
    cancel_in_model(learner, run, "fit")
    fired = record(run, "after_pred", "after_batch")
    assert run.fit(1, learner).reason == "from outside"
    assert fired == ["after_batch"]


def test_an_event_without_handlers_is_a_checkpoint_too(learner: Learner) -> None:
    run = Runner()
    cancel_in_model(learner, run, "fit")
    called: list[int] = []
    learner.loss_func = lambda pred, yb: called.append(1)
    assert run.fit(1, learner).outcome == "cancelled"
    assert called == []


def test_a_request_made_while_a_cancelled_batch_closes_takes_effect_at_once(learner) -> None:
    loaded: list[int] = []
    learner.data = DataBunch(noted_batches(loaded))
    run = Runner()
    run.on("after_loss", lambda run: run.token.cancel("batch"))
    run.on("after_batch", lambda run: run.token.cancel("train"))
    run.fit(1, learner)
    assert loaded == [0]


def test_another_thread_can_cancel_a_running_fit(learner: Learner) -> None:
    learner.data = DataBunch(itertools.repeat((torch.ones(2, 5), torch.tensor([0, 1]))))
    run = Runner()
    started = threading.Event()

    def watch() -> None:
        started.wait(30)
        run.token.cancel("fit", "enough")

    run.on("after_step", lambda run: started.set(), once=True)
    thread = threading.Thread(target=watch, name="watchdog")
    thread.start()
    result = run.fit(1, learner)
    thread.join()
    assert (result.outcome, result.reason) == ("cancelled", "enough")
    assert "watchdog" in result.cancellations[0].by


def test_a_timer_can_cancel_a_running_fit(learner: Learner) -> None:
    learner.data = DataBunch(itertools.repeat((torch.ones(2, 5), torch.tensor([0, 1]))))
    run = Runner()
    run.on("begin_fit", lambda run: run.token.cancel_after(0.05) and None)
    result = run.fit(1, learner)
    assert (result.outcome, result.cancellations[0].by) == ("cancelled", "timer")


def test_timers_of_a_fit_end_with_it(learner: Learner) -> None:
    run = Runner()
    timers: list[threading.Timer] = []
    run.on("begin_fit", lambda run: timers.append(run.token.cancel_after(60)))
    run.fit(1, learner)
    timers[0].join(5)
    assert not timers[0].is_alive()


# Failure


def test_a_failure_fires_fit_failed_once_and_then_every_closing_event(learner: Learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: 1 / 0)
    fired = record(run, "fit_failed", "after_batch", "after_train", "after_epoch", "after_fit")
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert fired == ["fit_failed", "after_batch", "after_train", "after_epoch", "after_fit"]
    assert run.result is not None
    assert (run.result.outcome, run.result.reason) == (
        "failed",
        "ZeroDivisionError: division by zero",
    )


def test_an_exception_of_the_model_closes_the_scopes_too(learner: Learner) -> None:
    def broken(xb: Tensor) -> Tensor:
        raise RuntimeError("shape mismatch")

    learner.model.forward = broken
    run = Runner()
    outcomes: list[Any] = []
    run.on(("after_batch", "after_fit"), lambda run: outcomes.append(run.outcome))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run.fit(1, learner)
    assert outcomes == ["failed", "failed"]


def test_the_escaping_exception_can_be_read_while_scopes_close(learner: Learner) -> None:
    run = Runner()
    error = ValueError("boom")

    def fail(run: Runner) -> None:
        raise error

    seen: list[object] = []
    run.on("after_loss", fail)
    run.on(("fit_failed", "after_fit"), lambda run: seen.append(run.exception))
    with pytest.raises(ValueError) as caught:
        run.fit(1, learner)
    assert caught.value is error
    assert seen == [error, error]


def test_several_closing_handlers_that_fail_are_all_told(learner: Learner) -> None:
    run = Runner()

    def first(run: Runner) -> None:
        raise ValueError("first")

    def second(run: Runner) -> None:
        raise KeyError("second")

    run.on("after_fit", first)
    run.on("after_fit", second)
    with pytest.raises(ValueError, match="first") as caught:
        run.fit(1, learner)
    assert any("KeyError: 'second'" in note for note in caught.value.__notes__)


def test_an_error_in_after_fit_is_only_raised(learner: Learner) -> None:
    run = Runner()
    run.on("after_fit", lambda run: 1 / 0)
    fired = record(run, "fit_failed")
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert fired == []
    assert run.result is not None
    assert run.result.outcome == "failed"


def test_a_note_says_where_a_handler_failed(learner: Learner) -> None:
    run = Runner()

    def count_down(run: Runner) -> None:
        _ = 1 / (1 - run.batch_index)

    run.on("after_loss", count_down, priority=7)
    with pytest.raises(ZeroDivisionError) as caught:
        run.fit(1, learner)
    (note,) = caught.value.__notes__
    for part in ("'count_down'", "'after_loss'", "priority 7", "epoch 0", "batch 1"):
        assert part in note


def test_a_stray_stop_iteration_from_a_handler_is_an_error(learner: Learner) -> None:
    run = Runner()

    def exhausted(run: Runner) -> None:
        next(iter(()))

    run.on("after_loss", exhausted)
    with pytest.raises(StopIteration):
        run.fit(1, learner)


def test_a_stop_iteration_inside_a_dataset_does_not_end_the_epoch_quietly(learner) -> None:
    class Leaky(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index == 5:
                raise StopIteration
            return torch.ones(5), 0

    learner.data = DataBunch(DataLoader(Leaky(), batch_size=2))
    with pytest.raises(DataError, match="ended after 2 of 4 batches"):
        Runner().fit(1, learner)


def test_a_runner_that_is_running_cannot_be_started(learner: Learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: run.fit(1, learner))
    with pytest.raises(RuntimeError, match="running already"):
        run.fit(1, learner)


def test_a_run_that_could_not_be_set_up_leaves_the_runner_usable(learner: Learner) -> None:
    class Reluctant(Callback):
        refuse = True

        def set_runner(self, run: Runner) -> None:
            if run.learn is not None and self.refuse:
                raise KeyboardInterrupt
            super().set_runner(run)

    reluctant = Reluctant()
    run = Runner(cbs=reluctant)
    with pytest.raises(KeyboardInterrupt):
        run.fit(1, learner)
    assert run.learn is None
    reluctant.refuse = False
    assert run.fit(1, learner).outcome == "completed"


def test_after_a_failure_the_runner_can_fit_again(learner: Learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: 1 / 0, once=True)
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert run.fit(1, learner).outcome == "completed"


@pytest.mark.parametrize(
    ("epochs", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_senseless_number_of_epochs_is_refused(epochs: Any, error: type, learner) -> None:
    with pytest.raises(error, match="epochs must be"):
        Runner().fit(epochs, learner)


# Loaders and batches


def loop_over(train_dl: Any, loss_func: Callable[..., Tensor] | None = None) -> Runner:
    """Fit one epoch over ``train_dl`` with a model that copes with any batch."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, batch: Any) -> Tensor:
            x = batch["x"] if isinstance(batch, dict) else batch
            return self.linear(x[0] if isinstance(x, (list, tuple)) else x)

    model = Model()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = loss_func or (lambda pred, yb: pred.square().mean())
    run = Runner()
    run.fit(1, Learner(model, opt, loss, DataBunch(train_dl)))
    return run


@pytest.mark.parametrize(
    ("batch", "parts"),
    [
        ((torch.ones(2, 5), torch.zeros(2)), 2),
        ([torch.ones(2, 5), torch.zeros(2)], 2),
        ({"x": torch.ones(2, 5), "y": torch.zeros(2)}, 1),
        (torch.ones(2, 5), 1),
        ((torch.ones(2, 5), torch.zeros(2), torch.zeros(2)), 3),
    ],
)
def test_a_batch_of_any_form_is_trained_on(batch: Any, parts: int) -> None:
    seen: list[Any] = []

    def loss_func(pred: Tensor, yb: Any) -> Tensor:
        seen.append(yb)
        return pred.square().mean()

    run = loop_over([batch], loss_func)
    assert run.result is not None
    assert run.result.steps == 1
    assert seen[0] is (batch[1] if parts == 2 else batch)


def test_a_torch_data_loader_can_be_trained_on() -> None:
    dataset = TensorDataset(torch.ones(10, 5), torch.zeros(10))
    run = loop_over(DataLoader(dataset, batch_size=4, shuffle=True))
    assert run.n_iter == 3


def test_a_loader_of_unknown_length_can_be_trained_on() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from [(torch.ones(5), torch.zeros(()))] * 6

    assert loop_over(DataLoader(Stream(), batch_size=2)).n_iter == 3


def test_iters_is_none_where_the_loader_cannot_tell(learner: Learner) -> None:
    learner.data = DataBunch(iter([(torch.ones(2, 5), torch.tensor([0, 1]))]))
    run = Runner()
    seen: list[tuple[Any, float]] = []
    run.on("after_batch", lambda run: seen.append((run.iters, run.n_epochs)))
    run.fit(1, learner)
    assert seen == [(None, 0.0)]


@pytest.mark.parametrize("loader", [[], iter([])])
def test_an_empty_loader_is_an_error_that_names_phase_and_epoch(loader: Any) -> None:
    with pytest.raises(EmptyLoaderError, match="the train loader in epoch 0 gave no batch"):
        loop_over(loader)


def test_a_generator_that_is_used_up_is_an_error_in_the_second_epoch(learner: Learner) -> None:
    learner.data = DataBunch(iter([(torch.ones(2, 5), torch.tensor([0, 1]))]))
    with pytest.raises(EmptyLoaderError, match=r"epoch 1.*read only once"):
        Runner().fit(2, learner)


def test_an_empty_validation_loader_is_an_error(learner: Learner) -> None:
    learner.data.valid_dl = []
    with pytest.raises(EmptyLoaderError, match="validate loader"):
        Runner().fit(1, learner)


def test_batches_are_moved_to_the_device_of_the_model() -> None:
    model = nn.Linear(5, 3, device="meta")
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    data = DataBunch([(torch.ones(2, 5), torch.zeros(2, 3))])
    run = Runner()
    devices: list[str] = []
    run.on("begin_batch", lambda run: devices.extend([run.xb.device.type, run.yb.device.type]))
    run.fit(1, Learner(model, opt, nn.functional.mse_loss, data))
    assert devices == ["meta", "meta"]


# Validation and prediction alone


def test_validate_runs_its_part_of_the_picture_alone(make_learner) -> None:
    run = Runner()
    fired = record(run)
    result = run.validate(make_learner(valid=1))
    assert fired == [
        "begin_validate",
        "begin_batch",
        "after_pred",
        "after_loss",
        "after_batch",
        "after_validate",
    ]
    assert result.outcome == "completed"


def test_predict_runs_its_part_of_the_picture_alone(make_learner) -> None:
    learner = make_learner(valid=1)
    run = Runner()
    fired = record(run)
    run.predict(learner, learner.data.valid_dl)
    assert fired == ["begin_predict", "begin_batch", "after_pred", "after_batch", "after_predict"]


def test_predict_returns_predictions_and_targets_in_order(learner: Learner) -> None:
    preds, targets = Runner().predict(learner, learner.data.valid_dl, with_targets=True)
    dataset = learner.data.valid_ds
    assert torch.equal(targets, dataset.y)
    torch.testing.assert_close(preds, learner.model(dataset.x), rtol=0, atol=1e-6)
    assert not preds.requires_grad


def test_predict_that_is_cancelled_returns_what_it_has(learner: Learner) -> None:
    run = Runner()
    run.on("after_batch", lambda run: run.token.cancel("predict"))
    assert len(run.predict(learner, learner.data.train_dl)) == 4
    assert run.outcome == "cancelled"


@pytest.mark.parametrize("training", [True, False])
def test_validate_and_predict_put_the_models_mode_back(training: bool, learner) -> None:
    learner.model.train(training)
    run = Runner()
    modes: list[bool] = []
    run.on("after_pred", lambda run: modes.append(run.model.training))
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert learner.model.training is training
    assert set(modes) == {False}


def test_validate_without_a_validation_loader_says_so(make_learner) -> None:
    with pytest.raises(DataError, match="valid_dl is None"):
        Runner().validate(make_learner(valid=0))


# Callbacks on the runner


def test_a_callback_is_reachable_and_completed_by_its_name() -> None:
    stats = AvgStatsCallback(accuracy)
    run = Runner(cbs=stats)
    assert run.avg_stats is stats
    assert "avg_stats" in dir(run)
    assert "valid_stats" in dir(run.avg_stats)


def test_two_callbacks_of_one_name_are_an_error() -> None:
    with pytest.raises(CallbackError, match="two callbacks are called 'avg_stats'"):
        Runner(cbs=[AvgStatsCallback(), AvgStatsCallback()])


def test_a_callback_cannot_take_a_name_of_the_runners_own() -> None:
    class Loss(Callback):
        pass

    with pytest.raises(CallbackError, match="'loss' is an attribute of the runner's own"):
        Runner(cbs=Loss())


def test_a_class_in_place_of_an_instance_is_refused() -> None:
    with pytest.raises(CallbackError, match="must be an instance of Callback"):
        Runner(cbs=AvgStatsCallback)  # type: ignore[arg-type]


def test_an_unknown_attribute_of_the_runner_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'recorder'"):
        _ = Runner().recorder


def test_runners_on_a_shared_bus_hear_their_own_events_only(make_learner) -> None:
    bus = EventBus()
    first, second = Runner(bus=bus), Runner(bus=bus)
    heard: list[Runner] = []
    everyone: list[Runner] = []
    first.on("after_fit", heard.append)
    bus.on("after_fit", everyone.append)
    first.fit(1, make_learner())
    second.fit(1, make_learner())
    assert heard == [first]
    assert everyone == [first, second]


def test_a_dropped_runner_leaves_nothing_on_a_shared_bus(make_learner) -> None:
    bus = EventBus()
    run = Runner(cbs=AvgStatsCallback(accuracy, report=None), bus=bus)
    run.fit(1, make_learner())
    del run
    gc.collect()
    assert not list(bus.explain())


def test_another_algorithm_overrides_one_batch(learner: Learner) -> None:
    class TwoSteps(Runner):
        def one_batch(self) -> None:
            for _ in range(2):
                super().one_batch()

    result = TwoSteps().fit(1, learner)
    assert result.steps == 6


# What is left behind


def test_after_a_fit_nothing_keeps_the_model_alive(make_learner) -> None:
    run = Runner(cbs=AvgStatsCallback(accuracy, report=None))
    learner = make_learner()
    model = weakref.ref(learner.model)
    run.fit(1, learner)
    del learner
    assert model() is None


def test_after_a_failed_fit_the_runner_does_not_keep_the_model_alive(make_learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: 1 / 0)
    learner = make_learner()
    model = weakref.ref(learner.model)
    with pytest.raises(ZeroDivisionError) as caught:
        run.fit(1, learner)
    del learner, caught
    gc.collect()
    assert model() is None


def test_a_thousand_fits_do_not_grow_memory(make_learner) -> None:
    learner = make_learner(train=1, valid=1)
    run = Runner(cbs=AvgStatsCallback(accuracy, report=None))

    def held_after(fits: int) -> tuple[int, int]:
        for _ in range(fits):
            run.fit(1, learner)
        gc.collect()
        return len(gc.get_objects()), sys.getallocatedblocks()

    objects, blocks = held_after(50)
    objects_later, blocks_later = held_after(1000)
    assert objects_later - objects < 100
    assert blocks_later - blocks < 1000


def test_a_runner_can_be_copied(learner: Learner) -> None:
    run = Runner(cbs=AvgStatsCallback(accuracy, report=None))
    run.fit(1, learner)
    clone = copy.copy(run.avg_stats)
    assert clone.run is None
    assert clone.train_stats is run.avg_stats.train_stats


def test_sampling_order_is_the_only_randomness_of_a_fit(learner: Learner) -> None:
    learner.data.train_dl = TensorLoader(
        learner.data.train_ds.x, learner.data.train_ds.y, bs=4, shuffle=True
    )
    torch.manual_seed(1)
    Runner(cbs=AvgStatsCallback(accuracy, report=None)).fit(1, learner)
    after_fit = torch.get_rng_state()
    torch.manual_seed(1)
    for _ in learner.data.train_dl:
        pass
    assert torch.equal(torch.get_rng_state(), after_fit)


def test_a_fit_that_has_closed_cannot_be_cancelled_while_its_result_is_made(
    learner: Learner,
) -> None:
    refused: list[str] = []

    class Late(Runner):
        def summary(self, *args: Any) -> Any:
            with pytest.raises(ScopeNotOpenError, match="no scope is open"):
                self.token.cancel("fit", "too late")
            refused.append("refused")
            return super().summary(*args)

    run, token = Late(), CancellationToken()
    for _ in range(2):
        result = run.fit(1, learner, token=token)
        assert (result.outcome, result.reason, result.cancellations) == ("completed", None, ())
    assert refused == ["refused"] * 2
    token.cancel("fit", "too early")  # for the next one
    assert Runner().fit(1, learner, token=token).reason == "too early"


@pytest.mark.parametrize("event", ["after_epoch", "after_row"])
def test_an_epoch_that_was_not_begun_is_not_the_one_that_is_told_of(
    event: str, learner: Learner
) -> None:
    run, told = Runner(), []
    run.on(event, lambda run: run.token.cancel("fit", "enough"))
    run.on("after_fit", lambda run: told.append(run.epoch))
    result = run.fit(3, learner)
    assert (result.epochs, told) == (1, [0])
