"""Checks of a configuration: names that exist, and fields that go together.

Neither torch nor VMAS is imported here, so that a mistake is told at once.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from qmix_trl.config.schema import (
    GAMES,
    RAY,
    EnvConfig,
    ForagingConfig,
    GamesConfig,
    GymnasiumConfig,
    InPython,
    PettingZooConfig,
    RunConfig,
    VmasConfig,
)
from qmix_trl.errors import ConfigError, check_extra, nearest, shown
from qmix_trl.foraging_task import foraging_task

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check(config: RunConfig) -> None:
    """Refuse a configuration that names unknown things, or whose fields do not go together.

    Raises:
        ConfigError: with the dotted path of the field at fault, and the remedy.
    """
    _check_name(config.name)
    _check_scenario(config.env)
    _check_sizes(config)
    _check_epochs(config)
    _check_target(config)
    _check_collector(config)
    _check_logging(config.logging)


def vmas_scenarios() -> list[str]:
    """Return the names of VMAS's scenarios, listed from its files without importing it."""
    package = find_spec("vmas")
    folders = package.submodule_search_locations if package else None
    files = (path for folder in folders or () for path in Path(folder, "scenarios").rglob("*.py"))
    return sorted(path.stem for path in files if path.stem != "__init__")


def is_own_code(name: str) -> bool:
    """Return whether a name is a file, or a class or function of a module."""
    return name.endswith(".py") or ":" in name


def _check_name(name: str) -> None:
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(
            "name: expected at most 100 letters, digits and . _ -, the first a letter or digit, "
            f"or auto; got {shown(name)!r}"
        )


def _check_scenario(env: EnvConfig) -> None:
    if isinstance(env, VmasConfig):
        check_vmas_scenario(env.scenario)
    elif isinstance(env, ForagingConfig):
        foraging_task(env.scenario, env.scenario_kwargs)
    elif isinstance(env, (PettingZooConfig, GymnasiumConfig)):
        check_extra(env.family, "envs", "env.family")  # it is imported when it is made
    elif isinstance(env, GamesConfig):
        _check_game(env)


def check_vmas_scenario(name: str) -> None:
    """Refuse a name that is none of VMAS's and no file or class, which is loaded when it is made.

    Raises:
        ConfigError: if it is unknown.
    """
    known = vmas_scenarios()  # none where VMAS is not installed
    if known and name not in known and not is_own_code(name):
        raise ConfigError(
            f"env.scenario: unknown VMAS scenario {shown(name)!r}{nearest(shown(name), known)}; "
            "`qmix-trl names scenarios` lists them; one of your own is path/to/file.py or "
            "module:Class"
        )


def _check_game(env: GamesConfig) -> None:
    """Refuse an unknown game, and a time limit before its first reward.

    Raises:
        ConfigError: for either.
    """
    if env.scenario not in GAMES:
        name = shown(env.scenario)
        raise ConfigError(
            f"env.scenario: unknown game {name!r}{nearest(name, GAMES)}; known: {', '.join(GAMES)}"
        )
    delay = env.scenario_kwargs.get("delay", 0)  # of any type; it is checked when it is made
    least = {"two_step": 2, "memory": delay + 1 if isinstance(delay, int) else 1}
    if env.max_steps < least.get(env.scenario, 1):
        raise ConfigError(
            f"env.max_steps: expected at least {least[env.scenario]}, as {env.scenario} pays "
            f"nothing before, got {env.max_steps}"
        )


def _check_sizes(config: RunConfig) -> None:
    """Refuse sizes that do not go together."""
    c, r, e = config.collection, config.replay, config.env
    if r.batch_rows > r.capacity_rows:
        raise ConfigError(
            f"replay.batch_rows ({r.batch_rows}) is larger than replay.capacity_rows "
            f"({r.capacity_rows}): a batch must fit into the buffer"
        )
    if e.n_envs > r.capacity_rows:
        raise ConfigError(
            f"env.n_envs ({e.n_envs}) is larger than replay.capacity_rows ({r.capacity_rows}): "
            "each environment fills one row a batch"
        )
    for key, number_of in (
        ("env.n_envs", e.n_envs),
        ("evaluation.episodes", config.evaluation.episodes),
    ):
        if isinstance(e, InPython) and number_of % e.processes:
            raise ConfigError(
                f"env.processes ({e.processes}) does not divide {key} ({number_of}): each process "
                "steps as many environments"
            )
    if config.loss.bounded_targets and config.loss.gamma == 1:
        raise ConfigError(
            "loss.bounded_targets: true wants loss.gamma below 1, as sums of rewards have no bound "
            "without a discount; lower loss.gamma, or set loss.bounded_targets=false"
        )
    if config.loss.weighting and (config.mixer.name == "none" or not config.loss.double_q):
        raise ConfigError(
            f"loss.weighting: {config.loss.weighting.name} wants a mixer and loss.double_q: true, "
            f"got mixer.name {config.mixer.name} and loss.double_q: "
            f"{str(config.loss.double_q).lower()}; or set loss.weighting=null"
        )
    if c.rows == "episodes" and (c.steps != e.max_steps or r.burn_in):
        raise ConfigError(
            f"collection.rows: episodes wants collection.steps ({c.steps}) equal to env.max_steps "
            f"({e.max_steps}) and replay.burn_in ({r.burn_in}) 0; or choose rows: slices"
        )


def _check_epochs(config: RunConfig) -> None:
    """Refuse sizes with which the rows of a batch are not used equally often.

    Raises:
        ConfigError: if rows are drawn each once, and the buffer is not that of one batch, or
            updates do not make whole epochs.
    """
    r, n_envs, n_updates = config.replay, config.env.n_envs, config.update.per_batch
    if r.sampling != "each_once":
        return
    if r.capacity_rows != n_envs:
        raise ConfigError(
            f"replay.sampling: each_once wants replay.capacity_rows of one batch, env.n_envs "
            f"({n_envs}), got {r.capacity_rows}; set replay.capacity_rows={n_envs}, or "
            "replay.sampling=uniform"
        )
    if n_envs % r.batch_rows:
        raise ConfigError(
            f"replay.sampling: each_once wants replay.batch_rows that divides env.n_envs "
            f"({n_envs}), got {r.batch_rows}; or set replay.sampling=uniform"
        )
    of_epoch = n_envs // r.batch_rows
    if n_updates % of_epoch:
        raise ConfigError(
            f"update.per_batch: expected a multiple of {of_epoch}, the updates in which each row "
            f"is used once (replay.sampling: each_once), got {n_updates}; set "
            f"update.per_batch={-(-n_updates // of_epoch) * of_epoch}"
        )


def _check_target(config: RunConfig) -> None:
    """Refuse double-Q with targets of the networks at a batch's start.

    Raises:
        ConfigError: for both together.
    """
    if config.update.target.name == "batch" and config.loss.double_q:
        raise ConfigError(
            "update.target: batch wants loss.double_q: false, got true, with which the online "
            "agent chooses next actions, and it changes within a batch; set loss.double_q=false, "
            f"or update.target={{name: hard, period_updates: {config.update.per_batch}}}"
        )


def _check_collector(config: RunConfig) -> None:
    """Refuse actors of Ray for families with engines, with burn-in, or without Ray installed.

    Raises:
        ConfigError: for any of these.
    """
    if config.collection.collector != RAY:
        return
    if not isinstance(config.env, InPython):
        raise ConfigError(
            "collection.collector: ray wants environments that step in Python (env.family: custom, "
            f"pettingzoo, lbforaging, rware), got {config.env.family}, whose steps take less time "
            "than to send them; set collection.collector=auto"
        )
    if config.replay.burn_in:
        raise ConfigError(
            "replay.burn_in: expected 0 with collection.collector=ray, whose rows come without the "
            f"steps before them, got {config.replay.burn_in}"
        )
    check_extra("ray", "ray", "collection.collector")


def _check_logging(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"logging: expected each logger once, got {name} twice")
