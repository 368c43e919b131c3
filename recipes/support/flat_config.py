"""Nested configurations as one mapping of dotted keys."""

from collections.abc import Mapping
from typing import Any


def flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted keys.

    Args:
        nested: a configuration as mappings, such as ``dataclasses.asdict`` returns.
        above: the dotted key of the mapping itself, with a dot at its end.
    """
    values: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{above}{key}.")
        else:
            values[f"{above}{key}"] = value
    return values
