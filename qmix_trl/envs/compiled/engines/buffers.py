"""The tensors that an engine writes: T steps of E environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qmix_trl.errors import ConfigError
from qmix_trl.native.large_pages import empty

if TYPE_CHECKING:  # other families than VMAS have buffers, too
    from qmix_trl.envs.vmas_simulation import Seen, VmasSimulation


@dataclass(frozen=True)
class SeenLayout:
    """The order in R floats of one environment: observation, state, action mask.

    Attributes:
        n_agents: N.
        observation_dim: O.
        state_dim: S; None where the state is the concatenation of the agents' observations.
        mask_dim: A, if there is an action mask; 0 if there is none.
    """

    n_agents: int
    observation_dim: int
    state_dim: int | None
    mask_dim: int = 0

    @property
    def mask_at(self) -> int:
        """The place of the first number of the mask."""
        return self.n_agents * self.observation_dim + (self.state_dim or 0)

    @property
    def size(self) -> int:
        """R."""
        return self.mask_at + self.n_agents * self.mask_dim

    def observation(self, seen: Tensor) -> Tensor:
        """Return the observation [.., N, O] in float [.., R], a view."""
        n = self.n_agents * self.observation_dim
        return seen[..., :n].unflatten(-1, (self.n_agents, self.observation_dim))

    def state(self, seen: Tensor) -> Tensor:
        """Return the state [.., S] in float [.., R], a view."""
        first = 0 if self.state_dim is None else self.n_agents * self.observation_dim
        return seen[..., first : self.mask_at]

    def mask(self, seen: Tensor) -> Tensor:
        """Return the action mask, bool [.., N, A], in float [.., R]."""
        return seen[..., self.mask_at :].unflatten(-1, (self.n_agents, self.mask_dim)) != 0

    def pack(self, seen: Seen) -> Tensor:
        """Return observation, state and mask as float [E, R].

        Raises:
            ConfigError: if a scenario's observations, or its state, are not as long as at first.
        """
        length = seen.observation.shape[2]
        if length != self.observation_dim:
            raise ConfigError(
                f"observation: expected {self.observation_dim} numbers of each agent as at first, "
                f"got {length}; return as many in each step and reset"
            )
        packed = self.joined(seen.observation, seen.state_and_mask)
        more = packed.shape[1] - self.size
        if more and self.state_dim is not None:
            raise ConfigError(
                f"state: expected {self.state_dim} numbers as at first, got "
                f"{self.state_dim + more}; if the scenario changes the entities of its world, "
                "take env.state=observations"
            )
        return packed

    def joined(self, observation: Tensor, state_and_mask: Tensor) -> Tensor:
        """Return float [E, R] of an observation [E, N, O] and of a state with a mask behind it."""
        observation = observation.flatten(1)
        more = state_and_mask
        if self.state_dim is None:
            more = more[:, observation.shape[1] :]
        return torch.cat([observation, more], -1) if more.shape[1] else observation


def layout_of(simulation: VmasSimulation) -> SeenLayout:
    """Return the layout of a simulation's observation, state and mask."""
    seen = simulation.observe()
    n_agents, observation_dim = seen.observation.shape[1:]
    of_team = simulation.task.state == "observations"
    state_dim = None if of_team else seen.state.shape[1]
    return SeenLayout(n_agents, observation_dim, state_dim, simulation.mask_dim)


@dataclass(frozen=True)
class Buffers:
    """T steps of E environments; ``seen`` is laid out by ``SeenLayout``.

    Attributes:
        action: int64 [E, T, N].
        seen: float [E, T + 1, R], before each step and after the last one; after a reset, the
            first of the new episode.
        last_seen: float [E, T, R], the last of the episode where done; else not written.
        agent_reward: float [E, T, N].
        reward: float [E, T], of the team.
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
        """Observation and state after each step, before any reset: float [E, T, R]."""
        return torch.where(self.done[..., None], self.last_seen, self.seen[:, 1:])

    def check_room(self, n_steps: int) -> None:
        """Refuse more steps than the buffers have room for.

        Raises:
            ValueError: if ``n_steps`` exceeds T.
        """
        room = self.action.shape[1]
        if n_steps > room:
            raise ValueError(
                f"Buffers: expected room for {n_steps} steps, got {room}; make larger buffers"
            )

    def write(
        self,
        t: int,
        seen: Tensor,
        agent_reward: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
    ) -> None:
        """Write the results of one step.

        Args:
            t: the step.
            seen: float [E, R], before any reset.
            agent_reward: float [E, N].
            reward: float [E].
            terminated: bool [E].
            truncated: bool [E].
        """
        self.seen[:, t + 1] = self.last_seen[:, t] = seen
        self.agent_reward[:, t] = agent_reward
        self.reward[:, t] = reward
        self.terminated[:, t] = terminated
        self.truncated[:, t] = truncated
        self.done[:, t] = terminated | truncated

    @classmethod
    def empty(cls, n_envs: int, n_steps: int, layout: SeenLayout, device: torch.device) -> Buffers:
        """Return buffers whose actions are 0 and whose other contents are undefined.

        Args:
            n_envs: E.
            n_steps: T.
            layout: of observation and state.
            device: of all tensors.
        """
        n, steps = layout.n_agents, (n_envs, n_steps)
        flags = [empty(*steps, dtype=torch.bool, device=device) for _ in range(3)]
        return cls(
            empty(*steps, n, dtype=torch.int64, device=device).zero_(),
            empty(n_envs, n_steps + 1, layout.size, device=device),
            empty(*steps, layout.size, device=device),
            empty(*steps, n, device=device),
            empty(*steps, device=device),
            *flags,
        )
