"""Making a step of VMAS a pure function of tensors, or refusing it.

- ``x[mask]`` has a shape that depends on data: ``MaskMode`` turns masked reads and writes into
  ``torch.where``.
- Python branches on tensors: ``read_constant`` takes branches on constants, and trusts
  assertions; any other branch on a tensor makes a step untraceable.
- VMAS decides which pairs collide for the whole batch at once (``World.collides``, ``.any()``):
  ``static_collisions`` drops this broad phase, whose only purpose is speed.
- VMAS draws positions until all environments have a free one: ``spawning`` replaces the loop by
  ``draws.spawn``.
"""

import ast
import inspect
import linecache
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
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
from torch.utils._pytree import tree_leaves
from vmas.simulator.core import Entity, World
from vmas.simulator.environment import Environment
from vmas.simulator.utils import ScenarioUtils

from qmix_trl.envs.compiled.trace.draws import spawn
from qmix_trl.envs.compiled.trace.masks import (
    Mask,
    MaskedReads,
    are_one_mask,
    read_masked,
    split_mask,
    write_masked,
)
from qmix_trl.envs.compiled.trace.own_code import describe_line, is_own_module, packages_of
from qmix_trl.errors import Refused


class Untraceable(Refused):
    """A scenario's step is no pure function of tensors; the message names the reason and place."""


class MaskMode(TorchFunctionMode):
    """Turns masked reads and writes into ``torch.where``, and reads constants for Python.

    A masked read has numbers of the mask's places alone; here it has numbers of all places. The
    meaning is the same as long as these are not put together, and are written by the same mask.

    Args:
        n_envs: E, the length of a mask over environments.

    Attributes:
        calls: the number of calls of torch's functions.
    """

    def __init__(self, n_envs: int) -> None:
        super().__init__()
        self.n_envs = n_envs
        self.calls = 0
        self._masked = MaskedReads()

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.calls += 1
        if function is Tensor.__getitem__:
            mask, rest = split_mask(args[1], self.n_envs)
            if mask is not None:
                # The entries outside the mask are computed too; a masked write drops them.
                read = read_masked(args[0], mask, rest)
                self._masked.add(read, Mask.of(mask))
                return read
        elif function is Tensor.__setitem__:
            mask, rest = split_mask(args[1], self.n_envs)
            if mask is not None:
                masks = self._masked.masks_of(args[2])
                self._check_masks([*masks, Mask.of(mask)])
                is_batch = isinstance(args[2], Tensor) and args[2].shape[:1] == (self.n_envs,)
                if is_batch and not masks:
                    self._refuse("puts numbers of all environments in the places of a mask")
                write_masked(args[0], mask, rest, args[2])
                return None
        elif function in READS:
            return read_constant(args[0], partial(function, *args, **(kwargs or {})), function)
        elif function in COPIES:
            return _copied(function, args, kwargs or {})
        elif function in UNSEEN:
            raise Untraceable(f"it uses the data of a tensor at {describe_line(calling_frame())}")
        elif function in SIZES and self._is_masked(args[0]):
            line = describe_line(calling_frame())
            raise Untraceable(f"it asks how many entries a mask has at {line}")
        result = function(*args, **(kwargs or {}))
        masks = self._masked.masks_of((args, kwargs))
        if masks:
            self._check_masks(masks)
            for made in tree_leaves(result):
                if isinstance(made, Tensor):
                    n = masks[0].tensor.numel()
                    if made.shape[:1] != (n,) or function in ORDERED:
                        self._refuse("puts numbers of several places of a mask together")
                    self._masked.add(made, masks[0])
        return result

    def _check_masks(self, masks: list[Mask]) -> None:
        """Refuse numbers that were read by different masks, or are written by another one."""
        first, *others = masks
        if not all(are_one_mask(first, other) for other in others):
            self._refuse("puts numbers of one mask in the places of another")

    def _refuse(self, reason: str) -> None:
        raise Untraceable(f"it {reason} at {describe_line(calling_frame())}")

    def _is_masked(self, tensor: Tensor) -> bool:
        """Return whether the user's code asks for the size of a masked read."""
        name = calling_frame().f_globals.get("__name__", "")
        return tensor in self._masked and is_own_module(name, frozenset())


# Functions by which Python or NumPy read the numbers of a tensor.
READS = (
    Tensor.__bool__,
    Tensor.item,
    Tensor.tolist,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.__complex__,
    Tensor.__repr__,
    Tensor.__array__,
    Tensor.__dlpack__,
    Tensor.numpy,
    Tensor.data_ptr,
    Tensor.storage,
    Tensor.untyped_storage,
    Tensor.apply_,
    Tensor.map_,
)
UNSEEN = (Tensor.data.__get__, Tensor.data.__set__)  # no version counts writes to data
# Functions whose results depend on the order of a tensor's rows.
ORDERED = (
    *(torch.flip, torch.roll, torch.sort, torch.argsort, torch.cumsum, torch.cumprod),
    *(Tensor.flip, Tensor.roll, Tensor.sort, Tensor.argsort, Tensor.cumsum, Tensor.cumprod),
)
SIZES = (Tensor.shape.__get__, Tensor.size, Tensor.numel, Tensor.nelement, Tensor.__len__)
# Functions that make a tensor of data; a trace would hold numbers of tensors in lists as constants.
COPIES = (torch.tensor, torch.as_tensor, torch.asarray)


def _copied(function: Callable, args: tuple, kwargs: dict) -> Tensor:
    """Return a tensor of data, which may be a tensor itself.

    Raises:
        Untraceable: if the data are numbers of tensors that depend on the state.
    """
    data = args[0] if args else kwargs["data"]
    if isinstance(data, Tensor):
        same = data.clone() if function is torch.tensor else data
        return same.to(kwargs.get("dtype") or data.dtype)
    check_constant([x for x in tree_leaves(data) if isinstance(x, Tensor)], function)
    return function(*args, **kwargs)


def read_constant(tensor: Tensor, read: Callable[[], Any], function: Callable) -> Any:
    """Return ``read()`` for a tensor that is the same in all states, or asserted.

    Args:
        tensor: the tensor that is read.
        read: calls ``function``.
        function: of torch.

    Raises:
        Untraceable: if the tensor depends on the state.
    """
    check_constant([tensor], function)
    with disable_proxy_modes_tracing():
        return read()


def check_constant(tensors: Iterable[Tensor], function: Callable) -> None:
    """Refuse to read tensors that depend on the state, but for assertions.

    Raises:
        Untraceable: if one does.
    """
    mode = get_proxy_mode()
    if mode is not None and any(depends_on_inputs(tensor, mode.tracer) for tensor in tensors):
        frame = calling_frame()
        if not (function is Tensor.__bool__ and is_assertion(frame)):
            raise Untraceable(f"its Python code depends on tensors at {describe_line(frame)}")


class ReadsOfPython(TorchFunctionMode):
    """Records where the user's code reads numbers of tensors.

    Args:
        packages: top-level packages that count as the user's wherever they are.

    Attributes:
        found: a line for each read.
    """

    def __init__(self, packages: frozenset[str]) -> None:
        super().__init__()
        self.packages = packages
        self.found: list[str] = []

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function in READS:
            frame = calling_frame()
            if is_own_module(frame.f_globals.get("__name__", ""), self.packages):
                self.found.append(describe_line(frame))
        return function(*args, **(kwargs or {}))


def calling_frame() -> FrameType:
    """Return the innermost frame outside this module and outside torch and NumPy."""
    frame = sys._getframe(1)
    while (
        frame.f_code.co_filename == __file__
        or frame.f_code.co_name == "__torch_function__"
        or frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "numpy")
    ):
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
    """Say whether a frame is at an ``assert`` statement."""
    filename = frame.f_code.co_filename
    return any(first <= frame.f_lineno <= last for first, last in assertions(filename))


@cache
def assertions(filename: str) -> list[tuple[int, int]]:
    """Return the first and last line of every ``assert`` of a file that keeps no value (``:=``)."""
    tree = ast.parse("".join(linecache.getlines(filename)))
    asserted = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    found = [
        node
        for node in asserted
        if not any(isinstance(part, ast.NamedExpr) for part in ast.walk(node))
    ]
    return [(node.lineno, node.end_lineno or node.lineno) for node in found]


def may_collide(world: World, a: Entity, b: Entity) -> bool:
    """Say whether two entities can collide at some distance.

    This is ``World.collides`` without the test of the distance.
    """
    if a is b or not (a.collides(b) and b.collides(a)):
        return False
    if not (a.movable or a.rotatable or b.movable or b.rotatable):
        return False
    return {type(a.shape), type(b.shape)} in world._collidable_pairs


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute within a ``with`` block."""
    original = inspect.getattr_static(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def static_collisions(simulator: Environment) -> Iterator[set[str]]:
    """Decide which pairs collide once, at any distance, within a ``with`` block.

    Yields:
        the lines outside of VMAS's world that ask ``World.collides``.

    Raises:
        Untraceable: if a scenario's collision filter reads tensors.
    """
    world = simulator.world
    with ReadsOfPython(packages_of(simulator.scenario)) as reads:
        pairs = {
            (id(a), id(b)): may_collide(world, a, b) for a in world.entities for b in world.entities
        }
    if reads.found:
        raise Untraceable(f"its collision filter reads tensors: {reads.found[0]}")

    lines = set[str]()

    def collides(self: World, a: Entity, b: Entity) -> bool:
        caller = sys._getframe(1)
        if caller.f_globals.get("__name__") != World.__module__:
            lines.add(describe_line(caller))
        return pairs[id(a), id(b)]

    with patched(World, "collides", collides):
        yield lines


@contextmanager
def spawning(key: Tensor) -> Iterator[None]:
    """Let VMAS spawn entities by ``draws.spawn`` within a ``with`` block.

    Args:
        key: int64 [2], seed and step.
    """
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

    with patched(
        ScenarioUtils, "find_random_pos_for_entity", staticmethod(find_random_pos_for_entity)
    ):
        yield
