"""Mixers: modules from ``(chosen [*B, N, 1], state [*B, *S])`` to ``[*B, 1]``.

A mixer names what it reads in ``in_keys``, in the order of its call; the loss supplies it.
"""

from qmix_trl.mixers.qmix import QMixer
from qmix_trl.mixers.vdn import VDNMixer

MIXERS = {"vdn": VDNMixer, "qmix": QMixer}

__all__ = ["MIXERS", "QMixer", "VDNMixer"]
