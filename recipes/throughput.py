"""How fast it is: python recipes/throughput.py [--what env collect ..] [--scenarios NAME ..]

Every engine and collector runs in turn beside TorchRL's ``VmasEnv`` and ``Collector``, updates
beside a loop of GRU cells and TorchRL's ``QMixerLoss``, whole training beside both, in one process
and, unless told otherwise, one thread; what counts is the ratio within a round. A round of an
environment is whole episodes, with their resets. It prints a table and leaves throughput.png.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from support.throughput.collection import (
    engine_steps,
    our_batches,
    our_env,
    products,
    their_batches,
    vmas_env_steps,
)
from support.throughput.report import TITLES, draw, print_table
from support.throughput.timing import NOTHING, Case, measured
from support.throughput.training import training
from support.throughput.updates import updates

from qmix_trl.errors import ConfigError

SCENARIOS = ("balance", "navigation", "simple_spread", "dispersion", "transport", "discovery")
ENGINES = ("kernel", "inductor", "eager")


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


def collection(scenario: str, n_envs: int, engines: list[str], whats: list[str]) -> Iterator[Case]:
    """Give the cases of one scenario and number of environments."""
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
                of_a_step=n_envs,
                seconds=seconds,
            )


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Give what the command line asks for."""
    whats = arguments.what
    for scenario in arguments.scenarios:
        for n_envs in arguments.envs if {"env", "collect"} & set(whats) else ():
            yield from collection(scenario, n_envs, arguments.engines, whats)
    yield from (case for case in updates() if case.what in whats)
    for what in sorted({"train-1", "train-4"} & set(whats)):
        for scenario in arguments.scenarios:
            yield training(scenario, int(what[-1]))


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", nargs="+", choices=TITLES, default=list(TITLES))
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
    for case in cases(arguments):
        new = list(measured(case, arguments.rounds))
        print_table(new, header=not rows)
        rows.extend(new)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    draw(rows, arguments.picture)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
