"""The state that a compiled step carries: one row of numbers for each environment."""

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from qmix_trl.envs.compiled.lower.arrays import Unlowerable, dtype_letter
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT
from qmix_trl.envs.compiled.lower.step import Step
from qmix_trl.envs.compiled.trace.graph import StepGraph
from qmix_trl.envs.compiled.trace.walk import Contents, walk

CHOICE = "choice"  # the path of the number that says which choice a reset made


@dataclass(frozen=True)
class PackedNumber:
    """One number of the state.

    Attributes:
        path: where in the simulator the number stands.
        place: which element there, of each environment.
        dtype: of the expression; whole numbers and booleans stand as their bits.
        batched: the place holds one for each environment, else one for all.
    """

    path: str
    place: int
    dtype: str
    batched: bool


def packed_numbers(graph: StepGraph, step: Step) -> list[PackedNumber]:
    """Return the rows of a lowered step.

    Raises:
        Unlowerable: if the environments are not a tensor's first axis.
    """
    rows = []
    for row in step.numbers:
        if row.path == len(graph.state):
            rows.append(PackedNumber(CHOICE, 0, row.now.dtype, batched=False))
            continue
        shape = graph.state[row.path].shape
        batched = graph.n_envs in shape
        if batched and shape[0] != graph.n_envs:
            raise Unlowerable(f"a state of shape {tuple(shape)}")
        rows.append(PackedNumber(graph.paths.all[row.path], row.place, row.now.dtype, batched))
    return rows


def all_numbers(graph: StepGraph) -> list[PackedNumber]:
    """Return rows for the whole state of a trace, needed or not."""
    rows = []
    for path, value in zip(graph.paths.all, graph.state, strict=True):
        batched = value.shape[:1] == (graph.n_envs,)
        n = value[0].numel() if batched else value.numel()
        dtype = dtype_letter(value.dtype)
        rows.extend(PackedNumber(path, place, dtype, batched) for place in range(n))
    return rows


def from_bits(columns: Tensor, like: Tensor, *, batched: bool) -> Tensor:
    """Return a tensor of the state from its columns of bits [E, n]."""
    dtype = dtype_letter(like.dtype)
    values = columns if dtype == FLOAT else columns.contiguous().view(torch.int32)
    values = values != 0 if dtype == BOOL else values.to(like.dtype)
    return values.reshape(like.shape) if batched else values[0].reshape(like.shape)


def as_bits(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values of a type as float32 that hold their bits; a boolean is all bits or none."""
    values = values.to(dtype)
    if dtype.is_floating_point:
        return values.to(torch.float32)
    whole = -values.to(torch.int32) if dtype == torch.bool else values.to(torch.int32)
    return whole.view(torch.float32)


def read_packed_state(simulator: Environment, rows: list[PackedNumber], choice: int) -> Tensor:
    """Return a simulator's state: float32 [E, K] for K rows.

    Args:
        simulator: of E environments.
        rows: what is read.
        choice: the number of the choice that its last reset made.
    """
    memory = walk(simulator)
    n_envs, device = simulator.num_envs, simulator.device
    columns = [torch.zeros(n_envs, 0, device=device)]
    for path, group in groupby(rows, key=lambda row: row.path):
        members = list(group)
        value = _value(memory, path, choice, device)
        n = n_envs if members[0].batched else 1
        places = [row.place for row in members]
        values = value.reshape(n, -1)[:, places]
        columns.append(as_bits(values, values.dtype).expand(n_envs, -1))
    return torch.cat(columns, 1)


def _value(memory: Contents, path: str, choice: int, device: torch.device) -> Tensor:
    if path == CHOICE:
        return torch.tensor([choice], device=device)
    slot = memory.slots.get(path) or memory.floats.get(path)
    if slot is None:
        raise Unlowerable(f"a state that is not always there: {path}")
    return torch.as_tensor(slot.value, device=device)


def numbers_as_json(rows: list[PackedNumber]) -> list[dict[str, Any]]:
    """Return rows for a file."""
    return [asdict(row) for row in rows]


def numbers_from_json(rows: list[dict[str, Any]]) -> list[PackedNumber]:
    """Return rows of a file."""
    return [PackedNumber(**row) for row in rows]


def as_numbers(state: Tensor, rows: list[PackedNumber]) -> Tensor:
    """Return rows' values float32 [E, K] from their bits."""
    columns = [
        column if row.dtype == FLOAT else column.view(torch.int32).abs().to(torch.float32)
        for row, column in zip(rows, state.unbind(1), strict=True)
    ]
    return torch.stack(columns, 1) if columns else state
