"""REINFORCE on CartPole: the loader plays with the policy as it is by then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain import DataBunch, Learner, Runner

gymnasium = pytest.importorskip("gymnasium", reason="needs gymnasium (extra 'jobs')")


def episode(env: Any, policy: Any, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Play once: what was seen, what was done, and what it was worth, weighed against the mean."""
    seen, done, rewards = [], [], []
    state, _ = env.reset(seed=seed)
    is_over = False
    with torch.no_grad():
        while not is_over:
            seen.append(torch.as_tensor(state))
            done.append(torch.distributions.Categorical(logits=policy(seen[-1])).sample())
            state, reward, ended, cut, _ = env.step(int(done[-1]))
            rewards.append(float(reward))
            is_over = ended or cut
    worth = torch.tensor(rewards).flip(0).cumsum(0).flip(0)
    return torch.stack(seen), torch.stack(done), (worth - worth.mean()) / (worth.std() + 1e-6)


class Episodes:
    """A batch is an episode."""

    def __init__(self, env: Any, policy: Any, count: int) -> None:
        self.env, self.policy, self.count = env, policy, count

    def __iter__(self) -> Iterator[Any]:
        for seed in range(self.count):
            seen, done, worth = episode(self.env, self.policy, seed)
            yield seen, {"action": done, "worth": worth}


def surprise(logits: Tensor, yb: Any) -> Tensor:
    chosen = torch.distributions.Categorical(logits=logits).log_prob(yb["action"])
    return -(chosen * yb["worth"]).mean()


def made() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    return policy, torch.optim.Adam(policy.parameters(), lr=0.02)


def program(policy: Any, opt: Any, count: int) -> Any:
    env, lengths = gymnasium.make("CartPole-v1"), []
    run = Runner()
    run.on("after_batch", lambda run: lengths.append(len(run.xb)))
    run.fit(1, Learner(policy, opt, surprise, DataBunch(Episodes(env, policy, count))))
    return lengths


def by_hand(policy: Any, opt: Any, count: int) -> list[int]:
    env, lengths = gymnasium.make("CartPole-v1"), []
    for seed in range(count):
        seen, done, worth = episode(env, policy, seed)
        opt.zero_grad()
        surprise(policy(seen), {"action": done, "worth": worth}).backward()
        opt.step()
        lengths.append(len(seen))
    return lengths


def test_the_policy_is_that_of_a_loop_by_hand() -> None:
    (ours, opt), (theirs, other) = made(), made()
    torch.manual_seed(7)
    lengths = program(ours, opt, 20)
    torch.manual_seed(7)
    assert by_hand(theirs, other, 20) == lengths
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_it_learns_to_balance() -> None:
    torch.manual_seed(7)
    lengths = program(*made(), 120)
    assert sum(lengths[-20:]) > 3 * sum(lengths[:20])
