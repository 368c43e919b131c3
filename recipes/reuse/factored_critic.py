"""Train DDPG with a critic factored by our QMixer: python recipes/reuse/factored_critic.py

TorchRL's DDPGLoss, collector, replay and exploration train three robots of VMAS navigation with
continuous forces. The critic is factored (FACMAC, Peng et al. 2021, arXiv 2003.06709, section 3):
each agent values its own action, and our QMixer combines these values. Beside it a stock critic,
one perceptron of all observations and actions (MADDPG), learns with all else equal.
"""

import argparse
import logging
import time
import warnings

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.modules import MLP, AdditiveGaussianModule
from torchrl.objectives import DDPGLoss, SoftUpdate, ValueEstimators

from qmix_trl import QMixer
from qmix_trl.functional import first_episode_mask
from qmix_trl.keys import ACTION, AGENT_REWARD, DONE, OBSERVATION, REWARD, STATE, next_key

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it announces every storage
# TorchRL warns where a loss is made, and its updater of the targets only afterwards.
warnings.filterwarnings("ignore", message="No target network updater")

N_ENVS, N_STEPS, HIDDEN, UPDATES_PER_BATCH = 64, 50, 64, 50


def navigation(n_envs: int, seed: int) -> VmasEnv:
    """Return environments in which three robots drive to goals of their own, for one reward."""
    return VmasEnv(
        "navigation",
        num_envs=n_envs,
        continuous_actions=True,
        max_steps=None,
        seed=seed,
        n_agents=3,
        collisions=False,
        shared_rew=True,
    )


@torch.no_grad()
def mean_return(policy: TensorDictModule | None) -> float:
    """Return the mean return of a policy, None for chance, in new episodes, always the same."""
    torch.manual_seed(1000)
    batch = navigation(128, 1000).rollout(N_STEPS, policy, break_when_any_done=False)
    mask = first_episode_mask(batch[next_key(DONE)])  # [E, T]
    return (batch[next_key(AGENT_REWARD)].mean((-2, -1)) * mask).sum(1).mean().item()


def transitions(batch: TensorDictBase) -> TensorDictBase:
    """Return a batch [E, T] as transitions [E T] with a state and the team's reward."""
    kept = (OBSERVATION, AGENT_REWARD, DONE, "terminated")
    batch = batch.select(OBSERVATION, ACTION, *map(next_key, kept)).reshape(-1)
    for step in (batch, batch["next"]):
        step[STATE] = step[OBSERVATION].flatten(-2)
    batch[next_key(REWARD)] = batch[next_key(AGENT_REWARD)].mean(-2)
    return batch


class FactoredCritic(nn.Module):
    """Q_tot: our QMixer over the agents' values of their own actions."""

    def __init__(self, n_agents: int, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.utility = perceptron(observation_dim + action_dim, 1)
        self.mixer = QMixer(n_agents, n_agents * observation_dim, hypernet_layers=2)

    def forward(self, observation: Tensor, action: Tensor, state: Tensor) -> Tensor:
        """Return Q_tot [*B, 1] of observations [*B, N, O], actions [*B, N, U], states [*B, S]."""
        return self.mixer(self.utility(torch.cat([observation, action], -1)), state)


class CentralCritic(nn.Module):
    """Q_tot: one perceptron of all observations and actions."""

    def __init__(self, n_agents: int, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.value = perceptron(n_agents * (observation_dim + action_dim), 1)

    def forward(self, observation: Tensor, action: Tensor, state: Tensor) -> Tensor:
        """Return Q_tot [*B, 1], as ``FactoredCritic`` does."""
        return self.value(torch.cat([state, action.flatten(-2)], -1))


CRITICS = {"critic factored by our QMixer": FactoredCritic, "one central critic": CentralCritic}


def perceptron(n_inputs: int, n_outputs: int) -> nn.Module:
    """Return a perceptron with two hidden layers of ReLUs."""
    return MLP(n_inputs, n_outputs, num_cells=[HIDDEN, HIDDEN], activation_class=nn.ReLU)


def learn(critic_name: str, n_batches: int, seed: int) -> float:
    """Train with a critic of ``CRITICS``; return the mean return of the actor."""
    torch.manual_seed(seed)
    env = navigation(N_ENVS, seed)
    n_agents, observation_dim = env.observation_spec[OBSERVATION].shape[-2:]
    action_spec = env.full_action_spec_unbatched[ACTION]  # forces in [-1, 1]
    action_dim = action_spec.shape[-1]
    actor = TensorDictModule(
        nn.Sequential(perceptron(observation_dim, action_dim), nn.Tanh()),
        in_keys=[OBSERVATION],
        out_keys=[ACTION],
    )
    critic = TensorDictModule(
        CRITICS[critic_name](n_agents, observation_dim, action_dim),
        in_keys=[OBSERVATION, ACTION, STATE],
        out_keys=["state_action_value"],
    )
    loss = DDPGLoss(actor, critic, delay_actor=True, delay_value=True)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.95)
    targets = SoftUpdate(loss, tau=0.01)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    noise = AdditiveGaussianModule(
        action_spec, sigma_init=0.3, sigma_end=0.3, annealing_num_steps=1, action_key=ACTION
    )
    collector = Collector(
        env,
        TensorDictSequential(actor, noise),
        frames_per_batch=N_ENVS * N_STEPS,
        total_frames=N_ENVS * N_STEPS * n_batches,
        reset_at_each_iter=True,
        auto_register_policy_transforms=False,
    )
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(50_000), batch_size=256)
    for batch in collector:
        replay.extend(transitions(batch))
        for _ in range(UPDATES_PER_BATCH):
            losses = loss(replay.sample())
            optimizer.zero_grad()
            # The actor's loss reaches the actor alone: DDPGLoss holds the critic fixed in it.
            (losses["loss_value"] + losses["loss_actor"]).backward()
            optimizer.step()
            targets.step()
        collector.update_policy_weights_()
    collector.shutdown()
    return mean_return(actor)


def main(n_batches: int, *, seed: int = 0) -> dict[str, float]:
    """Train with both critics; print and return their mean returns by name."""
    still = TensorDictModule(
        lambda x: torch.zeros_like(x[..., :2]), in_keys=[OBSERVATION], out_keys=[ACTION]
    )
    returns = {"doing nothing": mean_return(still), "chance": mean_return(None)}
    print("navigation: " + ", ".join(f"{k} {v:.2f}" for k, v in returns.items()))
    for name in CRITICS:
        start = time.perf_counter()
        returns[name] = learn(name, n_batches, seed)
        seconds = time.perf_counter() - start
        frames = N_ENVS * N_STEPS * n_batches
        print(
            f"DDPG, {name:<30} return {returns[name]:.2f} after {frames:,} frames and "
            f"{seconds:.0f} s",
            flush=True,
        )
    return returns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=30, help="batches of 3,200 frames")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.batches, seed=arguments.seed)
