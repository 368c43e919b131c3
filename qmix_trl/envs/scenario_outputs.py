"""The outputs of a scenario's methods, as tensors of one shape for all agents."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from qmix_trl.envs.scenario_errors import defined_at
from qmix_trl.errors import ConfigError
from qmix_trl.keys import ACTION_MASK

MASK = ACTION_MASK[-1]  # in an observation that is a dictionary
Observation = Tensor | dict[str, Any]  # of one agent, as a scenario returns it


class ScenarioOutputs:
    """Reads the outputs of a scenario's methods for E environments, and checks their shapes.

    Args:
        name: of the scenario, for messages.
        simulator: VMAS, with the scenario.
    """

    def __init__(self, name: str, simulator: Environment) -> None:
        self._name = name
        self._simulator = simulator
        self._n_envs = simulator.num_envs

    def _wrong(self, of: str, message: str) -> ConfigError:
        """Return the error of an output.

        Args:
            of: the output; its first word is the method.
            message: what was expected, and what was got.
        """
        line = defined_at(self._simulator.scenario, of.split()[0])
        return ConfigError(f"VMAS scenario {self._name!r}: {of}: {message}{line}")

    def _agent(self, i: int) -> str:
        """Return the name of agent i."""
        return self._simulator.agents[i].name

    def column_of(self, value: Tensor, of: str) -> Tensor:
        """Return a number for each environment as [E, 1]; one number is for all of them.

        Args:
            value: float or bool [E], [E, 1] or of one element.
            of: the output, for messages; its first word is the method.

        Raises:
            ConfigError: if it has another shape.
        """
        if value.numel() == 1:
            return value.reshape(1, 1).expand(self._n_envs, 1)
        if value.shape not in ((self._n_envs,), (self._n_envs, 1)):
            raise self._wrong(
                of,
                f"expected a shape of [{self._n_envs}] or [{self._n_envs}, 1], got "
                f"{list(value.shape)}",
            )
        return value.reshape(-1, 1)

    def observation_of(self, i: int, value: Observation) -> Tensor:
        """Return the observation of agent i as float32 [E, O]; entries are concatenated.

        Raises:
            ConfigError: if the first axis is not E.
        """
        if isinstance(value, dict):
            parts = [self.observation_of(i, part) for key, part in value.items() if key != MASK]
            return torch.cat(parts, -1)
        if value.shape[:1] != (self._n_envs,):
            raise self._wrong(
                f"observation of {self._agent(i)}",
                f"expected a shape of [{self._n_envs}, ...], got {list(value.shape)}",
            )
        return (value[:, None] if value.dim() == 1 else value.flatten(1)).to(torch.float32)

    def masks_of(self, indices: list[int], observations: list[Observation]) -> Tensor | None:
        """Return the action mask of agents, float32 [E, M, A]; None if all are available.

        Args:
            indices: of the M agents.
            observations: theirs; an entry ``action_mask`` [E, number of actions] is the mask.

        Raises:
            ConfigError: if a mask has another shape.
        """
        given = [value.get(MASK) if isinstance(value, dict) else None for value in observations]
        counts = [self._simulator.action_space[i].n for i in indices]
        if all(mask is None for mask in given) and len({*counts}) == 1:
            return None
        masks = []
        for i, mask, count in zip(indices, given, counts, strict=True):
            if mask is None:
                mask = torch.ones(self._n_envs, count, device=self._simulator.device)
            if mask.shape != (self._n_envs, count):
                raise self._wrong(
                    f"observation of {self._agent(i)}",
                    f"expected {MASK!r} of [{self._n_envs}, {count}], for {count} actions, got "
                    f"{list(mask.shape)}",
                )
            masks.append((mask != 0).to(torch.float32))
        return stacked(masks)

    def infos_of(self, infos: list[dict[str, Any]]) -> dict[tuple[str, ...], Tensor]:
        """Return the infos of M agents by key, float32 [E, M, ...].

        Raises:
            ConfigError: if the agents' infos differ in their keys or shapes.
        """
        flat = [dict(self._flat_info(info)) for info in infos]
        described = [{key: list(v.shape[1:]) for key, v in info.items()} for info in flat]
        if any(shapes != described[0] for shapes in described):
            raise self._wrong(
                "info", f"expected the same entries for all agents of the team, got {described}"
            )
        return {key: torch.stack([info[key] for info in flat], 1) for key in flat[0]}

    def _flat_info(self, info: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Yield the entries of an agent's infos by key: float32 [E, ...], or [E, 1] of [E]."""
        for name, value in info.items():
            if isinstance(value, dict):
                yield from (((name, *key), part) for key, part in self._flat_info(value))
            elif not isinstance(value, Tensor):
                raise self._wrong(
                    f"info {name!r}", f"expected a tensor, got {type(value).__name__}"
                )
            elif value.dim() < 2:
                yield (name,), self.column_of(value, f"info {name!r}").to(torch.float32)
            else:
                yield (name,), value.to(torch.float32)


def stacked(parts: list[Tensor]) -> Tensor:
    """Return numbers [E, n] of M agents as [E, M, largest n], with zeros behind shorter ones."""
    size = max(part.shape[1] for part in parts)
    return torch.stack([_padded(part, size) for part in parts], 1)


def _padded(value: Tensor, size: int) -> Tensor:
    """Return numbers [E, n] as [E, size], with zeros behind them."""
    n = value.shape[1]
    return value if n == size else torch.cat([value, value.new_zeros(len(value), size - n)], 1)
