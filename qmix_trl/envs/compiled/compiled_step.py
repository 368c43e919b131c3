"""The compiled step: a built file and the facts that are needed to run it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmix_trl.envs.compiled.engines.buffers import SeenLayout
from qmix_trl.envs.compiled.engines.packed_state import PackedNumber


@dataclass(frozen=True)
class CompiledStep:
    """A built and checked step, and the facts that are needed to run it.

    Attributes:
        library: the path of the built file; None where the step is a function of torch.
        numbers: of the packed state.
        layout: of observation and state.
        choice_paths: of the Python values that resets choose and the step depends on.
        choices: their values, by the index of the choice.
        shared: resets of all environments draw something once for all of them.
        seconds: of each part of the build.
    """

    library: Path | None
    numbers: list[PackedNumber]
    layout: SeenLayout
    choice_paths: list[str]
    choices: list[list[Any]]
    shared: bool
    seconds: dict[str, float]
