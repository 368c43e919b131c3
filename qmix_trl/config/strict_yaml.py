"""Strict YAML: reading a file into dataclasses, with errors of one line.

Scalars are read more strictly than by PyYAML: ``5e-5`` and ``1e6`` are floats, and only ``true``
and ``false`` are booleans. Duplicate keys, anchors, aliases and tags are errors. Size, depth and
number of tokens have limits, so that any file is read or refused within a second.
"""

import os
import re
import stat
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import yaml

from qmix_trl.errors import ConfigError, nearest, shown

MAX_BYTES = 100_000
MAX_TOKENS = 10_000  # a configuration has some 500
MOST_SHOWN = 6  # keys of a section that a message shows as a whole
MAX_DEPTH = 20  # of nesting, and of an override's key
MAX_DIGITS = 18  # of an integer that fits into 64 bits
WHOLE = r"(0|[1-9]\d*(_\d+)*)"  # with a zero in front it might be octal
INTEGER = re.compile(rf"[-+]?{WHOLE}")
FLOAT = re.compile(rf"[-+]?({WHOLE}(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
ZERO_IN_FRONT = re.compile(r"[-+]?0\d[\d_]*\.?\d*([eE][-+]?\d+)?")
FORBIDDEN = (yaml.AnchorToken, yaml.AliasToken, yaml.TagToken)
BEGINS = (
    *(yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken),
    *(yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken),
)
ENDS = (yaml.BlockEndToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)
BOOLEAN_WORDS = ("true", "false", "yes", "no", "on", "off")  # of YAML 1.1, in any case
INFINITE = (float("inf"), float("-inf"))
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def number(
    *, least: float | None = None, above: float | None = None, most: float | None = None
) -> Any:
    """Return a dataclass field for a number, or a sequence of numbers, within bounds.

    Args:
        least: the least allowed number.
        above: a number that every allowed number exceeds.
        most: the greatest allowed number.
    """
    return field(metadata={"least": least, "above": above, "most": most})


class Entry(NamedTuple):
    """A YAML value (a scalar, a dict of entries or a list of entries) and its place in the file.

    Attributes:
        value: the value.
        where: its place.
        is_quoted: whether it is text in quotes.
    """

    value: Any
    where: str
    is_quoted: bool = False


def read(path: Path) -> Entry:
    """Return the entries of a YAML file.

    Raises:
        ConfigError: if the file cannot be read, or is no strict YAML.
    """
    try:
        content = _content(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{path}: expected a configuration of at most {MAX_BYTES} bytes, got more; is it "
            "another file? `qmix-trl copy` lists configurations"
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text: {error.reason}") from None
    return _parse(text, _Source(str(path), has_lines=True))


def read_values(path: Path) -> dict[str, Any]:
    """Return the values of a YAML file of any keys.

    Raises:
        ConfigError: if the file cannot be read, is no strict YAML, or no mapping.
    """
    root = read(path)
    if not isinstance(root.value, dict):
        raise _wrong(root, "the file", "a mapping")
    return _unwrapped(root, "")


def _content(path: Path) -> bytes:
    """Return the bytes of a file, cut after ``MAX_BYTES + 1``.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no regular file: a pipe may wait for ever, a device never end.
    """
    # Without O_NONBLOCK, opening a pipe would wait for its writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("expected a regular file")
        return file.read(MAX_BYTES + 1)


@dataclass(frozen=True)
class _Source:
    """Where a YAML text comes from, as error messages name it.

    Attributes:
        name: the file or the override.
        has_lines: whether messages name lines.
    """

    name: str
    has_lines: bool

    def where(self, mark: yaml.Mark) -> str:
        """Return the name of a place in the text."""
        return f"{self.name}:{mark.line + 1}" if self.has_lines else self.name


def _parse(text: str, source: _Source) -> Entry:
    """Return the entries of a YAML text."""
    try:
        _check_tokens(text, source)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return Entry(None, source.name) if node is None else _entry(node, "", source)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", "not YAML")
        raise ConfigError(f"{source.where(mark) if mark else source.name}: {problem}") from None


def _check_tokens(text: str, source: _Source) -> None:
    """Refuse tokens of other YAML, too many, and too many levels; the text is scanned up to there.

    Raises:
        ConfigError: with the place of the first one that is refused.
    """
    depth = 0
    for n_before, token in enumerate(yaml.scan(text, Loader=yaml.SafeLoader)):
        where = source.where(token.start_mark)
        if isinstance(token, FORBIDDEN):
            raise ConfigError(f"{where}: anchors, aliases and tags are refused")
        depth += isinstance(token, BEGINS) - isinstance(token, ENDS)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: nested too deeply; expected at most {MAX_DEPTH} levels")
        if n_before == MAX_TOKENS:
            raise ConfigError(f"{where}: too many values; expected at most {MAX_TOKENS} tokens")


def _entry(node: yaml.Node, path: str, source: _Source) -> Entry:
    """Return the entry of a YAML node at a dotted path."""
    where = source.where(node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return Entry([_entry(item, path, source) for item in node.value], where)
    if isinstance(node, yaml.ScalarNode):
        is_quoted = bool(node.style)
        value = node.value if is_quoted else _read_unquoted(node.value)
        return Entry(value, where, is_quoted)
    found: dict[str, Entry] = {}
    for key_node, value_node in node.value:
        key, key_where = key_node.value, source.where(key_node.start_mark)
        if not (isinstance(key, str) and key.isprintable()):
            raise ConfigError(f"{key_where}: {path or 'the file'}: expected a name as key")
        dotted = f"{path}.{shown(key)}".lstrip(".")
        if key in found:
            first = found[key].where
            raise ConfigError(f"{key_where}: {dotted}: stands twice, first at {first}")
        found[key] = _entry(value_node, dotted, source)._replace(where=key_where)
    return Entry(found, where)


def _read_unquoted(text: str) -> Any:
    """Return the value of an unquoted scalar."""
    if text in ("", "null", "~"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if INTEGER.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else text


def overridden(root: Entry, override: str) -> Entry:
    """Return entries with one value replaced or added.

    Args:
        root: the entries of a file.
        override: ``key.sub=value``; the value is YAML.

    Raises:
        ConfigError: if the override is not of that form, or the value is no strict YAML.
    """
    path, equals, text = override.partition("=")
    names = path.split(".")
    if not equals or "" in names or len(names) > MAX_DEPTH:
        raise ConfigError(f"{shown(override)!r}: expected an override key.sub=value")
    if not isinstance(root.value, dict):
        raise _wrong(root, "the file", "a mapping")
    source = f"override {shown(override)!r}"
    value = _parse(text, _Source(source, has_lines=False))
    return _replaced(root, names, value, source)


def _replaced(entry: Entry, names: list[str], value: Entry, source: str) -> Entry:
    """Return an entry with the value at a path of names replaced or added."""
    if not names:
        return value
    is_mapping = isinstance(entry.value, dict)
    inner = entry.value if is_mapping else {}
    below = _replaced(inner.get(names[0], Entry({}, source)), names[1:], value, source)
    return Entry({**inner, names[0]: below}, entry.where if is_mapping else source)


def dump(content: Mapping[str, Any]) -> str:
    """Return a mapping as YAML text, from which ``read`` returns equal values."""

    class Dumper(yaml.SafeDumper):
        """Quotes text that would be read as another value without quotes."""

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        is_plain = _read_unquoted(text) == text and not ZERO_IN_FRONT.fullmatch(text)
        style = None if is_plain else "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent)
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def build(
    kind: Any, entry: Entry, path: str = "", bounds: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """Return the value of an entry as an annotated type.

    Args:
        kind: a dataclass, ``T | None``, a Literal with a scalar and None, a union of dataclasses
            that differ in their first field, a Literal, ``tuple[T, ...]``, ``dict[str, Any]``,
            int, float, bool or str.
        entry: an entry that ``read`` returned.
        path: the entry's dotted path in the file.
        bounds: the bounds of numbers: the metadata of a field by ``number``.

    Raises:
        ConfigError: if the entry does not fit the type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return _build_section(kind, entry, path)
    if origin in (typing.Union, types.UnionType):
        return _build_union(arguments, entry, path, bounds)
    if origin is Literal:
        return _build_choice(arguments, entry, path)
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


def _build_choice(choices: tuple, entry: Entry, path: str) -> Any:
    """Return the choice of a Literal that equals the entry, also in type."""
    for choice in choices:
        if entry.value == choice and type(entry.value) is type(choice):
            return choice
    near = nearest(shown(str(entry.value)), map(str, choices))
    raise _wrong(entry, path, f"one of {', '.join(map(str, choices))}", near)


def _build_section(kind: Any, entry: Entry, path: str, hint: str = "") -> Any:
    """Return a dataclass of the entry's values; every field must be given."""
    if not isinstance(entry.value, dict):
        raise _wrong(entry, path or "the file", "a mapping")
    known = {f.name: f for f in fields(kind)}
    for key, item in entry.value.items():
        if key not in known:
            dotted = f"{path}.{shown(key)}".lstrip(".")
            raise ConfigError(
                f"{item.where}: {dotted}: unknown key{nearest(shown(key), known)}; "
                f"known here: {', '.join(known)}{hint}"
            )
    hints = typing.get_type_hints(kind)
    built = {}
    for name, f in known.items():
        dotted = f"{path}.{name}".lstrip(".")
        if name not in entry.value:
            hint = _whole(known, entry, path)
            raise ConfigError(f"{entry.where}: {dotted}: missing; a file names every key{hint}")
        built[name] = build(hints[name], entry.value[name], dotted, f.metadata)
    return kind(**built)


def _whole(known: Collection[str], entry: Entry, path: str) -> str:
    """Return a hint that shows a short section as a whole, with the values that it has."""
    if not path or len(known) > MOST_SHOWN:
        return ""
    values = {key: entry.value[key].value if key in entry.value else "..." for key in known}
    keys = ", ".join(f"{key}: {value}" for key, value in values.items())
    return f"; the section is '{path}={{{shown(keys)}}}'"


def _build_union(kinds: tuple, entry: Entry, path: str, bounds: Mapping[str, Any]) -> Any:
    """Return None, a word or a scalar, or the dataclass whose first field equals the entry's."""
    if types.NoneType in kinds:
        if entry.value is None:
            return None
        *words, kind = [kind for kind in kinds if kind is not types.NoneType]
        if words and isinstance(entry.value, str):
            choices = typing.get_args(words[0])
            if entry.value not in choices:
                raise _wrong(entry, path, f"{WORDS[kind]} or {' or '.join(choices)}")
            return entry.value
        return build(kind, entry, path, bounds)
    tag = fields(kinds[0])[0].name
    tagged = {
        name: kind for kind in kinds for name in typing.get_args(typing.get_type_hints(kind)[tag])
    }
    if not isinstance(entry.value, dict) or tag not in entry.value:
        hint = ""
        if isinstance(entry.value, str) and entry.value in tagged:
            others = [f.name for f in fields(tagged[entry.value])][1:]
            more = ", ..." if others else ""
            hint = f"; write '{path}={{{tag}: {entry.value}{more}}}'"
        elif isinstance(entry.value, dict):
            key = shown(next(iter(entry.value), "KEY"))
            hint = f" without one; a section is replaced as a whole: {path}.{key}=... sets one key"
        raise _wrong(entry, path, f"a mapping with a {tag} of {', '.join(tagged)}", hint)
    choice = _build_choice(tuple(tagged), entry.value[tag], f"{path}.{tag}")
    hint = f"; to choose another {tag}, replace the section: '{path}={{{tag}: {choice}, ...}}'"
    return _build_section(tagged[choice], entry, path, hint)


def _build_scalar(kind: type, entry: Entry, path: str, bounds: Mapping[str, Any]) -> Any:
    """Return a scalar of a type within bounds; an integer serves as a float."""
    value = float(entry.value) if kind is float and type(entry.value) is int else entry.value
    if type(value) is not kind:
        raise _wrong(entry, path, WORDS[kind], _as_another(kind, entry.value, path))
    least, above, most = (bounds.get(name) for name in ("least", "above", "most"))
    is_within = (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
    )
    if not is_within or value in INFINITE:
        limits = {"of at least": least, "above": above, "at most": most}
        words = " and ".join(
            f"{word} {limit}" for word, limit in limits.items() if limit is not None
        )
        raise _wrong(entry, path, f"{WORDS[kind]} {words}" if words else "a finite number")
    return value


def _as_another(kind: type, value: Any, path: str) -> str:
    """Return a hint how to write a value as another type, if it looks like one."""
    if kind is str and isinstance(value, (bool, int, float)):
        return f"; text that looks like another value is quoted: '{path}=\"...\"'"
    if kind is int and isinstance(value, float) and value.is_integer():
        if abs(value) >= 10**MAX_DIGITS:
            return f"; an integer has at most {MAX_DIGITS} digits"
        return f"; the integer is {int(value)}"
    if kind in (int, float) and isinstance(value, str) and ZERO_IN_FRONT.fullmatch(value):
        return "; a number has no zero in front"
    return ""


def _unwrapped(entry: Entry, path: str) -> Any:
    """Return an entry's value without the places of its parts."""
    if isinstance(entry.value, dict):
        return {key: _unwrapped(item, f"{path}.{key}") for key, item in entry.value.items()}
    if isinstance(entry.value, list):
        return [_unwrapped(item, path) for item in entry.value]
    if entry.value in INFINITE:
        raise _wrong(entry, path, "a finite number")
    is_word = isinstance(entry.value, str) and not entry.is_quoted
    if is_word and ZERO_IN_FRONT.fullmatch(entry.value):  # a scenario would take it for text
        raise _wrong(entry, path, "a number without a zero in front", "; quote it if it is text")
    if is_word and entry.value.lower() in BOOLEAN_WORDS:  # a scenario would take it for true
        raise _wrong(entry, path, "true or false", "; quote it if it is text")
    return entry.value


def _wrong(entry: Entry, path: str, expected: str, hint: str = "") -> ConfigError:
    """Return the error of an entry that does not fit."""
    got = {dict: "a mapping", list: "a list"}.get(type(entry.value), shown(repr(entry.value)))
    return ConfigError(f"{entry.where}: {path}: expected {expected}, got {got}{hint}")
