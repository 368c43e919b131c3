"""Agent and mixer of a run: as its configuration names them, new or with trained weights."""

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import nn

from qmix_trl.agents import AGENTS
from qmix_trl.checkpoint.weights import about_weights, load_weights, weights_path
from qmix_trl.config.load import read_config
from qmix_trl.config.run_files import CONFIG_FILE
from qmix_trl.config.schema import CustomMixerConfig, MixerConfig, RunConfig, settings
from qmix_trl.envs import EnvDims
from qmix_trl.envs.custom import errors_told
from qmix_trl.envs.user_code import load_function
from qmix_trl.errors import ConfigError
from qmix_trl.keys import ACTION
from qmix_trl.mixers import MIXERS
from qmix_trl.mixers.central import CentralMixer
from qmix_trl.mixers.inputs import as_module
from qmix_trl.weighting import Weighting

OWN_SIZES = ("n_agents", "n_actions", "state_shape")


def build_agent(config: RunConfig, dims: EnvDims, device: torch.device) -> TensorDictModuleBase:
    """Return the configured agent for an environment of these sizes."""
    make_agent = AGENTS[config.agent.name]
    return make_agent(
        dims.n_agents, dims.observation_dim, dims.n_actions, **settings(config.agent), device=device
    )


def build_mixer(config: RunConfig, dims: EnvDims, device: torch.device) -> nn.Module | None:
    """Return the configured mixer for an environment of these sizes; None learns independently.

    Raises:
        ConfigError: if it is a mixer of the user's own that cannot be made.
    """
    if config.mixer.name == "none":
        return None
    if isinstance(config.mixer, CustomMixerConfig):
        return own_mixer(config.mixer.make, config.mixer.make_kwargs, dims, device)
    return _made_mixer(config.mixer, dims, device)


def _made_mixer(section: MixerConfig, dims: EnvDims, device: torch.device) -> nn.Module:
    """Return the mixer of a section, with the mixer of its section ``base``, if it has one."""
    make_mixer, arguments = MIXERS[section.name], settings(section)
    if "base" in arguments:
        arguments["base"] = _made_mixer(section.base, dims, device)
    if ACTION in make_mixer.in_keys:
        arguments["n_actions"] = dims.n_actions
    sizes = {"n_agents": dims.n_agents, "state_shape": dims.state_shape}
    return make_mixer(**sizes, **arguments, device=device)


def build_weighting(config: RunConfig, dims: EnvDims, device: torch.device) -> Weighting | None:
    """Return the configured weighting of the loss, with central networks of these sizes."""
    section = config.loss.weighting
    if section is None:
        return None
    return Weighting(
        kind=section.name,
        alpha=section.alpha,
        agent=build_agent(config, dims, device),
        mixer=CentralMixer(dims.n_agents, dims.state_shape, section.embed_dim, device=device),
    )


def own_mixer(
    make: str, make_kwargs: Mapping[str, Any], dims: EnvDims, device: torch.device
) -> nn.Module:
    """Return a mixer of the user's own.

    Args:
        make: "path/to/file.py:Class" or "module:Class". The class gets ``make_kwargs``, and those
            of n_agents, n_actions and state_shape that its constructor names.
        make_kwargs: its own keywords.
        dims: the sizes of the environment.
        device: to which the mixer is moved.

    Raises:
        ConfigError: if the class is not found or fails, or what it makes has no ``in_keys``.
    """
    with errors_told(make, "mixer.make"):
        make_mixer = load_function(make, "class")
        named = inspect.signature(make_mixer).parameters
        sizes = {name: getattr(dims, name) for name in OWN_SIZES if name in named}
        mixer = make_mixer(**sizes, **make_kwargs).to(device)
        as_module(mixer)  # refuses one without in_keys before anything is trained
    return mixer


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
