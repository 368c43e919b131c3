"""An environment in many layouts, and the same game as a slow loop in plain Python."""

from dataclasses import dataclass, field
from functools import partial

import torch
from tensordict import TensorDict
from torchrl.data import Binary, Bounded, Categorical, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv
from torchrl.modules import RandomPolicy

from qmix_trl.envs.team import TeamEnv

N, A, O, LIMIT = 2, 3, 5, 5  # noqa: E741 - the letter of keys.py


@dataclass(frozen=True)
class Layout:
    """The names and kinds of an environment's entries; a name that is None is left out."""

    group: str | None = "agents"
    observation: str = "observation"
    action: str = "action"
    one_hot: bool = False
    state: str | None = "state"
    action_mask: str | None = "action_mask"
    mask_dtype: torch.dtype = torch.bool
    agent_mask: str | None = None
    agent_reward: str | None = "reward"
    team_reward: str | None = None
    trailing: bool = True  # rewards of agents are [N, 1], not [N]
    agent_flags: bool = False  # dones of agents
    team_flags: bool = True
    truncates: bool = True  # the environment has a time limit
    prey: bool = False  # a second group acts
    n_envs: int | None = 2  # None without a batch

    def of_agents(self, name):
        """Return the key of an entry of the agents."""
        return name if self.group is None else (self.group, name)


class AnyEnv(EnvBase):
    """A game of two agents; observations tell episode, step, environment, agent, last action.

    In odd episodes (of even ones in environments 1, 3, ..) agent 0 dies in step 2 and agent 1 in
    step 3, which ends the episode. All others are truncated after five steps. A dead agent sees
    zeros, and has no reward and no available action but the last. An agent's action u pays
    (u + 1) t / 4 + a in step t. The prey's action is added to the state's first number.

    Args:
        layout: of its entries.
        first: the number of the first environment.
    """

    batch_locked = True

    def __init__(self, layout=Layout(), first=0):
        batch = torch.Size([] if layout.n_envs is None else [layout.n_envs])
        super().__init__(batch_size=batch)
        self.layout = layout
        self.number = first + torch.arange(batch.numel()).reshape(batch)
        self.step_of = torch.zeros_like(self.number)
        self.episode = torch.full_like(self.number, -1)
        self.last = torch.zeros(*batch, N, dtype=torch.int64)
        self.dead = torch.zeros(*batch, N, dtype=torch.bool)
        self.prey = torch.zeros_like(self.number)
        self.group_map = {layout.group: ["left", "right"]} if layout.group else {}
        self._set_specs()

    def _spec(self, entries):
        """Return a spec of entries, with those of the group inside it."""
        team, batch = (*self.batch_size, N), self.batch_size
        spec = Composite(shape=batch)
        for key, leaf in entries.items():
            if isinstance(key, tuple) and key[0] not in list(spec.keys()):
                shape = team if key[0] == self.layout.group else batch
                spec[key[0]] = Composite(shape=shape)
            spec[key] = leaf
        return spec

    def _set_specs(self):
        x, batch = self.layout, self.batch_size
        team, at = (*batch, N), self.layout.of_agents
        flags = {"dtype": torch.bool}
        self.observation_spec = self._spec(
            {
                at(x.observation): Unbounded((*team, O), dtype=torch.float64),
                **({x.state: Unbounded((*batch, 3))} if x.state else {}),
                **(
                    {at(x.action_mask): Bounded(0, 1, (*team, A), dtype=x.mask_dtype)}
                    if x.action_mask and x.mask_dtype != torch.bool
                    else {}
                ),
                **(
                    {at(x.action_mask): Binary(A, (*team, A), **flags)}
                    if x.action_mask and x.mask_dtype == torch.bool
                    else {}
                ),
                **({at(x.agent_mask): Binary(N, team, **flags)} if x.agent_mask else {}),
                **({("prey", "seen"): Unbounded((*batch, 1, 4))} if x.prey else {}),
            }
        )
        action = OneHot(A, (*team, A)) if x.one_hot else Categorical(A, team)
        prey = {("prey", "action"): Categorical(4, (*batch, 1))} if x.prey else {}
        self.action_spec = self._spec({at(x.action): action, **prey})
        reward = Unbounded((*team, 1) if x.trailing else team)
        self.reward_spec = self._spec(
            {
                **({at(x.agent_reward): reward} if x.agent_reward else {}),
                **({x.team_reward: Unbounded((*batch, 1))} if x.team_reward else {}),
            }
        )
        names = ("done", "terminated", *(["truncated"] if x.truncates else []))
        self.done_spec = self._spec(
            {
                **({n: Binary(1, (*batch, 1), **flags) for n in names} if x.team_flags else {}),
                **({at(n): Binary(1, (*team, 1), **flags) for n in names} if x.agent_flags else {}),
            }
        )

    def _set_seed(self, seed):
        self.episode.fill_(-1)  # the next reset starts episode 0

    def _entries(self):
        """Return what is shown of the present step."""
        x, team = self.layout, (*self.batch_size, N)
        data = TensorDict({}, self.batch_size)
        shown = [self.step_of, self.episode, self.number]
        if x.group:
            data.set(x.group, TensorDict({}, team))
        agent = torch.arange(N).expand(team)
        parts = [*(part[..., None].expand(team) for part in shown), agent, self.last]
        observation = torch.stack(parts, -1).double()
        data.set(x.of_agents(x.observation), observation * ~self.dead[..., None])
        if x.state:
            data.set(x.state, torch.stack([self.step_of + self.prey, *shown[1:]], -1).float())
        if x.action_mask:
            closed = (sum(shown)[..., None] + agent) % A
            mask = torch.arange(A) != closed[..., None]
            mask = torch.where(self.dead[..., None], torch.arange(A) == A - 1, mask)
            data.set(x.of_agents(x.action_mask), mask.to(x.mask_dtype))
        if x.agent_mask:
            data.set(x.of_agents(x.agent_mask), ~self.dead)
        if x.prey:
            data.set(("prey", "seen"), torch.ones(*self.batch_size, 1, 4))
        return data

    def _flagged(self, data, terminated, truncated):
        """Set the flags of teams, and those of agents."""
        x = self.layout
        for name, team, agents in (
            ("terminated", terminated, self.dead),
            ("truncated", truncated, truncated[..., None] & ~self.dead),
            ("done", terminated | truncated, truncated[..., None] | self.dead),
        ):
            if name == "truncated" and not x.truncates:
                continue
            if x.team_flags:
                data.set(name, team[..., None])
            if x.agent_flags:
                data.set(x.of_agents(name), agents[..., None])
        return data

    def _reset(self, tensordict=None, **kwargs):
        reset = torch.ones_like(self.number, dtype=torch.bool)
        if tensordict is not None:
            key = "_reset" if self.layout.team_flags else self.layout.of_agents("_reset")
            asked = tensordict.get(key, None)
            if asked is not None:
                reset = asked.reshape(*self.batch_size, -1).all(-1)
        self.episode += reset
        self.step_of.masked_fill_(reset, 0)
        self.prey.masked_fill_(reset, 0)
        for part in (self.last, self.dead):
            part.masked_fill_(reset[..., None], 0)
        no = torch.zeros_like(reset)
        return self._flagged(self._entries(), no, no)

    def _step(self, tensordict):
        x, at = self.layout, self.layout.of_agents
        action = tensordict.get(at(x.action))
        if x.one_hot:
            action = action.long().argmax(-1)
        assert action.shape == (*self.batch_size, N)
        if x.prey:
            self.prey += tensordict.get(("prey", "action"))[..., 0]
        dead = self.dead.clone()
        self.step_of += 1
        self.last = action.clone()
        dies = ((self.episode + self.number) % 2 == 1)[..., None] & (
            self.step_of[..., None] == 2 + torch.arange(N)
        )
        self.dead |= dies
        terminated = self.dead.all(-1)
        truncated = (self.step_of == LIMIT) & ~terminated & x.truncates
        data = self._flagged(self._entries(), terminated, truncated)
        reward = (action + 1) * self.step_of[..., None] / 4 + torch.arange(N)
        reward = reward * ~dead
        if x.agent_reward:
            data.set(at(x.agent_reward), reward[..., None] if x.trailing else reward)
        if x.team_reward:
            data.set(x.team_reward, 10 * reward.sum(-1, keepdim=True))
        return data


@dataclass
class Game:
    """The game of one environment in plain Python."""

    number: int
    episode: int = -1
    t: int = 0
    last: list = field(default_factory=lambda: [0, 0])
    dead: list = field(default_factory=lambda: [False, False])

    def reset(self):
        """Start the next episode."""
        self.episode, self.t = self.episode + 1, 0
        self.last, self.dead = [0, 0], [False, False]

    def observation(self):
        """Return the agents' observations."""
        shown = [self.t, self.episode, self.number]
        return [[0.0] * O if self.dead[a] else [*shown, a, self.last[a]] for a in range(N)]

    def available(self):
        """Return the actions of each agent that are available."""
        closed = [(self.t + self.episode + self.number + a) % A for a in range(N)]
        return [
            [A - 1] if self.dead[a] else [u for u in range(A) if u != closed[a]] for a in (0, 1)
        ]

    def step(self, action):
        """Take a step; return the agents' rewards, terminated and truncated."""
        self.t += 1
        rewards = [0.0 if self.dead[a] else (action[a] + 1) * self.t / 4 + a for a in range(N)]
        self.last = list(action)
        if (self.episode + self.number) % 2 == 1:
            self.dead = [self.dead[a] or self.t == 2 + a for a in range(N)]
        return rewards, all(self.dead), self.t == LIMIT and not all(self.dead)


def several(make, layout, **arguments):
    """Return two environments without a batch, stepped by TorchRL."""
    return make(2, [partial(AnyEnv, layout, first=i) for i in range(2)], **arguments)


NO_BATCH = Layout(
    group="walkers", observation="seen", action="move", agent_mask="mask", action_mask=None,
    state=None, n_envs=None,
)  # fmt: skip
LAYOUTS = {
    "batched": Layout(),
    "unbatched, flags of agents, no state, no mask, no limit": Layout(
        group="adversary",
        observation="what_it_sees",
        action="move",
        state=None,
        action_mask=None,
        agent_reward="gain",
        trailing=False,
        agent_flags=True,
        team_flags=False,
        truncates=False,
        n_envs=None,
    ),
    "root, reward of the team": Layout(
        group=None,
        observation="obs",
        action="act",
        action_mask="available",
        agent_reward=None,
        team_reward="score",
    ),
    "one-hot actions, another group, both rewards": Layout(
        group="hunters",
        one_hot=True,
        action_mask="action_mask",
        mask_dtype=torch.int8,
        team_reward="reward",
        agent_flags=True,
        prey=True,
    ),
    "serial, dead agents": NO_BATCH,
    "parallel, dead agents": NO_BATCH,
}


def team_of(name):
    """Return the environment of a layout as a team; it is truncated after ``LIMIT`` steps."""
    layout = LAYOUTS[name]
    if name.startswith("serial"):
        return TeamEnv(several(SerialEnv, layout))
    if name.startswith("parallel"):
        return TeamEnv(several(ParallelEnv, layout, mp_start_method="fork"))
    env = AnyEnv(layout)
    if layout.prey:
        prey = Composite(prey=env.full_action_spec["prey"], shape=env.batch_size)
        return TeamEnv(env, group="hunters", others=RandomPolicy(prey))
    return TeamEnv(env, max_steps=None if layout.truncates else LIMIT)
