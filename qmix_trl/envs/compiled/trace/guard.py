"""The Python values for which a traced step holds, compared with a simulator at each reset."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qmix_trl.envs.compiled.trace.audit import may_be_read
from qmix_trl.envs.compiled.trace.contents import Contents, is_rendering, is_written
from qmix_trl.envs.compiled.trace.leaves import digest


@dataclass(frozen=True)
class Guard:
    """The Python values that a traced step may read, but for its state and choices.

    Attributes:
        values: texts of the values that are the same for all seeds and numbers of environments,
            by path.
        free: paths of the state and of choices.
        names: of the attributes that the step may read; None for any.
    """

    values: Mapping[str, str]
    free: frozenset[str]
    names: frozenset[str] | None

    def matters(self, path: str) -> bool:
        """Return whether the step may read a value, and is traced for one value of it."""
        return path not in self.free and not is_rendering(path) and may_be_read(path, self.names)

    def as_json(self) -> dict[str, Any]:
        """Return the guard as values that JSON can hold."""
        names = None if self.names is None else sorted(self.names)
        return {"values": dict(self.values), "free": sorted(self.free), "names": names}

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> "Guard":
        """Return a guard from ``as_json``."""
        names = None if kept["names"] is None else frozenset(kept["names"])
        return Guard(kept["values"], frozenset(kept["free"]), names)


def guard_of(
    seeds: Iterable[Contents],
    other_size: Contents,
    free: Iterable[str],
    names: frozenset[str] | None,
) -> tuple[Guard, str | None]:
    """Return the guard of a traced step, and the path of a value that a seed decides, if any.

    Args:
        seeds: simulators of the same number of environments and of other seeds, after a reset.
        other_size: a simulator of another number of environments.
        free: paths of the state and of choices.
        names: of the attributes that the step may read; None for any.
    """
    empty = Guard({}, frozenset(free), names)
    first, *others = (
        {p: text_of(v) for p, v in contents.values.items() if empty.matters(p)}
        for contents in (*seeds, other_size)
    )
    *same_size, smaller = others
    decided = [p for p in first if any(other.get(p) != first[p] for other in same_size)]
    values = {p: text for p, text in first.items() if smaller.get(p) == text}
    return Guard(values, empty.free, names), min(decided, default=None)


def constants_of(contents: Contents, guard: Guard) -> dict[str, str]:
    """Return a hash of each tensor that a traced step may read and that is no state.

    Args:
        contents: of a simulator.
        guard: of the step.
    """
    return {
        path: digest(f"{tensor.shape} {tensor.dtype}".encode() + array_bytes(tensor))
        for path, tensor in contents.tensors().items()
        if guard.matters(path)
    }


def array_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's numbers, in their order."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def text_of(value: Any) -> str:
    """Return the text by which a value is compared: all digits of a number."""
    return repr(value)


class Watch:
    """Compares a simulator after each reset with a guard, and with itself after its first reset.

    Args:
        guard: of the traced step.
        first: the simulator after its first reset.
    """

    def __init__(self, guard: Guard, first: Contents) -> None:
        self._guard = guard
        self._matters = {path: guard.matters(path) for path in first.values}
        self._values = {path: text_of(value) for path, value in first.values.items()}
        self._values.update((p, t) for p, t in guard.values.items() if guard.matters(p))
        self._tensors = {
            path: (tensor, tensor._version)
            for path, tensor in first.tensors().items()
            if guard.matters(path)
        }

    def broken_path(self, now: Contents) -> str | None:
        """Return the path of a value that is not as for the trace; None if all are."""
        for path, value in now.values.items():
            matters = self._matters.get(path)
            if matters is None:
                matters = self._matters[path] = self._guard.matters(path)
            if matters and self._values.get(path) != text_of(value):
                return path
        for path in self._values.keys() - now.values.keys():
            if self._matters.get(path, True):
                return path
        for path, tensor in now.tensors().items():
            if path in self._tensors and is_written(tensor, self._tensors[path]):
                return path
        return None
