"""The compiled step: a built file and the facts that are needed to run it."""

from dataclasses import dataclass
from typing import Any

from qmix_trl.envs.compiled.engines.buffers import SeenLayout
from qmix_trl.envs.compiled.engines.packed_state import PackedNumber
from qmix_trl.envs.compiled.trace.guard import Guard
from qmix_trl.envs.compiled.trace.state import StatePaths
from qmix_trl.native.built_file import BuiltFile


@dataclass(frozen=True)
class CompiledStep:
    """A built and checked step, and the facts that are needed to run it.

    Attributes:
        library: the built file; None where the step is a function of torch.
        numbers: of the packed state.
        layout: of observation and state.
        paths: of the state, and of the choices that resets make in Python and the step may read.
        choices: for each kind of choice, the values of ``paths.choices`` that are of this kind.
        guard: of all other Python values that the step may read.
        constants: a hash of each tensor that is no state but may be read, by path; of a
            simulation of ``trace.FEW_ENVS`` environments.
        carried: the paths of tensors that resets leave as they are.
        draws: steps draw random numbers, other than positions of new entities.
        shared: resets of all environments draw something once for all of them.
        reads_in_resets: the scenario's code reads numbers of tensors in resets.
        seconds: of each part of the build.
    """

    library: BuiltFile | None
    numbers: list[PackedNumber]
    layout: SeenLayout
    paths: StatePaths
    choices: list[list[list[Any]]]
    guard: Guard
    constants: dict[str, str]
    carried: tuple[str, ...]
    draws: bool
    shared: bool
    reads_in_resets: bool
    seconds: dict[str, float]

    @property
    def carried_columns(self) -> list[int]:
        """The indices of the packed numbers that resets leave as they are."""
        return [k for k, number in enumerate(self.numbers) if number.path in self.carried]
