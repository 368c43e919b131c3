"""The texts of objects without parts that ``walk`` can follow: arrays, generators, iterators."""

import ctypes
import hashlib
import io
import logging
import pickle
import random
import threading
import types
import weakref
from collections import deque
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

HARMLESS, UNKNOWN = object(), object()
# Packages whose objects draw pictures, lock, log or hold files.
SILENT = frozenset({"pyglet", "_thread", "logging", "ctypes", "tempfile"})
DESCRIBED = (
    torch.dtype,
    torch.Size,
    np.dtype,
    np.generic,
    PurePath,
    range,
    slice,
    type(...),
)
OF_C = (ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union)
IN_MEMORY = (io.BytesIO, io.StringIO)
GENERATORS = (
    torch.Generator,
    random.Random,
    np.random.RandomState,
    np.random.Generator,
    np.random.BitGenerator,
)
LEAVES = (
    *(*OF_C, threading.local, logging.Logger, torch.device, *DESCRIBED, np.ndarray, io.IOBase),
    *GENERATORS,
)
HAVE_PARTS: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()
# Objects without attributes whose parts ``walk`` knows.
PARTS = (
    dict,
    list,
    tuple,
    set,
    frozenset,
    deque,
    partial,
    weakref.ref,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.MappingProxyType,
)


def leaf_text(thing: Any) -> Any:
    """Return the text of an object's state.

    Returns:
        None for an object whose parts can be followed; ``HARMLESS`` for one that holds no state;
        ``UNKNOWN`` for one that cannot be looked into.
    """
    if has_parts(type(thing)):
        return None
    if isinstance(thing, OF_C):
        return f"{type(thing).__qualname__} {digest(bytes(thing))}"
    if isinstance(thing, threading.local):
        return None
    if isinstance(thing, logging.Logger):
        own = vars(thing).keys() - vars(logging.Logger("")).keys()
        return f"logger {thing.level} {[(name, vars(thing)[name]) for name in sorted(own)]}"
    if type(thing).__module__.split(".")[0] in SILENT:
        return HARMLESS
    if isinstance(thing, torch.device):  # where numbers are; a step is traced on the CPU for all
        return HARMLESS
    if isinstance(thing, DESCRIBED):
        return f"{type(thing).__qualname__} {thing!r}"
    if isinstance(thing, np.ndarray):
        if thing.dtype.hasobject:
            return None
        return f"array {thing.dtype} {thing.shape} {digest(thing.tobytes())}"
    if isinstance(thing, io.IOBase):
        return _place_in_file(thing)
    state = generator_state(thing)
    if state is not None:
        return f"generator {digest(state)}"
    if is_cache(thing):
        return None
    return _pickled(thing)


def has_parts(cls: type) -> bool:
    """Return whether the parts of all objects of a class can be followed."""
    known = HAVE_PARTS.get(cls)
    if known is None:
        is_leaf = issubclass(cls, LEAVES) or cls.__module__.split(".")[0] in SILENT
        holds = cls.__dictoffset__ != 0 or issubclass(cls, PARTS) or has_slots(cls)
        known = HAVE_PARTS[cls] = holds and not is_leaf
    return known


def digest(content: bytes) -> str:
    """Return a hash of bytes, 32 characters."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def generator_state(thing: Any) -> bytes | None:
    """Return the state of a generator of random numbers, None for anything else."""
    if isinstance(thing, torch.Generator):
        return thing.get_state().numpy().tobytes()
    if isinstance(thing, random.Random):
        return repr(thing.getstate()).encode()
    if isinstance(thing, np.random.RandomState):
        return pickle.dumps(thing.get_state())
    if isinstance(thing, np.random.Generator):
        return pickle.dumps(thing.bit_generator.state)
    if isinstance(thing, np.random.BitGenerator):
        return pickle.dumps(thing.state)
    return None


def is_cache(thing: Any) -> bool:
    """Return whether an object is a cache of a function's results, or an element of one."""
    kind = type(thing)
    return kind.__module__ == "functools" and kind.__name__.startswith("_lru_")


def has_slots(cls: type) -> bool:
    """Return whether the objects of a class have attributes in ``__slots__``."""
    return any("__slots__" in vars(base) for base in cls.__mro__[:-1])


def _place_in_file(file: io.IOBase) -> Any:
    if isinstance(file, IN_MEMORY) and not file.closed:
        return f"file of {digest(repr(file.getvalue()).encode())} at {file.tell()}"
    try:
        return f"file {getattr(file, 'name', '')} at {file.tell()}"
    except (OSError, ValueError):  # closed, or a stream
        return HARMLESS if file.closed else UNKNOWN


def _pickled(thing: Any) -> Any:
    """Return the text of an iterator or another object that only its own class can describe."""
    try:
        return f"{type(thing).__qualname__} {digest(pickle.dumps(thing))}"
    except Exception:  # a class may raise anything
        return UNKNOWN
