"""A step that is built and checked, with all that is needed to run it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmix_trl.envs.compiled.engines.buffers import SeenLayout
from qmix_trl.envs.compiled.engines.packed_state import PackedNumber


@dataclass(frozen=True)
class CompiledStep:
    """A step that is built and checked.

    Attributes:
        library: the path of what was built; None where the step is a function of torch's.
        numbers: the numbers of the packed state.
        layout: of what is seen.
        choice_paths: Python values that resets choose, where it matters.
        choices: their values, in the order of the choice's number.
        shared: full resets draw something once for all environments.
        seconds: what making it took, by part.
    """

    library: Path | None
    numbers: list[PackedNumber]
    layout: SeenLayout
    choice_paths: list[str]
    choices: list[list[Any]]
    shared: bool
    seconds: dict[str, float]
