"""How fast environments step and are collected: python recipes/throughput.py [--scenarios NAME ..]

Every engine and collector runs in turn beside TorchRL's ``VmasEnv`` and ``Collector``, in one
process and one thread; what counts is the ratio within a round. It prints a table and leaves
throughput.png.
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

import torch
from tensordict import TensorDictBase
from throughput_report import draw, print_table
from torchrl.collectors import Collector
from torchrl.envs import InitTracker, TransformedEnv
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
BASELINE_STEPS = 10
ROLLOUT_STEPS = 20  # of the kernel in one call; its rows then stay in the cache
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
    return timed(lambda: steps(BASELINE_STEPS), BASELINE_STEPS), operations(lambda: steps(1))


def engine_steps(scenario: str, n_envs: int, engine: str) -> tuple[Timed, int]:
    """Return what times an engine's rollout of random actions, and its operations a step."""
    env = our_env(scenario, n_envs, engine)
    dims, n_steps = env_dims(env), ROLLOUT_STEPS if engine == "kernel" else BASELINE_STEPS
    rows = Buffers.empty(n_envs, n_steps, env.engine.layout, env.device)
    rows.action.random_(dims.n_actions)
    env.reset()

    def rollout() -> None:
        env.engine.advance(rows, 0, n_steps, reset_when_done=True)

    rollout()
    one_step = operations(lambda: env.engine.advance(rows, 0, 1, reset_when_done=True))
    return timed(rollout, n_steps), max(1, one_step)


def collecting(scenario: str, n_envs: int, engine: str | None) -> tuple[Timed, int]:
    """Return what times collection with a GRU of 64: fused, or stock over ``VmasEnv`` for None."""
    torch.manual_seed(0)
    if engine is None:
        env = TransformedEnv(their_env(scenario, n_envs), InitTracker())
        observation = env.observation_spec["agents", "observation"]
        n_actions = env.full_action_spec[ACTION].space.n
        sizes = (*observation.shape[1:], n_actions)
    else:
        env = our_env(scenario, n_envs, engine)
        dims = env_dims(env)
        sizes = (dims.n_agents, dims.observation_dim, dims.n_actions)
    agent = RecurrentAgent(*sizes, hidden_dim=64)
    policy = make_policy(agent, EpsilonGreedyAction(0.3, 0.3, 0, seed=0))
    env = with_memory(env, agent)
    n_steps = BASELINE_STEPS if engine is None else MAX_STEPS
    batches: Iterator[TensorDictBase]
    if engine is None:
        batches = iter(
            Collector(
                env,
                policy,
                frames_per_batch=n_envs * n_steps,
                total_frames=-1,
                trust_policy=True,
                auto_register_policy_transforms=False,
            )
        )
        for _ in range(WARM_UP_STEPS // n_steps):
            next(batches)
    else:
        batches = iter(
            make_collector(
                env, policy, rows="slices", steps=n_steps, n_batches=10**9, collector="fused"
            )
        )
        next(batches)
    return timed(lambda: next(batches), n_steps), operations(lambda: next(batches)) // n_steps


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
    for what, name, baseline, run in (
        ("env", OF_VMAS_ENV, lambda: vmas_env_steps(scenario, n_envs), engine_steps),
        ("collect", OF_COLLECTOR, lambda: collecting(scenario, n_envs, None), collecting),
    ):
        theirs, _ = baseline()
        ours = {engine: run(scenario, n_envs, engine) for engine in starts}
        their_ms, our_ms = [], {engine: [] for engine in ours}
        for _ in range(rounds):
            their_ms.append(theirs())
            for engine, (measure, _) in ours.items():
                our_ms[engine].append(measure())
        for engine, (_, count) in ours.items():
            ratios = [a / b for a, b in zip(their_ms, our_ms[engine], strict=True)]
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
                ms=round(statistics.median(our_ms[engine]), 4),
                baseline_ms=round(statistics.median(their_ms), 2),
                operations=count,
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
