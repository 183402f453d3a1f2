"""The job of examples/jobs/reinforce.py with Ignite."""

import gymnasium
import torch
from cart_pole import episode
from ignite.engine import Engine, Events
from torch import nn
from torch.distributions import Categorical


def make():
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    opt = torch.optim.Adam(policy.parameters(), lr=0.005)
    env = gymnasium.make("CartPole-v1")

    def play_and_learn(engine, seed):
        seen, done, worth = episode(env, policy, seed)
        loss = -(Categorical(logits=policy(seen)).log_prob(done) * worth).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return len(seen)

    return Engine(play_and_learn), policy


if __name__ == "__main__":
    trainer, policy = make()

    @trainer.on(Events.ITERATION_COMPLETED(every=10))
    def show(engine):
        print(engine.state.iteration, engine.state.output)

    trainer.run(range(120))
