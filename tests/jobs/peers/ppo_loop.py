"""The job of examples/jobs/ppo.py as a loop written by hand."""

import gymnasium
import torch
from cart_pole import rollout
from torch import nn
from torch.distributions import Categorical
from torch.nn.functional import mse_loss


def make():
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
    critic = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))
    return actor, critic


@torch.no_grad()
def advantages(critic, moves):
    value, then = critic(moves.seen)[:, 0], critic(moves.after)[:, 0]
    found, last = [], torch.tensor(0.0)
    for move in range(len(value) - 1, -1, -1):
        target = moves.reward[move]
        if not moves.fell[move]:
            target = target + 0.99 * then[move]
        if moves.over[move]:
            last = torch.tensor(0.0)
        last = target - value[move] + 0.99 * 0.95 * last
        found.append(last)
    advantage = torch.stack(found[::-1])
    return advantage, advantage + value


def train(actor, critic, epochs):
    env = gymnasium.make("CartPole-v1")
    params = [*actor.parameters(), *critic.parameters()]
    opt = torch.optim.Adam(params, lr=3e-3)
    for epoch in range(epochs):
        moves = rollout(env, actor, 512, int(torch.randint(2**31, ())))
        advantage, worth = advantages(critic, moves)
        with torch.no_grad():
            before = Categorical(logits=actor(moves.seen)).log_prob(moves.done)
        for _ in range(4):
            for some in torch.randperm(512).split(64):
                policy = Categorical(logits=actor(moves.seen[some]))
                ratio = (policy.log_prob(moves.done[some]) - before[some]).exp()
                scaled = advantage[some]
                scaled = (scaled - scaled.mean()) / (scaled.std() + 1e-8)
                gain = torch.min(ratio * scaled, ratio.clamp(0.8, 1.2) * scaled).mean()
                off = mse_loss(critic(moves.seen[some])[:, 0], worth[some])
                opt.zero_grad()
                (0.5 * off - gain - 0.01 * policy.entropy().mean()).backward()
                nn.utils.clip_grad_norm_(params, 0.5)
                opt.step()
        yield epoch, float(moves.reward.sum() / moves.over.sum().clamp(min=1))


if __name__ == "__main__":
    for epoch, score in train(*make(), epochs=20):
        print(epoch, score)
