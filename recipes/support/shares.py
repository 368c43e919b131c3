"""The parts of a run that each of its ranks takes, as torchrun starts them.

A run's configuration is that of all its ranks together: ``env.n_envs``, ``replay`` and the number
of frames count all of them. Torch is not imported here, so that a mistake is told at once.
"""

from collections.abc import Callable
from dataclasses import replace

from qmix_trl.config.schema import RAY, InPython, RunConfig
from qmix_trl.errors import ConfigError

KEEP, SPLIT = "keep", "split"
# How a configuration that is written for one process is read by several.
READINGS = (KEEP, SPLIT)


def of_all_ranks(config: RunConfig, n_ranks: int, reading: str) -> RunConfig:
    """Return the configuration of a run of several ranks, from that of one process.

    Args:
        config: of one process.
        n_ranks: the number of ranks.
        reading: "keep": each rank has the configured environments, rows of a batch and rows of
            replay, so that the run has ``n_ranks`` times as many; "split": all of them together
            have the configured ones. The total frames count all ranks either way.
    """
    return config if reading == SPLIT else _scaled(config, lambda n: n * n_ranks)


def share_of(config: RunConfig, n_ranks: int) -> RunConfig:
    """Return the part of a run's configuration that each rank takes.

    Args:
        config: of all ranks.
        n_ranks: the number of ranks.

    Raises:
        ConfigError: if the ranks cannot divide it.
    """
    if n_ranks == 1:
        return config
    if config.collection.collector == RAY:
        raise ConfigError(
            f"collection.collector: ray wants one process, got {n_ranks} ranks of torchrun; start "
            "train.py without torchrun, or set collection.collector=auto"
        )
    for key, number in _divided(config).items():
        if number % n_ranks:
            raise ConfigError(
                f"{key}: expected a multiple of the {n_ranks} ranks, which divide it, got "
                f"{number}; set {key}={-(-number // n_ranks) * n_ranks}, or start a new run with "
                f"--frames-per-rank {KEEP}"
            )
    env = config.env
    if isinstance(env, InPython) and (env.n_envs // n_ranks) % env.processes:
        raise ConfigError(
            f"env.processes ({env.processes}) does not divide the {env.n_envs // n_ranks} "
            f"environments of each of {n_ranks} ranks; each process steps as many environments"
        )
    return _scaled(config, lambda n: n // n_ranks)


def about_shares(config: RunConfig, n_ranks: int) -> str:
    """Return the parts that several ranks take of a run, and the count of frames, as text.

    Args:
        config: of all ranks.
        n_ranks: the number of ranks.
    """
    share = share_of(config, n_ranks)
    env, replay, steps = config.env, config.replay, config.collection.steps
    frames = config.collection.total_frames
    return (
        f"{n_ranks}; each steps {share.env.n_envs:,} of {env.n_envs:,} environments "
        f"({share.env.n_envs * steps:,} of {env.n_envs * steps:,} frames of a batch), replays "
        f"{share.replay.batch_rows:,} of {replay.batch_rows:,} rows of an update and holds "
        f"{share.replay.capacity_rows:,} of {replay.capacity_rows:,}; frames count all ranks: "
        f"{frames:,} are {-(-frames // n_ranks):,} of each"
    )


def _divided(config: RunConfig) -> dict[str, int]:
    return {
        "env.n_envs": config.env.n_envs,
        "replay.batch_rows": config.replay.batch_rows,
        "replay.capacity_rows": config.replay.capacity_rows,
    }


def _scaled(config: RunConfig, scale: Callable[[int], int]) -> RunConfig:
    """Return a configuration with other numbers of environments and of rows."""
    replay = config.replay
    rows = {"batch_rows": scale(replay.batch_rows), "capacity_rows": scale(replay.capacity_rows)}
    env = replace(config.env, n_envs=scale(config.env.n_envs))
    return replace(config, env=env, replay=replace(replay, **rows))
