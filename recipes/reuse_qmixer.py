"""Combine our components with TorchRL's: python recipes/reuse_qmixer.py

1. Our QMixer in TorchRL's ``QMixerLoss``, with TorchRL's collector, environment and replay.
2. Our QMixer as the factored critic of TorchRL's ``DDPGLoss``, with continuous actions (FACMAC,
   Peng et al. 2021, arXiv 2003.06709, section 3): every agent's critic values its own action, and
   the mixer combines these values.
3. TorchRL's own mixers in our ``QMixLoss``.

Each trains on a fixed set of random experience and prints its loss before and after. The targets
are not updated, so a falling loss means a better fit.
"""

import argparse
import logging
import warnings

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.modules import MultiAgentMLP, QValueModule
from torchrl.modules import QMixer as TorchRLQMixer
from torchrl.modules import VDNMixer as TorchRLVDNMixer
from torchrl.objectives import DDPGLoss, LossModule, QMixerLoss, ValueEstimators

from qmix_trl import FeedforwardAgent, QMixer, QMixLoss
from qmix_trl.keys import (
    ACTION,
    ACTION_VALUE,
    CHOSEN_ACTION_VALUE,
    OBSERVATION,
    REWARD,
    STATE,
    TOTAL_VALUE,
    next_key,
)

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it announces every storage
# The targets are not updated, on purpose.
warnings.filterwarnings("ignore", message="No target network updater")

N_ENVS, N_STEPS, HIDDEN = 32, 50, 64


def experience(*, continuous: bool) -> tuple[VmasEnv, TensorDictBase]:
    """Return TorchRL's environment and random experience [E, T] with a state and a team reward."""
    env = VmasEnv(
        "balance", num_envs=N_ENVS, continuous_actions=continuous, seed=0, max_steps=N_STEPS
    )
    batch = env.rollout(N_STEPS, break_when_any_done=False)
    for part in (batch, batch["next"]):
        part[STATE] = part[OBSERVATION].flatten(-2)
    batch[next_key(REWARD)] = batch["next", "agents", "reward"].mean(-2)
    return env, batch.exclude(("agents", "info"), ("next", "agents", "info"))


def fit(
    name: str,
    loss: LossModule,
    batch: TensorDictBase,
    *,
    n_updates: int,
    batch_size: int,
    trained: tuple[str, ...] = ("loss",),
) -> tuple[float, float]:
    """Train on the sum of some losses; print and return the first of them, before and after.

    Args:
        name: printed with the losses.
        loss: of TorchRL or ours.
        batch: all experience; both losses returned are of it.
        n_updates: the number of gradient steps.
        batch_size: of a step.
        trained: the names of the losses that are summed.
    """
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(len(batch)), batch_size=batch_size)
    replay.extend(batch)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    first = loss(batch)[trained[0]].item()
    for _ in range(n_updates):
        losses = loss(replay.sample())
        optimizer.zero_grad()
        sum(losses[key] for key in trained).backward()
        optimizer.step()
    last = loss(batch)[trained[0]].item()
    print(f"{name:<47} loss {first:8.4f} -> {last:8.4f} in {n_updates} updates")
    return first, last


def ours_in_qmixer_loss(n_updates: int) -> tuple[float, float]:
    """Fit our QMixer in TorchRL's QMixerLoss."""
    env, batch = experience(continuous=False)
    n_agents, observation_dim = batch[OBSERVATION].shape[-2:]
    n_actions = env.action_spec[ACTION].space.n
    mlp = MultiAgentMLP(
        observation_dim, n_actions, n_agents, centralized=False, share_params=True,
        num_cells=(HIDDEN, HIDDEN), activation_class=nn.ReLU,
    )  # fmt: skip
    utilities = TensorDictSequential(
        TensorDictModule(mlp, in_keys=[OBSERVATION], out_keys=[ACTION_VALUE]),
        QValueModule(
            action_value_key=ACTION_VALUE,
            out_keys=[ACTION, ACTION_VALUE, CHOSEN_ACTION_VALUE],
            spec=env.action_spec,
        ),
    )
    mixer = TensorDictModule(
        QMixer(n_agents, batch[STATE].shape[-1]),
        in_keys=[CHOSEN_ACTION_VALUE, STATE],
        out_keys=[TOTAL_VALUE],
    )
    loss = QMixerLoss(utilities, mixer, delay_value=True, action_space="categorical")
    loss.set_keys(
        action=ACTION, action_value=ACTION_VALUE, local_value=CHOSEN_ACTION_VALUE,
        global_value=TOTAL_VALUE,
    )  # fmt: skip
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.99)
    return fit(
        "our QMixer in TorchRL's QMixerLoss",
        loss,
        batch.reshape(-1),
        n_updates=n_updates,
        batch_size=128,
    )


class FactoredCritic(nn.Module):
    """Q_tot of continuous actions: the mixer over the agents' values of their own actions."""

    def __init__(self, n_agents: int, input_dim: int, state_dim: int) -> None:
        super().__init__()
        self.utility = nn.Sequential(nn.Linear(input_dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.mixer = QMixer(n_agents, state_dim)

    def forward(self, observation: Tensor, action: Tensor, state: Tensor) -> Tensor:
        """Return Q_tot [*B, 1] of observations [*B, N, O], actions [*B, N, U], states [*B, S]."""
        return self.mixer(self.utility(torch.cat([observation, action], -1)), state)


def ours_as_ddpg_critic(n_updates: int) -> tuple[float, float]:
    """Fit a critic factored by our QMixer, and an actor, in TorchRL's DDPGLoss."""
    _, batch = experience(continuous=True)
    n_agents, observation_dim = batch[OBSERVATION].shape[-2:]
    action_dim = batch[ACTION].shape[-1]
    actor = TensorDictModule(
        nn.Sequential(
            nn.Linear(observation_dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, action_dim), nn.Tanh()
        ),
        in_keys=[OBSERVATION],
        out_keys=[ACTION],
    )
    critic = TensorDictModule(
        FactoredCritic(n_agents, observation_dim + action_dim, batch[STATE].shape[-1]),
        in_keys=[OBSERVATION, ACTION, STATE],
        out_keys=["state_action_value"],
    )
    loss = DDPGLoss(actor, critic, delay_actor=True, delay_value=True)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.99)
    # The actor's loss reaches the actor alone: DDPGLoss holds the critic fixed in it.
    return fit(
        "our QMixer as the critic of TorchRL's DDPGLoss",
        loss,
        batch.reshape(-1),
        n_updates=n_updates,
        batch_size=128,
        trained=("loss_value", "loss_actor"),
    )


def theirs_in_qmix_loss(n_updates: int, mixer_name: str) -> tuple[float, float]:
    """Fit one of TorchRL's mixers in our QMixLoss."""
    env, batch = experience(continuous=False)
    n_agents, observation_dim = batch[OBSERVATION].shape[-2:]
    state_dim = batch[STATE].shape[-1]
    if mixer_name == "QMixer":
        module = TorchRLQMixer((state_dim,), 32, n_agents, "cpu")
        in_keys = [CHOSEN_ACTION_VALUE, STATE]
    else:
        module = TorchRLVDNMixer(n_agents, "cpu")
        in_keys = [CHOSEN_ACTION_VALUE]
    mixer = TensorDictModule(module, in_keys=in_keys, out_keys=[TOTAL_VALUE])
    agent = FeedforwardAgent(n_agents, observation_dim, env.action_spec[ACTION].space.n)
    loss = QMixLoss(agent, mixer, gamma=0.99)
    return fit(
        f"TorchRL's {mixer_name} in our QMixLoss",
        loss,
        batch,
        n_updates=n_updates,
        batch_size=16,
    )


def main(n_updates: int) -> dict[str, tuple[float, float]]:
    """Run all; return by name the losses of the whole batch before and after training."""
    torch.manual_seed(0)
    return {
        "qmixer_loss": ours_in_qmixer_loss(n_updates),
        "ddpg_loss": ours_as_ddpg_critic(n_updates),
        "torchrl_qmixer": theirs_in_qmix_loss(n_updates, "QMixer"),
        "torchrl_vdn": theirs_in_qmix_loss(n_updates, "VDNMixer"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--updates", type=int, default=300, help="the number of gradient steps of each"
    )
    main(parser.parse_args().updates)
