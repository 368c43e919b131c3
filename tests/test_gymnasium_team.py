"""lbforaging and rware as teams: steps of the packages' own environments, ends, seeds, mistakes."""

import numpy as np
import pytest
import torch

from qmix_trl import ConfigError, RandomPolicy, env_dims, make_env
from qmix_trl.errors import check_extra
from qmix_trl.keys import (
    ACTION,
    AGENT_REWARD,
    DONE,
    IS_INIT,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TRUNCATED,
)

pytestmark = pytest.mark.filterwarnings("ignore")
gymnasium = pytest.importorskip("gymnasium", reason="needs the extra envs")
pytest.importorskip("lbforaging", reason="needs the extra envs")
pytest.importorskip("rware", reason="needs the extra envs")

from qmix_trl.envs.python_team import episode_seed  # noqa: E402

FORAGING, WAREHOUSE = "Foraging-5x5-2p-1f-v3", "rware-tiny-2ag-v2"


def made(scenario, **changes):
    """Return environments."""
    settings = {"n_envs": 1, "max_steps": 50, "team_reward": "sum", "seed": 7, **changes}
    family = "rware" if scenario.startswith("rware") else "lbforaging"
    return make_env(family, scenario=scenario, **settings)


def check_steps(scenario, batch, is_over):
    """Compare steps [E, T] with those of the package's own environment; return the ends' kinds.

    Args:
        scenario: of the environments.
        batch: of them, of the seed 7.
        is_over: whether an environment of the package is at an end that is no time limit.
    """
    ends = []
    for e, row in enumerate(batch):
        episode = 0
        for step in row:
            if step[IS_INIT]:
                raw = gymnasium.make(scenario, disable_env_checker=True).unwrapped
                episode += 1
                seen, _ = raw.reset(seed=episode_seed(7, e, episode))
            assert torch.equal(step[OBSERVATION], torch.from_numpy(np.stack(seen)))
            assert torch.equal(step[STATE], step[OBSERVATION].flatten())
            seen, rewards, done, cut, _ = raw.step(step[ACTION].tolist())
            after = step["next"]
            assert torch.equal(after[OBSERVATION], torch.from_numpy(np.stack(seen)))
            own = torch.tensor(rewards, dtype=torch.float32)
            assert torch.equal(after[AGENT_REWARD][:, 0], own)
            assert torch.equal(after[REWARD], own.sum(0, keepdim=True))
            assert not cut  # the packages terminate at their limits
            assert after[DONE].item() == done
            assert after[TERMINATED].item() == is_over(raw)
            if done:
                ends.append("over" if is_over(raw) else "limit")
                assert after[TRUNCATED].item() or is_over(raw)
    return ends


def test_steps_of_foraging_are_those_of_the_package():
    env = made(FORAGING, n_envs=3)
    batch = env.rollout(160, RandomPolicy(6, seed=0), break_when_any_done=False)
    assert env_dims(env).state_shape == (2 * 9,)  # of a food and two players, three numbers each
    ends = check_steps(FORAGING, batch, lambda raw: raw.field.sum() == 0)
    assert min(ends.count("over"), ends.count("limit")) > 0
    assert batch["next", REWARD].sum() == ends.count("over")  # all food is worth 1 to the team


def test_steps_of_the_warehouse_are_those_of_the_package():
    env = made(WAREHOUSE, max_steps=500)
    batch = env.rollout(510, RandomPolicy(5, seed=0), break_when_any_done=False)
    assert check_steps(WAREHOUSE, batch, lambda raw: False) == ["limit"]


@pytest.mark.parametrize(("scenario", "limit"), [(FORAGING, 50), (WAREHOUSE, 500)])
def test_the_packages_own_time_limit_does_not_hold(scenario, limit):
    # All agents do nothing, so that no food is eaten and no shelf delivered.
    env = made(scenario, max_steps=limit + 3)
    shown = env.reset()
    for t in range(1, limit + 4):
        shown = env.step(shown.set(ACTION, torch.zeros(1, 2, dtype=torch.int64)))["next"]
        assert shown[TERMINATED].item() is False
        assert shown[TRUNCATED].item() == (t == limit + 3)


def test_a_seeded_reset_of_foraging_reproduces_after_steps():
    """The package's own does not: where players stood blocks cells."""
    raw = gymnasium.make(FORAGING, disable_env_checker=True).unwrapped
    env = made(FORAGING)
    starts = {"package": [], "ours": []}
    for steps in range(12):
        starts["package"].append(np.stack(raw.reset(seed=3)[0]))
        env.set_seed(3)
        shown = env.reset()
        starts["ours"].append(shown[OBSERVATION][0].numpy())
        for t in range(steps):
            action = [1 + t % 4, 1 + (t + steps) % 4]
            raw.step(action)
            shown = env.step(shown.set(ACTION, torch.tensor([action])))["next"]
    differ = {of: sum((x != seen[0]).any() for x in seen) for of, seen in starts.items()}
    assert differ["ours"] == 0
    assert differ["package"] > 0


def test_settings_of_the_id_are_replaced_by_keywords():
    kwargs = {"players": 3, "min_player_level": 2, "field_size": [6, 7]}
    env = made(FORAGING, scenario_kwargs=kwargs)
    assert env_dims(env).n_agents == 3
    assert env.reset()[OBSERVATION][0, :, 5].tolist() == [2, 2, 2]  # the agents' own levels
    kwargs = {"reward_type": "global", "max_inactivity_steps": 4}
    env = made(WAREHOUSE, scenario_kwargs=kwargs)
    assert env._envs[0]._env.reward_type.name == "GLOBAL"
    batch = env.rollout(9, RandomPolicy(1, seed=0))
    assert batch["next", TERMINATED][0, :, 0].tolist() == [False] * 3 + [True]  # a rule, no limit


@pytest.mark.parametrize(
    ("scenario", "kwargs", "part"),
    [
        ("Foraging-5x5-2p-1f-v2", {}, "unknown environment of lbforaging 'Foraging-5x5-2p-1f-v2'"),
        ("Foraging-5x5-2p-1f-v2", {}, "; did you mean 'Foraging-5x5-2p-1f-v3'"),
        ("CartPole-v1", {}, "unknown environment of lbforaging 'CartPole-v1'; an id is like Forag"),
        (FORAGING, {"player": 3}, "env.scenario_kwargs.player: unknown to ForagingEnv; did you"),
        (FORAGING, {"max_episode_steps": 9}, "max_episode_steps: expected in env.max_steps alone"),
        (FORAGING, {"players": "two"}, "TypeError 'str' object cannot be interpreted as an integ"),
        (WAREHOUSE, {"reward_type": "all"}, "expected one of global, individual, two_stage"),
        (WAREHOUSE, {"msg_bits": 1}, "expected discrete actions, one for each agent, got MultiD"),
    ],
)
def test_mistakes(scenario, kwargs, part):
    with pytest.raises(ConfigError) as caught:
        made(scenario, scenario_kwargs=kwargs)
    message = str(caught.value)
    assert part in message
    assert len(message.splitlines()) == 1
    assert message.startswith("env.")


def test_pictures_are_passed_on(monkeypatch):
    env = made(FORAGING, n_envs=2)
    for i, each in enumerate(env._envs):
        monkeypatch.setattr(each._env, "render", lambda mode, i=i: f"{mode} {i}")
    assert [env.render(), env.render(1)] == ["rgb_array 0", "rgb_array 1"]


def test_a_missing_package_is_told_with_its_remedy(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "rware", None)  # as if it was not installed
    with pytest.raises(
        ConfigError, match=r"expected the package rware.*pip install 'qmix-trl\[envs"
    ):
        made(WAREHOUSE)
    check_extra("torch", "envs", "env.family")
