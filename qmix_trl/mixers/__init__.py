"""Mixers: modules that compute the joint value [*B, 1] from the agents' values.

A mixer names its arguments in ``in_keys``, in the order of its call. The loss supplies any of
these: chosen action values, greedy action values, all action values, joint action, action mask,
state, hidden states, observation. It reads any other entry from the batch.
"""

from qmix_trl.mixers.central import CentralMixer
from qmix_trl.mixers.qfix import QFixMixer
from qmix_trl.mixers.qmix import QMixer
from qmix_trl.mixers.qplex import QPlexMixer
from qmix_trl.mixers.vdn import VDNMixer

MIXERS = {"vdn": VDNMixer, "qmix": QMixer, "qfix": QFixMixer, "qplex": QPlexMixer}

__all__ = ["MIXERS", "CentralMixer", "QFixMixer", "QMixer", "QPlexMixer", "VDNMixer"]
