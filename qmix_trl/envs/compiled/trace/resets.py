"""The resets of a simulator: their sources of chance, their choices and their memory."""

from typing import NamedTuple

from torch import Tensor

from qmix_trl.envs.compiled.trace.audit import TORCHS, audited, may_be_read
from qmix_trl.envs.compiled.trace.carried import is_forgotten
from qmix_trl.envs.compiled.trace.contents import Contents, differing
from qmix_trl.envs.compiled.trace.nodes import same
from qmix_trl.envs.compiled.trace.own_code import packages_of
from qmix_trl.envs.compiled.trace.pure import ReadsOfPython, Untraceable
from qmix_trl.envs.compiled.trace.state import StatePaths, random_step
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import VmasSimulation

CHOICE_RESETS = 200  # resets made to see the choices of resets that decide by chance
HISTORIES = (1, 3)  # rounds of steps and resets before two resets of equal random numbers


class Chances(NamedTuple):
    """The ways in which chance decides Python's way through a reset.

    Attributes:
        draws: the scenario's code draws by Python or NumPy.
        reads: it reads numbers of tensors.
        names: of the attributes and globals that the code of a reset may read; None for any.
    """

    draws: bool
    reads: bool
    names: frozenset[str] | None


def chances(simulation: VmasSimulation) -> Chances:
    """Return how chance decides Python's way through a reset.

    Args:
        simulation: left in another state.
    """
    packages = packages_of(simulation.simulator.scenario)
    reads = ReadsOfPython(packages)
    with simulation.random_stream.everywhere(), audited(packages) as audit, reads:
        simulation.pure_reset()
    draws = any(chance != TORCHS for chance in audit.chances)
    return Chances(draws, bool(reads.found), audit.names(walk(simulation.simulator)))


def values_chosen(simulation: VmasSimulation) -> set[str]:
    """Return the paths of Python values that differ between many resets.

    Args:
        simulation: left in another state, its random numbers as before.
    """
    start, first, found = simulation.random_stream.get_state(), walk(simulation.simulator), set()
    for _ in range(CHOICE_RESETS):
        simulation.reset()
        found |= differing(first, walk(simulation.simulator))
    simulation.random_stream.set_state(start)
    return found


def check_memoryless(
    simulation: VmasSimulation, paths: StatePaths, names: frozenset[str] | None
) -> None:
    """Refuse a scenario whose resets depend on earlier episodes.

    Resets of equal random numbers must have equal outcomes, whatever preceded them.

    Args:
        simulation: left in another state, its random numbers as before.
        paths: of its state.
        names: of the attributes and globals that steps and resets may read; None for any.

    Raises:
        Untraceable: if they differ in a value that may be read.
    """
    start, step = simulation.random_stream.get_state(), random_step(simulation)
    outcomes = []
    for n_rounds in HISTORIES:
        for _ in range(n_rounds):
            step()
            simulation.reset()
            step()
        simulation.random_stream.set_state(start)
        simulation.reset()
        simulation.observe()
        outcomes.append(_outcome(simulation, paths))
    (first, tensors), (second, others) = outcomes
    remembered = sorted(p for p in differing(first, second) if may_be_read(p, names))
    remembered += [
        path
        for path, value in tensors.items()
        if not same(value, others.get(path)) and not is_forgotten(simulation, paths, path)
    ]
    simulation.random_stream.set_state(start)
    if remembered:
        raise Untraceable(f"its resets depend on what went before: {remembered[0]}")


def _outcome(simulation: VmasSimulation, paths: StatePaths) -> tuple[Contents, dict[str, Tensor]]:
    contents = walk(simulation.simulator)
    tensors = {p: t.clone() for p, t in contents.tensors().items() if p in paths.of_resets}
    return contents, tensors
