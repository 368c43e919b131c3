"""A run's weights: agent and mixer by the names of their own parameters."""

from pathlib import Path

import torch
from tensordict.nn import TensorDictModuleBase
from torch import nn

from qmix_trl.errors import ConfigError

WEIGHTS = "weights.pt"


def save_weights(folder: Path, agent: TensorDictModuleBase, mixer: nn.Module | None) -> None:
    """Write the weights of agent and mixer into a run's folder; not torn if interrupted."""
    state = {"agent": agent.state_dict(), "mixer": {} if mixer is None else mixer.state_dict()}
    beside = folder / f"{WEIGHTS}.part"
    torch.save(state, beside)
    beside.replace(folder / WEIGHTS)


def load_weights(folder: Path, agent: TensorDictModuleBase, mixer: nn.Module | None = None) -> None:
    """Load the weights of a run into an agent, and a mixer if given, of the same sizes.

    Raises:
        ConfigError: if the folder holds none, or they do not fit.
    """
    path = folder / WEIGHTS
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        agent.load_state_dict(state["agent"])
        if mixer is not None:
            mixer.load_state_dict(state["mixer"])
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is none; was the run interrupted?") from None
    except (RuntimeError, KeyError) as error:
        raise ConfigError(f"{path}: does not fit: {str(error).splitlines()[0]}") from None
