"""The collector of a run: in its process, or by actors of Ray."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from support.components import build_collector, memory_of_rows, n_batches, stream_seed
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, RewardSum, TransformedEnv

from qmix_trl import EnvFactory, with_memory
from qmix_trl.config import RunConfig
from qmix_trl.fused import FusedCollector
from qmix_trl.keys import EPISODE_REWARD, REWARD
from qmix_trl.policy import AgentPolicy

if TYPE_CHECKING:
    from qmix_trl.ray_actors import RayActors


@dataclass(frozen=True)
class ActorEnvs:
    """Makes the environments of an actor, as the recipes collect from them.

    Args:
        factory: of the environments, with an agent's memory.
    """

    factory: EnvFactory

    def __call__(self) -> EnvBase:
        """Return the environments."""
        return with_returns(self.factory())


def with_returns(env: EnvBase) -> EnvBase:
    """Return an environment that sums the team's rewards since the reset."""
    return TransformedEnv(env, RewardSum([REWARD], [EPISODE_REWARD]))


def begin_collector(
    config: RunConfig, env: EnvBase | None, policy: AgentPolicy, device: torch.device
) -> "Collector | FusedCollector | RayActors":
    """Return the collector of a run.

    Args:
        config: of the run.
        env: the training environment; None where actors make their own.
        policy: that acts.
        device: of the batches.

    Raises:
        ConfigError: if the fused collector is asked for and the environment has none.
        MachineError: if actors do not begin.
    """
    if env is not None:
        return build_collector(config, with_returns(with_memory(env, policy.agent)), policy)
    from qmix_trl.ray_actors import RayActors  # for these runs alone

    section = config.collection
    factory = EnvFactory(
        config,
        seed=stream_seed(config.seed, "env"),
        n_envs=config.env.n_envs // config.env.processes,
        reset_when_done=section.rows == "slices",
        memory=policy.agent.memory_spec,
    )
    return RayActors(
        lambda number: ActorEnvs(factory.for_worker(number)),
        policy,
        n_actors=config.env.processes,
        n_envs=config.env.n_envs,
        rows=section.rows,
        steps=section.steps,
        n_batches=n_batches(config),
        memory=memory_of_rows(config),
        device=device,
    )
