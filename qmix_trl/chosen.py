"""The implementation that runs, told by the object that chose it; arguments in a ``repr``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CPP_LOOP, CUDA_GRAPH = "C++ loop", "CUDA graph"  # the compiled loops of ``qmix_trl.fused``
POLICY_KERNEL = "CUDA graph with policy kernel"  # the same graph, in which a kernel acts


def named(arguments: Mapping[str, Any]) -> str:
    """Return arguments as a call names them."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


@dataclass(frozen=True)
class Chosen:
    """The implementation that an environment, a collector or an update runs.

    Attributes:
        name: of the implementation, such as "kernel".
        passed_over: why each faster implementation does not run: reason by name, fastest first.
    """

    name: str
    passed_over: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons = "; ".join(f"no {name}: {reason}" for name, reason in self.passed_over.items())
        return f"{self.name} ({reasons})" if reasons else self.name
