"""Agent and mixer of a run: as its configuration names them, new or with trained weights."""

import os
from pathlib import Path

import torch
from tensordict.nn import TensorDictModuleBase
from torch import nn

from qmix_trl.agents import AGENTS
from qmix_trl.checkpoint.weights import about_weights, load_weights, weights_path
from qmix_trl.config import CONFIG_FILE, RunConfig, read_config, settings
from qmix_trl.envs import EnvDims
from qmix_trl.errors import ConfigError
from qmix_trl.mixers import MIXERS


def build_agent(config: RunConfig, dims: EnvDims, device: torch.device) -> TensorDictModuleBase:
    """Return the configured agent for an environment of these sizes."""
    make_agent = AGENTS[config.agent.name]
    return make_agent(
        dims.n_agents, dims.observation_dim, dims.n_actions, **settings(config.agent), device=device
    )


def build_mixer(config: RunConfig, dims: EnvDims, device: torch.device) -> nn.Module | None:
    """Return the configured mixer for an environment of these sizes; None learns independently."""
    if config.mixer.name == "none":
        return None
    make_mixer = MIXERS[config.mixer.name]
    return make_mixer(
        n_agents=dims.n_agents,
        state_shape=dims.state_shape,
        **settings(config.mixer),
        device=device,
    )


def load_agent(
    folder: str | Path, *, weights: str = "last", device: torch.device | str = "cpu"
) -> TensorDictModuleBase:
    """Return the trained agent of a run, from its folder alone: no environment is made.

    Args:
        folder: of the run, such as "runs/balance_quick-1".
        weights: "last", or "best": those of the highest greedy return.
        device: of the parameters.

    Raises:
        ConfigError: if the folder is no run's, or its weights do not fit or lack their sizes.
        CheckpointError: if the weights are damaged.
        ValueError: if ``weights`` is neither.
    """
    return _load(folder, weights, device)[0]


def load_mixer(
    folder: str | Path, *, weights: str = "last", device: torch.device | str = "cpu"
) -> nn.Module | None:
    """Return the trained mixer of a run, as ``load_agent`` its agent; None if it has no mixer.

    Args:
        folder: of the run.
        weights: "last" or "best".
        device: of the parameters.

    Raises:
        ConfigError: as ``load_agent``.
        CheckpointError: as ``load_agent``.
        ValueError: as ``load_agent``.
    """
    return _load(folder, weights, device)[1]


def _load(
    folder: str | Path, weights: str, device: torch.device | str
) -> tuple[TensorDictModuleBase, nn.Module | None]:
    """Return agent and mixer of a run with their weights.

    Raises:
        ConfigError: if the folder is no run's, or the weights lack the sizes of the team.
    """
    path = Path(folder) / CONFIG_FILE
    if not os.path.exists(path):
        raise ConfigError(
            f"expected a run's folder, such as runs/balance_quick-1, got {folder}, which has no "
            f"{CONFIG_FILE}"
        )
    config = read_config(path)
    dims = about_weights(folder, weights).dims
    if dims is None:
        raise ConfigError(
            f"{weights_path(folder, weights)}: expected weights with the sizes of their team, got "
            "an older file without them; make the agent by its class and call load_weights"
        )
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and replaced
        agent = build_agent(config, dims, torch.device("cpu"))
        mixer = build_mixer(config, dims, torch.device("cpu"))
    load_weights(folder, agent, mixer, weights=weights)
    return agent.to(device), mixer if mixer is None else mixer.to(device)
