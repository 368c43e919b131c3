"""The agents of a VMAS scenario that act outside the team, by a policy of their own."""

from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from qmix_trl import keys
from qmix_trl.envs.others import Simulation
from qmix_trl.errors import ConfigError
from qmix_trl.policy import AgentPolicy

MEMORY = "memory_of_others"  # an attribute of a simulator, which is saved with all that it holds


class ByPolicy:
    """The others act by a policy, such as that of a trained run.

    Args:
        simulation: of E environments.
        policy: reads the others' observations, ``is_init`` and its memory; writes actions.

    Raises:
        ConfigError: if it is a policy of ``make_policy`` for other sizes.
    """

    def __init__(self, simulation: Simulation, policy: TensorDictModuleBase) -> None:
        self._simulation = simulation
        self._policy = policy
        n_envs, device = simulation.n_envs, simulation.device
        kept = {keys.IS_INIT: torch.ones(n_envs, 1, dtype=torch.bool, device=device)}
        if isinstance(policy, AgentPolicy):
            agent: Any = policy.agent
            self._check_sizes(agent)
            zeros = agent.memory_spec.to(device).expand(n_envs, *agent.memory_spec.shape).zero()
            kept |= dict(zeros.items(True, True))
        setattr(simulation.simulator, MEMORY, kept)

    def _check_sizes(self, agent: Any) -> None:
        others = self._simulation.others
        observation, _ = self._simulation.seen_by(others)
        n_actions = max(map(self._simulation.n_actions_of, others))
        got = len(others), observation.shape[2], n_actions
        sizes = agent.inputs.n_agents, agent.inputs.observation_dim, agent.n_actions
        if sizes != got:
            raise ConfigError(
                f"env.others: expected a policy of {got[0]} agents, {got[1]} observed numbers and "
                f"{got[2]} actions, got one of {sizes[0]}, {sizes[1]} and {sizes[2]}"
            )

    def commands(self) -> dict[int, Tensor]:
        """Return the actions, int64 [E, 1] each; the memory goes on."""
        simulation = self._simulation
        observation, mask = simulation.seen_by(simulation.others)
        kept = vars(simulation.simulator)[MEMORY]
        step = TensorDict({}, [simulation.n_envs], device=simulation.device)
        step.set(keys.OBSERVATION, observation)
        if mask is not None:
            step.set(keys.ACTION_MASK, mask != 0)
        for key, value in kept.items():
            step.set(key, value.clone())
        with torch.no_grad():
            step = self._policy(step)
        for key, value in kept.items():
            if key == keys.IS_INIT:
                value.fill_(False)
            else:
                value.copy_(step[keys.next_key(key)])
        return dict(zip(simulation.others, step[keys.ACTION][..., None].unbind(1), strict=True))

    def forget(self, i: int | None) -> None:
        """Begin an episode of environment i, or of all."""
        for key, value in vars(self._simulation.simulator)[MEMORY].items():
            value[slice(None) if i is None else i] = key == keys.IS_INIT
