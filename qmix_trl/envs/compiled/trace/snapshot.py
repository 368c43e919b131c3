"""Saving and restoring a VMAS simulator in full, as a dictionary of tensors.

Tensors, arrays, Python's primitives, references to entities, the lengths and keys of containers
and the generators of random numbers are saved. Everything else, such as an iterator, has to be as
it was when the simulator began, or the simulator cannot be saved.
"""

import ast
import json
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.environment import Environment
from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.compiled.trace.contents import Contents, is_rendering, overlapping
from qmix_trl.envs.compiled.trace.leaves import DESCRIBED, generator_state
from qmix_trl.envs.compiled.trace.parts import PRIMITIVES, entity_name
from qmix_trl.envs.compiled.trace.walk import walk, walk_scenario
from qmix_trl.errors import ConfigError

TEXTS = "texts"  # the key of all that is no tensor, as JSON


def snapshot(simulator: Environment, begun: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Return copies of all tensors, arrays, primitives and references to entities, by path.

    Args:
        simulator: the simulator.
        begun: ``constants`` of the simulator when it began; None to save a state that changed in
            ways that cannot be saved, without these changes.

    Returns:
        Tensors under their paths, tensors that cannot be replaced with "()" after the path, arrays
        as bytes with "[]", the index of an entity referred to with "@", and all else in ``TEXTS``.

    Raises:
        ConfigError: if a value changed that cannot be saved.
    """
    contents = walk(simulator)
    saved = saved_contents(contents, begun)
    names = [entity.name for entity in simulator.world.entities]
    for path, slot in contents.entities.items():
        if slot.value.name in names:
            saved[path + "@"] = torch.tensor(names.index(slot.value.name))
    return saved


def saved_contents(contents: Contents, begun: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Return a snapshot of contents, but for references to entities, as ``snapshot`` does.

    Raises:
        ConfigError: if a value changed that cannot be saved.
    """
    now = constants(contents)
    changed = [] if begun is None else changed_paths(begun, now)
    if changed:
        raise ConfigError(
            f"the eager engine's state: expected values that can be saved, but {changed[0]} "
            "changed, which is no tensor, array, number, text or generator; keep it as one of them"
        )
    places = tensor_places(contents)
    saved = {
        path + "()": tensor.clone()
        for path, tensor in contents.unsettable.items()
        if path not in places
    }
    first: dict[int, str] = {}
    aliases = {}
    for path, tensor in places.items():
        if first.setdefault(id(tensor), path) == path:
            saved[path] = tensor.clone()
        else:
            aliases[path] = first[id(tensor)]
    for path, array in contents.arrays.items():
        if not array.dtype.hasobject:
            saved[path + "[]"] = as_bytes(array.tobytes())
    texts = {
        "aliases": aliases,
        "values": {p: text for p, v in primitives(contents).items() if (text := _text(v))},
        "keys": {path: _keys(thing) for path, thing in holders(contents).items()},
        "generators": {p: _generator_text(g) for p, g in generators(contents).items()},
        "constants": now,
    }
    return {**saved, TEXTS: as_bytes(json.dumps(texts).encode())}


def restore(simulator: Environment, saved: Mapping[str, Tensor]) -> None:
    """Put a snapshot back into a simulator of the same task.

    Raises:
        ValueError: if the simulator holds values that the snapshot cannot set.
    """

    def read() -> Contents:
        return walk(simulator)

    texts = json.loads(bytes(saved[TEXTS].tolist()))
    _restore_keys(read, texts["keys"])
    for path, slot in read().entities.items():
        if path + "@" in saved:
            slot.set(simulator.world.entities[int(saved[path + "@"])])
    unset = restore_contents(read, saved)
    if unset:
        raise ValueError(
            f"load_state: expected {unset[0]} as in the saved state, which cannot be set; load "
            "the state into a new environment of the same task"
        )


def restore_contents(read: Callable[[], Contents], saved: Mapping[str, Tensor]) -> list[str]:
    """Put a snapshot of contents back; return the paths of values that differ and cannot be set.

    Args:
        read: returns the present contents.
        saved: as ``saved_contents`` returned it.
    """
    texts = json.loads(bytes(saved[TEXTS].tolist()))
    _restore_keys(read, texts["keys"])
    contents = read()
    for path, text in texts["values"].items():
        if path in contents.places:
            contents.places[path].set(_value(text))
    unset = [p for p, a in contents.arrays.items() if not _restore_array(a, saved.get(p + "[]"))]
    for path, generator in generators(contents).items():
        if path in texts["generators"]:
            _set_generator(generator, texts["generators"][path])
    for path, tensor in contents.unsettable.items():
        if path + "()" in saved:
            tensor.copy_(saved[path + "()"])
    _restore_tensors(contents, saved, texts["aliases"])
    return unset + changed_paths(texts["constants"], constants(read()))


def _restore_tensors(
    contents: Contents, saved: Mapping[str, Tensor], aliases: Mapping[str, str]
) -> None:
    views = sharing_memory(contents)
    restored: dict[str, Tensor] = {}
    for path, slot in contents.places.items():
        if path in aliases:
            slot.set(restored.get(aliases[path], slot.value))
        elif path in saved:
            value, now = saved[path], slot.value
            in_place = path in views and now.shape == value.shape and now.dtype == value.dtype
            place = now.device if isinstance(now, Tensor) else value.device  # a loaded one: CPU
            # In place, so that its views see it.
            restored[path] = now.copy_(value) if in_place else value.to(place, copy=True)
            slot.set(restored[path])


def _restore_array(array: np.ndarray, saved: Tensor | None) -> bool:
    """Write an array's bytes, if they differ; return whether it holds them now."""
    if saved is None or array.tobytes() == (content := bytes(saved.tolist())):
        return True
    if len(content) != array.nbytes or not array.flags.writeable:
        return False
    array[...] = np.frombuffer(content, array.dtype).reshape(array.shape)
    return True


class Outside:
    """The modules and classes that a scenario can change, as they are now.

    Args:
        scenario: a scenario that no simulator holds.
    """

    def __init__(self, scenario: BaseScenario) -> None:
        self._scenario = scenario
        self._saved = saved_contents(walk_scenario(scenario))

    def restore(self) -> None:
        """Set all values back, and warn of one that cannot be set."""
        unset = restore_contents(lambda: walk_scenario(self._scenario), self._saved)
        if unset:
            warnings.warn(
                f"VMAS scenario {type(self._scenario).__name__!r}: {unset[0]} changed while the "
                "environment was made, and cannot be set back",
                stacklevel=3,
            )


@contextmanager
def outside_kept(scenario: BaseScenario) -> Iterator[None]:
    """Restore the modules and classes that a scenario can change after a ``with`` block.

    Args:
        scenario: a scenario that no simulator holds.
    """
    outside = Outside(scenario)
    try:
        yield
    finally:
        outside.restore()


# ------------------------------------------------------------------- the kinds of values


def tensor_places(contents: Contents) -> dict[str, Tensor]:
    """Return the tensors that can be replaced, by path."""
    return {p: s.value for p, s in contents.places.items() if isinstance(s.value, Tensor)}


def primitives(contents: Contents) -> dict[str, Any]:
    """Return the primitives that can be replaced, by path."""
    return {p: s.value for p, s in contents.places.items() if not isinstance(s.value, Tensor)}


def generators(contents: Contents) -> dict[str, Any]:
    """Return the generators of random numbers that a scenario holds, by path."""
    return {p: x for p, x in contents.objects.items() if generator_state(x) is not None}


def holders(contents: Contents) -> dict[str, Any]:
    """Return the lists and dictionaries whose places can be added and removed, by path.

    The attributes of an object are such a dictionary.
    """
    found = {}
    for path, thing in contents.objects.items():
        if isinstance(thing, (list, deque)):
            found[path] = thing
            continue
        mapping = thing if isinstance(thing, dict) else getattr(thing, "__dict__", None)
        if isinstance(mapping, dict) and all(_is_nameable(key) for key in mapping):
            found[path] = mapping
    return found


def constants(contents: Contents) -> dict[str, str]:
    """Return the texts of all values that a snapshot cannot set, by path."""
    settable = contents.places.keys() | generators(contents).keys()
    settable |= {f"{path}!" for path in holders(contents)}
    settable |= {f"{path}!" for path in tensor_places(contents)}
    settable |= {f"{path}@" for path in contents.entities}
    settable |= {path for path, array in contents.arrays.items() if not array.dtype.hasobject}
    odd = {p: repr(v) for p, v in primitives(contents).items() if not _text(v)}
    fixed = {
        path: repr(value)
        for path, value in contents.values.items()
        if path not in settable and not path.endswith(":key@")  # keys are set with their holders
    }
    unseen = {p: f"{kind}, which cannot be looked into" for p, kind in contents.unwatched.items()}
    shapes = {f"{p}[]": f"{a.dtype} {a.shape}" for p, a in contents.arrays.items()}
    every = {**odd, **fixed, **unseen, **shapes}
    return {path: text for path, text in every.items() if not is_rendering(path)}


def changed_paths(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the paths whose texts differ, sorted."""
    return sorted(p for p in before.keys() | now.keys() if before.get(p) != now.get(p))


def sharing_memory(contents: Contents) -> set[str]:
    """Return the paths of tensors that share memory with another tensor or an array."""
    arrays = {array.__array_interface__["data"][0] for array in contents.arrays.values()}
    of_arrays = {
        path
        for path, tensor in tensor_places(contents).items()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in arrays
    }
    return of_arrays | overlapping(contents, contents.slots)


# -------------------------------------------------------------------------------- texts


def as_bytes(content: bytes) -> Tensor:
    """Return bytes as a tensor, uint8 [n]."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0)


def _text(value: Any) -> str | None:
    """Return the text of a primitive; None for one of a class of its own."""
    if isinstance(value, np.float64):
        return f"np {float(value)!r}"
    return repr(value) if type(value) in PRIMITIVES else None


def _value(text: str) -> Any:
    """Return the primitive of a text."""
    if text.startswith("np "):
        return np.float64(text[3:])
    return float(text) if text in ("inf", "-inf", "nan") else ast.literal_eval(text)


def _keys(thing: Any) -> int | list[str]:
    """Return the length of a list, or the keys of a dictionary as texts."""
    if not isinstance(thing, dict):
        return len(thing)
    return [f"<{name}>" if (name := entity_name(key)) else repr(key) for key in thing]


def _is_nameable(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(_is_nameable(part) and not entity_name(part) for part in key)
    return type(key) in PRIMITIVES or entity_name(key) is not None


def _restore_keys(read: Callable[[], Contents], keys: Mapping[str, Any]) -> None:
    """Give lists their lengths and dictionaries their keys; new places hold None."""
    contents = read()

    def key_of(text: str) -> Any:
        return contents.objects[text] if text.startswith("<") else ast.literal_eval(text)

    for path, thing in holders(contents).items():
        wanted = keys.get(path)
        if wanted is None or wanted == _keys(thing):
            continue
        if isinstance(thing, dict):
            held = {key: thing.get(key) for key in map(key_of, wanted)}
            thing.clear()
            thing.update(held)
        else:
            held = [*thing, *[None] * wanted][:wanted]
            thing.clear()
            thing.extend(held)


def _generator_text(generator: Any) -> Any:
    """Return a generator's state as values that JSON can hold."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return _listed(generator.get_state(legacy=False))
    return _listed(_bits(generator).state)


def _set_generator(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.tensor(state, dtype=torch.uint8))
    elif isinstance(generator, random.Random):
        version, words, gauss = state
        generator.setstate((version, tuple(words), gauss))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        _bits(generator).state = state


def _bits(generator: Any) -> Any:
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator


def _listed(state: Any) -> Any:
    """Return a generator's state with lists of integers in place of arrays."""
    if isinstance(state, Mapping):
        return {key: _listed(part) for key, part in state.items()}
    if isinstance(state, np.ndarray):
        return state.tolist()
    return state


def unsaved(contents: Contents) -> list[str]:
    """Return the paths of objects whose changes a snapshot cannot undo, such as iterators."""
    known = generators(contents).keys() | contents.arrays.keys()
    leaves = {
        path
        for path, thing in contents.objects.items()
        if path in contents.values and path not in known and not isinstance(thing, DESCRIBED)
    }
    return sorted(leaves | contents.unwatched.keys())
