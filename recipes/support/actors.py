"""The collector of a run: in its process, or by actors of Ray."""

from typing import TYPE_CHECKING

import torch
from support.components import build_collector, memory_of_rows, n_batches, stream_seed
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, RewardSum

from qmix_trl import EnvFactory, with_memory
from qmix_trl.config.schema import RunConfig
from qmix_trl.fused import FusedCollector
from qmix_trl.keys import EPISODE_REWARD, REWARD
from qmix_trl.policy import AgentPolicy

if TYPE_CHECKING:
    from qmix_trl.ray_actors import RayActors


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
        env = with_memory(env, policy.agent).append_transform(RewardSum([REWARD], [EPISODE_REWARD]))
        return build_collector(config, env, policy)
    from qmix_trl.ray_actors import RayActors  # for these runs alone

    section = config.collection
    factory = EnvFactory(
        config,
        seed=stream_seed(config.seed, "env"),
        n_envs=config.env.n_envs // config.env.processes,
        reset_when_done=section.rows == "slices",
        memory=policy.agent.memory_spec,
        sums_rewards=True,
    )
    return RayActors(
        factory.for_worker,
        policy,
        n_actors=config.env.processes,
        n_envs=config.env.n_envs,
        rows=section.rows,
        steps=section.steps,
        n_batches=n_batches(config),
        memory=memory_of_rows(config),
        device=device,
    )
