"""Resets in which every environment draws the same random numbers.

VMAS resets all environments or one, and a scenario may tell them apart by their numbers. A compiled
engine gives any environment any state that a reset of all drew. That is VMAS's reset if, of equal
random numbers, all environments get the same state, a reset of one gives it that state, too, and
leaves the others alone.
"""

from collections.abc import Callable, Collection, Container, Iterable
from typing import Any

import torch
from torch import Tensor

from qmix_trl.envs.compiled.trace.carried import is_forgotten
from qmix_trl.envs.compiled.trace.draws import OTHER_DRAWS, DrawMode
from qmix_trl.envs.compiled.trace.nodes import same
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.envs.compiled.trace.state import StatePaths, random_step
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import VmasSimulation

TRIALS, STEPS_BETWEEN = 2, 2
JOINTS = "<joint "  # any reset of VMAS moves the joints of all environments to their bodies


class EqualDraws(DrawMode):
    """Lets all environments draw the same numbers, however many are drawn for.

    Args:
        n_envs: E; a tensor whose first axis has this size holds environments.
        seed: of the numbers.
        common: the draws that are for all environments together, by their number in order,
            whatever their first axis.

    Attributes:
        shapes: of the draws, in order.
    """

    def __init__(self, n_envs: int, seed: int, common: Container[int] = ()) -> None:
        super().__init__(self._equal)
        self.shapes: list[tuple[int, ...]] = []
        self._n_envs = n_envs
        self._seed = seed
        self._common = common
        self._generator = torch.Generator().manual_seed(seed)

    def _equal(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        draw = torch.rand if kind == "uniform" else torch.randn
        if self._is_common(shape):
            return draw(shape, generator=self._generator)
        return draw(shape[1:], generator=self._generator).expand(shape).clone()

    def _is_common(self, shape: tuple[int, ...]) -> bool:
        """Record the shape of a draw; return whether it is known to be for all environments."""
        self.shapes.append(shape)
        return len(self.shapes) - 1 in self._common

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function not in OTHER_DRAWS:
            return super().__torch_function__(function, types, args, kwargs)
        self._seed += 1
        torch.manual_seed(self._seed)  # the first row is the same, however many follow
        result = function(*args, **(kwargs or {}))
        if function is torch.normal:  # its first row is another one in large tensors
            mean, std = _given(args, kwargs or {}, "mean", 0), _given(args, kwargs or {}, "std", 1)
            return mean + std * self._equal("normal", tuple(result.shape))
        is_common = self._is_common(tuple(result.shape))
        if not is_common and result.shape[:1] == (self._n_envs,):
            result.copy_(result[:1].expand_as(result).clone())
        return result


def _given(args: tuple, kwargs: dict, name: str, place: int) -> Any:
    """Return an argument of ``torch.normal``; without one the mean is 0 and the deviation 1."""
    return kwargs.get(name, args[place] if len(args) > place else float(place))


def check_alike(
    simulation: VmasSimulation, paths: StatePaths, read: Collection[str], carried: Collection[str]
) -> None:
    """Refuse resets that tell environments apart, or differ between one and all of them.

    Args:
        simulation: left in another state, its random numbers as before.
        paths: of its state. What resets of all write must not depend on it.
        read: the paths that steps read.
        carried: the paths of tensors that resets leave as they are.

    Raises:
        Untraceable: if they do.
    """
    start, n_envs = simulation.random_stream.get_state(), simulation.n_envs
    other = VmasSimulation(simulation.task, n_envs, 0, simulation.device)
    written = [path for path in read if path in paths.of_resets and path not in carried]
    kept = [path for path in read if not path.startswith(JOINTS)]
    for trial in range(TRIALS):
        e = (17 * trial + 5) % n_envs
        for each in (simulation, other):
            each.random_stream.set_state(start)
            _reset(each, None, trial)
        # Also the tensors that resets leave as they are.
        paths.copy_into(other.simulator, _copies(paths.read(simulation.simulator)))
        for step in [random_step(each) for each in (simulation, other)]:
            for _ in range(STEPS_BETWEEN):
                step()
        before = _rows(other, kept)
        _reset(simulation, None, TRIALS + trial)
        _reset(other, e, TRIALS + trial)
        simulation.observe()
        other.observe()
        others = torch.arange(n_envs) != e
        for path, value in _rows(other, kept).items():
            is_kept = path not in before or is_close(value[others], before[path][others])
            if not is_kept and not is_forgotten(simulation, paths, path, observes=False):
                raise Untraceable(f"a reset of one environment changes others: {path}")
        of_all, of_one = _rows(simulation, written), _rows(other, written)
        for path, value in of_all.items():
            if path in of_one and not is_close(value[e], of_one[path][e]):
                raise Untraceable(f"a reset of one differs from a reset of all: {path}")
        for path, value in of_all.items():
            is_alike = is_close(value, value[:1].expand_as(value))
            if not is_alike and not is_forgotten(simulation, paths, path):
                raise Untraceable(f"its resets tell environments apart: {path}")
    simulation.random_stream.set_state(start)


def check_any_number(
    some: VmasSimulation, others: VmasSimulation, paths: StatePaths, carried: Collection[str]
) -> None:
    """Refuse resets that depend on the number of environments.

    Args:
        some: a simulation, left in another state, its random numbers as before.
        others: the same of another number of environments.
        paths: of their state.
        carried: the paths of tensors that resets leave as they are.

    Raises:
        Untraceable: if they do.
    """
    start, common = some.random_stream.get_state(), set[int]()
    written = [path for path in paths.tensors if path in paths.of_resets and path not in carried]
    for _ in range(2):  # at first to see which draws have a size that depends on the number
        shapes = []
        for each in (some, others):
            each.random_stream.set_state(start)
            shapes.append(_reset(each, None, TRIALS, common))
        common = {i for i, (a, b) in enumerate(zip(*shapes, strict=False)) if a == b}
    of_some, of_others = _rows(some, written), _rows(others, written)
    for path, value in of_some.items():
        is_alike = path in of_others and is_close(value[:1], of_others[path][:1])
        # One trial at each start; the build has made more.
        if not is_alike and not is_forgotten(others, paths, path, trials=1):
            raise Untraceable(f"its resets depend on the number of environments: {path}")
    some.random_stream.set_state(start)


def _copies(values: Iterable[Tensor]) -> list[Tensor]:
    return [value.clone() for value in values]


def is_close(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal but for roundings."""
    if not a.is_floating_point() or a.dtype != b.dtype or a.shape != b.shape:
        return same(a, b)
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


def _reset(
    simulation: VmasSimulation, e: int | None, seed: int, common: Container[int] = ()
) -> list[tuple[int, ...]]:
    """Reset environment ``e``, or all, by equal random numbers of all environments.

    Args:
        simulation: the simulation.
        e: the environment; None for all.
        seed: of the random numbers.
        common: as of ``EqualDraws``.

    Returns:
        the shapes of the draws.
    """
    draws = EqualDraws(simulation.n_envs, seed, common)
    with simulation.random_stream.everywhere(), draws:
        simulation.pure_reset(e)
    return draws.shapes


def batched(simulation: VmasSimulation) -> dict[str, Tensor]:
    """Return copies of all tensors [E, ..] of a simulation, by path."""
    slots, n_envs = walk(simulation.simulator).slots.items(), simulation.n_envs
    return {p: slot.value.clone() for p, slot in slots if slot.value.shape[:1] == (n_envs,)}


def _rows(simulation: VmasSimulation, paths: Collection[str]) -> dict[str, Tensor]:
    """Return copies of some tensors [E, ..] of a simulation, by path."""
    return {path: value for path, value in batched(simulation).items() if path in paths}
