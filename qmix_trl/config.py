"""Configurations of runs: the fields of a file, their bounds, and which of them go together.

A file is complete: it has every field and no others (``strict_yaml.py`` reads it). No setting that
changes results has a hidden default. Neither torch nor VMAS is imported here, so that a mistake is
told at once.
"""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from qmix_trl.errors import ConfigError, check_extra, nearest, shown
from qmix_trl.foraging_task import foraging_task
from qmix_trl.logs import write_whole
from qmix_trl.older_runs import with_added_keys
from qmix_trl.strict_yaml import build, dump, number, overridden, read

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_SEED = 2**32 - 1  # NumPy's
MAX_THREADS = 1024
CONFIG_FILE = "config.yaml"  # in a run's folder
# There as well: the weights of the last evaluation, and those of the highest greedy return.
WEIGHTS = {"last": "weights.pt", "best": "best_weights.pt"}
SOURCES, SOURCES_FILE = "source", "files.json"  # in a run's folder: copies of the user's files
OTHERS = ("no_op", "random", "scripted")  # of ``envs.others``
# Formats of ``export.py``, with the packages that they need.
EXPORTS = {"pt2": (), "onnx": ("onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}
RAY = "ray"  # the collector whose actors ``env.processes`` counts
GAMES = ("matrix", "memory", "random_matrix", "two_step")  # of ``envs.game_tables``


@dataclass(frozen=True, kw_only=True)
class VmasConfig:
    """``envs.vmas``; the fields are the arguments of ``make_env``.

    Files in ``scenario``, and a run's folder in ``others``, are relative to the folder of the
    configuration, in an override to the current one.
    """

    family: Literal["vmas"]
    scenario: str
    scenario_kwargs: dict[str, Any]
    group: str | None
    others: str
    actions_per_dimension: int | None = number(least=3)
    n_envs: int = number(least=1)
    max_steps: int = number(least=1)
    state: Literal["world", "observations"]
    team_reward: Literal["mean", "sum", "shared"]
    engine: Literal["auto", "kernel", "inductor", "eager"]
    verify: float = number(least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class GamesConfig:
    """``envs.games``; the fields are the arguments of ``make_env``."""

    family: Literal["games"]
    scenario: str
    scenario_kwargs: dict[str, Any]
    n_envs: int = number(least=1)
    max_steps: int = number(least=1)
    state: Literal["world", "observations"]


@dataclass(frozen=True, kw_only=True)
class ForagingConfig:
    """``envs.foraging``; the fields are the arguments of ``make_env``."""

    family: Literal["foraging"]
    scenario: str
    scenario_kwargs: dict[str, Any]
    n_envs: int = number(least=1)
    max_steps: int = number(least=1)
    state: Literal["world", "observations"]
    engine: Literal["auto", "kernel", "tensors"]


@dataclass(frozen=True, kw_only=True)
class CustomConfig:
    """``envs.custom``; the fields are the arguments of ``make_env``.

    A file in ``make`` is relative to the folder of the configuration, on the command line to the
    current folder.
    """

    family: Literal["custom"]
    make: str
    make_kwargs: dict[str, Any]
    group: str | None
    n_envs: int = number(least=1)
    max_steps: int = number(least=1)
    state: Literal["world", "observations"]
    team_reward: Literal["auto", "mean", "sum"]
    processes: int = number(least=1)

    @property
    def scenario(self) -> str:
        """The function, without the folders of its file."""
        return Path(self.make).name


@dataclass(frozen=True, kw_only=True)
class PettingZooConfig:
    """``envs.pettingzoo``; the fields are the arguments of ``make_env``.

    A file in ``scenario`` is relative to the folder of the configuration, on the command line to
    the current folder.
    """

    family: Literal["pettingzoo"]
    scenario: str
    scenario_kwargs: dict[str, Any]
    group: str | None
    others: Literal["no_op", "random"]
    pad: bool
    n_envs: int = number(least=1)
    max_steps: int = number(least=1)
    state: Literal["world", "observations"]
    team_reward: Literal["mean", "sum"]
    processes: int = number(least=1)


@dataclass(frozen=True, kw_only=True)
class GymnasiumConfig:
    """``envs.lbforaging`` and ``envs.rware``; the fields are the arguments of ``make_env``."""

    family: Literal["lbforaging", "rware"]
    scenario: str
    scenario_kwargs: dict[str, Any]
    n_envs: int = number(least=1)
    max_steps: int = number(least=1)
    team_reward: Literal["mean", "sum"]
    processes: int = number(least=1)


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """``RecurrentAgent``."""

    name: Literal["recurrent"]
    hidden_dim: int = number(least=1)
    layer_norm: bool
    share_parameters: bool
    use_last_action: bool
    use_agent_id: bool


@dataclass(frozen=True, kw_only=True)
class FeedforwardConfig:
    """``FeedforwardAgent``."""

    name: Literal["feedforward"]
    hidden_dims: tuple[int, ...] = number(least=1)
    layer_norm: bool
    share_parameters: bool
    use_last_action: bool
    use_agent_id: bool


@dataclass(frozen=True, kw_only=True)
class QMixerConfig:
    """``QMixer``."""

    name: Literal["qmix"]
    mixing_embed_dim: int = number(least=1)
    hypernet_layers: Literal[1, 2]
    hypernet_embed_dim: int = number(least=1)


@dataclass(frozen=True, kw_only=True)
class VDNConfig:
    """``VDNMixer``."""

    name: Literal["vdn"]


@dataclass(frozen=True, kw_only=True)
class QFixConfig:
    """``QFixMixer``."""

    name: Literal["qfix"]
    base: VDNConfig | QMixerConfig
    embed_dim: int = number(least=1)


@dataclass(frozen=True, kw_only=True)
class QPlexConfig:
    """``QPlexMixer``."""

    name: Literal["qplex"]
    base: VDNConfig | QMixerConfig
    n_heads: int = number(least=1)


@dataclass(frozen=True, kw_only=True)
class CustomMixerConfig:
    """A mixer of the user's own, as ``trained.own_mixer`` makes it.

    A file in ``make`` is relative to the folder of the configuration, in an override to the current
    one.
    """

    name: Literal["custom"]
    make: str
    make_kwargs: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class NoMixerConfig:
    """No mixer: independent Q-learning."""

    name: Literal["none"]


@dataclass(frozen=True, kw_only=True)
class ExplorationConfig:
    """``EpsilonGreedyAction``: each agent explores; epsilon falls linearly with the frames."""

    epsilon_start: float = number(least=0, most=1)
    epsilon_end: float = number(least=0, most=1)
    anneal_frames: int = number(least=0)
    repeat_exponent: float | None = number(least=0, most=100)


@dataclass(frozen=True, kw_only=True)
class CollectionConfig:
    """The number of frames, the kind of rows and their number of steps, and the collector."""

    total_frames: int = number(least=1)
    rows: Literal["episodes", "slices"]
    steps: int = number(least=1)
    collector: Literal["auto", "fused", "stock", "ray"]


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The replay buffer; its sizes are in rows, ``burn_in`` is in steps."""

    storage: Literal["memory", "memmap"]
    capacity_rows: int = number(least=1)
    batch_rows: int = number(least=1)
    sampling: Literal["uniform", "each_once"]
    burn_in: int = number(least=0)


@dataclass(frozen=True, kw_only=True)
class WeightingConfig:
    """``Weighting``: another agent like the run's, and a ``CentralMixer`` of ``embed_dim``."""

    name: Literal["central", "optimistic"]
    alpha: float = number(above=0, most=1)
    embed_dim: int = number(least=1)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """``QMixLoss``."""

    gamma: float = number(least=0, most=1)
    double_q: bool
    td_lambda: float = number(least=0, most=1)
    reward_scale: float = number(above=0)
    bounded_targets: bool
    weighting: WeightingConfig | None


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """``torch.optim.Adam``."""

    name: Literal["adam"]
    lr: float = number(above=0, most=1)
    eps: float = number(above=0)


@dataclass(frozen=True, kw_only=True)
class RMSpropConfig:
    """``torch.optim.RMSprop``, the optimiser of the paper."""

    name: Literal["rmsprop"]
    lr: float = number(above=0, most=1)
    alpha: float = number(least=0, most=1)
    eps: float = number(above=0)


@dataclass(frozen=True, kw_only=True)
class HardTargetConfig:
    """Target networks are copied every ``period_updates`` gradient steps."""

    name: Literal["hard"]
    period_updates: int = number(least=1)


@dataclass(frozen=True, kw_only=True)
class SoftTargetConfig:
    """Target networks move by ``tau`` of the way at each gradient step."""

    name: Literal["soft"]
    tau: float = number(above=0, most=1)


@dataclass(frozen=True, kw_only=True)
class BatchTargetConfig:
    """Target networks are copied before the ``per_batch`` gradient steps of each batch."""

    name: Literal["batch"]


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """The gradient steps after each collected batch."""

    per_batch: int = number(least=1)
    max_grad_norm: float = number(above=0)
    optimizer: AdamConfig | RMSpropConfig
    target: HardTargetConfig | SoftTargetConfig | BatchTargetConfig


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Greedy episodes, in an environment of their own with a seed of its own.

    ``video`` draws one more episode at each evaluation.
    """

    every_frames: int = number(least=1)
    episodes: int = number(least=2)
    seed: int = number(least=0, most=MAX_SEED)
    video: bool


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints, from which a run goes on: the seconds between them, null for none at all."""

    every_seconds: float | None = number(least=0)
    keep: int = number(least=1)


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The device of a run, its threads, and the way its updates run (``Update``).

    ``threads`` counts the CPU's threads: "auto" takes the number that is fastest, null leaves it to
    torch. Where updates run in C++ no number of a curve depends on it.
    """

    device: Literal["auto", "cpu", "cuda"]
    threads: Literal["auto"] | int | None = number(least=1, most=MAX_THREADS)
    compile: bool
    cuda_graph: Literal["auto", True, False]


InPython = CustomConfig | PettingZooConfig | GymnasiumConfig  # may be spread over processes
EnvConfig = VmasConfig | GamesConfig | ForagingConfig | InPython
MixerConfig = QMixerConfig | VDNConfig | QFixConfig | QPlexConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run."""

    name: str
    seed: int = number(least=0, most=MAX_SEED)
    runtime: RuntimeConfig
    env: EnvConfig
    agent: RecurrentConfig | FeedforwardConfig
    mixer: MixerConfig | CustomMixerConfig | NoMixerConfig
    exploration: ExplorationConfig
    collection: CollectionConfig
    replay: ReplayConfig
    loss: LossConfig
    update: UpdateConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    logging: tuple[Literal["tensorboard", "wandb"], ...]  # beside metrics.csv


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a run, from a file and overrides.

    Args:
        path: a YAML file.
        overrides: ``key.sub=value``, the value in YAML.

    Raises:
        ConfigError: with file, line, dotted path, what was expected and what was got.
    """
    config = read_config(path, overrides)
    try:
        overridden_keys = {override.partition("=")[0] for override in overrides}
        folder = Path(path).parent
        config = replace(
            config,
            env=_resolved(config.env, folder, overridden_keys),
            mixer=_resolved_mixer(config.mixer, folder, overridden_keys),
        )
        _check_name(config.name)
        _check_scenario(config.env)
        _check_sizes(config)
        _check_epochs(config)
        _check_target(config)
        _check_collector(config)
        _check_logging(config.logging)
    except ConfigError as error:
        raise ConfigError(f"{_origin(str(error), path, overrides)}: {error}") from None
    return config


def _origin(message: str, path: str | Path, overrides: Sequence[str]) -> str:
    """Return where the key was set with which a message begins: by an override, or in the file."""
    key = re.match(r"[\w.]*", message)
    names = key[0].split(".") if key else []
    for override in reversed(overrides):
        typed = override.partition("=")[0].split(".")
        if names[: len(typed)] == typed:
            return f"override {shown(override)!r}"
    return str(path)


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return a configuration as it stands in a file, whose files and packages may be absent here.

    The file of a run, ``config.yaml`` beside its metrics or weights, may lack keys that were added
    after the run.

    Args:
        path: a YAML file.
        overrides: ``key.sub=value``, the value in YAML.

    Raises:
        ConfigError: if a key is unknown or missing, or a value has the wrong type or range.
    """
    root = read(Path(path))
    if _is_of_run(Path(path)):
        root = with_added_keys(root)
    for override in overrides:
        root = overridden(root, override)
    return build(RunConfig, root)


def _is_of_run(path: Path) -> bool:
    """Return whether a configuration stands in the folder of a run."""
    others = (path.parent / name for name in ("metrics.csv", "weights.pt"))
    return path.name == CONFIG_FILE and any(other.exists() for other in others)


def save_config(config: RunConfig, path: Path) -> None:
    """Write a configuration to a file; ``load_config`` reads an equal one from it.

    Raises:
        SaveError: if it cannot be written; a file that was there before stays.
    """
    write_whole(path, dump(asdict(config)))


def settings(section: Any) -> dict[str, Any]:
    """Return a section as keyword arguments, without the name that chose it."""
    return {f.name: getattr(section, f.name) for f in fields(section) if f.name != "name"}


def vmas_scenarios() -> list[str]:
    """Return the names of VMAS's scenarios, listed from its files without importing it."""
    package = find_spec("vmas")
    folders = package.submodule_search_locations if package else None
    files = (path for folder in folders or () for path in Path(folder, "scenarios").rglob("*.py"))
    return sorted(path.stem for path in files if path.stem != "__init__")


def _check_name(name: str) -> None:
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(
            "name: expected at most 100 letters, digits and . _ -, the first a letter or digit, "
            f"or auto; got {shown(name)!r}"
        )


def _resolved(env: EnvConfig, folder: Path, overridden_keys: Collection[str]) -> EnvConfig:
    """Return a section with the whole paths of the user's files in it.

    A run's folder keeps them, so that the run is evaluated from any folder.

    Args:
        env: the section.
        folder: of the configuration.
        overridden_keys: the keys that the command line sets.

    Raises:
        ConfigError: if ``make`` has another form than those of ``envs.custom``, or there is no
            such file.
    """
    if not isinstance(env, (VmasConfig, PettingZooConfig, CustomConfig)):
        return env
    typed = {key.removeprefix("env.") for key in overridden_keys}

    def base(key: str) -> Path | None:
        """Return the folder to which a path in a key is relative."""
        return None if key in typed or "env" in typed else folder

    if isinstance(env, VmasConfig):
        env = replace(env, others=_run_or_name(env.others, base("others")))
    if not isinstance(env, CustomConfig):
        scenario = with_whole_path("env.scenario", env.scenario, base("scenario"))
        return replace(env, scenario=scenario)
    return replace(env, make=_whole_name("env.make", env.make, "function", base("make")))


def _resolved_mixer(mixer: Any, folder: Path, overridden_keys: Collection[str]) -> Any:
    """Return a section ``mixer`` with the whole path of the user's file, if it names one.

    Args:
        mixer: the section.
        folder: as in ``_resolved``.
        overridden_keys: as in ``_resolved``.

    Raises:
        ConfigError: as ``_resolved``.
    """
    if not isinstance(mixer, CustomMixerConfig):
        return mixer
    base = None if {"mixer", "mixer.make"} & set(overridden_keys) else folder
    return replace(mixer, make=_whole_name("mixer.make", mixer.make, "Class", base))


def _whole_name(key: str, make: str, kind: str, folder: Path | None) -> str:
    """Return the name of a function or class with the whole path of its file, if it is in one.

    Args:
        key: dotted, for the message.
        make: "path/to/file.py:name" or "module:name".
        kind: of the thing, as an error calls it.
        folder: as in ``with_whole_path``.

    Raises:
        ConfigError: if ``make`` has another form, or there is no such file.
    """
    where, _, name = make.rpartition(":")
    if not where or not name.isidentifier():
        raise ConfigError(
            f"{key}: expected path/to/file.py:{kind} or module:{kind}, got {shown(make)!r}"
        )
    return with_whole_path(key, make, folder)


def with_whole_path(key: str, spec: str, folder: Path | None = None) -> str:
    """Return the name of a thing of the user's with the whole path of its file, if it is in one.

    Args:
        key: dotted, for the message.
        spec: "path/to/file.py", "path/to/file.py:name", or any other name.
        folder: to which a path is relative: of the configuration; None for the current one.

    Raises:
        ConfigError: if there is no such file.
    """
    where, colon, name = (spec, "", "") if spec.endswith(".py") else spec.rpartition(":")
    if not where.endswith(".py"):
        return spec
    file = _whole_path(key, where, folder)
    if not (os.path.isfile(file) or _is_copied(folder)):
        of = "the configuration's" if folder else "the current"
        raise ConfigError(
            f"{key}: expected a file, relative to {of} folder, got "
            f"{shown(where)!r}; there is no {shown(str(file))}"
        )
    return f"{file}{colon}{name}"


def _run_or_name(others: str, folder: Path | None) -> str:
    """Return one of ``OTHERS``, or the whole path of a run's folder.

    Args:
        others: of a section ``env``.
        folder: as in ``with_whole_path``.

    Raises:
        ConfigError: if it is neither.
    """
    if others in OTHERS:
        return others
    run = _whole_path("env.others", others, folder)
    if not (os.path.isfile(run / CONFIG_FILE) or _is_copied(folder)):
        raise ConfigError(
            f"env.others: expected one of {', '.join(OTHERS)}, or a run's folder, got "
            f"{shown(others)!r}{nearest(shown(others), OTHERS)}; there is no "
            f"{shown(str(run))}/{CONFIG_FILE}"
        )
    return str(run)


def _whole_path(key: str, where: str, folder: Path | None) -> Path:
    """Return a whole path; the file may be absent, or its name too long for any file.

    Raises:
        ConfigError: if no file can have the path, as it holds a zero byte, or a loop of links.
    """
    try:
        return (folder or Path()).joinpath(where).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{key}: expected a path, got {shown(where)!r}: {error}") from error


def _is_copied(folder: Path | None) -> bool:
    """Return whether a configuration is a run's that has copies of the user's files, or a copy."""
    lists = () if folder is None else (folder / SOURCES, folder.parent)
    return any((place / SOURCES_FILE).is_file() for place in lists)


def check_vmas_scenario(name: str) -> None:
    """Refuse a name that is none of VMAS's and no file or class, which is loaded when it is made.

    Raises:
        ConfigError: if it is unknown.
    """
    known = vmas_scenarios()  # none where VMAS is not installed
    if known and name not in known and not is_own_scenario(name):
        raise ConfigError(
            f"env.scenario: unknown VMAS scenario {shown(name)!r}{nearest(shown(name), known)}; "
            "`qmix-trl names scenarios` lists them; one of your own is path/to/file.py or "
            "module:Class"
        )


def is_own_scenario(name: str) -> bool:
    """Return whether a scenario's name is a file or a class of the user's."""
    return name.endswith(".py") or ":" in name


def _check_scenario(env: EnvConfig) -> None:
    if isinstance(env, VmasConfig):
        check_vmas_scenario(env.scenario)
    elif isinstance(env, ForagingConfig):
        foraging_task(env.scenario, env.scenario_kwargs)
    elif isinstance(env, (PettingZooConfig, GymnasiumConfig)):
        check_extra(env.family, "envs", "env.family")  # it is imported when it is made
    elif isinstance(env, GamesConfig):
        _check_game(env)


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
