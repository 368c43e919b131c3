"""The fields of a configuration and their bounds.

A file is complete: it has every field and no others (``strict_yaml.py`` reads it). No setting that
changes results has a hidden default.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from qmix_trl.config.strict_yaml import number

MAX_SEED = 2**32 - 1  # NumPy's
MAX_THREADS = 1024
OTHERS = ("no_op", "random", "scripted")  # of ``envs.others``
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


def settings(section: Any) -> dict[str, Any]:
    """Return a section as keyword arguments, without the name that chose it."""
    return {f.name: getattr(section, f.name) for f in fields(section) if f.name != "name"}
