"""Measure throughput: python recipes/throughput.py [--device cuda] [--what env ..] [--envs N ..]

Engines and collectors are compared with TorchRL's ``VmasEnv`` and ``Collector``, updates with a
loop of GRU cells and with TorchRL's ``QMixerLoss``, whole training with both, on the same device.
All run in one process and, by default, in one thread; each round runs both sides, and the ratio
within a round counts. On the CPU a round of an environment is whole episodes, with their resets.
On a GPU the baselines run a few steps after a common reset. It prints a table and leaves
throughput.png.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from support.command_line import throughput_arguments

if __name__ == "__main__":
    arguments = throughput_arguments(__doc__)  # before torch is imported: mistakes are told at once

import torch
from support.components import choose_device
from support.curve_report import written
from support.terminal import filled
from support.throughput.ceiling import ceiling
from support.throughput.collection import (
    engine_steps,
    our_batches,
    our_env,
    products,
    their_batches,
    vmas_env_steps,
)
from support.throughput.plan import Plan, machine, plan_of
from support.throughput.profile import profile
from support.throughput.report import Timing, draw, print_table
from support.throughput.timing import Case, Side, measured, release
from support.throughput.training import training
from support.throughput.updates import updates

from qmix_trl.errors import ConfigError, MachineError, exit_on_mistake


def start_seconds(plan: Plan, scenario: str, n_envs: int, engine: str) -> tuple[float, float]:
    """Return the seconds to make an environment, with an empty and with a full cache on disk.

    Args:
        plan: of the measurement.
        scenario: of VMAS.
        n_envs: the number of environments.
        engine: of ours.
    """
    kept, seconds = os.environ.get("QMIX_TRL_CACHE"), []
    with tempfile.TemporaryDirectory() as empty:
        os.environ["QMIX_TRL_CACHE"] = empty
        for _ in range(2):
            start = time.perf_counter()
            our_env(scenario, n_envs, engine, plan.device)
            seconds.append(time.perf_counter() - start)
    if kept is None:
        del os.environ["QMIX_TRL_CACHE"]
    else:
        os.environ["QMIX_TRL_CACHE"] = kept
    return seconds[0], seconds[1]


def starts(plan: Plan, scenario: str, n_envs: int) -> dict[str, tuple[float, float]]:
    """Return the seconds of two starts of each engine that runs a scenario, and print refusals.

    A GPU's kernels take too long to build them for every number of environments: no seconds.
    """
    if plan.on_gpu:
        return dict.fromkeys(plan.engines, (0.0, 0.0))
    seconds = {}
    for engine in plan.engines:
        try:
            seconds[engine] = start_seconds(plan, scenario, n_envs, engine)
        except (ConfigError, MachineError) as error:
            print(error)
    return seconds


def collection(plan: Plan, scenario: str, n_envs: int) -> Iterator[Case]:
    """Yield the cases of one scenario and number of environments."""
    seconds = starts(plan, scenario, n_envs)
    for what, name, theirs, ours in (
        ("env", "VmasEnv", vmas_env_steps, engine_steps),
        ("collect", "Collector over VmasEnv", their_batches, our_batches),
    ):
        if what in plan.what:
            yield Case(
                what=what,
                scenario=Path(scenario).name,
                n_envs=n_envs,
                device=plan.device,
                baseline=f"{name}, {plan.baseline_steps} steps" if plan.on_gpu else name,
                theirs=partial(theirs, plan, scenario, n_envs),
                ours={engine: partial(ours, plan, scenario, n_envs, engine) for engine in seconds},
                products=partial(products, plan, scenario, n_envs) if what == "collect" else None,
                per_step=n_envs,
                seconds=seconds,
            )


def cases(plan: Plan) -> Iterator[Case]:
    """Yield the cases of a plan."""
    for scenario in plan.scenarios:
        for n_envs in plan.envs if {"env", "collect"} & set(plan.what) else ():
            yield from collection(plan, scenario, n_envs)
    yield from (case for case in updates(plan) if case.what in plan.what)
    for what in sorted({"train-1", "train-4"} & set(plan.what)):
        for scenario in plan.scenarios:
            yield training(plan, scenario, int(what[-1]))


def profile_engines(case: Case, sides: dict[str, Side], folder: Path) -> None:
    """Write a profile of each of our engines in a case to a folder."""
    for engine in set(case.ours) & set(sides):
        name = f"{case.what}-{case.scenario}-{case.n_envs}-{engine}.txt"
        profile(sides[engine].runner, folder / name, case.device)


def measure(plan: Plan, json_file: Path | None, profiles: Path | None) -> list[Timing]:
    """Measure and print a plan's cases; return the lines of the table.

    Args:
        plan: of the measurement.
        json_file: for the lines; written after each case.
        profiles: a folder for a profile of each engine in each case.
    """
    timings: list[Timing] = []
    for case in cases(plan):
        new, sides = measured(case, plan.rounds)
        print_table(new, header=not timings, details=plan.on_gpu)
        timings.extend(new)
        if json_file:
            with written(json_file):
                json_file.write_text(json.dumps([asdict(timing) for timing in timings], indent=1))
        if profiles:
            with written(profiles):
                profile_engines(case, sides, profiles)
        del sides
        release()
    return timings


def main(arguments: argparse.Namespace) -> None:
    """Measure the cases that the command line asks for."""
    torch.set_num_threads(arguments.threads)
    plan = plan_of(arguments, choose_device(arguments.device, "--device"))
    if plan.on_gpu:
        print(", ".join(f"{name} {value}" for name, value in machine(plan.device).items()))
    else:
        print(filled(ceiling(arguments.threads)))
    timings = measure(plan, arguments.json, arguments.profile)
    if any(timing.ratio for timing in timings):
        with written(arguments.picture):
            draw(timings, arguments.picture)
        print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    with exit_on_mistake():
        main(arguments)
