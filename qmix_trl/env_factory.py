"""The environments of a configuration, made here or in another process."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torchrl.data import Composite
from torchrl.envs import EnvBase, RewardSum, TransformedEnv

from qmix_trl.agents.layers import memory_primer
from qmix_trl.checkpoint.weights import load_weights
from qmix_trl.config.load import load_config
from qmix_trl.config.run_files import CONFIG_FILE
from qmix_trl.config.schema import OTHERS, InPython, RunConfig, VmasConfig, settings
from qmix_trl.envs import env_dims, make_env
from qmix_trl.errors import ConfigError
from qmix_trl.keys import EPISODE_REWARD, REWARD
from qmix_trl.policy import AgentPolicy, GreedyAction, make_policy
from qmix_trl.trained import build_agent


class EnvFactory:
    """Makes the environments of a configuration: ``EnvFactory(config, seed=0)()``.

    It can be sent to other processes and hosts, by pickle, cloudpickle, spawn and Ray, and makes
    them there, on the fastest engine that runs there: ``env.how`` names it. TorchRL's
    ``ParallelEnv`` and collectors take a list of ``factory.for_worker(i)``.

    Args:
        config: of a run (``load_config``).
        seed: of the environments.
        n_envs: E; None for the configured number.
        device: of the environments.
        reset_when_done: whether each environment is reset when it is done.
        memory: the ``memory_spec`` of an agent, whose memory the environments are to carry as
            those of ``with_memory`` do; None for environments without.
        sums_rewards: whether they show the team's return since the reset, ``episode_reward``.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        seed: int,
        n_envs: int | None = None,
        device: torch.device | str = "cpu",
        reset_when_done: bool = True,
        memory: Composite | None = None,
        sums_rewards: bool = False,
    ) -> None:
        self.config = config
        self.seed = seed
        self.n_envs = config.env.n_envs if n_envs is None else n_envs
        self.device = torch.device(device)
        self.reset_when_done = reset_when_done
        # On the CPU, as another host may have no GPU.
        self.memory = None if memory is None else memory.to("cpu")
        self.sums_rewards = sums_rewards

    def __call__(self) -> EnvBase:
        """Return the environments.

        Raises:
            ConfigError: if they cannot be made.
            MachineError: if the configured engine needs a compiler that works.
        """
        section = self.config.env
        arguments = {**settings(section), "n_envs": self.n_envs, "seed": self.seed}
        if isinstance(section, VmasConfig) and section.others not in OTHERS:
            arguments["others"] = policy_of_run(Path(section.others), section, self.device)
        env = make_env(**arguments, device=self.device, reset_when_done=self.reset_when_done)
        if self.memory is not None:
            env = TransformedEnv(env, memory_primer(self.memory.to(env.device)))
        if self.sums_rewards:
            env = TransformedEnv(env, RewardSum([REWARD], [EPISODE_REWARD]))
        return env

    def for_worker(self, number: int) -> "EnvFactory":
        """Return the factory of one of several workers, each with E environments of its own.

        Its seed is made of this factory's and the worker's number. A worker steps its environments
        itself, whatever ``env.processes`` says.
        """
        section = self.config.env
        alone = replace(section, processes=1) if isinstance(section, InPython) else section
        return EnvFactory(
            replace(self.config, env=alone),
            seed=int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]),
            n_envs=self.n_envs,
            device=self.device,
            reset_when_done=self.reset_when_done,
            memory=self.memory,
            sums_rewards=self.sums_rewards,
        )


def policy_of_run(folder: Path, env: VmasConfig, device: torch.device) -> AgentPolicy:
    """Return the greedy policy of a trained run, for the agents outside the team.

    Args:
        folder: of the run.
        env: in which they are to act.
        device: of the policy.

    Raises:
        ConfigError: if the run is of another scenario.
        CheckpointError: if its weights are damaged.
    """
    config = load_config(folder / CONFIG_FILE)
    names = [Path(section.scenario).name.partition(".py")[0] for section in (config.env, env)]
    if not isinstance(config.env, VmasConfig) or names[0] != names[1]:
        raise ConfigError(
            f"env.others: expected a run on {names[1]}, got {folder}, which is one on {names[0]}"
        )
    seen = replace(env, group=config.env.group, others=OTHERS[0], engine="eager", verify=0.0)
    alone = make_env(**{**settings(seen), "n_envs": 1, "seed": 0})
    agent = build_agent(config, env_dims(alone), device)
    load_weights(folder, agent)
    return make_policy(agent, GreedyAction())
