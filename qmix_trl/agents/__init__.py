"""Agent networks: utilities of all actions, for one step or for a sequence.

An agent has ``forward(tensordict)`` and ``step`` for acting, ``unroll`` for training, and
``memory_spec``, the entries that the environment carries for it from step to step.
"""

from qmix_trl.agents.feedforward import FeedforwardAgent
from qmix_trl.agents.recurrent import RecurrentAgent

AGENTS = {"recurrent": RecurrentAgent, "feedforward": FeedforwardAgent}

__all__ = ["AGENTS", "FeedforwardAgent", "RecurrentAgent"]
