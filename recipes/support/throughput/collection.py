"""Environments and their collection, ours and TorchRL's, for ``throughput.py``."""

from collections.abc import Iterator
from typing import Any

import torch
from support.throughput.timing import Timed, operations, timed
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, InitTracker
from torchrl.envs.libs.vmas import VmasEnv

from qmix_trl import (
    EpsilonGreedyAction,
    RecurrentAgent,
    env_dims,
    make_collector,
    make_env,
    make_policy,
    with_memory,
)
from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.keys import ACTION

MAX_STEPS = 100
WARM_UP_STEPS = 100  # until environments are at different steps of their episodes
ROUND_STEPS = MAX_STEPS  # so that a round has the resets of every environment
KERNEL_STEPS = 16 * MAX_STEPS  # so that a round also refills the pool of initial states
BATCH_STEPS = 25  # of a batch, on both sides
ROLLOUT_STEPS = {"kernel": 20, "inductor": 10, "eager": 10}  # of a call; these fit the CPU's cache
HIDDEN_DIM = 64


def our_env(scenario: str, n_envs: int, engine: str):
    """Return our environment of a scenario on an engine."""
    return make_env(
        "vmas",
        scenario=scenario,
        n_envs=n_envs,
        max_steps=MAX_STEPS,
        state="world",
        team_reward="mean",
        seed=0,
        engine=engine,
    )


def their_env(scenario: str, n_envs: int) -> VmasEnv:
    """Return TorchRL's environment of a scenario."""
    return VmasEnv(scenario, num_envs=n_envs, continuous_actions=False, max_steps=MAX_STEPS, seed=0)


def vmas_env_steps(scenario: str, n_envs: int) -> tuple[Timed, int]:
    """Return a timer of random steps and resets of ``VmasEnv``, and its operations in a step."""
    env = their_env(scenario, n_envs)
    data = env.reset()

    def steps(n: int) -> None:
        nonlocal data
        for _ in range(n):
            data = env.step_and_maybe_reset(env.rand_action(data))[1]

    steps(WARM_UP_STEPS)
    return timed(lambda: steps(ROUND_STEPS), ROUND_STEPS), operations(lambda: steps(1))


def engine_steps(scenario: str, n_envs: int, engine: str) -> tuple[Timed, int]:
    """Return a timer of an engine's rollouts of random actions, and its operations in a step."""
    env = our_env(scenario, n_envs, engine)
    n_steps = ROLLOUT_STEPS[engine]
    buffers = Buffers.empty(n_envs, n_steps, env.engine.layout, env.device)
    buffers.action.random_(env_dims(env).n_actions)
    env.reset()

    def rollouts(n: int) -> None:
        for _ in range(n):
            env.engine.advance(buffers, 0, n_steps, reset_when_done=True)

    rollouts(1)
    one_step = operations(lambda: env.engine.advance(buffers, 0, 1, reset_when_done=True))
    n = steps_of_a_round(engine)
    return timed(lambda: rollouts(n // n_steps), n), max(1, one_step)


def steps_of_a_round(engine: str) -> int:
    """Return the number of steps of an engine in a round."""
    return KERNEL_STEPS if engine == "kernel" else ROUND_STEPS


def our_batches(scenario: str, n_envs: int, engine: str) -> tuple[Timed, int]:
    """Return a timer of fused collection, and its operations in a step."""
    env = our_env(scenario, n_envs, engine)
    dims = env_dims(env)
    env, policy = with_policy(env, (dims.n_agents, dims.observation_dim, dims.n_actions))
    batches = make_collector(
        env, policy, rows="slices", steps=BATCH_STEPS, n_batches=10**9, collector="fused"
    )
    return collecting(iter(batches), steps_of_a_round(engine))


def their_batches(scenario: str, n_envs: int) -> tuple[Timed, int]:
    """Return a timer of TorchRL's ``Collector`` over ``VmasEnv``, and its operations in a step."""
    env = their_env(scenario, n_envs)
    env, policy = with_policy(env, sizes_of(env))
    env = env.append_transform(InitTracker())
    batches = Collector(
        env,
        policy,
        frames_per_batch=n_envs * BATCH_STEPS,
        total_frames=-1,
        trust_policy=True,
        auto_register_policy_transforms=False,
    )
    return collecting(iter(batches), ROUND_STEPS)


def sizes_of(env: EnvBase) -> tuple[int, int, int]:
    """Return N, O and A of TorchRL's environment: agents, size of an observation, actions."""
    n_agents, observation_dim = env.observation_spec["agents", "observation"].shape[1:]
    return n_agents, observation_dim, env.full_action_spec[ACTION].space.n


def with_policy(env: EnvBase, sizes: tuple[int, int, int]) -> tuple[EnvBase, Any]:
    """Return an environment with its agents' memory, and their epsilon-greedy policy."""
    torch.manual_seed(0)
    agent = RecurrentAgent(*sizes, hidden_dim=HIDDEN_DIM)
    policy = make_policy(agent, EpsilonGreedyAction(0.3, 0.3, 0, seed=0))
    return with_memory(env, agent), policy


def collecting(batches: Iterator[TensorDictBase], n_steps: int) -> tuple[Timed, int]:
    """Return a timer of batches with ``n_steps`` steps together, and the operations in a step."""

    def collect(n: int) -> None:
        for _ in range(n // BATCH_STEPS):
            next(batches)

    collect(WARM_UP_STEPS)
    one_batch = operations(lambda: collect(BATCH_STEPS))
    return timed(lambda: collect(n_steps), n_steps), one_batch // BATCH_STEPS


def products(scenario: str, n_envs: int) -> Timed:
    """Return a timer of the network's matrix products in one step, by torch."""
    n_agents, observation_dim, n_actions = sizes_of(their_env(scenario, 1))
    agent = RecurrentAgent(n_agents, observation_dim, n_actions, hidden_dim=HIDDEN_DIM)
    weights = (agent.fc1.weight, agent.rnn.weight_ih, agent.rnn.weight_hh, agent.fc2.weight)
    inputs = [torch.rand(n_envs * n_agents, weight.shape[1]) for weight in weights]

    @torch.no_grad()
    def multiply() -> None:
        for _ in range(BATCH_STEPS):
            for x, weight in zip(inputs, weights, strict=True):
                torch.nn.functional.linear(x, weight)

    multiply()
    return timed(multiply, BATCH_STEPS)
