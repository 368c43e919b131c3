"""Train PPO with a value function mixed by our QMixer: python recipes/reuse/mixed_value.py

TorchRL's ClipPPOLoss and GAE train the team of VMAS balance in our environment. The value of a
state mixes the agents' own values: our QMixer combines a value of each agent's observation (as in
VMIX, Su et al. 2021, arXiv 2007.12306). Beside it a stock value function, one perceptron of the
state (MAPPO), learns with all else equal.
"""

import argparse
import time

import torch
from tensordict.nn import InteractionType, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical, Independent
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss, ValueEstimators

from qmix_trl import (
    EnvDims,
    NoOpPolicy,
    QMixer,
    RandomPolicy,
    env_dims,
    episode_returns,
    make_collector,
    make_env,
)
from qmix_trl.keys import ACTION, MASK, OBSERVATION, STATE

N_ENVS, N_STEPS, HIDDEN, EPOCHS, MINIBATCHES = 64, 100, 64, 6, 8
LOGITS = ("agents", "logits")


def balance(n_envs: int, seed: int) -> EnvBase:
    """Return environments of VMAS balance with discrete actions, which are reset together."""
    return make_env(
        "vmas",
        scenario="balance",
        n_envs=n_envs,
        max_steps=N_STEPS,
        state="world",
        team_reward="mean",
        seed=seed,
        reset_when_done=False,
    )


class JointCategorical(Independent):
    """The distribution of joint actions [*B, N]: agents act independently of one another."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(Categorical(logits=logits), 1)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable joint action."""
        return self.mode


class MixedValue(nn.Module):
    """The value of a state: our QMixer over values of the agents' observations."""

    def __init__(self, dims: EnvDims) -> None:
        super().__init__()
        self.value = perceptron(dims.observation_dim, 1)
        self.mixer = QMixer(dims.n_agents, dims.state_shape, hypernet_layers=2)

    def forward(self, observation: Tensor, state: Tensor) -> Tensor:
        """Return values [*B, 1] of observations [*B, N, O] and states [*B, S]."""
        return self.mixer(self.value(observation), state)


class CentralValue(nn.Module):
    """The value of a state: one perceptron of the state."""

    def __init__(self, dims: EnvDims) -> None:
        super().__init__()
        self.value = perceptron(dims.state_shape.numel(), 1)

    def forward(self, observation: Tensor, state: Tensor) -> Tensor:
        """Return values [*B, 1], as ``MixedValue`` does."""
        return self.value(state)


VALUES = {"value mixed by our QMixer": MixedValue, "one central value": CentralValue}


def perceptron(n_inputs: int, n_outputs: int) -> nn.Module:
    """Return a perceptron with two hidden layers of ReLUs."""
    return MLP(n_inputs, n_outputs, num_cells=[HIDDEN, HIDDEN], activation_class=nn.ReLU)


def mean_return(policy: TensorDictModule) -> float:
    """Return the mean return of a policy's best actions, in new episodes, always the same."""
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        returns = episode_returns(balance(100, 1000), policy, max_steps=N_STEPS, seed=1000)
    return returns.mean().item()


def make_loss(value_name: str, dims: EnvDims) -> ClipPPOLoss:
    """Return TorchRL's loss over a new actor, shared by the agents, and a value of ``VALUES``."""
    actor = ProbabilisticActor(
        TensorDictModule(
            perceptron(dims.observation_dim, dims.n_actions),
            in_keys=[OBSERVATION],
            out_keys=[LOGITS],
        ),
        in_keys={"logits": LOGITS},
        out_keys=[ACTION],
        distribution_class=JointCategorical,
        return_log_prob=True,
        log_prob_key="action_log_prob",
        default_interaction_type=InteractionType.RANDOM,
    )
    critic = TensorDictModule(
        VALUES[value_name](dims), in_keys=[OBSERVATION, STATE], out_keys=["state_value"]
    )
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01, normalize_advantage=True)
    loss.set_keys(action=ACTION, sample_log_prob="action_log_prob")
    loss.make_value_estimator(ValueEstimators.GAE, gamma=0.99, lmbda=0.95)
    return loss


def learn(value_name: str, n_batches: int, seed: int) -> float:
    """Train with a value function of ``VALUES``; return the mean return of the actor."""
    torch.manual_seed(seed)
    env = balance(N_ENVS, seed)
    loss = make_loss(value_name, env_dims(env))
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    collector = make_collector(
        env, loss.actor_network, rows="episodes", steps=N_STEPS, n_batches=n_batches
    )
    for batch in collector:  # [E, T]
        with torch.no_grad():
            loss.value_estimator(
                batch,
                params=loss.critic_network_params,
                target_params=loss.target_critic_network_params,
            )
        valid = batch[batch[MASK]]
        for _ in range(EPOCHS):
            for places in torch.randperm(len(valid)).chunk(MINIBATCHES):
                losses = loss(valid[places])
                optimizer.zero_grad()
                sum(losses[f"loss_{x}"] for x in ("objective", "critic", "entropy")).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
                optimizer.step()
    collector.shutdown()
    return mean_return(loss.actor_network)


def main(n_batches: int, *, seed: int = 0) -> dict[str, float]:
    """Train with both value functions; print and return their mean returns by name."""
    n_actions = env_dims(balance(1, 0)).n_actions
    returns = {
        "doing nothing": mean_return(NoOpPolicy(n_actions)),
        "chance": mean_return(RandomPolicy(n_actions, seed=0)),
    }
    print("balance: " + ", ".join(f"{k} {v:.2f}" for k, v in returns.items()))
    for name in VALUES:
        start = time.perf_counter()
        returns[name] = learn(name, n_batches, seed)
        seconds = time.perf_counter() - start
        frames = N_ENVS * N_STEPS * n_batches
        print(
            f"PPO, {name:<26} return {returns[name]:.2f} after {frames:,} frames and "
            f"{seconds:.0f} s",
            flush=True,
        )
    return returns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=30, help="batches of 6,400 frames")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.batches, seed=arguments.seed)
