"""Explore with TorchRL's modules around our agent: python recipes/reuse/exploration.py

Our recurrent agent and QMIX learn the memory game: agents are shown a cue at the first step and
win 1 if, six steps later, all name it. TorchRL's QValueModule and EGreedyModule choose the
actions; beside them our EpsilonGreedyAction does, with all else equal. The best return is 1.
"""

import argparse
import logging
import time

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.envs import EnvBase
from torchrl.modules import EGreedyModule, QValueModule

from qmix_trl import (
    EpsilonGreedyAction,
    GreedyAction,
    NoOpPolicy,
    QMixer,
    QMixLoss,
    RandomPolicy,
    RecurrentAgent,
    SequenceRows,
    Update,
    env_dims,
    episode_returns,
    make_collector,
    make_env,
    make_hard_updater,
    make_policy,
    make_replay,
    with_memory,
)
from qmix_trl.keys import ACTION, ACTION_MASK, ACTION_VALUE, CHOSEN_ACTION_VALUE

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it announces every storage

DELAY = 6  # steps for which the cue must be remembered
N_ENVS, N_STEPS, UPDATES_PER_BATCH = 64, DELAY + 1, 10
EPSILON_START, EPSILON_END = 1.0, 0.05


def memory_game(n_envs: int, seed: int) -> EnvBase:
    """Return environments of the memory game, which are reset together."""
    return make_env(
        "games",
        scenario="memory",
        scenario_kwargs={"delay": DELAY},
        n_envs=n_envs,
        max_steps=N_STEPS,
        state="observations",
        seed=seed,
        reset_when_done=False,
    )


def mean_return(policy: TensorDictModule, agent: RecurrentAgent | None = None) -> float:
    """Return the mean return of a policy, with the memory of an agent, in 400 episodes."""
    env = memory_game(400, 1000)
    env = env if agent is None else with_memory(env, agent)
    return episode_returns(env, policy, max_steps=N_STEPS, seed=1000).mean().item()


def torchrl_heads(env: EnvBase, anneal_frames: int) -> tuple[QValueModule, EGreedyModule]:
    """Return TorchRL's greedy head, and the module that explores after it."""
    greedy = QValueModule(
        action_value_key=ACTION_VALUE,
        out_keys=[ACTION, ACTION_VALUE, CHOSEN_ACTION_VALUE],
        action_space="categorical",
        action_mask_key=ACTION_MASK,
    )
    explore = EGreedyModule(
        env.full_action_spec[ACTION],
        eps_init=EPSILON_START,
        eps_end=EPSILON_END,
        annealing_num_steps=anneal_frames,
        action_key=ACTION,
        action_mask_key=ACTION_MASK,
    )
    return greedy, explore


def learn(heads: str, n_batches: int, seed: int) -> float:
    """Train with the heads of "TorchRL" or "us"; return the greedy return."""
    torch.manual_seed(seed)
    env = memory_game(N_ENVS, seed)
    dims = env_dims(env)
    # TorchRL's heads remember no last action.
    agent = RecurrentAgent(
        dims.n_agents, dims.observation_dim, dims.n_actions, use_last_action=False
    )
    loss = QMixLoss(agent, QMixer(dims.n_agents, dims.state_shape), gamma=0.99, td_lambda=1.0)
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-3)
    update = Update(loss, optimizer, make_hard_updater(loss, period_updates=50), max_grad_norm=10.0)
    anneal_frames = N_ENVS * N_STEPS * n_batches // 2
    if heads == "TorchRL":
        greedy, explore = torchrl_heads(env, anneal_frames)
        policy = TensorDictSequential(agent, greedy, explore)
        greedy_policy = TensorDictSequential(agent, greedy)
    else:
        explore = EpsilonGreedyAction(EPSILON_START, EPSILON_END, anneal_frames, seed=seed)
        policy = make_policy(agent, explore)
        greedy_policy = make_policy(agent, GreedyAction())
    env = with_memory(env, agent)
    collector = make_collector(env, policy, rows="episodes", steps=N_STEPS, n_batches=n_batches)
    replay = make_replay(SequenceRows(), capacity_rows=2000, batch_rows=32, seed=seed)
    for batch in collector:  # [E, T]
        explore.step(batch.numel())
        replay.extend(batch)
        for _ in range(UPDATES_PER_BATCH):
            update(replay.sample())
    collector.shutdown()
    return mean_return(greedy_policy, agent)


def main(n_batches: int, *, seed: int = 0) -> dict[str, float]:
    """Train with both kinds of heads; print and return their mean returns by name."""
    n_actions = env_dims(memory_game(1, 0)).n_actions
    returns = {
        "doing nothing": mean_return(NoOpPolicy(n_actions)),
        "chance": mean_return(RandomPolicy(n_actions, seed=0)),
    }
    print("memory game: " + ", ".join(f"{k} {v:.2f}" for k, v in returns.items()))
    for heads, name in (("TorchRL", "TorchRL's EGreedyModule"), ("us", "our EpsilonGreedyAction")):
        start = time.perf_counter()
        returns[name] = learn(heads, n_batches, seed)
        seconds = time.perf_counter() - start
        frames = N_ENVS * N_STEPS * n_batches
        print(
            f"{name:<24} return {returns[name]:.2f} after {frames:,} frames and {seconds:.0f} s",
            flush=True,
        )
    return returns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=60, help="batches of 448 frames")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.batches, seed=arguments.seed)
