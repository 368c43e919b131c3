"""Strict YAML: a file into dataclasses, and one line for whatever does not fit.

Scalars are read more strictly than PyYAML does: ``5e-5`` and ``1e6`` are floats, only ``true`` and
``false`` are booleans, a key that stands twice is an error, and anchors, aliases and tags are
refused.
"""

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import yaml

from qmix_trl.errors import ConfigError, nearest

MAX_BYTES = 1_000_000
MAX_DEPTH = 20  # of an override
MAX_DIGITS = 18  # what fits into 64 bits
INTEGER = re.compile(r"[-+]?\d+(_\d+)*")
FLOAT = re.compile(r"[-+]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][-+]?\d+)?")
FORBIDDEN = (yaml.AnchorToken, yaml.AliasToken, yaml.TagToken)
INFINITE = (float("inf"), float("-inf"))
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def number(
    *, least: float | None = None, above: float | None = None, most: float | None = None
) -> Any:
    """Return a field for a number within bounds; for a sequence, within them each."""
    return field(metadata={"least": least, "above": above, "most": most})


class Entry(NamedTuple):
    """A YAML value (a scalar, a dict of entries or a list of entries) and where it stands."""

    value: Any
    where: str


def read(path: Path) -> Entry:
    """Return the entries of a file.

    Raises:
        ConfigError: if it cannot be read, or is not YAML of the strict kind.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: expected at most {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text: {error.reason}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    return _parse(text, str(path), lines=True)


def _parse(text: str, source: str, *, lines: bool) -> Entry:
    """Return the entries of a YAML text; every ``where`` is the source, with the line if asked."""

    def where(mark: yaml.Mark) -> str:
        return f"{source}:{mark.line + 1}" if lines else source

    def entry(node: yaml.Node, path: str) -> Entry:
        here = where(node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            return Entry([entry(item, path) for item in node.value], here)
        if isinstance(node, yaml.ScalarNode):
            return Entry(node.value if node.style else _plain(node.value), here)
        found: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            key, key_where = key_node.value, where(key_node.start_mark)
            if not (isinstance(key, str) and key.isprintable()):
                raise ConfigError(f"{key_where}: {path or 'the file'}: expected a name as key")
            dotted = f"{path}.{key}".lstrip(".")
            if key in found:
                first = found[key].where
                raise ConfigError(f"{key_where}: {dotted}: stands twice, first at {first}")
            found[key] = Entry(entry(value_node, dotted).value, key_where)
        return Entry(found, here)

    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, FORBIDDEN):
                raise ConfigError(
                    f"{where(token.start_mark)}: anchors, aliases and tags are refused"
                )
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return Entry(None, source) if node is None else entry(node, "")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", "not YAML")
        raise ConfigError(f"{where(mark) if mark else source}: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None


def _plain(text: str) -> Any:
    """Return an unquoted scalar."""
    if text in ("", "null", "~"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if INTEGER.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else text


def overridden(root: Entry, override: str) -> Entry:
    """Return the entries with one replaced or added, as ``key.sub=value`` says.

    Raises:
        ConfigError: if the override is not of that form, or the value is not YAML.
    """
    path, equals, text = override.partition("=")
    names = path.split(".")
    if not equals or "" in names or len(names) > MAX_DEPTH:
        raise ConfigError(f"{override[:80]!r}: expected an override key.sub=value")
    source = f"override {override!r}"

    def replaced(entry: Entry, names: list[str]) -> Entry:
        if not names:
            return _parse(text, source, lines=False)
        is_mapping = isinstance(entry.value, dict)
        inner = entry.value if is_mapping else {}
        below = replaced(inner.get(names[0], Entry({}, source)), names[1:])
        return Entry({**inner, names[0]: below}, entry.where if is_mapping else source)

    return replaced(root, names)


def dump(content: Mapping[str, Any]) -> str:
    """Return a mapping as YAML that ``read`` reads as the same."""

    class Dumper(yaml.SafeDumper):
        """Quotes text that unquoted would be read as something else."""

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = None if _plain(text) == text else "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent)
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def build(
    kind: Any, entry: Entry, path: str = "", bounds: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """Return the entry as a value of a kind.

    Args:
        kind: a dataclass, ``T | None``, a union of dataclasses told apart by their first field,
            a Literal, ``tuple[T, ...]``, ``dict[str, Any]``, int, float, bool or str.
        entry: as ``read`` returns it.
        path: dotted, of the entry in the file.
        bounds: of numbers, as ``number`` gives them.

    Raises:
        ConfigError: if the entry does not fit.
    """
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
            build(arguments[0], item, f"{path}[{i}]", bounds) for i, item in enumerate(entry.value)
        )
    if origin is dict:
        if not isinstance(entry.value, dict):
            raise _wrong(entry, path, "a mapping")
        return {key: _unwrapped(item, f"{path}.{key}") for key, item in entry.value.items()}
    return _build_scalar(kind, entry, path, bounds)


def _build_section(kind: Any, entry: Entry, path: str, hint: str = "") -> Any:
    if not isinstance(entry.value, dict):
        raise _wrong(entry, path or "the file", "a mapping")
    known = {f.name: f for f in fields(kind)}
    for key, item in entry.value.items():
        if key not in known:
            dotted = f"{path}.{key}".lstrip(".")
            raise ConfigError(
                f"{item.where}: {dotted}: unknown key{nearest(key, known)}; "
                f"known here: {', '.join(known)}{hint}"
            )
    hints = typing.get_type_hints(kind)
    built = {}
    for name, f in known.items():
        dotted = f"{path}.{name}".lstrip(".")
        if name not in entry.value:
            raise ConfigError(f"{entry.where}: {dotted}: missing; a file names every key")
        built[name] = build(hints[name], entry.value[name], dotted, f.metadata)
    return kind(**built)


def _build_union(kinds: tuple, entry: Entry, path: str, bounds: Mapping[str, Any]) -> Any:
    """Return ``T | None``, or the section whose first field, a Literal, is the entry's."""
    if types.NoneType in kinds:
        (kind,) = [kind for kind in kinds if kind is not types.NoneType]
        return None if entry.value is None else build(kind, entry, path, bounds)
    tag = fields(kinds[0])[0].name
    tagged = {typing.get_args(typing.get_type_hints(kind)[tag])[0]: kind for kind in kinds}
    if not isinstance(entry.value, dict) or tag not in entry.value:
        raise _wrong(entry, path, f"a mapping with a {tag} of {', '.join(tagged)}")
    choice = build(Literal[tuple(tagged)], entry.value[tag], f"{path}.{tag}", {})
    hint = f"; to choose another {tag}, replace the section: '{path}={{{tag}: {choice}, ...}}'"
    return _build_section(tagged[choice], entry, path, hint)


def _build_scalar(kind: type, entry: Entry, path: str, bounds: Mapping[str, Any]) -> Any:
    value = float(entry.value) if kind is float and type(entry.value) is int else entry.value
    if type(value) is not kind:
        raise _wrong(entry, path, WORDS[kind])
    least, above, most = (bounds.get(name) for name in ("least", "above", "most"))
    inside = (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
    )
    if not inside or value in INFINITE:
        limits = {"of at least": least, "above": above, "at most": most}
        words = " and ".join(
            f"{word} {limit}" for word, limit in limits.items() if limit is not None
        )
        raise _wrong(entry, path, f"{WORDS[kind]} {words}" if words else "a finite number")
    return value


def _unwrapped(entry: Entry, path: str) -> Any:
    if isinstance(entry.value, dict):
        return {key: _unwrapped(item, f"{path}.{key}") for key, item in entry.value.items()}
    if isinstance(entry.value, list):
        return [_unwrapped(item, path) for item in entry.value]
    if entry.value in INFINITE:
        raise _wrong(entry, path, "a finite number")
    return entry.value


def _wrong(entry: Entry, path: str, expected: str, hint: str = "") -> ConfigError:
    got = {dict: "a mapping", list: "a list"}.get(type(entry.value), repr(entry.value))
    return ConfigError(f"{entry.where}: {path}: expected {expected}, got {got}{hint}")
