"""The packed state of a compiled step: K numbers for each environment, float32 [E, K]."""

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from qmix_trl.envs.compiled.lower.arrays import Unlowerable, dtype_letter
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT
from qmix_trl.envs.compiled.lower.step import Step
from qmix_trl.envs.compiled.trace.contents import Contents
from qmix_trl.envs.compiled.trace.graph import StepGraph
from qmix_trl.envs.compiled.trace.walk import walk

CHOICE = "choice"  # the path of the number that holds the index of a reset's choice


@dataclass(frozen=True)
class PackedNumber:
    """One number of the packed state.

    Attributes:
        path: of the value in the simulator that holds the number.
        place: index of the number in that value, for one environment.
        dtype: of the expression; whole numbers and booleans are packed as their bits.
        batched: True if the value has one number per environment, False if one for all.
    """

    path: str
    place: int
    dtype: str
    batched: bool


def packed_numbers(graph: StepGraph, step: Step) -> list[PackedNumber]:
    """Return the numbers that a lowered step reads.

    Raises:
        Unlowerable: if the environments are not a tensor's first axis.
    """
    numbers = []
    for number in step.numbers:
        if number.tensor == len(graph.state):
            numbers.append(PackedNumber(CHOICE, 0, number.now.dtype, batched=False))
            continue
        shape = graph.state[number.tensor].shape
        batched = graph.n_envs in shape
        if batched and shape[0] != graph.n_envs:
            raise Unlowerable(f"a state of shape {tuple(shape)}")
        path = graph.paths.all[number.tensor]
        numbers.append(PackedNumber(path, number.place, number.now.dtype, batched))
    return numbers


def all_numbers(graph: StepGraph) -> list[PackedNumber]:
    """Return all numbers of a traced state, whether the step reads them or not."""
    numbers = []
    for path, value in zip(graph.paths.all, graph.state, strict=True):
        batched = value.shape[:1] == (graph.n_envs,)
        n = value[0].numel() if batched else value.numel()
        dtype = dtype_letter(value.dtype)
        numbers.extend(PackedNumber(path, place, dtype, batched) for place in range(n))
    return numbers


def from_bits(columns: Tensor, like: Tensor, *, batched: bool) -> Tensor:
    """Return a tensor of the state from its packed numbers.

    Args:
        columns: float32 [E, n], the bits of its numbers.
        like: a tensor of its shape and dtype.
        batched: it has numbers for each environment; else all E are equal, and the first is used.
    """
    dtype = dtype_letter(like.dtype)
    values = columns if dtype == FLOAT else columns.contiguous().view(torch.int32)
    values = values != 0 if dtype == BOOL else values.to(like.dtype)
    return values.reshape(like.shape) if batched else values[0].reshape(like.shape)


def as_bits(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values, cast to ``dtype``, as float32 of the same bits; True is all bits."""
    values = values.to(dtype)
    if dtype.is_floating_point:
        return values.to(torch.float32)
    whole = -values.to(torch.int32) if dtype == torch.bool else values.to(torch.int32)
    return whole.view(torch.float32)


def read_packed_state(simulator: Environment, numbers: list[PackedNumber], choice: int) -> Tensor:
    """Return the packed state of a simulator, float32 [E, K].

    Args:
        simulator: of E environments.
        numbers: the K numbers to read.
        choice: the kind of choice that its last reset made.

    Raises:
        Unlowerable: if the simulator does not hold one of the numbers now.
    """
    return pack(walk(simulator), simulator, numbers, choice)


def pack(
    contents: Contents, simulator: Environment, numbers: list[PackedNumber], choice: int
) -> Tensor:
    """Return the packed state of a simulator, float32 [E, K], from its present contents.

    Args:
        contents: as ``walk`` returned them.
        simulator: of E environments.
        numbers: the K numbers to read.
        choice: the index of the choice that its last reset made.

    Raises:
        Unlowerable: if the simulator does not hold one of the numbers now.
    """
    n_envs, device = simulator.num_envs, simulator.device
    columns = [torch.zeros(n_envs, 0, device=device)]
    for path, group in groupby(numbers, key=lambda number: number.path):
        members = list(group)
        value = _value(contents, path, choice, device)
        n = n_envs if members[0].batched else 1
        places = [number.place for number in members]
        values = value.reshape(n, -1)[:, places]
        columns.append(as_bits(values, values.dtype).expand(n_envs, -1))
    return torch.cat(columns, 1)


def _value(contents: Contents, path: str, choice: int, device: torch.device) -> Tensor:
    if path == CHOICE:
        return torch.tensor([choice], device=device)
    slot = contents.slots.get(path) or contents.floats.get(path)
    if slot is None:
        raise Unlowerable(f"a state that is not always there: {path}")
    return torch.as_tensor(slot.value, device=device)


def unpack_state(contents: Contents, numbers: list[PackedNumber], packed: Tensor) -> None:
    """Write a packed state float32 [E, K] into the tensors and floats of a simulator.

    Views of a tensor see its new numbers. A choice is no number of a simulator; it is left out.

    Args:
        contents: of the simulator of E environments; all paths of the numbers are in them.
        numbers: the K numbers.
        packed: their values.
    """
    for path, group in groupby(enumerate(numbers), key=lambda item: item[1].path):
        if path == CHOICE:
            continue
        columns, members = zip(*group, strict=True)
        slot = contents.slots.get(path) or contents.floats[path]
        now = torch.as_tensor(slot.value)
        then = now.clone(memory_format=torch.contiguous_format)
        values = then.view(len(packed) if members[0].batched else 1, -1)
        places = [number.place for number in members]
        chosen = packed[: len(values), columns]
        values[:, places] = from_bits(chosen, values[:, places], batched=True)
        if not isinstance(slot.value, Tensor):
            slot.set(then.item())
        elif 0 in now.stride():
            slot.set(then)
        else:
            now.copy_(then)


def numbers_as_json(numbers: list[PackedNumber]) -> list[dict[str, Any]]:
    """Return packed numbers as values that JSON can hold."""
    return [asdict(number) for number in numbers]


def numbers_from_json(listed: list[dict[str, Any]]) -> list[PackedNumber]:
    """Return packed numbers from ``numbers_as_json``."""
    return [PackedNumber(**number) for number in listed]


def as_numbers(packed: Tensor, numbers: list[PackedNumber]) -> Tensor:
    """Return the values, float32 [E, K], of a packed state [E, K].

    Integers lose their sign, because True is packed as -1.
    """
    columns = [
        column if number.dtype == FLOAT else column.view(torch.int32).abs().to(torch.float32)
        for number, column in zip(numbers, packed.unbind(1), strict=True)
    ]
    return torch.stack(columns, 1) if columns else packed
