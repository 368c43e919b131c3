"""Export a run's policy: python recipes/export.py runs/NAME [--format pt2] [--out FILE]

It writes the greedy policy of one agent, with its hidden state as input and output, and compares
the file with the agent in 200 steps of the run's environment. Then it prints a program that runs
the file.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from support.run_arguments import export_arguments

if __name__ == "__main__":
    arguments = export_arguments(__doc__)  # before torch is imported: mistakes are told at once

import torch
from support.components import build_env, stream_seed, without_checks
from support.export_programs import NEEDED, described, program
from support.parity import Parity, parity
from support.run_folder import CONFIG_FILE
from support.sources import with_sources
from support.terminal import filled
from support.threads import set_threads

from qmix_trl import (
    CheckpointError,
    PlainPolicy,
    RunConfig,
    SaveError,
    env_dims,
    export_policy,
    load_config,
    load_weights,
)
from qmix_trl.config.schema import InPython
from qmix_trl.errors import exit_on_mistake
from qmix_trl.export import load_policy
from qmix_trl.keys import ACTION_MASK
from qmix_trl.trained import build_agent

CPU = torch.device("cpu")
STEPS, ENVS = 200, 2  # of the comparison


def export(folder: Path, *, format: str, out: Path, weights: str) -> tuple[PlainPolicy, Parity]:
    """Write the policy of a run to a file; return it, with its differences from the agent.

    Args:
        folder: of the run.
        format: "pt2", "onnx" or "safetensors".
        out: the file.
        weights: "last" or "best".

    Raises:
        CheckpointError: if the file decides otherwise than the agent; it is not kept.
        ConfigError: if the folder is no run's.
        SaveError: if the file cannot be written.
    """
    config = with_sources(load_config(folder / CONFIG_FILE), folder)
    set_threads(config.runtime.threads)
    seed = stream_seed(config.evaluation.seed, "test_env")
    env = build_env(
        in_one_process(without_checks(config)), CPU, n_envs=ENVS, seed=seed, reset_when_done=True
    )
    agent = build_agent(config, env_dims(env), CPU)
    load_weights(folder, agent, weights=weights)
    masked = ACTION_MASK in env.observation_spec.keys(True, True)
    policy = PlainPolicy(agent, masked=masked)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as part:
            written = Path(part) / out.name
            export_policy(policy, written, format=format)
            run = load_policy(policy, written, format=format)
            found = parity(env, agent, policy, run, n_steps=STEPS)
            if not found.holds:
                raise CheckpointError(f"{out}: not kept, as it decides otherwise: {found}")
            written.replace(out)
    except OSError as error:
        raise SaveError(f"{out}: cannot be written: {error.strerror or error}") from error
    return policy, found


def in_one_process(config: RunConfig) -> RunConfig:
    """Return a configuration whose environments are all in this process."""
    if not isinstance(config.env, InPython):
        return config
    return replace(config, env=replace(config.env, processes=1))


if __name__ == "__main__":
    with exit_on_mistake():
        policy, found = export(**vars(arguments))
        for line in (f"{arguments.out}: {described(policy)}\nparity: {found}").splitlines():
            print(filled(line))
        needed = NEEDED[arguments.format]
        print(f"a program for it, which needs {needed} alone:\n")
        print(program(policy, arguments.out, arguments.format))
        print("\nnext: save these lines as act.py; python act.py")
