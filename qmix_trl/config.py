"""Configurations of runs: frozen dataclasses, and a strict YAML loader with overrides.

A file is complete: every field stands in it, and nothing else. Scalars are read more strictly
than PyYAML does: ``5e-5`` and ``1e6`` are floats, only ``true`` and ``false`` are booleans, a
key that stands twice is an error, and anchors, aliases and tags are refused.
"""

import re
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from qmix_trl.errors import ConfigError, nearest

MAX_BYTES = 1_000_000
INTEGER = re.compile(r"[-+]?\d[\d_]*")
FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FORBIDDEN = (yaml.AnchorToken, yaml.AliasToken, yaml.TagToken)


def number(
    *, least: float | None = None, above: float | None = None, most: float | None = None
) -> Any:
    """Return a field for a number within bounds; for a sequence, within them each."""
    return field(metadata={"least": least, "above": above, "most": most})


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The environment; the fields are the arguments of ``make_env``."""

    family: Literal["vmas"]
    scenario: str
    scenario_kwargs: dict[str, Any]
    group: str | None
    n_envs: int = number(least=1)
    max_steps: int = number(least=1)
    state: Literal["world", "observations"]
    team_reward: Literal["mean", "sum", "shared"]


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """``RecurrentAgent``."""

    name: Literal["recurrent"]
    hidden_dim: int = number(least=1)
    share_parameters: bool
    use_last_action: bool
    use_agent_id: bool


@dataclass(frozen=True, kw_only=True)
class FeedforwardConfig:
    """``FeedforwardAgent``."""

    name: Literal["feedforward"]
    hidden_dims: tuple[int, ...] = number(least=1)
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
class NoMixerConfig:
    """No mixer: independent Q-learning."""

    name: Literal["none"]


@dataclass(frozen=True, kw_only=True)
class ExplorationConfig:
    """Epsilon-greedy, by each agent, linear in frames."""

    epsilon_start: float = number(least=0, most=1)
    epsilon_end: float = number(least=0, most=1)
    anneal_frames: int = number(least=0)


@dataclass(frozen=True, kw_only=True)
class CollectionConfig:
    """How many frames, in rows of which kind and of how many steps."""

    total_frames: int = number(least=1)
    rows: Literal["episodes", "slices"]
    steps: int = number(least=1)


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The buffer, in rows."""

    capacity_rows: int = number(least=1)
    batch_rows: int = number(least=1)
    burn_in: int = number(least=0)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """``QMixLoss``."""

    gamma: float = number(least=0, most=1)
    double_q: bool
    td_lambda: float = number(least=0, most=1)
    reward_scale: float = number(above=0)


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """``torch.optim.Adam``."""

    name: Literal["adam"]
    lr: float = number(above=0)
    eps: float = number(above=0)


@dataclass(frozen=True, kw_only=True)
class RMSpropConfig:
    """``torch.optim.RMSprop``, which the authors used."""

    name: Literal["rmsprop"]
    lr: float = number(above=0)
    alpha: float = number(least=0, most=1)
    eps: float = number(above=0)


@dataclass(frozen=True, kw_only=True)
class HardTargetConfig:
    """Targets are copied every so many gradient steps."""

    name: Literal["hard"]
    period_updates: int = number(least=1)


@dataclass(frozen=True, kw_only=True)
class SoftTargetConfig:
    """Targets follow at each gradient step."""

    name: Literal["soft"]
    tau: float = number(above=0, most=1)


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """The gradient steps after each batch of collection."""

    per_batch: int = number(least=1)
    max_grad_norm: float = number(above=0)
    optimizer: AdamConfig | RMSpropConfig
    target: HardTargetConfig | SoftTargetConfig


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Greedy episodes, in an environment and with a seed of their own."""

    every_frames: int = number(least=1)
    episodes: int = number(least=1)
    seed: int = number(least=0)


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where a run runs."""

    device: Literal["auto", "cpu", "cuda"]
    threads: int = number(least=1)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run."""

    name: str
    seed: int = number(least=0)
    runtime: RuntimeConfig
    env: EnvConfig
    agent: RecurrentConfig | FeedforwardConfig
    mixer: QMixerConfig | VDNConfig | NoMixerConfig
    exploration: ExplorationConfig
    collection: CollectionConfig
    replay: ReplayConfig
    loss: LossConfig
    update: UpdateConfig
    evaluation: EvaluationConfig


class Entry(NamedTuple):
    """A YAML value (a scalar, a dict of entries or a list of entries) and where it stands."""

    value: Any
    where: str


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the run that a file and overrides describe.

    Args:
        path: a YAML file.
        overrides: ``key.sub=value``, the value in YAML.

    Raises:
        ConfigError: with file, line, dotted path, what was expected and what was got.
    """
    root = _read(Path(path))
    for override in overrides:
        root = _overridden(root, override)
    config = _build(RunConfig, root, "", {})
    _check(config)
    return config


def save_config(config: RunConfig, path: Path) -> None:
    """Write a configuration as a file that ``load_config`` reads as the same."""
    path.write_text(yaml.safe_dump(_plain(asdict(config)), sort_keys=False))


def settings(section: Any) -> dict[str, Any]:
    """Return a section as keyword arguments, without the name that chose it."""
    return {f.name: getattr(section, f.name) for f in fields(section) if f.name != "name"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value


def _read(path: Path) -> Entry:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: expected at most {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text: {error.reason}") from None
    return _parse(text, str(path), lines=True)


def _parse(text: str, source: str, *, lines: bool) -> Entry:
    """Return the entries of a YAML text; every ``where`` is the source, with the line if asked."""

    def where(mark: yaml.Mark) -> str:
        return f"{source}:{mark.line + 1}" if lines else source

    def entry(node: yaml.Node) -> Entry:
        here = where(node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            return Entry([entry(item) for item in node.value], here)
        if isinstance(node, yaml.ScalarNode):
            return Entry(_scalar(node), here)
        found: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            key, key_where = key_node.value, where(key_node.start_mark)
            if not isinstance(key, str):
                raise ConfigError(f"{key_where}: expected a name as key")
            if key in found:
                raise ConfigError(f"{key_where}: {key}: stands twice, first at {found[key].where}")
            found[key] = Entry(entry(value_node).value, key_where)
        return Entry(found, here)

    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, FORBIDDEN):
                raise ConfigError(
                    f"{where(token.start_mark)}: anchors, aliases and tags are refused"
                )
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return Entry(None, source) if node is None else entry(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", "not YAML")
        raise ConfigError(f"{where(mark) if mark else source}: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    if node.style in ("'", '"', "|", ">"):
        return text
    if text in ("", "null", "~"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else text


def _overridden(root: Entry, override: str) -> Entry:
    path, equals, text = override.partition("=")
    if not (path and equals):
        raise ConfigError(f"{override!r}: expected an override key.sub=value")
    source = f"override {override!r}"
    names = path.split(".")

    def replaced(entry: Entry, names: list[str]) -> Entry:
        if not names:
            return _parse(text, source, lines=False)
        inner = entry.value if isinstance(entry.value, dict) else {}
        below = replaced(inner.get(names[0], Entry({}, source)), names[1:])
        return Entry({**inner, names[0]: below}, entry.where)

    return replaced(root, names)


def _build(kind: Any, entry: Entry, path: str, bounds: typing.Mapping[str, Any]) -> Any:
    """Return the entry as a value of that kind: a dataclass, a union, a Literal or a plain type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return _build_section(kind, entry, path)
    if origin in (typing.Union, types.UnionType):
        return _build_union(arguments, entry, path, bounds)
    if origin is Literal:
        for choice in arguments:
            if entry.value == choice and type(entry.value) is type(choice):
                return choice
        near = nearest(str(entry.value), map(str, arguments))
        raise _wrong(entry, path, f"one of {', '.join(map(str, arguments))}", near)
    if origin is tuple:
        if not isinstance(entry.value, list):
            raise _wrong(entry, path, "a list")
        return tuple(
            _build(arguments[0], item, f"{path}[{i}]", bounds) for i, item in enumerate(entry.value)
        )
    if origin is dict:
        if not isinstance(entry.value, dict):
            raise _wrong(entry, path, "a mapping")
        return {key: _unwrapped(item) for key, item in entry.value.items()}
    return _build_scalar(kind, entry, path, bounds)


def _build_section(kind: Any, entry: Entry, path: str) -> Any:
    if not isinstance(entry.value, dict):
        raise _wrong(entry, path or "the file", "a mapping")
    known = {f.name: f for f in fields(kind)}
    for key, item in entry.value.items():
        if key not in known:
            dotted = f"{path}.{key}".lstrip(".")
            raise ConfigError(
                f"{item.where}: {dotted}: unknown key{nearest(key, known)}; "
                f"known here: {', '.join(known)}"
            )
    hints = typing.get_type_hints(kind)
    built = {}
    for name, f in known.items():
        dotted = f"{path}.{name}".lstrip(".")
        if name not in entry.value:
            raise ConfigError(f"{entry.where}: {dotted}: missing; a file names every key")
        built[name] = _build(hints[name], entry.value[name], dotted, f.metadata)
    return kind(**built)


def _build_union(kinds: tuple, entry: Entry, path: str, bounds: typing.Mapping[str, Any]) -> Any:
    """Return ``T | None``, or the section whose ``name`` is the entry's."""
    if types.NoneType in kinds:
        (kind,) = [kind for kind in kinds if kind is not types.NoneType]
        return None if entry.value is None else _build(kind, entry, path, bounds)
    named = {typing.get_args(typing.get_type_hints(kind)["name"])[0]: kind for kind in kinds}
    if not isinstance(entry.value, dict) or "name" not in entry.value:
        raise _wrong(entry, path, f"a mapping with a name of {', '.join(named)}")
    name = _build(Literal[tuple(named)], entry.value["name"], f"{path}.name", {})
    return _build_section(named[name], entry, path)


def _build_scalar(kind: type, entry: Entry, path: str, bounds: typing.Mapping[str, Any]) -> Any:
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    value = entry.value
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise _wrong(entry, path, words[kind])
    least, above, most = (bounds.get(name) for name in ("least", "above", "most"))
    if (
        (least is not None and not value >= least)
        or (above is not None and not value > above)
        or (most is not None and not value <= most)
        or (kind is float and value in (float("inf"), float("-inf")))
    ):
        limits = {"at least": least, "above": above, "at most": most}
        limits = " and ".join(f"{k} {v}" for k, v in limits.items() if v is not None)
        raise _wrong(entry, path, f"{words[kind]} {limits or 'that is finite'}")
    return value


def _unwrapped(entry: Entry) -> Any:
    if isinstance(entry.value, dict):
        return {key: _unwrapped(item) for key, item in entry.value.items()}
    return [_unwrapped(i) for i in entry.value] if isinstance(entry.value, list) else entry.value


def _wrong(entry: Entry, path: str, expected: str, hint: str = "") -> ConfigError:
    got = {dict: "a mapping", list: "a list"}.get(type(entry.value), repr(entry.value))
    return ConfigError(f"{entry.where}: {path}: expected {expected}, got {got}{hint}")


def _check(config: RunConfig) -> None:
    """Refuse fields that do not go together."""
    c, r, e = config.collection, config.replay, config.env
    if not RUN_NAME.fullmatch(config.name):
        raise ConfigError(
            f"name: expected letters, digits and . _ -, beginning with a letter or digit, or "
            f"auto; got {config.name!r}"
        )
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
    if c.rows == "episodes" and (c.steps != e.max_steps or r.burn_in):
        raise ConfigError(
            f"collection.rows: episodes wants collection.steps ({c.steps}) equal to env.max_steps "
            f"({e.max_steps}) and replay.burn_in ({r.burn_in}) 0; or choose rows: slices"
        )
