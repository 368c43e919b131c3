"""Saving and loading: a whole run as a folder of checkpoints, or the weights of agent and mixer."""

from qmix_trl.checkpoint.run import LoadedRun, load_run, save_run
from qmix_trl.checkpoint.weights import load_weights, save_weights

__all__ = ["LoadedRun", "load_run", "load_weights", "save_run", "save_weights"]
