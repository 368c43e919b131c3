"""Where an engine writes what steps give: rows of T steps of E environments."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qmix_trl.envs.vmas_simulation import Seen, VmasSimulation
from qmix_trl.native.large_pages import empty


@dataclass(frozen=True)
class SeenLayout:
    """How what can be observed stands in R floats of one environment: observation, then state.

    Attributes:
        n_agents: N.
        observation_dim: O.
        state_dim: S; None where the state is the agents' observations side by side.
    """

    n_agents: int
    observation_dim: int
    state_dim: int | None

    @property
    def size(self) -> int:
        """R."""
        return self.n_agents * self.observation_dim + (self.state_dim or 0)

    def observation(self, seen: Tensor) -> Tensor:
        """Return the observation [.., N, O] of float [.., R], a view."""
        n = self.n_agents * self.observation_dim
        return seen[..., :n].unflatten(-1, (self.n_agents, self.observation_dim))

    def state(self, seen: Tensor) -> Tensor:
        """Return the state [.., S] of float [.., R], a view."""
        return seen if self.state_dim is None else seen[..., -self.state_dim :]

    def pack(self, seen: Seen) -> Tensor:
        """Return float [E, R]."""
        observation = seen.observation.flatten(1)
        return observation if self.state_dim is None else torch.cat([observation, seen.state], -1)


def layout_of(simulation: VmasSimulation) -> SeenLayout:
    """Return how a simulation's sight is laid out."""
    seen = simulation.observe()
    n_agents, observation_dim = seen.observation.shape[1:]
    of_team = simulation.task.state == "observations"
    return SeenLayout(n_agents, observation_dim, None if of_team else seen.state.shape[1])


@dataclass(frozen=True)
class Buffers:
    """Rows of T steps; ``seen`` holds what is observed before each step and behind the last.

    Attributes:
        action: int64 [E, T, N].
        seen: float [E, T + 1, R], behind a reset where there was one.
        last_seen: float [E, T, R], where done what was seen before the reset; else not written.
        agent_reward: float [E, T, N].
        reward: float [E, T], the team's.
        terminated: bool [E, T].
        truncated: bool [E, T].
        done: bool [E, T].
    """

    action: Tensor
    seen: Tensor
    last_seen: Tensor
    agent_reward: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    done: Tensor

    @property
    def next_seen(self) -> Tensor:
        """What is seen behind each step, before any reset: float [E, T, R]."""
        return torch.where(self.done[..., None], self.last_seen, self.seen[:, 1:])

    def write(
        self,
        t: int,
        seen: Tensor,
        agent_reward: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
    ) -> None:
        """Write one step: seen [E, R] before any reset, agent reward [E, N], and the rest [E]."""
        self.seen[:, t + 1] = self.last_seen[:, t] = seen
        self.agent_reward[:, t] = agent_reward
        self.reward[:, t] = reward
        self.terminated[:, t] = terminated
        self.truncated[:, t] = truncated
        self.done[:, t] = terminated | truncated

    @classmethod
    def empty(
        cls, n_envs: int, n_steps: int, layout: SeenLayout, device: torch.device
    ) -> "Buffers":
        """Return buffers that hold nothing yet."""
        n, row = layout.n_agents, (n_envs, n_steps)
        flags = [empty(*row, dtype=torch.bool, device=device) for _ in range(3)]
        return cls(
            empty(*row, n, dtype=torch.int64, device=device).zero_(),
            empty(n_envs, n_steps + 1, layout.size, device=device),
            empty(*row, layout.size, device=device),
            empty(*row, n, device=device),
            empty(*row, device=device),
            *flags,
        )
