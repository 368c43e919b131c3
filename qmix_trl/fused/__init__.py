"""Collection without TorchRL's step loop, and without Python's where the step is compiled."""

from qmix_trl.fused.collector import FusedCollector, why_not

__all__ = ["FusedCollector", "why_not"]
