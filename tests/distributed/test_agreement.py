"""One rank's part in the agreement, seen from its loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from torch.distributed import HashStore

from eventtrain import EVENTS, CancellationToken, Scope
from eventtrain.distributed import AGREED, Agreement
from eventtrain.distributed.standing import Standing, fence
from eventtrain.events import SCOPES


@dataclass
class Alone:
    """A rank that is the only one."""

    token: CancellationToken
    agreement: Agreement

    def open(self, name: str) -> Scope:
        scope = Scope(self.token, name)
        self.agreement.enter(scope)
        return scope


@pytest.fixture
def alone() -> Iterator[Alone]:
    store, token = HashStore(), CancellationToken()
    agreement = Agreement(lambda: store, "run", token, rank=0, world_size=1)
    yield Alone(token, agreement)
    agreement.close()
    assert store.num_keys() == 0


def test_every_scope_of_the_table_is_agreed_on_but_those_within_a_phase() -> None:
    assert set(SCOPES) - set(AGREED) == {"batch", "step"}
    assert set(AGREED) <= {event.scope for event in EVENTS}


def test_a_batch_finishes_when_a_scope_around_it_is_cancelled(alone: Alone) -> None:
    begun = []
    with alone.open("fit") as fit:
        for number in range(3):
            with alone.open("batch"):
                alone.token.cancel("fit", "enough")
                alone.token.check()
                begun.append(number)
    assert begun == [0]
    assert fit.outcome == "cancelled"


@pytest.mark.parametrize("name", ["batch", "step"])
def test_an_inner_scope_is_left_at_once_and_here_alone(alone: Alone, name: str) -> None:
    with alone.open("fit") as fit:
        with alone.open("batch"):
            with Scope(alone.token, "step"):
                alone.token.cancel(name)
                alone.token.check()
                pytest.fail("it went on")
    assert fit.outcome == "completed"
    assert [(record.scope, record.rank) for record in alone.token.history] == [(name, None)]


def test_what_all_decide_together_is_delivered_at_once(alone: Alone) -> None:
    with alone.open("fit") as fit:
        with alone.open("batch"):
            alone.token.cancel("fit", "not finite", everywhere=True)
            alone.token.check()
            pytest.fail("it went on")
    assert fit.outcome == "cancelled"
    assert alone.token.history[0].rank is None


def test_a_scope_that_is_about_to_close_is_the_last_place_where_it_is_cancelled(
    alone: Alone,
) -> None:
    with alone.open("fit") as fit:
        with alone.open("train") as train:
            with alone.open("batch"):
                alone.token.cancel("train")
            alone.agreement.leave(train)
            pytest.fail("it went on")
        alone.agreement.leave(fit)
    assert (fit.outcome, train.outcome) == ("completed", "cancelled")


def test_a_scope_without_boundaries_of_its_own_is_left_at_once(alone: Alone) -> None:
    with alone.open("fit"):
        with Scope(alone.token, "epoch") as epoch:
            alone.token.cancel("epoch")
            alone.token.check()
            pytest.fail("it went on")
    assert epoch.outcome == "cancelled"


def test_a_validation_in_the_middle_of_a_batch_can_be_cancelled(alone: Alone) -> None:
    with alone.open("train") as train:
        with alone.open("batch") as batch:
            with alone.open("validate") as validate:
                with alone.open("batch"):
                    alone.token.cancel("validate")
                with alone.open("batch"):
                    pytest.fail("it went on")
        alone.agreement.leave(train)
    outcomes = (train.outcome, batch.outcome, validate.outcome)
    assert outcomes == ("completed", "completed", "cancelled")


def test_a_reason_that_is_no_text_is_refused_where_it_is_given(alone: Alone) -> None:
    with alone.open("fit"):
        with pytest.raises(TypeError, match=r"cancel\(reason=\) is told to all ranks"):
            alone.token.cancel("fit", ValueError("no text"))  # type: ignore[arg-type]


def test_a_token_is_its_own_again_when_all_is_over() -> None:
    store, token = HashStore(), CancellationToken()
    agreement = Agreement(lambda: store, "run", token, rank=0, world_size=1)
    agreement.end()
    agreement.close()
    agreement.close()
    token.cancel("fit")
    assert token.pending is not None
    assert agreement.failure is None


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_there_is_not_is_refused(rank: int, size: int) -> None:
    with pytest.raises(ValueError, match="rank must be"):
        Agreement(HashStore, "run", CancellationToken(), rank=rank, world_size=size)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_waited_for_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="lost_after"):
        Agreement(HashStore, "run", CancellationToken(), rank=0, world_size=1, lost_after=seconds)


def test_without_a_global_lock_both_pass_one_between_writing_and_looking() -> None:
    assert hasattr(fence(free_threaded=True), "acquire")
    assert not hasattr(fence(free_threaded=False), "acquire")
    standing = Standing(fence=fence(free_threaded=True))
    assert standing.may_begin((0,))


@pytest.mark.parametrize(
    ("last", "has"),
    [
        ((0, 0, 1, 3), False),  # in the validation that is open here too, and longer there
        ((0, 0, 1), False),
        ((0, 0, 2), True),  # a batch of training that is none here
        ((0, 1), False),  # what comes after
    ],
)
def test_a_validation_that_is_longer_elsewhere_is_no_further_batch_of_training(
    last: tuple[int, ...], has: bool, alone: Alone
) -> None:
    with alone.open("fit"), alone.open("epoch"), alone.open("train") as train:
        with alone.open("batch"):
            pass
        with alone.open("validate"), alone.open("batch"):
            pass
        alone.agreement._standing.last = last
        assert alone.agreement.has_gone_on(train) is has
