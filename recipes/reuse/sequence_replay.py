"""Replay for TorchRL's DQNLoss from our sequences: python recipes/reuse/sequence_replay.py

TorchRL's DQNLoss trains our FeedforwardAgent, independent learners with shared weights, on VMAS
navigation. Our replay stores rows of 51 observations for 50 steps, and the true last observation
where a time limit cuts an episode. Beside it TorchRL's replay of single transitions, which stores
every observation twice, learns with all else equal.
"""

import argparse
import logging
import time
import warnings

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import QValueModule
from torchrl.objectives import DQNLoss, SoftUpdate, ValueEstimators

from qmix_trl import (
    EpsilonGreedyAction,
    FeedforwardAgent,
    NoOpPolicy,
    RandomPolicy,
    SequenceRows,
    env_dims,
    episode_returns,
    make_collector,
    make_env,
    make_policy,
    make_replay,
)
from qmix_trl.keys import (
    ACTION,
    ACTION_VALUE,
    AGENT_REWARD,
    CHOSEN_ACTION_VALUE,
    DONE,
    IS_INIT,
    OBSERVATION,
    TERMINATED,
    next_key,
)

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it announces every storage
# TorchRL warns where a loss is made, and its updater of the targets only afterwards.
warnings.filterwarnings("ignore", message="No target network updater")

N_ENVS, N_STEPS, MAX_STEPS = 32, 50, 100  # of a batch, and of an episode
OF_NEXT = (OBSERVATION, AGENT_REWARD, DONE, TERMINATED)  # what is replayed of the next step
ROWS, ROWS_OF_BATCH, UPDATES_PER_BATCH = 1000, 8, 40


def navigation(n_envs: int, seed: int, *, reset_when_done: bool) -> EnvBase:
    """Return environments in which three robots drive to goals of their own, for one reward."""
    return make_env(
        "vmas",
        scenario="navigation",
        scenario_kwargs={"n_agents": 3, "collisions": False},
        n_envs=n_envs,
        max_steps=MAX_STEPS,
        state="observations",
        team_reward="mean",
        seed=seed,
        reset_when_done=reset_when_done,
    )


def mean_return(policy: TensorDictModule) -> float:
    """Return the mean return of a policy, in new episodes, always the same."""
    env = navigation(100, 1000, reset_when_done=False)
    return episode_returns(env, policy, max_steps=MAX_STEPS, seed=1000).mean().item()


def our_replay(seed: int) -> TensorDictReplayBuffer:
    """Return our replay of sequences."""
    rows = SequenceRows(max_steps=MAX_STEPS)
    return make_replay(rows, capacity_rows=ROWS, batch_rows=ROWS_OF_BATCH, seed=seed)


def transition_replay(seed: int) -> TensorDictReplayBuffer:
    """Return TorchRL's replay of transitions, which holds and samples as many steps as ours."""
    replay = TensorDictReplayBuffer(
        storage=LazyTensorStorage(ROWS * N_STEPS), batch_size=ROWS_OF_BATCH * N_STEPS
    )
    replay.set_rng(torch.Generator().manual_seed(seed))
    return replay


REPLAYS = {"our sequences": our_replay, "transitions": transition_replay}


def of_each_agent(sample: TensorDictBase) -> TensorDictBase:
    """Return a sample with each agent's own flags, as DQNLoss wants them of the rewards' shape."""
    n_agents = sample[ACTION].shape[-1]
    for key in (DONE, TERMINATED):
        flags = sample[next_key(key)].unsqueeze(-2)  # [.., 1, 1]
        sample["next", "agents", key] = flags.expand(*sample.shape, n_agents, 1)
    return sample


def learn(replay_name: str, n_batches: int, seed: int) -> tuple[float, float]:
    """Train from a replay of ``REPLAYS``; return the greedy return and the replay's MB."""
    torch.manual_seed(seed)
    env = navigation(N_ENVS, seed, reset_when_done=True)
    dims = env_dims(env)
    agent = FeedforwardAgent(
        dims.n_agents, dims.observation_dim, dims.n_actions, use_agent_id=False
    )
    greedy = QValueModule(
        action_value_key=ACTION_VALUE,
        out_keys=[ACTION, ACTION_VALUE, CHOSEN_ACTION_VALUE],
        action_space="categorical",
    )
    network = TensorDictSequential(agent, greedy)
    loss = DQNLoss(network, action_space="categorical", delay_value=True, double_dqn=True)
    loss.set_keys(
        action=ACTION,
        action_value=ACTION_VALUE,
        value=CHOSEN_ACTION_VALUE,
        reward=AGENT_REWARD,
        done=("agents", DONE),
        terminated=("agents", TERMINATED),
    )
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.95)
    targets = SoftUpdate(loss, tau=0.02)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    explore = EpsilonGreedyAction(1.0, 0.05, N_ENVS * N_STEPS * n_batches // 2, seed=seed)
    policy = make_policy(agent, explore)
    collector = make_collector(env, policy, rows="slices", steps=N_STEPS, n_batches=n_batches)
    replay = REPLAYS[replay_name](seed)
    for batch in collector:  # [E, T]
        explore.step(batch.numel())
        batch = batch.select(OBSERVATION, ACTION, IS_INIT, *map(next_key, OF_NEXT))
        replay.extend(batch if replay_name == "our sequences" else batch.reshape(-1))
        for _ in range(UPDATES_PER_BATCH):
            sample = of_each_agent(replay.sample())
            optimizer.zero_grad()
            loss(sample)["loss"].backward()
            optimizer.step()
            targets.step()
    collector.shutdown()
    return mean_return(network), replay.storage.get(slice(None)).bytes() / 1e6


def main(n_batches: int, *, seed: int = 0) -> dict[str, float]:
    """Train from both replays; print and return their mean returns by name."""
    n_actions = env_dims(navigation(1, 0, reset_when_done=False)).n_actions
    returns = {
        "doing nothing": mean_return(NoOpPolicy(n_actions)),
        "chance": mean_return(RandomPolicy(n_actions, seed=0)),
    }
    print("navigation: " + ", ".join(f"{k} {v:.2f}" for k, v in returns.items()))
    for name in REPLAYS:
        start = time.perf_counter()
        returns[name], size = learn(name, n_batches, seed)
        seconds = time.perf_counter() - start
        frames = N_ENVS * N_STEPS * n_batches
        print(
            f"DQN from {name:<14} return {returns[name]:.2f} after {frames:,} frames and "
            f"{seconds:.0f} s, replay of {size:.0f} MB",
            flush=True,
        )
    return returns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=30, help="batches of 1,600 frames")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.batches, seed=arguments.seed)
