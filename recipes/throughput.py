"""How fast environments step and are collected: python recipes/throughput.py [--scenarios NAME ..]

Every engine and collector runs in turn beside TorchRL's ``VmasEnv`` and ``Collector``, in one
process and one thread; what counts is the ratio within a round. A round is whole episodes, with
their resets. It prints a table and leaves throughput.png.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from throughput_report import draw, print_table
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
from qmix_trl.envs.compiled.buffers import Buffers
from qmix_trl.errors import ConfigError
from qmix_trl.keys import ACTION

SCENARIOS = ("balance", "navigation", "simple_spread", "dispersion", "transport", "discovery")
ENGINES = ("kernel", "inductor", "eager")
MAX_STEPS = 100
WARM_UP_STEPS = 100  # until environments are at different steps of their episodes
ROUND_STEPS = MAX_STEPS  # all resets are in them
KERNEL_STEPS = 16 * MAX_STEPS  # and a renewal of the pool that its resets take from
BATCH_STEPS = 25  # of a batch, on both sides
ROLLOUT_STEPS = {"kernel": 20, "inductor": 10, "eager": 10}  # in one call; rows stay in the cache
HIDDEN_DIM = 64
OF_VMAS_ENV = "VmasEnv"
OF_COLLECTOR = "Collector over VmasEnv"


@dataclass(frozen=True)
class Row:
    """One engine beside the baseline; milliseconds are of one step of all environments."""

    what: str
    scenario: str
    n_envs: int
    engine: str
    baseline: str
    ratio: dict[str, float]
    ms: float
    baseline_ms: float
    operations: int  # of torch, in one step
    products_ms: float  # of collection: the matrix products of its network alone, by torch
    build_s: float
    cached_s: float


Timed = Callable[[], float]  # runs for a while and returns milliseconds a step


class Operations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operations of torch."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


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
    """Return what times random steps and resets of ``VmasEnv``, and its operations a step."""
    env = their_env(scenario, n_envs)
    data = env.reset()

    def steps(n: int) -> None:
        nonlocal data
        for _ in range(n):
            data = env.step_and_maybe_reset(env.rand_action(data))[1]

    steps(WARM_UP_STEPS)
    return timed(lambda: steps(ROUND_STEPS), ROUND_STEPS), operations(lambda: steps(1))


def engine_steps(scenario: str, n_envs: int, engine: str) -> tuple[Timed, int]:
    """Return what times an engine's rollouts of random actions, and its operations a step."""
    env = our_env(scenario, n_envs, engine)
    n_steps = ROLLOUT_STEPS[engine]
    rows = Buffers.empty(n_envs, n_steps, env.engine.layout, env.device)
    rows.action.random_(env_dims(env).n_actions)
    env.reset()

    def rollouts(n: int) -> None:
        for _ in range(n):
            env.engine.advance(rows, 0, n_steps, reset_when_done=True)

    rollouts(1)
    one_step = operations(lambda: env.engine.advance(rows, 0, 1, reset_when_done=True))
    n = steps_of_a_round(engine)
    return timed(lambda: rollouts(n // n_steps), n), max(1, one_step)


def steps_of_a_round(engine: str) -> int:
    """Return how many steps of an engine are timed together."""
    return KERNEL_STEPS if engine == "kernel" else ROUND_STEPS


def our_batches(scenario: str, n_envs: int, engine: str) -> tuple[Timed, int]:
    """Return what times fused collection, and its operations a step."""
    env = our_env(scenario, n_envs, engine)
    dims = env_dims(env)
    env, policy = with_policy(env, (dims.n_agents, dims.observation_dim, dims.n_actions))
    batches = make_collector(
        env, policy, rows="slices", steps=BATCH_STEPS, n_batches=10**9, collector="fused"
    )
    return collecting(iter(batches), steps_of_a_round(engine))


def their_batches(scenario: str, n_envs: int) -> tuple[Timed, int]:
    """Return what times TorchRL's ``Collector`` over ``VmasEnv``, and its operations a step."""
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
    """Return N, O and A of TorchRL's environment."""
    n_agents, observation_dim = env.observation_spec["agents", "observation"].shape[1:]
    return n_agents, observation_dim, env.full_action_spec[ACTION].space.n


def with_policy(env: EnvBase, sizes: tuple[int, int, int]) -> tuple[EnvBase, Any]:
    """Return an environment with its agents' memory, and their epsilon-greedy policy."""
    torch.manual_seed(0)
    agent = RecurrentAgent(*sizes, hidden_dim=HIDDEN_DIM)
    policy = make_policy(agent, EpsilonGreedyAction(0.3, 0.3, 0, seed=0))
    return with_memory(env, agent), policy


def collecting(batches: Iterator[TensorDictBase], n_steps: int) -> tuple[Timed, int]:
    """Return what times batches of so many steps together, and the operations of one step."""

    def collect(n: int) -> None:
        for _ in range(n // BATCH_STEPS):
            next(batches)

    collect(WARM_UP_STEPS)
    one_batch = operations(lambda: collect(BATCH_STEPS))
    return timed(lambda: collect(n_steps), n_steps), one_batch // BATCH_STEPS


def products(scenario: str, n_envs: int) -> Timed:
    """Return what times the network's matrix products of one step, by torch."""
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


def timed(run: Callable[[], object], n_steps: int) -> Timed:
    """Return a function that runs once and returns milliseconds a step."""

    def measure() -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / n_steps * 1e3

    return measure


def operations(run: Callable[[], object]) -> int:
    """Return how many operations of torch a run takes."""
    with Operations() as mode:
        run()
    return mode.count


def start_seconds(scenario: str, n_envs: int, engine: str) -> tuple[float, float]:
    """Return how long an environment takes to make, without and with what is kept on disk."""
    kept, seconds = os.environ.get("QMIX_TRL_CACHE"), []
    with tempfile.TemporaryDirectory() as empty:
        os.environ["QMIX_TRL_CACHE"] = empty
        for _ in range(2):
            start = time.perf_counter()
            our_env(scenario, n_envs, engine)
            seconds.append(time.perf_counter() - start)
    if kept is None:
        del os.environ["QMIX_TRL_CACHE"]
    else:
        os.environ["QMIX_TRL_CACHE"] = kept
    return seconds[0], seconds[1]


def compare(scenario: str, n_envs: int, engines: list[str], rounds: int) -> Iterator[Row]:
    """Give the rows of one scenario and number of environments."""
    starts = {}
    for engine in engines:
        try:
            starts[engine] = start_seconds(scenario, n_envs, engine)
        except ConfigError as error:
            print(error)
    nothing: Timed = lambda: 0.0  # noqa: E731
    for what, name, theirs, ours, floor in (
        ("env", OF_VMAS_ENV, vmas_env_steps, engine_steps, nothing),
        ("collect", OF_COLLECTOR, their_batches, our_batches, products(scenario, n_envs)),
    ):
        baseline, _ = theirs(scenario, n_envs)
        measures = {engine: ours(scenario, n_envs, engine) for engine in starts}
        times = [
            (baseline(), floor(), {engine: ms() for engine, (ms, _) in measures.items()})
            for _ in range(rounds)
        ]
        for engine, (_, count) in measures.items():
            ratios = [theirs / mine[engine] for theirs, _, mine in times]
            yield Row(
                what=what,
                scenario=scenario,
                n_envs=n_envs,
                engine=engine,
                baseline=name,
                ratio={
                    "median": round(statistics.median(ratios), 2),
                    "min": round(min(ratios), 2),
                    "max": round(max(ratios), 2),
                },
                ms=round(statistics.median(mine[engine] for _, _, mine in times), 4),
                baseline_ms=round(statistics.median(theirs for theirs, _, _ in times), 2),
                operations=count,
                products_ms=round(statistics.median(least for _, least, _ in times), 3),
                build_s=round(starts[engine][0], 2),
                cached_s=round(starts[engine][1], 2),
            )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", nargs="+", default=SCENARIOS)
    parser.add_argument("--envs", nargs="+", type=int, default=(32, 600, 4096))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=("kernel", "eager"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for the rows")
    parser.add_argument("--picture", type=Path, default=Path("throughput.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for scenario in arguments.scenarios:
        for n_envs in arguments.envs:
            new = list(compare(scenario, n_envs, list(arguments.engines), arguments.rounds))
            print_table(new, header=not rows)
            rows.extend(new)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    draw(rows, arguments.picture)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
