"""A run's weights: agent and mixer by the names of their own parameters."""

from pathlib import Path

import torch
from tensordict.nn import TensorDictModuleBase
from torch import nn

from qmix_trl.errors import ConfigError, one_line

WEIGHTS = "weights.pt"


def save_weights(folder: str | Path, agent: TensorDictModuleBase, mixer: nn.Module | None) -> None:
    """Write the weights of agent and mixer into a run's folder; not torn if interrupted."""
    state = {"agent": agent.state_dict(), "mixer": {} if mixer is None else mixer.state_dict()}
    beside = Path(folder) / f"{WEIGHTS}.part"
    torch.save(state, beside)
    beside.replace(Path(folder) / WEIGHTS)


def load_weights(
    folder: str | Path, agent: TensorDictModuleBase, mixer: nn.Module | None = None
) -> None:
    """Load the weights of a run into an agent, and a mixer if given, of the same sizes.

    Raises:
        ConfigError: if the folder holds none, or they do not fit.
    """
    path = Path(folder) / WEIGHTS
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is none; was the run interrupted?") from None
    # A damaged file makes torch raise whatever its reader stumbles over, even a KeyError.
    except Exception as error:
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}") from error
    try:
        agent.load_state_dict(state["agent"])
        if mixer is not None:
            mixer.load_state_dict(state["mixer"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: does not fit: {one_line(error)}") from error
