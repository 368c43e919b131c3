"""The parts of any object: the values that it holds, with the texts that name them in a path."""

import enum
import functools
import gc
import types
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from qmix_trl.envs.compiled.trace.leaves import DESCRIBED, is_cache
from qmix_trl.envs.compiled.trace.own_code import code_digest

PRIMITIVES = (int, float, str, bool, type(None), bytes, complex)
CONTAINERS = (list, tuple, set, frozenset, deque)


class Attributes(dict):
    """The attributes of an object in ``__slots__``, as a mapping that writes to the object."""

    def __init__(self, owner: Any, names: Iterable[str]) -> None:
        super().__init__((name, getattr(owner, name)) for name in names if hasattr(owner, name))
        self.owner = owner

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self.owner, name, value)


def described(thing: Any) -> str:
    """Return the text of an object's kind: its class, its length, or the code of a function."""
    if isinstance(thing, types.FunctionType):
        return f"{thing.__module__}.{thing.__qualname__} {code_digest(thing.__code__)}"
    if isinstance(thing, types.BuiltinFunctionType):
        return f"{thing.__module__}.{thing.__qualname__}"
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if isinstance(thing, dict):
        return f"{kind} {','.join(map(_key_name, thing))}"
    return f"{kind} {len(thing)}" if isinstance(thing, CONTAINERS) else kind


def entity_name(thing: Any) -> str | None:
    """Return the name of a VMAS entity, None for anything else."""
    name = getattr(thing, "_name", None)
    return name if isinstance(name, str) and hasattr(thing, "_state") else None


def class_data(cls: type) -> list[tuple[str, Any]]:
    """Return the attributes of a class, with the functions of its descriptors."""
    found = []
    for name, value in sorted(vars(cls).items()):
        if name == "_abc_impl" or (
            name.startswith("__") and not isinstance(value, types.FunctionType)
        ):
            continue  # of Python itself
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if isinstance(value, property):
            accessors = {"get": value.fget, "set": value.fset, "del": value.fdel}
            found += [(f"{name}:{kind}", f) for kind, f in accessors.items() if f is not None]
        elif not isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            found.append((name, value))
    return found


def children(thing: Any) -> list[tuple[str, Any, Any, Any]]:
    """Return the values that an object holds, but for its class.

    Returns:
        (suffix of the path, child, holder, key) for each child; holder and key are None where
        no other value can be put.
    """
    found: list[tuple[str, Any, Any, Any]] = []
    if isinstance(thing, (list, deque)):
        found = [(f"[{i}]", child, thing, i) for i, child in enumerate(thing)]
    elif isinstance(thing, (tuple, set, frozenset)):
        # Sets have another order in each process.
        held = thing if isinstance(thing, tuple) else sorted(thing, key=_key_name)
        found = [(f"({i})", child, None, None) for i, child in enumerate(held)]
    elif isinstance(thing, (dict, types.MappingProxyType)):
        found = _items(thing)
    elif isinstance(thing, types.MethodType):
        return [(":self", thing.__self__, None, None), (":function", thing.__func__, None, None)]
    elif isinstance(thing, functools.partial):
        held = (thing.func, *thing.args, *thing.keywords.values())
        found = [(f":args[{i}]", child, None, None) for i, child in enumerate(held)]
    elif isinstance(thing, types.BuiltinFunctionType):
        return [(":self", thing.__self__, None, None)]
    elif isinstance(thing, weakref.ref):
        return [(":referent", thing(), None, None)]
    elif isinstance(thing, np.ndarray):  # of objects
        return [(f"[{i}]", child, None, None) for i, child in enumerate(thing.flat)]
    for attributes in (getattr(thing, "__dict__", {}), _slots_of(thing)):
        found += [(f".{k}", child, attributes, k) for k, child in sorted(attributes.items())]
    if is_cache(thing):  # its results
        held = enumerate(gc.get_referents(thing))
        found += [(f":cached[{i}]", child, None, None) for i, child in held]
    return found


def _items(thing: Any) -> list[tuple[str, Any, Any, Any]]:
    """Return the keys and the values of a dictionary."""
    found, names = [], set()
    holder = thing if isinstance(thing, dict) else None
    for key, child in list(thing.items()):
        name = _key_name(key)
        if name in names:  # keys of the same text
            name = f"{name} {len(names)}"
        names.add(name)
        found.append((f"[{name}]", child, holder, key if holder is not None else None))
        if not isinstance(key, (*PRIMITIVES, tuple, frozenset)):
            found.append((f"[{name}]:key", key, None, None))
    return found


def _slots_of(thing: Any) -> Attributes | dict:
    """Return the attributes of an object in ``__slots__`` of its classes."""
    names = _slot_names(type(thing))
    return Attributes(thing, names) if names else {}


@functools.cache
def _slot_names(kind: type) -> list[str]:
    return [
        name
        for cls in kind.__mro__
        for name, member in vars(cls).items()
        if isinstance(member, types.MemberDescriptorType) and "__slots__" in vars(cls)
    ]


def is_filled(cell: types.CellType) -> bool:
    """Say whether a closure's variable has a value other than the cell itself."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def plain(text: str) -> str:
    """Return a text without the characters that separate the parts of a path."""
    return text.translate(SEPARATORS)


SEPARATORS = str.maketrans(dict.fromkeys(".:[]()<>!@", "_"))


def _key_name(key: Any) -> str:
    """Return a dictionary's key as a part of a path."""
    if isinstance(key, PRIMITIVES):
        return plain(str(key))
    if isinstance(key, frozenset):  # in the same order in all processes
        return ",".join(sorted(map(_key_name, key)))
    if isinstance(key, (tuple, list)):
        return ",".join(map(_key_name, key))
    if isinstance(key, DESCRIBED):
        return plain(repr(key))
    if isinstance(key, enum.Enum):
        return f"{type(key).__name__}_{key.name}"
    return plain(entity_name(key) or getattr(key, "__qualname__", type(key).__name__))
