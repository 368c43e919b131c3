"""Environments and their collection, ours and TorchRL's, for ``throughput.py``."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from support.terminal import tell_builds
from support.throughput.plan import MAX_STEPS, Plan
from support.throughput.timing import Runner, operations, part_ms
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
from qmix_trl.envs.vmas_scenarios import scenario_of
from qmix_trl.keys import ACTION

WARM_UP_STEPS = 100  # until environments are at different steps of their episodes
# So that a round also refills the pool of initial states; but on a GPU an engine without a
# collector takes the states again.
KERNEL_STEPS = 16 * MAX_STEPS
HIDDEN_DIM = 64


def our_env(scenario: str, n_envs: int, engine: str, device: torch.device):
    """Return our environment of a scenario on an engine.

    Args:
        scenario: of VMAS.
        n_envs: the number of environments.
        engine: of ours.
        device: of the environment.
    """
    tell_builds()
    return make_env(
        "vmas",
        scenario=scenario,
        n_envs=n_envs,
        max_steps=MAX_STEPS,
        state="world",
        team_reward="mean",
        seed=0,
        device=device,
        engine=engine,
        verify=0.0,
    )


def their_env(scenario: str, n_envs: int, device: torch.device) -> VmasEnv:
    """Return TorchRL's environment of a scenario."""
    return VmasEnv(
        scenario_of(scenario),
        num_envs=n_envs,
        continuous_actions=False,
        max_steps=MAX_STEPS,
        seed=0,
        device=device,
    )


def vmas_env_steps(plan: Plan, scenario: str, n_envs: int) -> Runner:
    """Return the random steps of ``VmasEnv``, with resets."""
    env = their_env(scenario, n_envs, plan.device)
    data = env.reset()

    def steps(n: int) -> None:
        nonlocal data
        for _ in range(n):
            data = env.step_and_maybe_reset(env.rand_action(data))[1]

    def steps_of_a_round() -> None:
        nonlocal data
        if plan.on_gpu:
            data = env.reset()
        steps(plan.baseline_steps)

    steps(plan.baseline_steps if plan.on_gpu else WARM_UP_STEPS)
    return Runner(steps_of_a_round, plan.baseline_steps)


def engine_steps(plan: Plan, scenario: str, n_envs: int, engine: str) -> Runner:
    """Return an engine's rollouts of random actions.

    Args:
        plan: of the measurement.
        scenario: of VMAS.
        n_envs: the number of environments.
        engine: of ours.
    """
    env = our_env(scenario, n_envs, engine, plan.device)
    n_steps = plan.rollout_steps[engine]
    buffers = Buffers.empty(n_envs, n_steps, env.engine.layout, env.device)
    buffers.action.random_(env_dims(env).n_actions)
    env.reset()

    def rollouts(n: int) -> None:
        for _ in range(n):
            env.engine.advance(buffers, 0, n_steps, reset_when_done=True)

    def single_steps() -> None:
        for t in range(n_steps):
            env.engine.advance(buffers, t, 1, reset_when_done=True)

    def parts() -> dict[str, float]:
        if engine != "kernel":
            return {}
        start = time.perf_counter()
        env.engine.fresh.renew()
        renewal_s = round(time.perf_counter() - start, 3)
        step_by_step_ms = part_ms(single_steps, n_steps, plan.device)
        return {"step_by_step_ms": step_by_step_ms, "renewal_s": renewal_s}

    rollouts(1)
    one_step = operations(lambda: env.engine.advance(buffers, 0, 1, reset_when_done=True))
    n = steps_of_a_round(engine)
    return Runner(lambda: rollouts(n // n_steps), n, max(1, one_step), {"env": env.how}, parts)


def steps_of_a_round(engine: str) -> int:
    """Return the number of steps of an engine in a round."""
    return KERNEL_STEPS if engine == "kernel" else MAX_STEPS


def our_batches(plan: Plan, scenario: str, n_envs: int, engine: str) -> Runner:
    """Return our fused collection.

    Args:
        plan: of the measurement.
        scenario: of VMAS.
        n_envs: the number of environments.
        engine: of ours.
    """
    env = our_env(scenario, n_envs, engine, plan.device)
    dims = env_dims(env)
    sizes = (dims.n_agents, dims.observation_dim, dims.n_actions)
    env, policy = with_policy(env, sizes, plan.device)
    n_steps = plan.batch_steps(n_envs)
    start = time.perf_counter()
    collector = make_collector(
        env,
        policy,
        rows="slices",
        steps=n_steps,
        n_batches=10**9,
        collector="fused",
        memory="first_step" if plan.on_gpu else "every_step",  # a GPU's memory ends first
    )
    seconds = round(time.perf_counter() - start, 3)
    batches = iter(collector)

    def parts() -> dict[str, float]:
        alone = part_ms(lambda: next(batches), n_steps, plan.device)
        return {"without_renewals_ms": alone, "collector_s": seconds}

    how = {"env": env.how, "collector": collector.how}
    return collecting(batches, n_steps, steps_of_a_round(engine), how=how, parts=parts)


def their_batches(plan: Plan, scenario: str, n_envs: int) -> Runner:
    """Return the collection of TorchRL's ``Collector`` over ``VmasEnv``."""
    env = their_env(scenario, n_envs, plan.device)
    env, policy = with_policy(env, sizes_of(env), plan.device)
    env = env.append_transform(InitTracker())
    n_steps = plan.baseline_batch_steps(n_envs)
    batches = Collector(
        env,
        policy,
        frames_per_batch=n_envs * n_steps,
        total_frames=-1,
        reset_at_each_iter=plan.on_gpu,
        trust_policy=True,
        auto_register_policy_transforms=False,
    )
    return collecting(iter(batches), n_steps, plan.baseline_steps)


def sizes_of(env: EnvBase) -> tuple[int, int, int]:
    """Return N, O and A of TorchRL's environment: agents, size of an observation, actions."""
    n_agents, observation_dim = env.observation_spec["agents", "observation"].shape[1:]
    return n_agents, observation_dim, env.full_action_spec[ACTION].space.n


def with_policy(
    env: EnvBase, sizes: tuple[int, int, int], device: torch.device
) -> tuple[EnvBase, Any]:
    """Return an environment with its agents' memory, and their epsilon-greedy policy."""
    torch.manual_seed(0)
    agent = RecurrentAgent(*sizes, hidden_dim=HIDDEN_DIM, device=device)
    policy = make_policy(agent, EpsilonGreedyAction(0.3, 0.3, 0, seed=0, device=device))
    return with_memory(env, agent), policy


def collecting(
    batches: Iterator[TensorDictBase], batch_steps: int, n_steps: int, **kwargs: Any
) -> Runner:
    """Return the collection of batches with about ``n_steps`` steps together.

    Args:
        batches: of a collector.
        batch_steps: T.
        n_steps: of a round; at least one batch is collected.
        kwargs: other fields of the runner.
    """
    n_batches = max(1, n_steps // batch_steps)

    def collect(n: int) -> None:
        for _ in range(n):
            next(batches)

    collect(max(1, min(WARM_UP_STEPS, n_steps) // batch_steps))
    one_batch = operations(lambda: collect(1))
    return Runner(
        lambda: collect(n_batches), n_batches * batch_steps, one_batch // batch_steps, **kwargs
    )


def products(plan: Plan, scenario: str, n_envs: int) -> Runner:
    """Return the network's matrix products, by torch."""
    n_agents, observation_dim, n_actions = sizes_of(their_env(scenario, 1, plan.device))
    agent = RecurrentAgent(
        n_agents, observation_dim, n_actions, hidden_dim=HIDDEN_DIM, device=plan.device
    )
    weights = (agent.fc1.weight, agent.rnn.weight_ih, agent.rnn.weight_hh, agent.fc2.weight)
    inputs = [
        torch.rand(n_envs * n_agents, weight.shape[1], device=plan.device) for weight in weights
    ]
    n_steps = plan.batch_steps(n_envs)

    @torch.no_grad()
    def multiply() -> None:
        for _ in range(n_steps):
            for x, weight in zip(inputs, weights, strict=True):
                torch.nn.functional.linear(x, weight)

    multiply()
    return Runner(multiply, n_steps)
