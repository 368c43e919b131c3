"""Measure throughput: python recipes/throughput.py [--what env collect ..] [--scenarios NAME ..]

Engines and collectors are compared with TorchRL's ``VmasEnv`` and ``Collector``, updates with a
loop of GRU cells and with TorchRL's ``QMixerLoss``, whole training with both. All run in one
process and, by default, in one thread; each round runs both sides, and the ratio within a round
counts. A round of an environment is whole episodes, with their resets. It prints a table and
leaves throughput.png.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict

from support.command_line import throughput_arguments

if __name__ == "__main__":
    arguments = throughput_arguments(__doc__)  # before torch is imported: mistakes are told at once

import torch
from support.throughput.collection import (
    engine_steps,
    our_batches,
    our_env,
    products,
    their_batches,
    vmas_env_steps,
)
from support.throughput.report import draw, print_table
from support.throughput.timing import NOTHING, Case, measured
from support.throughput.training import training
from support.throughput.updates import updates

from qmix_trl.errors import ConfigError


def start_seconds(scenario: str, n_envs: int, engine: str) -> tuple[float, float]:
    """Return the seconds to make an environment, with an empty and with a full cache on disk."""
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


def collection(scenario: str, n_envs: int, engines: list[str], whats: list[str]) -> Iterator[Case]:
    """Yield the cases of one scenario and number of environments.

    Args:
        scenario: of VMAS.
        n_envs: the number of environments.
        engines: to compare; one that does not run the scenario is left out, with its reason.
        whats: the parts that are timed; "env" and "collect" count here.
    """
    seconds = {}
    for engine in engines:
        try:
            seconds[engine] = start_seconds(scenario, n_envs, engine)
        except ConfigError as error:
            print(error)
    for what, name, theirs, ours in (
        ("env", "VmasEnv", vmas_env_steps, engine_steps),
        ("collect", "Collector over VmasEnv", their_batches, our_batches),
    ):
        if what in whats:
            yield Case(
                what=what,
                scenario=scenario,
                n_envs=n_envs,
                baseline=name,
                theirs=theirs(scenario, n_envs)[0],
                ours={engine: ours(scenario, n_envs, engine) for engine in seconds},
                products=products(scenario, n_envs) if what == "collect" else NOTHING,
                per_step=n_envs,
                seconds=seconds,
            )


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases that the command line asks for."""
    whats = arguments.what
    for scenario in arguments.scenarios:
        for n_envs in arguments.envs if {"env", "collect"} & set(whats) else ():
            yield from collection(scenario, n_envs, arguments.engines, whats)
    yield from (case for case in updates() if case.what in whats)
    for what in sorted({"train-1", "train-4"} & set(whats)):
        for scenario in arguments.scenarios:
            yield training(scenario, int(what[-1]))


def main(arguments: argparse.Namespace) -> None:
    """Measure the cases that the command line asks for."""
    torch.set_num_threads(arguments.threads)
    timings = []
    for case in cases(arguments):
        new = list(measured(case, arguments.rounds))
        print_table(new, header=not timings)
        timings.extend(new)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=1))
    draw(timings, arguments.picture)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main(arguments)
