"""Agent networks: utilities of every action, one step at a time or over a sequence.

An agent offers ``forward(tensordict)`` and ``step`` for acting, ``unroll`` for training, and
``memory_spec``, what the environment has to carry for it from step to step.
"""

from qmix_trl.agents.feedforward import FeedforwardAgent
from qmix_trl.agents.recurrent import RecurrentAgent

AGENTS = {"recurrent": RecurrentAgent, "feedforward": FeedforwardAgent}

__all__ = ["AGENTS", "FeedforwardAgent", "RecurrentAgent"]
