"""From a configuration to components: what the recipes have in common."""

import logging
import math
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.objectives.utils import TargetNetUpdater

from qmix_trl import (
    AGENTS,
    MIXERS,
    EnvDims,
    MachineError,
    QMixLoss,
    make_env,
    make_hard_updater,
    make_soft_updater,
)
from qmix_trl.config import RunConfig, settings
from qmix_trl.errors import DivergedError

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it announces every storage

OPTIMIZERS = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
STREAMS = ("weights", "env", "exploration", "replay", "test_env", "random_policy")
CONFIG_FILE = "config.yaml"  # of a run's folder
UPDATERS = {"hard": make_hard_updater, "soft": make_soft_updater}


def choose_device(wanted: str) -> torch.device:
    """Return the device: "auto" is CUDA where there is one.

    Raises:
        MachineError: if CUDA is asked for and absent.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            f"runtime.device: cuda is asked for, but torch {torch.__version__} sees no CUDA "
            "device; with an NVIDIA driver, pip install --force-reinstall 'torch>=2.11,<2.14' "
            "takes torch's CUDA build; or set runtime.device=auto"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def stream_seed(seed: int, stream: str) -> int:
    """Return the seed of one of a run's random streams, unlike those of all others."""
    return int(np.random.SeedSequence([seed, STREAMS.index(stream)]).generate_state(1)[0])


def build_env(
    config: RunConfig, device: torch.device, *, n_envs: int, seed: int, reset_when_done: bool
) -> EnvBase:
    """Return the configured environment, with another number of copies and another seed."""
    arguments = {**settings(config.env), "n_envs": n_envs, "seed": seed}
    return make_env(**arguments, device=device, reset_when_done=reset_when_done)


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


def interior_truncations(config: RunConfig) -> int:
    """Return how many truncations with a reset behind them a row of replay may hold."""
    if config.collection.rows == "episodes":
        return 0
    row_steps = config.collection.steps + config.replay.burn_in
    return math.ceil(row_steps / config.env.max_steps)


def build_loss(config: RunConfig, agent: TensorDictModuleBase, mixer: nn.Module | None) -> QMixLoss:
    """Return the configured loss."""
    return QMixLoss(
        agent,
        mixer,
        **settings(config.loss),
        burn_in=config.replay.burn_in,
        interior_truncations=interior_truncations(config),
    )


def build_optimizer(config: RunConfig, loss: QMixLoss) -> torch.optim.Optimizer:
    """Return the configured optimiser over agent and mixer."""
    section = config.update.optimizer
    return OPTIMIZERS[section.name](loss.parameters(), **settings(section))


def build_target_updater(config: RunConfig, loss: QMixLoss) -> TargetNetUpdater:
    """Return the configured updater of target networks."""
    section = config.update.target
    return UPDATERS[section.name](loss, **settings(section))


def run_stem(config_path: Path) -> str:
    """Return what runs of a file are called: its name, or for the file of a run that run's."""
    return (
        config_path.stem if config_path.name != CONFIG_FILE else config_path.resolve().parent.name
    )


def check_finite(means: TensorDictBase, gradient_steps: int, folder: Path) -> None:
    """Stop a training that has left the numbers.

    Raises:
        DivergedError: if the mean loss or gradient norm of a batch's updates is not finite.
    """
    if not (means["loss"].isfinite() and means["grad_norm"].isfinite()):
        raise DivergedError(
            f"the loss is {means['loss']:.3g} by update {gradient_steps} (gradient norm "
            f"{means['grad_norm']:.3g}, mean Q_tot {means['total_value']:.3g}); the last weights "
            f"evaluated, if any, are in {folder}; try a lower update.optimizer.lr or "
            "loss.reward_scale"
        )


def compare(learned: dict[str, float], other: dict[str, float]) -> str:
    """Say whether a mean return is above another by more than two standard errors."""
    variances = [r["std"] ** 2 / r["episodes"] for r in (learned, other)]
    margin = 2 * math.sqrt(sum(variances))
    difference = learned["mean"] - other["mean"]
    if abs(difference) <= margin:
        return "no different from"
    return "above" if difference > 0 else "below"


def summarize(returns: Tensor) -> dict[str, float]:
    """Return mean, standard deviation and number of episode returns [episodes]."""
    std = returns.std().item()
    return {"mean": returns.mean().item(), "std": std, "episodes": len(returns)}
