"""PettingZoo's environments as teams: steps of the raw environments, and agents that die."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qmix_trl import RandomPolicy, TeamEnv, env_dims, episode_returns, make_env
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    AGENT_REWARD,
    DONE,
    OBSERVATION,
    REWARD,
    STATE,
    next_key,
)

pytestmark = pytest.mark.filterwarnings("ignore")
pettingzoo = pytest.importorskip("pettingzoo", reason="needs the extra envs")
spaces = pytest.importorskip("gymnasium.spaces")
mpe2 = pytest.importorskip("mpe2", reason="needs the extra envs")

SPREAD = Path(__file__).parents[1] / "recipes" / "environments" / "pettingzoo_spread.py"


def spread(n_envs):
    """Return environments of the recipe."""
    return make_env(
        "custom",
        make=f"{SPREAD}:make",
        make_kwargs={"n_agents": 3, "max_cycles": 25},
        n_envs=n_envs,
        max_steps=25,
        state="world",
        team_reward="mean",
        seed=0,
    )


def test_steps_of_simple_spread_are_those_of_the_raw_environment():
    team = TeamEnv(spread(1).env)
    team.set_seed(11)
    batch = team.rollout(25, RandomPolicy(5, seed=0))[0]
    raw = mpe2.simple_spread_v3.parallel_env(N=3, max_cycles=25)
    seen, _ = raw.reset(seed=11)
    raw_first = np.stack(list(seen.values()))
    if not np.allclose(raw_first, batch[OBSERVATION][0]):  # seeding resets, and so does a rollout
        seen, _ = raw.reset()
    for step in batch.unbind(0):
        expected = torch.from_numpy(np.stack(list(seen.values())))
        torch.testing.assert_close(step[OBSERVATION], expected)
        torch.testing.assert_close(step[STATE], expected.flatten())
        action = dict(zip(raw.agents, step[ACTION].tolist(), strict=True))
        seen, rewards, terminated, truncated, _ = raw.step(action)
        own = torch.tensor(list(rewards.values()), dtype=torch.float32)
        torch.testing.assert_close(step[next_key(AGENT_REWARD)][:, 0], own)
        torch.testing.assert_close(step[next_key(REWARD)], own.mean(0, keepdim=True))
        assert not any(terminated.values())
        assert step[next_key("truncated")].item() == all(truncated.values())
    assert step[next_key(DONE)].item()


def test_returns_of_simple_spread():
    env = spread(2)
    assert (env.batch_size, env.n_agents, env_dims(env).n_actions) == ((2,), 3, 5)
    returns = [
        episode_returns(env, RandomPolicy(5, seed=0), max_steps=25, seed=s) for s in (1, 1, 2)
    ]
    assert torch.equal(returns[0], returns[1])
    assert not torch.equal(returns[0], returns[2])


class Mines(pettingzoo.ParallelEnv):
    """Agent i steps on a mine in step i + 1; the last one alive goes on to step 5."""

    metadata = {"name": "mines"}

    def __init__(self):
        self.possible_agents = ["a", "b", "c"]

    def observation_space(self, agent):
        return spaces.Box(-9, 9, (2,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(3)

    def _seen(self):
        return {a: np.array([self.t, ord(a)], np.float32) / 99 for a in self.agents}

    def reset(self, seed=None, options=None):
        self.agents, self.t = list(self.possible_agents), 0
        return self._seen(), {a: {} for a in self.agents}

    def step(self, actions):
        assert set(actions) == set(self.possible_agents)
        assert all(actions[a] == 0 for a in actions if a not in self.agents)  # dead ones wait
        self.t += 1
        dies = {a: self.t == i + 1 and i < 2 for i, a in enumerate("abc") if a in self.agents}
        late = dict.fromkeys(self.agents, self.t == 5)
        out = self._seen(), {a: 1.0 + actions[a] for a in self.agents}, dies, late
        infos = {a: {} for a in self.agents}
        self.agents = [a for a in self.agents if not (dies[a] or late[a])]
        return *out, infos


def test_dead_agents_of_pettingzoo_wait_and_get_nothing():
    from torchrl.envs.libs.pettingzoo import PettingZooWrapper

    wrapped = PettingZooWrapper(
        Mines(),
        use_mask=True,
        done_on_any=False,
        categorical_actions=True,
        group_map={"team": list("abc")},
    )
    team = TeamEnv(wrapped)
    batch = team.rollout(9, RandomPolicy(3, seed=0))
    assert len(batch) == 5
    alive = torch.tensor([[True] * 3, [False, True, True], *[[False, False, True]] * 3])
    assert torch.equal(batch[ACTION_MASK].sum(-1) == 3, alive)
    assert torch.equal(batch[ACTION_MASK][..., 0], torch.ones(5, 3, dtype=torch.bool))
    expected = (1.0 + batch[ACTION]) * alive
    assert torch.equal(batch[next_key(AGENT_REWARD)][..., 0], expected)
    assert torch.allclose(batch[next_key(REWARD)][..., 0], expected.mean(-1))
    ends = [batch[next_key(name)][..., 0].tolist() for name in ("terminated", "truncated")]
    assert ends == [[False] * 5, [False] * 4 + [True]]
