"""Cross our mixers and loss with TorchRL's: python recipes/reuse/mixers.py

Four mixers, our QMixer and VDNMixer and TorchRL's, learn in two losses, TorchRL's QMixerLoss and
our QMixLoss, from random joint actions in the two-step game (Rashid et al. 2018, section 5.1). The
best return is 8, which QMIX learns; VDN learns to be content with 7.
"""

import argparse
import warnings

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.envs import EnvBase
from torchrl.modules import QMixer as TorchRLQMixer
from torchrl.modules import QValueModule
from torchrl.modules import VDNMixer as TorchRLVDNMixer
from torchrl.objectives import LossModule, QMixerLoss, SoftUpdate, ValueEstimators

from qmix_trl import (
    EnvDims,
    FeedforwardAgent,
    GreedyAction,
    NoOpPolicy,
    QMixer,
    QMixLoss,
    RandomPolicy,
    VDNMixer,
    env_dims,
    episode_returns,
    make_env,
)
from qmix_trl.keys import ACTION, ACTION_VALUE, CHOSEN_ACTION_VALUE, STATE, TOTAL_VALUE

# TorchRL warns where a loss is made, and its updater of the targets only afterwards.
warnings.filterwarnings("ignore", message="No target network updater")

GAMMA, MIXING_DIM = 0.99, 16
MIXERS = {
    "our QMixer": lambda dims: QMixer(dims.n_agents, dims.state_shape, MIXING_DIM),
    "TorchRL's QMixer": lambda dims: TorchRLQMixer(
        dims.state_shape, MIXING_DIM, dims.n_agents, "cpu"
    ),
    "our VDNMixer": lambda dims: VDNMixer(dims.n_agents),
    "TorchRL's VDNMixer": lambda dims: TorchRLVDNMixer(dims.n_agents, "cpu"),
}
LOSSES = ("TorchRL's QMixerLoss", "our QMixLoss")


def two_step(n_envs: int, seed: int) -> EnvBase:
    """Return environments of the two-step game, which are reset together."""
    return make_env(
        "games",
        scenario="two_step",
        n_envs=n_envs,
        max_steps=2,
        state="world",
        seed=seed,
        reset_when_done=False,
    )


def mean_return(policy: TensorDictModule) -> float:
    """Return the mean return of a policy."""
    return episode_returns(two_step(1000, seed=1), policy, max_steps=2, seed=1).mean().item()


def learner(loss_name: str, mixer_name: str, dims: EnvDims) -> tuple[LossModule, TensorDictModule]:
    """Return a loss over new networks, and their greedy policy."""
    agent = FeedforwardAgent(
        dims.n_agents,
        dims.observation_dim,
        dims.n_actions,
        hidden_dims=(),
        share_parameters=False,
        use_agent_id=False,
    )
    in_keys = [CHOSEN_ACTION_VALUE, STATE] if "QMixer" in mixer_name else [CHOSEN_ACTION_VALUE]
    mixer = TensorDictModule(MIXERS[mixer_name](dims), in_keys=in_keys, out_keys=[TOTAL_VALUE])
    if loss_name == "our QMixLoss":
        return QMixLoss(agent, mixer, gamma=GAMMA), TensorDictSequential(agent, GreedyAction())
    greedy = QValueModule(
        action_value_key=ACTION_VALUE,
        out_keys=[ACTION, ACTION_VALUE, CHOSEN_ACTION_VALUE],
        action_space="categorical",
    )
    policy = TensorDictSequential(agent, greedy)
    loss = QMixerLoss(policy, mixer, delay_value=True, action_space="categorical")
    loss.set_keys(
        action=ACTION,
        action_value=ACTION_VALUE,
        local_value=CHOSEN_ACTION_VALUE,
        global_value=TOTAL_VALUE,
    )
    loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    return loss, policy


def learn(
    loss_name: str, mixer_name: str, batch: TensorDictBase, dims: EnvDims, n_updates: int
) -> float:
    """Train on a batch [E, T] of experience; return the greedy return.

    Args:
        loss_name: in ``LOSSES``.
        mixer_name: in ``MIXERS``.
        batch: all experience, of which every update takes all.
        dims: the sizes of the environment.
        n_updates: the number of gradient steps.
    """
    loss, policy = learner(loss_name, mixer_name, dims)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    targets = SoftUpdate(loss, tau=0.05)
    for _ in range(n_updates):
        optimizer.zero_grad()
        loss(batch)["loss"].backward()
        optimizer.step()
        targets.step()
    return mean_return(policy)


def main(n_updates: int, *, seed: int = 0) -> dict[str, float]:
    """Train every mixer in every loss; print and return their mean returns by name."""
    torch.manual_seed(seed)
    env = two_step(1000, seed)
    dims = env_dims(env)
    random = RandomPolicy(dims.n_actions, seed=seed)
    batch = env.rollout(2, random, break_when_any_done=False)  # [E, T]
    returns = {
        "doing nothing": mean_return(NoOpPolicy(dims.n_actions)),
        "chance": mean_return(random),
    }
    print("two-step game: " + ", ".join(f"{k} {v:.2f}" for k, v in returns.items()))
    for loss_name in LOSSES:
        for mixer_name in MIXERS:
            name = f"{mixer_name} in {loss_name}"
            returns[name] = learn(loss_name, mixer_name, batch, dims, n_updates)
            print(f"{name:<42} return {returns[name]:.2f}", flush=True)
    return returns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=400, help="gradient steps of each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.updates, seed=arguments.seed)
