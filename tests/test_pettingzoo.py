"""Environments of PettingZoo: steps of the raw environments, deaths, masks, groups, mistakes."""

import numpy as np
import pytest
import torch

from qmix_trl import ConfigError, RandomPolicy, env_dims, make_env
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    AGENT_REWARD,
    DONE,
    IS_INIT,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TRUNCATED,
    next_key,
)

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("pettingzoo", reason="needs the extra envs")
mpe2 = pytest.importorskip("mpe2", reason="needs the extra envs")

from pettingzoo_tools import LAST, Mines  # noqa: E402

from qmix_trl.envs.python_team import episode_seed  # noqa: E402


def made(scenario, **changes):
    """Return environments."""
    settings = {
        "n_envs": 1,
        "max_steps": 25,
        "state": "world",
        "team_reward": "mean",
        "seed": 7,
        **changes,
    }
    return make_env("pettingzoo", scenario=scenario, **settings)


def test_steps_of_simple_spread_are_those_of_the_raw_environment():
    kwargs = {"N": 2, "max_cycles": 4}
    env = made("mpe2.simple_spread_v3", n_envs=2, scenario_kwargs=kwargs)
    batch = env.rollout(10, RandomPolicy(5, seed=0), break_when_any_done=False)
    assert env_dims(env).n_agents == 2
    for e, row in enumerate(batch):
        raw, episode = mpe2.simple_spread_v3.parallel_env(**kwargs), 0
        for step in row:
            if step[IS_INIT]:
                episode += 1
                seen, _ = raw.reset(seed=episode_seed(7, e, episode))
            expected = torch.from_numpy(np.stack(list(seen.values())))
            assert torch.equal(step[OBSERVATION], expected)
            assert torch.equal(step[STATE], torch.from_numpy(raw.state()))
            action = dict(zip(raw.agents, step[ACTION].tolist(), strict=True))
            seen, rewards, terminated, truncated, _ = raw.step(action)
            own = torch.tensor(list(rewards.values()), dtype=torch.float32)
            after = step["next"]
            assert torch.equal(after[OBSERVATION], torch.from_numpy(np.stack(list(seen.values()))))
            assert torch.equal(after[AGENT_REWARD][:, 0], own)
            assert torch.equal(after[REWARD], own.mean(0, keepdim=True))
            assert after[TERMINATED].item() == any(terminated.values())
            assert after[TRUNCATED].item() == all(truncated.values())
        assert episode == 3  # of 4, 4 and 2 steps


def test_the_teams_reward_is_the_mean_or_the_sum():
    batches = [
        made("mpe2.simple_spread_v3", team_reward=kind).rollout(5, RandomPolicy(5, seed=0))
        for kind in ("mean", "sum")
    ]
    torch.testing.assert_close(3 * batches[0]["next", REWARD], batches[1]["next", REWARD])


def test_a_state_of_all_observations():
    batch = made("mpe2.simple_tag_v3", group="adversary", state="observations").rollout(3)
    assert torch.equal(batch[STATE], batch[OBSERVATION].flatten(2))


# Deaths and masks. Miner 0 dies in step 1, miner 1 in step 2, miner 2 is truncated in step 5.

ALIVE = torch.tensor([[True] * 3, [False, True, True], *[[False, False, True]] * 3])


@pytest.mark.parametrize("masks", [None, "infos", "observations"])
def test_agents_that_have_terminated_wait(masks):
    env = made("pettingzoo_tools:mines", scenario_kwargs={"masks": masks})
    batch = env.rollout(9, RandomPolicy(3, seed=0))[0]
    assert len(batch) == LAST
    drawn = batch[OBSERVATION][0, 0, 2]
    raw = Mines(masks)
    raw.reset(seed=episode_seed(7, 0, 1))
    for t, step in enumerate(batch):
        mask = torch.tensor([[True, False, False]] * 3)
        seen = torch.zeros(3, 3)
        for i in ALIVE[t].nonzero()[:, 0].tolist():
            raw.t = t
            mask[i] = torch.tensor(raw.mask(f"miner_{i}")) == 1 if masks else True
            seen[i] = torch.tensor([t, i, drawn])
        assert torch.equal(step[OBSERVATION], seen)
        assert torch.equal(step[ACTION_MASK], mask)
        assert step[STATE].tolist() == [t]
        reward = (1 + step[ACTION] + drawn) * ALIVE[t]
        assert torch.allclose(step["next", AGENT_REWARD][:, 0], reward)
        assert torch.allclose(step["next", REWARD], reward.mean(0, keepdim=True))
    ends = [batch[next_key(name)][:, 0].tolist() for name in (TERMINATED, TRUNCATED, DONE)]
    no, cut = [False] * LAST, [False] * (LAST - 1) + [True]
    assert ends == [no, cut, cut]
    # The last observation is not that of a dead agent: the value goes on from it.
    assert batch["next", OBSERVATION][-1].tolist() == [[0] * 3, [0] * 3, [LAST, 2, drawn]]


class AllDie(Mines):
    """Mines on which the last miner dies in step 3."""

    def step(self, actions):
        seen, rewards, dies, late, infos = super().step(actions)
        if self.t == 3:
            dies["miner_2"], self.agents = True, []
        return seen, rewards, dies, late, infos


def test_a_team_of_which_all_have_terminated_is_terminated():
    batch = made(AllDie).rollout(9, RandomPolicy(3, seed=0))[0]
    assert batch["next", TERMINATED][:, 0].tolist() == [False, False, True]
    assert not batch["next", TRUNCATED].any()


class NoneAvailable(Mines):
    """Mines in which no action is available."""

    def mask(self, agent):
        return np.zeros(3, np.int8)


def test_an_agent_without_any_available_action_takes_the_first_one():
    env = made(NoneAvailable, scenario_kwargs={"masks": "infos"})
    batch = env.rollout(3, RandomPolicy(3, seed=0))
    assert (batch[ACTION] == 0).all()
    assert (batch[ACTION_MASK].sum(-1) == 1).all()


# Groups and sizes


def test_other_groups_act_by_the_first_or_by_any_available_action():
    kwargs = {"masks": "infos", "guard": True}
    taken = {}
    for others in ("no_op", "random"):
        made_envs = []

        def make(others=others, made_envs=made_envs, **kwargs):
            made_envs.append(Mines(**kwargs))
            return made_envs[-1]

        env = made(make, scenario_kwargs=kwargs, group="miner", others=others, n_envs=2)
        env.rollout(LAST, RandomPolicy(3, seed=0))
        assert env.n_agents == 3
        taken[others] = [
            [step["guard_0"] - 10 for step in each.taken] for each in made_envs[-2:]
        ]  # before them, one is tried
        for steps in taken[others]:
            assert all(u != (t + 3) % 3 for t, u in enumerate(steps))  # its masks
    assert taken["no_op"] == [[1, 0, 0, 1, 0]] * 2  # action t % 3 is not available
    assert taken["random"][0] != taken["random"][1]


def test_all_groups_may_be_one_team():
    env = made("pettingzoo_tools:mines", scenario_kwargs={"guard": True}, group="all")
    assert env.reset()[OBSERVATION][0, :, 1].tolist() == [0, 1, 2, 3]  # in PettingZoo's order


def test_smaller_agents_are_padded_where_asked_for():
    env = made("pettingzoo_tools:mines_of_sizes", pad=True)
    first = env.reset()[0]
    assert env_dims(env).observation_dim == 5
    assert first[OBSERVATION][:, 3:].tolist() == [[0, 0], [5, 0], [5, 5]]
    # Of 3, 2 and 4 actions, action (t + i) % 3 of agent i is not available.
    assert first[ACTION_MASK].int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 1]]


# Mistakes


class Wrong(Mines):
    """Mines with a mistake."""

    mistake = None

    def reset(self, seed=None, options=None):
        seen, infos = super().reset(seed, options)
        match self.mistake:
            case "no infos":
                return seen
            case "no observation":
                del seen["miner_1"]
            case "a small observation":
                seen["miner_1"] = seen["miner_1"][:1]
        return seen, infos

    def step(self, actions):
        seen, rewards, dies, late, infos = super().step(actions)
        match self.mistake:
            case "no mask later":
                infos = {agent: {} for agent in infos}
            case "a small mask":
                infos["miner_2"]["action_mask"] = [1, 1]
            case "an error":
                raise IndexError("beyond the mine")
        return seen, rewards, dies, late, infos

    def action_space(self, agent):
        from gymnasium import spaces

        if self.mistake == "continuous":
            return spaces.Box(-1, 1, (2,))
        return super().action_space(agent)

    def observation_space(self, agent):
        from gymnasium import spaces

        if self.mistake == "any size":
            return spaces.Sequence(spaces.Discrete(2))
        return super().observation_space(agent)

    def state(self):
        return self.mistake == "no state" and Mines.__mro__[1].state(self)


def refusal(scenario, **changes):
    """Return the message of refused environments, asserted to be one line."""
    with pytest.raises(ConfigError) as caught:
        made(scenario, **changes)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


@pytest.mark.parametrize(
    ("mistake", "part"),
    [
        ("no infos", "expected reset() to return observations and infos"),
        ("no observation", "expected an observation of 'miner_1', which acts, got none"),
        ("a small observation", "an observation of 3 numbers, as miner_1's space says, got 1"),
        ("no mask later", "expected an action mask of [3] for 'miner_1', at every step"),
        ("a small mask", "an action mask of [3] for 'miner_2', at every step if at any, got one"),
        ("an error", "IndexError beyond the mine at test_pettingzoo.py"),
        ("continuous", "expected discrete actions, one for each agent, got Box"),
        ("any size", "expected observations of a fixed size, got Sequence"),
        ("no state", "state='world': expected an environment with state(), got one without"),
    ],
)
def test_mistakes_of_an_environment(mistake, part):
    def make(**kwargs):
        env = Wrong("infos")
        env.mistake = mistake
        return env

    assert part in refusal(make)


@pytest.mark.parametrize(
    ("scenario", "changes", "part"),
    [
        ("no_such_package.x", {}, "expected an installed package, got 'no_such_package'"),
        ("mpe2.simple_spred_v3", {}, "got 'simple_spred_v3'; did you mean 'simple_spread_v3'"),
        ("mpe2.all_modules", {}, "expected a function 'parallel_env', got none"),
        ("mpe2.simple_spread_v3:env", {}, "in which they take turns (AECEnv)"),
        ("pettingzoo_tools:Game", {}, "expected a function 'Game', got none"),
        ("random:Random", {}, "expected a ParallelEnv of PettingZoo, got Random"),
        ("mpe2.simple_tag_v3", {}, "of several groups: adversary, agent; choose the team"),
        ("mpe2.simple_tag_v3", {"group": "adversery"}, "did you mean 'adversary'?"),
        ("pettingzoo_tools:mines_of_sizes", {}, "miner_0 3, miner_1 4, miner_2 5; env.pad=true"),
        (
            "mpe2.simple_spread_v3",
            {"scenario_kwargs": {"maxcycles": 3}},
            "env.scenario_kwargs.maxcycles: unknown to mpe2.simple_spread_v3:parallel_env; did "
            "you mean 'max_cycles'?; it takes: N, local_ratio, max_cycles",
        ),
        ("mpe2.simple_spread_v3", {"processes": 2, "n_envs": 3}, "expected a divisor of"),
        ("mpe2.simple_spread_v3", {"state": "all"}, "env.state: expected one of world, obs"),
        ("mpe2.simple_spread_v3", {"others": "stay"}, "env.others: expected one of no_op, random"),
        ("mpe2.simple_spread_v3", {"team_reward": "max"}, "expected one of mean, sum"),
    ],
)
def test_mistakes_in_settings(scenario, changes, part):
    assert part in refusal(scenario, **changes)


def test_environments_of_several_sizes_are_refused():
    sizes = iter([3, 3, 4])

    def make():
        return Mines(sizes=(next(sizes),) * 4)

    assert "expected environments of equal sizes, got EnvDims(n_agents=3, o" in refusal(
        make, n_envs=2
    )
