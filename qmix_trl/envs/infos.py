"""The infos of a VMAS scenario as entries of an environment."""

from collections.abc import Mapping

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs import EnvBase

from qmix_trl import keys
from qmix_trl.envs.vmas_simulation import VmasSimulation
from qmix_trl.errors import ConfigError

Key = tuple[str, ...]


def info_shapes(simulation: VmasSimulation) -> dict[Key, torch.Size]:
    """Return the shape [N, ...] of each info of a simulation's last step, by key.

    Raises:
        ConfigError: if there are none.
    """
    shapes = {key: value.shape[1:] for key, value in simulation.team_info().items()}
    if not shapes:
        raise ConfigError(f"env.info: VMAS scenario {simulation.task.name!r} has no infos")
    return shapes


class Infos:
    """The infos of E environments, and their history since buffers were begun.

    Args:
        shapes: the shape [N, ...] of each info, by key; empty to show none.
        env: of E environments; its specs get an entry for each info.

    Attributes:
        shapes: as given.
    """

    def __init__(self, shapes: Mapping[Key, torch.Size], env: EnvBase) -> None:
        self.shapes = dict(shapes)
        (self._n_envs,) = env.batch_size
        self._now = {
            key: torch.zeros(self._n_envs, *shape, device=env.device)
            for key, shape in self.shapes.items()
        }
        for key, value in self._now.items():
            agents = env.observation_spec["agents"]
            for i in range(len(key)):  # the folders of the entry
                if entry(key[:i])[1:] not in agents.keys(True):
                    agents[entry(key[:i])[1:]] = Composite(shape=agents.shape)
            env.observation_spec[entry(key)] = Unbounded(value.shape, device=env.device)
        self.begin()

    def begin(self) -> None:
        """Forget the history."""
        self._history: list[tuple[dict[Key, Tensor], dict[Key, Tensor]]] = []

    def read(self, simulation: VmasSimulation) -> None:
        """Read the infos of the last step.

        Raises:
            ConfigError: if they are not the same entries as at first.
        """
        found = simulation.team_info()
        if {key: value.shape[1:] for key, value in found.items()} != self.shapes:
            raise ConfigError(
                f"VMAS scenario {simulation.task.name!r}: info: expected the entries {self.shapes}"
                f" as at first, got { {key: value.shape[1:] for key, value in found.items()} }"
            )
        self._history.append((self._now, found))
        self._now = found

    def reset(self, mask: Tensor) -> None:
        """Set the infos of environments of a mask bool [E] to zero."""
        self._now = {
            key: value.masked_fill(mask.view(-1, *[1] * (value.dim() - 1)), 0)
            for key, value in self._now.items()
        }

    def run_state(self) -> list[Tensor]:
        """Return the present infos, in the order of ``shapes``."""
        return [self._now[key] for key in self.shapes]

    def load_run_state(self, state: list[Tensor]) -> None:
        """Continue from a ``run_state``.

        Raises:
            ValueError: if it holds another number of infos.
        """
        now = zip(self.shapes, state, strict=True)
        self._now = {key: value.to(self._now[key].device) for key, value in now}

    def write(self, packed: TensorDict) -> None:
        """Write the present infos to an output [E]."""
        for key, value in self._now.items():
            packed.set(entry(key), value.clone())

    def write_history(self, batch: TensorDict) -> None:
        """Write the infos before and after each step to a batch [E, T]."""
        for key in self.shapes:
            before = torch.stack([step[0][key] for step in self._history], 1)
            after = torch.stack([step[1][key] for step in self._history], 1)
            batch.set(entry(key), before)
            batch.set(keys.next_key(entry(key)), after)


def entry(key: Key) -> NestedKey:
    """Return the entry of an info."""
    return ("agents", "info", *key)
