"""Saving and loading the weights of a run: the state dicts of its agent and mixer."""

from pathlib import Path

import torch
from tensordict.nn import TensorDictModuleBase
from torch import nn

from qmix_trl.errors import ConfigError, one_line
from qmix_trl.loss import QMixLoss

WEIGHTS = "weights.pt"


def save_weights(folder: str | Path, agent: TensorDictModuleBase, mixer: nn.Module | None) -> None:
    """Write the weights of agent and mixer into a run's folder.

    An interrupted write leaves the weights that were there before.
    """
    state = {"agent": agent.state_dict(), "mixer": {} if mixer is None else mixer.state_dict()}
    part = Path(folder) / f"{WEIGHTS}.part"
    torch.save(state, part)
    part.replace(Path(folder) / WEIGHTS)


def load_weights(
    folder: str | Path,
    agent: TensorDictModuleBase,
    mixer: nn.Module | None = None,
    *,
    loss: QMixLoss | None = None,
) -> None:
    """Load the weights of a run into an agent of the same sizes, and into a mixer if given.

    Args:
        folder: of the run.
        agent: gets the weights.
        mixer: gets its weights; None loads the agent's alone.
        loss: of agent and mixer; its targets become copies of them. Without it the targets of a
            loss made before stay as they are.

    Raises:
        ConfigError: if the folder has no file of weights, it cannot be read, or it does not fit.
    """
    path = Path(folder) / WEIGHTS
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is none; was the run interrupted?") from None
    # A damaged file can make torch raise any exception, even a KeyError.
    except Exception as error:
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}") from error
    try:
        agent.load_state_dict(state["agent"])
        if mixer is not None:
            mixer.load_state_dict(state["mixer"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: does not fit: {one_line(error)}") from error
    if loss is not None:
        loss.copy_to_targets()
