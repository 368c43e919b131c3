"""The evaluation of policies: the same test episodes for all of them."""

import math

import torch
from support.components import build_env, stream_seed, without_checks
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from qmix_trl import (
    GreedyAction,
    NoOpPolicy,
    RandomPolicy,
    env_dims,
    episode_returns,
    make_policy,
    with_memory,
)
from qmix_trl.config.schema import RunConfig
from qmix_trl.errors import DivergedError


class Evaluation:
    """The test episodes of a configuration, in an environment and with seeds of their own.

    Args:
        config: its sections ``env`` and ``evaluation`` count.
        device: of the environment and of the policies.
        n_envs: the number of environments that are stepped together, a divisor of the number of
            episodes; None for all episodes at once. Other numbers give other episodes.

    Attributes:
        env: the environment.
        seeds: of the environment, one for each round of ``n_envs`` episodes.
        dims: the sizes of the environment.
    """

    def __init__(
        self, config: RunConfig, device: torch.device, *, n_envs: int | None = None
    ) -> None:
        section = config.evaluation
        n_envs = section.episodes if n_envs is None else n_envs
        self._max_steps = config.env.max_steps
        n_rounds = section.episodes // n_envs
        self.seeds = [stream_seed(section.seed + i, "test_env") for i in range(n_rounds)]
        self._random_seed = stream_seed(section.seed, "random_policy")
        self._device = device
        self.env = build_env(
            without_checks(config),  # the training compares the steps of the same engine
            device,
            n_envs=n_envs,
            seed=self.seeds[0],
            reset_when_done=False,
        )
        self.dims = env_dims(self.env)

    def returns(self, policy: TensorDictModuleBase) -> dict[str, float]:
        """Return mean, standard deviation and number of a memoryless policy's returns.

        Raises:
            DivergedError: if one is not finite.
        """
        return self._returns(self.env, policy)

    def greedy(self, agent: TensorDictModuleBase) -> dict[str, float]:
        """Return mean, standard deviation and number of the returns of an agent's best actions.

        Raises:
            DivergedError: if one is not finite.
        """
        return self._returns(*self.with_greedy(agent))

    def with_greedy(self, agent: TensorDictModuleBase) -> tuple[EnvBase, TensorDictModuleBase]:
        """Return the environment with an agent's memory, and the policy of its best actions."""
        return with_memory(self.env, agent), make_policy(agent, GreedyAction())

    def baseline_policies(self) -> dict[str, TensorDictModuleBase]:
        """Return the policies of random actions ("random") and of doing nothing ("no_op")."""
        n_actions = self.dims.n_actions
        random = RandomPolicy(n_actions, seed=self._random_seed, device=self._device)
        return {"random": random, "no_op": NoOpPolicy(n_actions)}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Return the summaries of the baseline policies, by their names.

        Raises:
            DivergedError: if a return is not finite.
        """
        return {name: self.returns(policy) for name, policy in self.baseline_policies().items()}

    def _returns(self, env: EnvBase, policy: TensorDictModuleBase) -> dict[str, float]:
        rounds = [
            episode_returns(env, policy, max_steps=self._max_steps, seed=seed)
            for seed in self.seeds
        ]
        returns = torch.cat(rounds)
        if not returns.isfinite().all():
            raise DivergedError(
                f"the environment's rewards are not numbers: {(~returns.isfinite()).sum()} of "
                f"{len(returns)} test episodes have a return of nan or infinity"
            )
        return summarize(returns)


def summarize(returns: Tensor) -> dict[str, float]:
    """Return mean, standard deviation and number of episode returns [episodes]."""
    std = returns.std().item()
    return {"mean": returns.mean().item(), "std": std, "episodes": len(returns)}


def compare(learned: dict[str, float], other: dict[str, float]) -> str:
    """Return "above", "below" or "no different from": one mean return against another.

    Means differ if they are more than two standard errors of their difference apart.
    """
    variances = [r["std"] ** 2 / r["episodes"] for r in (learned, other)]
    margin = 2 * math.sqrt(sum(variances))
    difference = learned["mean"] - other["mean"]
    if abs(difference) <= margin:
        return "no different from"
    return "above" if difference > 0 else "below"
