"""Small environments of PettingZoo with masks, deaths, groups and mistakes."""

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

AGENTS = ("miner_0", "miner_1", "miner_2", "guard_0")
LAST = 5  # step


class Mines(ParallelEnv):
    """Miner i < 2 steps on a mine in step i + 1; the others are truncated after step 5.

    Observations tell the step, the agent and a number that is drawn at the reset. Action u pays
    1 + u + the drawn number. Action (t + i) % 3 of miner i is not available in step t.

    Args:
        masks: where masks are shown: in "infos", in "observations", or None.
        guard: whether the guard takes part.
        sizes: of the agents' observations, 3 or more; filled with fives.
        **changes: attributes and methods to replace, for mistakes.
    """

    metadata = {"name": "mines"}

    def __init__(self, masks=None, guard=False, sizes=(3, 3, 3, 3), actions=(3, 3, 3, 3)):
        self.possible_agents = list(AGENTS if guard else AGENTS[:3])
        self.masks, self.sizes, self.actions = masks, sizes, actions
        self.taken = []  # joint actions of the episode

    def _number(self, agent):
        return AGENTS.index(agent)

    def observation_space(self, agent):
        box = spaces.Box(-9, 9, (self.sizes[self._number(agent)],), np.float32)
        if self.masks != "observations":
            return box
        mask = spaces.MultiBinary(self.actions[self._number(agent)])
        return spaces.Dict({"observation": box, "action_mask": mask})

    def action_space(self, agent):
        return spaces.Discrete(self.actions[self._number(agent)], start=10)

    def mask(self, agent):
        """Return the available actions of an agent."""
        i = self._number(agent)
        return (np.arange(self.actions[i]) != (self.t + i) % 3).astype(np.int8)

    def seen(self, agent):
        """Return an agent's observation without its mask."""
        i = self._number(agent)
        return np.array([self.t, i, self.drawn] + [5] * (self.sizes[i] - 3), np.float32)

    def _observed(self, agents):
        if self.masks != "observations":
            return {a: self.seen(a) for a in agents}
        return {a: {"observation": self.seen(a), "action_mask": self.mask(a)} for a in agents}

    def _infos(self, agents):
        return {a: {"action_mask": self.mask(a)} if self.masks == "infos" else {} for a in agents}

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        self.agents, self.t, self.taken = list(self.possible_agents), 0, []
        self.drawn = float(self.generator.random())
        return self._observed(self.agents), self._infos(self.agents)

    def state(self):
        return np.array(self.t)  # without a dimension

    def step(self, actions):
        assert set(actions) == set(self.agents)  # of the living alone
        assert all(self.action_space(a).contains(u) for a, u in actions.items())
        self.taken.append(actions)
        self.t += 1
        rewards = {a: 1.0 + u - 10 + self.drawn for a, u in actions.items()}
        dies = {a: self._number(a) < 2 and self.t == self._number(a) + 1 for a in self.agents}
        late = dict.fromkeys(self.agents, self.t == LAST)
        seen, infos = self._observed(self.agents), self._infos(self.agents)
        self.agents = [a for a in self.agents if not (dies[a] or late[a])]
        return seen, rewards, dies, late, infos


def mines(masks=None, guard=False):
    """Return mines."""
    return Mines(masks, guard)


def mines_of_sizes():
    """Return mines in which agents have observations and actions of several sizes."""
    return Mines("infos", sizes=(3, 4, 5, 3), actions=(3, 2, 4, 3))
