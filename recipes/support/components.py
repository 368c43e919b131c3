"""The components of a training, built from its configuration."""

import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from support.terminal import tell_builds
from support.threads import set_threads
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives.utils import TargetNetUpdater

from qmix_trl import (
    EnvDims,
    EnvFactory,
    EpsilonGreedyAction,
    MachineError,
    QMixLoss,
    SequenceRows,
    Update,
    make_collector,
    make_hard_updater,
    make_replay,
    make_soft_updater,
)
from qmix_trl.config.schema import RAY, HardTargetConfig, RunConfig, SoftTargetConfig, settings
from qmix_trl.errors import ConfigError
from qmix_trl.fused import FusedCollector, why_not
from qmix_trl.native.networks.ahead import build_ahead
from qmix_trl.ranks import ALONE, Ranks
from qmix_trl.trained import build_agent, build_mixer, build_weighting

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it announces every storage

OPTIMIZERS = {"adam": partial(torch.optim.Adam, fused=True), "rmsprop": torch.optim.RMSprop}
STREAMS = ("weights", "env", "exploration", "replay", "test_env", "random_policy")
# Outputs of an update that are reported.
LEARNING = (
    "loss",
    "td_error",
    "total_value",
    "target_value",
    "grad_norm",
)


def choose_device(wanted: str, option: str = "runtime.device") -> torch.device:
    """Return a device; "auto" is CUDA where there is one, else the CPU.

    Args:
        wanted: "auto", "cpu" or "cuda".
        option: the name under which a user sets it.

    Raises:
        MachineError: if CUDA is asked for and absent.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            f"{option}: cuda is asked for, but torch {torch.__version__} sees no CUDA "
            "device; with an NVIDIA driver, pip install --force-reinstall 'torch>=2.11,<2.14' "
            f"takes torch's CUDA build; or set {option}=auto"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def stream_seed(seed: int, stream: str, rank: int = 0) -> int:
    """Return the seed of one of a run's random streams; no two streams share one.

    Args:
        seed: of the run.
        stream: one of ``STREAMS``.
        rank: whose stream it is. That of rank 0 is the stream of a run of one process.
    """
    of_rank = [rank] if rank else []
    words = [seed, STREAMS.index(stream), *of_rank]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def build_env(
    config: RunConfig, device: torch.device, *, n_envs: int, seed: int, reset_when_done: bool
) -> EnvBase:
    """Return the configured environment.

    Args:
        config: its section ``env`` counts, but for ``n_envs``.
        device: of the environment.
        n_envs: the number of environments that are stepped together.
        seed: of the environment.
        reset_when_done: whether each environment is reset by itself when it is done.

    Raises:
        ConfigError: if the environment cannot be made.
    """
    tell_builds()
    factory = EnvFactory(
        in_process(config), seed=seed, n_envs=n_envs, device=device, reset_when_done=reset_when_done
    )
    return factory()


def prepared_device(config: RunConfig, ranks: Ranks = ALONE) -> torch.device:
    """Return a run's device, with its threads set and the layers for it being built.

    Of several ranks on a machine each has a GPU of its own.

    Raises:
        MachineError: if CUDA is asked for and absent, or there are fewer GPUs than ranks.
    """
    tell_builds()
    device = choose_device(config.runtime.device)
    if device.type == "cuda" and ranks.size > 1:
        if ranks.local_size > torch.cuda.device_count():
            raise MachineError(
                f"runtime.device: expected a GPU for each of the {ranks.local_size} ranks of this "
                f"machine, got {torch.cuda.device_count()}; start fewer ranks, or set "
                "runtime.device=cpu"
            )
        torch.cuda.set_device(ranks.local_rank)
    set_threads(config.runtime.threads)
    if device.type == "cpu":
        build_ahead()  # in a thread, while the environments are built
    return device


def build_networks(
    config: RunConfig, dims: EnvDims, device: torch.device, rank: int = 0
) -> tuple[TensorDictModuleBase, nn.Module | None]:
    """Return agent and mixer, with weights that are equal in all ranks.

    From then on torch's global random stream is that of the rank: environments of a user's own may
    draw from it.

    Args:
        config: of the run.
        dims: the sizes of its environment.
        device: of the networks.
        rank: whose networks they are.
    """
    torch.manual_seed(stream_seed(config.seed, "weights"))  # the networks draw their weights
    agent, mixer = build_agent(config, dims, device), build_mixer(config, dims, device)
    if rank:
        torch.manual_seed(stream_seed(config.seed, "weights", rank))
    return agent, mixer


def build_training_env(config: RunConfig, device: torch.device, rank: int = 0) -> EnvBase:
    """Return the configured environment to collect from, with a random stream of its own."""
    return build_env(
        config,
        device,
        n_envs=config.env.n_envs,
        seed=stream_seed(config.seed, "env", rank),
        reset_when_done=config.collection.rows == "slices",
    )


def in_process(config: RunConfig) -> RunConfig:
    """Return a configuration whose collection and environments need no actors of Ray."""
    if config.collection.collector != RAY:
        return config
    return replace(
        config,
        collection=replace(config.collection, collector="auto"),
        env=replace(config.env, processes=1),
    )


def without_checks(config: RunConfig) -> RunConfig:
    """Return a configuration in which no step is compared with VMAS."""
    if config.env.family != "vmas":
        return config
    return replace(config, env=replace(config.env, verify=0.0))


def build_exploration(
    config: RunConfig, device: torch.device, rank: int = 0
) -> EpsilonGreedyAction:
    """Return the configured exploration, with a random stream of its own."""
    seed = stream_seed(config.seed, "exploration", rank)
    return EpsilonGreedyAction(**settings(config.exploration), seed=seed, device=device)


def n_batches(config: RunConfig) -> int:
    """Return the number of batches of a run: its frames, rounded up to whole batches."""
    return math.ceil(config.collection.total_frames / frames_per_batch(config))


def frames_per_batch(config: RunConfig) -> int:
    """Return the number of frames of a collected batch [E, T]."""
    return config.env.n_envs * config.collection.steps


def last_frame(config: RunConfig) -> int:
    """Return the number of frames that a run collects."""
    return n_batches(config) * frames_per_batch(config)


def evaluation_is_due(config: RunConfig, frames: int) -> bool:
    """Return whether a run is evaluated after the batch with which it has so many frames.

    It is after each batch in which the frames reach a multiple of ``every_frames``, and after the
    last batch.
    """
    every = config.evaluation.every_frames
    reached = frames // every > (frames - frames_per_batch(config)) // every
    return reached or frames == last_frame(config)


def build_collector(
    config: RunConfig, env: EnvBase, policy: TensorDictModuleBase
) -> Collector | FusedCollector:
    """Return the configured collector of batches [E, T].

    Args:
        config: of the run, of all ranks together; its number of batches is that of each rank.
        env: with the memory of the agent.
        policy: that acts.

    Raises:
        ConfigError: if the fused collector is asked for and the environment has none.
    """
    c = config.collection
    reason = why_not(env) if c.collector == "fused" else None
    if reason is not None:
        raise ConfigError(
            f"collection.collector: fused is asked for, but {reason}; set collection.collector=auto"
        )
    return make_collector(
        env,
        policy,
        rows=c.rows,
        steps=c.steps,
        n_batches=n_batches(config),
        collector=c.collector,
        memory=memory_of_rows(config),
    )


def memory_of_rows(config: RunConfig) -> str:
    """Return the steps at which collected rows hold the agent's memory, as ``make_collector``.

    Replay stores the memory at the beginning of rows, which burn-in puts inside a batch.
    """
    return "every_step" if config.replay.burn_in else "first_step"


def build_replay(
    config: RunConfig, device: torch.device, folder: Path | None = None, rank: int = 0
) -> TensorDictReplayBuffer:
    """Return the configured replay buffer, with a random stream of its own.

    Args:
        config: of the run.
        device: of the samples.
        folder: for the files of a storage of files; None for the system's temporary one.
        rank: whose buffer it is.
    """
    section = config.replay
    max_steps = None if config.collection.rows == "episodes" else config.env.max_steps
    return make_replay(
        SequenceRows(max_steps=max_steps, burn_in=section.burn_in),
        capacity_rows=section.capacity_rows,
        batch_rows=section.batch_rows,
        seed=stream_seed(config.seed, "replay", rank),
        device=device,
        storage=section.storage,
        folder=folder,
        sampling=section.sampling,
    )


def build_loss(
    config: RunConfig, agent: TensorDictModuleBase, mixer: nn.Module | None, dims: EnvDims
) -> QMixLoss:
    """Return the configured loss.

    Args:
        config: of the run.
        agent: of the run.
        mixer: of the run; None for independent learners.
        dims: the sizes of the environment, for central networks of a weighting.
    """
    device = next(agent.parameters()).device
    arguments = {**settings(config.loss), "weighting": build_weighting(config, dims, device)}
    return QMixLoss(agent, mixer, **arguments, burn_in=config.replay.burn_in)


def build_target_updater(config: RunConfig, loss: QMixLoss) -> TargetNetUpdater:
    """Return the configured updater of a loss's targets."""
    target = config.update.target
    if isinstance(target, SoftTargetConfig):
        return make_soft_updater(loss, **settings(target))
    # Targets are copied behind the last update of a batch, and so before the next batch's first.
    period = config.update.per_batch
    if isinstance(target, HardTargetConfig):
        period = target.period_updates
    return make_hard_updater(loss, period_updates=period)


def build_update(config: RunConfig, loss: QMixLoss, ranks: Ranks = ALONE) -> Update:
    """Return the configured gradient step of agent and mixer, with the update of their targets.

    Args:
        config: of the run.
        loss: the configured one.
        ranks: that step together.

    Raises:
        ConfigError: if several ranks are asked for a CUDA graph.
        MachineError: if a CUDA graph is asked for on a CPU.
    """
    optimizer = config.update.optimizer
    make_optimizer, runtime = OPTIMIZERS[optimizer.name], config.runtime
    on_gpu = next(loss.parameters()).is_cuda
    if runtime.cuda_graph is True and not on_gpu:
        raise MachineError(
            "runtime.cuda_graph: true is asked for, but the run is on a CPU; set "
            "runtime.cuda_graph=auto"
        )
    if runtime.cuda_graph is True and ranks.size > 1:
        raise ConfigError(
            f"runtime.cuda_graph: true is asked for, but {ranks.size} ranks take their steps "
            "without a graph; set runtime.cuda_graph=auto"
        )
    return Update(
        loss,
        make_optimizer(loss.parameters(), **settings(optimizer), capturable=on_gpu),
        build_target_updater(config, loss),
        max_grad_norm=config.update.max_grad_norm,
        compile=runtime.compile,
        cuda_graph=runtime.cuda_graph,
        ranks=ranks,
    )


def mean_outputs(outputs: TensorDictBase) -> TensorDictBase:
    """Return the means of the updates' outputs [K] that ``LEARNING`` names."""
    return outputs.select(*LEARNING).mean(0)
