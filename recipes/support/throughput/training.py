"""Whole training, for ``throughput.py``: collection, replay and updates together.

The baseline is TorchRL's ``Collector`` over ``VmasEnv``, its replay buffer, and the loop of GRU
cells of ``updates.py``. Both sides train a GRU of 64 on whole episodes, with the same numbers of
frames and updates.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from support.throughput.collection import our_env, sizes_of, their_env, with_policy
from support.throughput.plan import MAX_STEPS, Plan
from support.throughput.timing import Case, Runner
from support.throughput.updates import N_ROWS, PlainUpdate, Sizes, our_update, several
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import InitTracker

from qmix_trl import Learner, SequenceRows, env_dims, make_collector, make_replay
from qmix_trl.collect import mark_all_valid
from qmix_trl.keys import OBSERVATION, REWARD, STATE, next_key

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it announces every storage

CAPACITY_ROWS = 2048


def ours(plan: Plan, scenario: str, n_updates: int) -> Runner:
    """Return our training: a batch of collection and ``n_updates`` updates."""
    env = our_env(scenario, plan.train_envs, "auto", plan.device)
    dims = env_dims(env)
    sizes = Sizes(dims.n_agents, dims.observation_dim, dims.n_actions, dims.state_shape[0])
    env, policy = with_policy(env, sizes[:3], plan.device)
    collector = make_collector(
        env, policy, rows="episodes", steps=MAX_STEPS, n_batches=10**9, memory="first_step"
    )
    replay = make_replay(
        SequenceRows(),
        capacity_rows=CAPACITY_ROWS,
        batch_rows=N_ROWS,
        seed=0,
        device=plan.device,
    )
    update = our_update(policy.module[0], sizes, compile=plan.compile)
    learner = Learner(update, replay, n_steps=n_updates)
    step = learning(iter(collector), replay, learner)
    how = {"env": env.how, "collector": collector.how, "update": learner.how}
    return Runner(step, MAX_STEPS, how=how)


def theirs(plan: Plan, scenario: str, n_updates: int) -> Runner:
    """Return TorchRL's training: a batch of collection and plain updates."""
    env = their_env(scenario, plan.train_envs, plan.device)
    n_agents, observation_dim, n_actions = sizes_of(env)
    env, policy = with_policy(env, (n_agents, observation_dim, n_actions), plan.device)
    batches = Collector(
        env.append_transform(InitTracker()),
        policy,
        frames_per_batch=plan.train_envs * MAX_STEPS,
        total_frames=-1,
        reset_at_each_iter=True,
        postproc=with_state_and_team_reward,
        trust_policy=True,
        auto_register_policy_transforms=False,
    )
    storage = LazyTensorStorage(CAPACITY_ROWS, device=plan.device)
    replay = TensorDictReplayBuffer(storage=storage, batch_size=N_ROWS)
    sizes = Sizes(n_agents, observation_dim, n_actions, n_agents * observation_dim)
    update = PlainUpdate(sizes, plan.device)
    learn = several(lambda: update(replay.sample()), n_updates)
    return Runner(learning(iter(batches), replay, learn), MAX_STEPS)


def with_state_and_team_reward(batch: TensorDictBase) -> TensorDictBase:
    """Add a state, which is all observations, and the team's reward, the agents' mean."""
    for part in (batch, batch["next"]):
        part[STATE] = part[OBSERVATION].flatten(-2)
    batch[next_key(REWARD)] = batch["next", "agents", "reward"].mean(-2)
    return mark_all_valid(batch).exclude(("agents", "info"), ("next", "agents", "info"))


def learning(
    batches: Iterator[TensorDictBase],
    replay: TensorDictReplayBuffer,
    learn: Callable[[], object],
) -> Callable[[], None]:
    """Return a function that collects a batch and learns from the replay buffer.

    It runs twice before it is returned, so that nothing is timed that happens only at first.

    Args:
        batches: of a collector.
        replay: the buffer of the batches.
        learn: takes the steps after each batch, on samples of the buffer.
    """

    def step() -> None:
        replay.extend(next(batches))
        learn()

    step()
    step()
    return step


def training(plan: Plan, scenario: str, ratio: int) -> Case:
    """Return the case of a scenario in which each frame is trained on ``ratio`` times."""
    n_updates = max(1, ratio * plan.train_envs // N_ROWS)
    return Case(
        what=f"train-{ratio}",
        scenario=Path(scenario).name,
        n_envs=plan.train_envs,
        device=plan.device,
        baseline="Collector over VmasEnv, GRUCell loop",
        theirs=partial(theirs, plan, scenario, n_updates),
        ours={"kernel": partial(ours, plan, scenario, n_updates)},
        per_step=plan.train_envs,
    )
