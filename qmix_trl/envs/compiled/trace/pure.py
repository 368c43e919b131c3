"""What keeps a step of VMAS from being a pure function of tensors, and its remedies.

- Writing to and reading from ``x[mask]`` has a shape that depends on data: ``MaskMode`` makes a
  ``where`` of it.
- Python branches on tensors: those on constants are taken, assertions hold as they did when
  tracing; on anything else tracing stops.
- Which pairs collide is decided for the whole batch at once (``World.collides``, ``.any()``):
  ``static_collisions`` drops this broad phase, whose only purpose is speed.
- Spawning draws until all environments are free: ``spawning`` puts ``draws.spawn`` in its place.
"""

import ast
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
)
from torch.overrides import TorchFunctionMode
from vmas.simulator.core import Entity, World
from vmas.simulator.utils import ScenarioUtils

from qmix_trl.envs.compiled.trace.draws import spawn
from qmix_trl.errors import Refused


class Untraceable(Refused):
    """A scenario's step does something that no pure function can; says what and where."""


def mask_and_rest(index: Any, n_envs: int) -> tuple[Tensor | None, tuple]:
    """Split an index into a leading boolean mask of environments and what stands behind it."""
    parts = index if isinstance(index, tuple) else (index,)
    if not parts or not (isinstance(parts[0], Tensor) and parts[0].dtype == torch.bool):
        return None, ()
    if parts[0].shape[:1] != (n_envs,):
        return None, ()
    if any(isinstance(part, Tensor) for part in parts[1:]):
        return None, ()
    return parts[0], parts[1:]


class MaskMode(TorchFunctionMode):
    """Turns masked reads and writes into ``where``, and decides branches on constants.

    Args:
        n_envs: the length of masks over environments.

    Attributes:
        calls: how many functions of torch were called.
    """

    def __init__(self, n_envs: int) -> None:
        super().__init__()
        self.n_envs = n_envs
        self.calls = 0

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.calls += 1
        if function is Tensor.__getitem__:
            mask, rest = mask_and_rest(args[1], self.n_envs)
            if mask is not None:
                # Rows that the mask leaves out are computed, too, and never written back.
                return self._behind(args[0], mask, rest).clone()
        elif function is Tensor.__setitem__:
            mask, rest = mask_and_rest(args[1], self.n_envs)
            if mask is not None:
                place = self._behind(args[0], mask, rest)
                value = args[2]
                if isinstance(value, Tensor):
                    value = value.to(place.dtype)
                while mask.dim() < place.dim():
                    mask = mask.unsqueeze(-1)
                place.copy_(torch.where(mask, value, place))
                return None
        elif function in SCALARS:
            return decide(args[0], function)
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _behind(x: Tensor, mask: Tensor, rest: tuple) -> Tensor:
        return x[(slice(None),) * mask.dim() + rest] if rest else x


SCALARS = (Tensor.__bool__, Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__)


def decide(tensor: Tensor, read: Callable[[Tensor], Any]) -> Any:
    """Return what Python wants to know of a tensor, if it is the same for all states.

    Raises:
        Untraceable: if it depends on the state.
    """
    mode = get_proxy_mode()
    if mode is not None and depends_on_inputs(tensor, mode.tracer):
        frame = asking_frame()
        if not (read is Tensor.__bool__ and is_assertion(frame)):
            raise Untraceable(f"its Python code depends on tensors at {place_of(frame)}")
    with disable_proxy_modes_tracing():
        return read(tensor)


def asking_frame() -> FrameType:
    """Return the innermost frame that is neither of this module nor of a mode."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ or frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return frame


def depends_on_inputs(tensor: Tensor, tracer: Any) -> bool:
    """Say whether a tensor was computed from an input of the trace."""
    tracked = tracer.tensor_tracker.get(tensor)
    if tracked is None:
        return False
    seen: set[Node] = set()
    waiting = [tracked.proxy.node]
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            return True
        if node not in seen:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
    return False


def is_assertion(frame: FrameType) -> bool:
    """Say whether a frame stands in an ``assert`` statement."""
    filename = frame.f_code.co_filename
    return any(first <= frame.f_lineno <= last for first, last in assertions(filename))


@cache
def assertions(filename: str) -> list[tuple[int, int]]:
    """Return first and last line of a file's assertions."""
    tree = ast.parse("".join(linecache.getlines(filename)))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return [(node.lineno, node.end_lineno or node.lineno) for node in found]


def place_of(frame: FrameType) -> str:
    """Return file and line of a frame, with the line's text."""
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({text})"


def may_collide(world: World, a: Entity, b: Entity) -> bool:
    """Return ``World.collides`` without its broad phase."""
    if a is b or not (a.collides(b) and b.collides(a)):
        return False
    if not (a.movable or a.rotatable or b.movable or b.rotatable):
        return False
    return {type(a.shape), type(b.shape)} in world._collidable_pairs


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put something in an attribute's place for a while."""
    original = inspect.getattr_static(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def static_collisions(world: World) -> Iterator[None]:
    """Decide once which pairs collide, whatever the distance.

    A scenario's own filter may look at tensors; a pair that it refuses now is refused for good.
    """
    pairs = {
        (id(a), id(b)): may_collide(world, a, b) for a in world.entities for b in world.entities
    }

    def collides(self: World, a: Entity, b: Entity) -> bool:
        return pairs[id(a), id(b)]

    with replaced(World, "collides", collides):
        yield


@contextmanager
def spawning(key: Tensor) -> Iterator[None]:
    """Let VMAS spawn by ``draws.spawn``, with numbers of this seed and step."""
    sites = iter(range(1 << 20))

    def find_random_pos_for_entity(
        occupied_positions,
        env_index,
        world,
        min_dist_between_entities,
        x_bounds,
        y_bounds,
        disable_warn=False,
    ):
        low, high = zip(x_bounds, y_bounds, strict=True)
        return spawn(
            occupied_positions,
            key,
            next(sites),
            float(min_dist_between_entities),
            [float(x) for x in low],
            [float(x) for x in high],
        )

    with replaced(
        ScenarioUtils, "find_random_pos_for_entity", staticmethod(find_random_pos_for_entity)
    ):
        yield
