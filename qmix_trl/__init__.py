"""Value decomposition for multi-agent reinforcement learning in TorchRL: VDN, QMIX, their parts.

A name is imported from its module when it is first used, so that a configuration is read and
checked without torch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qmix_trl.agents import AGENTS, FeedforwardAgent, RecurrentAgent
    from qmix_trl.checkpoint import LoadedRun, load_run, load_weights, save_run, save_weights
    from qmix_trl.collect import make_collector
    from qmix_trl.config.load import load_config, save_config
    from qmix_trl.config.schema import RunConfig
    from qmix_trl.env_factory import EnvFactory
    from qmix_trl.envs import ENVS, EnvDims, env_dims, make_env
    from qmix_trl.envs.team import TeamEnv
    from qmix_trl.errors import CheckpointError, ConfigError, DivergedError, MachineError, SaveError
    from qmix_trl.evaluate import episode_returns
    from qmix_trl.export import PlainPolicy, export_policy
    from qmix_trl.learner import Learner
    from qmix_trl.loss import QMixLoss
    from qmix_trl.mixers import MIXERS, CentralMixer, QFixMixer, QMixer, QPlexMixer, VDNMixer
    from qmix_trl.policy import (
        EpsilonGreedyAction,
        GreedyAction,
        NoOpPolicy,
        RandomPolicy,
        make_policy,
        with_memory,
    )
    from qmix_trl.replay import SequenceRows, make_replay
    from qmix_trl.targets import make_hard_updater, make_soft_updater
    from qmix_trl.trained import load_agent, load_mixer
    from qmix_trl.update import Update
    from qmix_trl.weighting import Weighting

__version__ = "0.1.0"
__docformat__ = "google"  # for pdoc

__all__ = [
    "AGENTS",
    "ENVS",
    "MIXERS",
    "CentralMixer",
    "CheckpointError",
    "ConfigError",
    "DivergedError",
    "EnvDims",
    "EnvFactory",
    "EpsilonGreedyAction",
    "FeedforwardAgent",
    "GreedyAction",
    "Learner",
    "LoadedRun",
    "MachineError",
    "NoOpPolicy",
    "PlainPolicy",
    "QFixMixer",
    "QMixLoss",
    "QMixer",
    "QPlexMixer",
    "RandomPolicy",
    "RecurrentAgent",
    "RunConfig",
    "SaveError",
    "SequenceRows",
    "TeamEnv",
    "Update",
    "VDNMixer",
    "Weighting",
    "env_dims",
    "episode_returns",
    "export_policy",
    "load_agent",
    "load_config",
    "load_mixer",
    "load_run",
    "load_weights",
    "make_collector",
    "make_env",
    "make_hard_updater",
    "make_policy",
    "make_replay",
    "make_soft_updater",
    "save_config",
    "save_run",
    "save_weights",
    "with_memory",
]

_MODULES = {
    "AGENTS": "qmix_trl.agents",
    "ENVS": "qmix_trl.envs",
    "MIXERS": "qmix_trl.mixers",
    "CentralMixer": "qmix_trl.mixers",
    "CheckpointError": "qmix_trl.errors",
    "ConfigError": "qmix_trl.errors",
    "DivergedError": "qmix_trl.errors",
    "EnvDims": "qmix_trl.envs",
    "EnvFactory": "qmix_trl.env_factory",
    "EpsilonGreedyAction": "qmix_trl.policy",
    "FeedforwardAgent": "qmix_trl.agents",
    "GreedyAction": "qmix_trl.policy",
    "Learner": "qmix_trl.learner",
    "LoadedRun": "qmix_trl.checkpoint",
    "MachineError": "qmix_trl.errors",
    "NoOpPolicy": "qmix_trl.policy",
    "PlainPolicy": "qmix_trl.export",
    "QFixMixer": "qmix_trl.mixers",
    "QMixLoss": "qmix_trl.loss",
    "QMixer": "qmix_trl.mixers",
    "QPlexMixer": "qmix_trl.mixers",
    "RandomPolicy": "qmix_trl.policy",
    "RecurrentAgent": "qmix_trl.agents",
    "RunConfig": "qmix_trl.config.schema",
    "SaveError": "qmix_trl.errors",
    "SequenceRows": "qmix_trl.replay",
    "TeamEnv": "qmix_trl.envs.team",
    "Update": "qmix_trl.update",
    "VDNMixer": "qmix_trl.mixers",
    "Weighting": "qmix_trl.weighting",
    "env_dims": "qmix_trl.envs",
    "episode_returns": "qmix_trl.evaluate",
    "export_policy": "qmix_trl.export",
    "load_agent": "qmix_trl.trained",
    "load_config": "qmix_trl.config.load",
    "load_mixer": "qmix_trl.trained",
    "load_run": "qmix_trl.checkpoint",
    "load_weights": "qmix_trl.checkpoint",
    "make_collector": "qmix_trl.collect",
    "make_env": "qmix_trl.envs",
    "make_hard_updater": "qmix_trl.targets",
    "make_policy": "qmix_trl.policy",
    "make_replay": "qmix_trl.replay",
    "make_soft_updater": "qmix_trl.targets",
    "save_config": "qmix_trl.config.load",
    "save_run": "qmix_trl.checkpoint",
    "save_weights": "qmix_trl.checkpoint",
    "with_memory": "qmix_trl.policy",
}


def __getattr__(name: str) -> Any:
    """Return a public name from its module, or a module of the package.

    Raises:
        AttributeError: if there is no such name.
    """
    if name not in _MODULES:
        if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    """Return the names of the module, the public ones included."""
    return sorted({*globals(), *__all__})
