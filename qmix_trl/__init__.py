"""Value decomposition for multi-agent reinforcement learning in TorchRL: VDN, QMIX, their parts."""

from qmix_trl.agents import AGENTS, FeedforwardAgent, RecurrentAgent
from qmix_trl.checkpoint import load_weights, save_weights
from qmix_trl.collect import make_collector
from qmix_trl.config import RunConfig, load_config, save_config
from qmix_trl.envs import ENVS, EnvDims, env_dims, make_env
from qmix_trl.errors import ConfigError, DivergedError, MachineError
from qmix_trl.evaluate import episode_returns
from qmix_trl.loss import QMixLoss
from qmix_trl.mixers import MIXERS, QMixer, VDNMixer
from qmix_trl.policy import (
    EpsilonGreedyAction,
    GreedyAction,
    NoOpPolicy,
    RandomPolicy,
    make_policy,
    with_memory,
)
from qmix_trl.replay import SequenceRows, make_replay
from qmix_trl.update import Update, make_hard_updater, make_soft_updater

__version__ = "0.1.0"

__all__ = [
    "AGENTS",
    "ENVS",
    "MIXERS",
    "ConfigError",
    "DivergedError",
    "EnvDims",
    "EpsilonGreedyAction",
    "FeedforwardAgent",
    "GreedyAction",
    "MachineError",
    "NoOpPolicy",
    "QMixLoss",
    "QMixer",
    "RandomPolicy",
    "RecurrentAgent",
    "RunConfig",
    "SequenceRows",
    "Update",
    "VDNMixer",
    "env_dims",
    "episode_returns",
    "load_config",
    "load_weights",
    "make_collector",
    "make_env",
    "make_hard_updater",
    "make_policy",
    "make_replay",
    "make_soft_updater",
    "save_config",
    "save_weights",
    "with_memory",
]
