"""An episode of a game: what the program on CartPole reads."""

from __future__ import annotations

from typing import Any

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
