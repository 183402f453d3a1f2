"""A game, played once or for so many moves: what the programs on CartPole read."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical


@torch.no_grad()
def episode(env: Any, policy: Any, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Play once; return what was seen, what was done, and what each move was worth."""
    seen, done, rewards = [], [], []
    state, _ = env.reset(seed=seed)
    is_over = False
    while not is_over:
        seen.append(torch.as_tensor(state))
        done.append(Categorical(logits=policy(seen[-1])).sample())
        state, reward, ended, cut, _ = env.step(int(done[-1]))
        rewards.append(float(reward))
        is_over = ended or cut
    worth = torch.tensor(rewards).flip(0).cumsum(0).flip(0)
    return torch.stack(seen), torch.stack(done), (worth - worth.mean()) / (worth.std() + 1e-6)


class Moves(NamedTuple):
    """Moves one after the other, a row each, of as many games as they take."""

    seen: Tensor  # before the move
    done: Tensor
    reward: Tensor
    after: Tensor  # seen after it
    fell: Tensor  # whether nothing is to be won afterwards
    over: Tensor  # whether the next row is of another game


@torch.no_grad()
def rollout(env: Any, policy: Any, count: int, seed: int) -> Moves:
    """Play ``count`` moves from a start, and from another one where a game is over."""
    rows = []
    state, _ = env.reset(seed=seed)
    for _ in range(count):
        seen = torch.as_tensor(state)
        done = Categorical(logits=policy(seen)).sample()
        state, reward, fell, cut, _ = env.step(int(done))
        after = torch.as_tensor(state)
        rows.append((seen, done, torch.tensor(float(reward)), after, fell, fell or cut))
        if fell or cut:
            state, _ = env.reset()
    seen, done, reward, after, fell, over = zip(*rows, strict=True)
    played = (torch.stack(each) for each in (seen, done, reward, after))
    return Moves(*played, torch.tensor(fell), torch.tensor(over))
