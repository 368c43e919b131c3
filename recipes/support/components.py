"""From a configuration to components: what the recipes have in common."""

import logging
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase, TransformedEnv

from qmix_trl import (
    AGENTS,
    MIXERS,
    EnvDims,
    EpsilonGreedyAction,
    MachineError,
    QMixLoss,
    SequenceRows,
    Update,
    make_collector,
    make_env,
    make_hard_updater,
    make_replay,
    make_soft_updater,
)
from qmix_trl.config import RunConfig, settings
from qmix_trl.errors import DivergedError
from qmix_trl.fused import FusedCollector
from qmix_trl.native.build import NoCompiler, compiler

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it announces every storage

OPTIMIZERS = {"adam": partial(torch.optim.Adam, fused=True), "rmsprop": torch.optim.RMSprop}
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


def engine_line(env: EnvBase, collector: Collector | FusedCollector) -> str:
    """Say what steps and collects, and why nothing faster does."""
    base = env.base_env if isinstance(env, TransformedEnv) else env
    steps = f"stepped by {getattr(base, 'how', type(base).__name__)}"
    if not isinstance(collector, FusedCollector):
        return f"{steps}; collected by TorchRL's Collector"
    if collector.called_because is None:
        return f"{steps}; collected in one call for many steps"
    return f"{steps}; collected step by step: {collector.called_because}"


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


def build_exploration(config: RunConfig, device: torch.device) -> EpsilonGreedyAction:
    """Return the configured exploration, with the run's random stream for it."""
    seed = stream_seed(config.seed, "exploration")
    return EpsilonGreedyAction(**settings(config.exploration), seed=seed, device=device)


def n_batches(config: RunConfig) -> int:
    """Return how many batches a run collects: its frames, rounded up to whole batches."""
    frames_per_batch = config.env.n_envs * config.collection.steps
    return math.ceil(config.collection.total_frames / frames_per_batch)


def build_collector(
    config: RunConfig, env: EnvBase, policy: TensorDictModuleBase
) -> Collector | FusedCollector:
    """Return the configured collector of batches [E, T]."""
    c = config.collection
    return make_collector(
        env,
        policy,
        rows=c.rows,
        steps=c.steps,
        n_batches=n_batches(config),
        collector=c.collector,
    )


def build_replay(config: RunConfig, device: torch.device) -> TensorDictReplayBuffer:
    """Return the configured buffer, with the run's random stream for it."""
    section = config.replay
    return make_replay(
        SequenceRows(interior_truncations=interior_truncations(config), burn_in=section.burn_in),
        capacity_rows=section.capacity_rows,
        batch_rows=section.batch_rows,
        seed=stream_seed(config.seed, "replay"),
        device=device,
    )


def interior_truncations(config: RunConfig) -> int:
    """Return how many truncations with a reset behind them a row of replay may hold."""
    if config.collection.rows == "episodes":
        return 0
    buffer_steps = config.collection.steps + config.replay.burn_in
    return math.ceil(buffer_steps / config.env.max_steps)


def build_loss(config: RunConfig, agent: TensorDictModuleBase, mixer: nn.Module | None) -> QMixLoss:
    """Return the configured loss."""
    return QMixLoss(
        agent,
        mixer,
        **settings(config.loss),
        burn_in=config.replay.burn_in,
        interior_truncations=interior_truncations(config),
    )


def build_update(config: RunConfig, loss: QMixLoss) -> Update:
    """Return the configured gradient step of agent and mixer, and of their targets."""
    optimizer, target = config.update.optimizer, config.update.target
    make_optimizer, runtime = OPTIMIZERS[optimizer.name], config.runtime
    on_gpu = next(loss.parameters()).is_cuda
    return Update(
        loss,
        make_optimizer(loss.parameters(), **settings(optimizer), capturable=on_gpu),
        UPDATERS[target.name](loss, **settings(target)),
        max_grad_norm=config.update.max_grad_norm,
        compile=runtime.compile,
        cuda_graph=runtime.cuda_graph,
    )


def update_line(update: Update) -> str:
    """Say what computes updates, and why nothing faster does."""
    if update.no_graph is None:
        return "updated by one CUDA graph"
    if next(update.loss.parameters()).is_cuda:
        return f"updated operation by operation; no CUDA graph: {update.no_graph}"
    try:
        compiler()
    except NoCompiler as error:
        return f"updated by torch's operations: {error}"
    return "updated by layers in C++"


def set_threads(threads: int | None) -> None:
    """Set how many threads of the CPU there are; None leaves it to torch."""
    if threads is not None:
        torch.set_num_threads(threads)


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
