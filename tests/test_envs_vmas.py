"""VMAS environments, compared with unmodified VMAS from the same seed and actions."""

import random

import numpy as np
import pytest
import torch
import vmas
from torchrl.envs import check_env_specs, step_mdp
from vmas.simulator.environment import Environment
from vmas_tools import SEVERAL_GROUPS, OwnScenario, make_env, rollout

from qmix_trl import env_dims
from qmix_trl.envs.vmas_scenarios import SCENARIOS
from qmix_trl.errors import ConfigError
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
    next_key,
)
from qmix_trl.policy import RandomPolicy


def random_actions(env, steps, *, seed=0):
    """Return actions int64 [T, E, N]."""
    dims, generator = env_dims(env), torch.Generator().manual_seed(seed)
    shape = (steps, env.batch_size[0], dims.n_agents)
    return torch.randint(dims.n_actions, shape, generator=generator)


def unmodified(scenario, *, seed, n_envs=2, **scenario_kwargs):
    """Return an environment of VMAS itself."""
    return vmas.make_env(
        scenario, num_envs=n_envs, continuous_actions=False, seed=seed, **scenario_kwargs
    )


# ---------------------------------------------------------------------- specs and sizes


# A grid of 10 x 10 cells instead of 40 x 40; no spec depends on it, and VMAS loops over it.
COARSE = {"sampling": {"grid_spacing": 0.2}}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s not in SEVERAL_GROUPS])
def test_every_scenario_of_one_group_matches_its_specs(scenario):
    env = make_env(scenario, max_steps=3, scenario_kwargs=COARSE.get(scenario))
    check_env_specs(env)
    env_dims(env)


def test_dims_of_balance():
    dims = env_dims(make_env("balance"))
    # observation: 2 + 2 of the agent, 2 + 2 + 2 relative positions, 2 + 2 velocities, 1 + 1 of
    # the line; actions: 3 x 3 forces; state: 3 agents, package, goal, line and floor, 6 each.
    assert (dims.n_agents, dims.observation_dim, dims.n_actions) == (3, 16, 9)
    assert dims.state_shape == (42,)
    dims = env_dims(make_env("balance", state="observations", scenario_kwargs={"n_agents": 2}))
    assert (dims.n_agents, dims.observation_dim, dims.state_shape) == (2, 16, (32,))


# ------------------------------------------------------- parity with unmodified VMAS


OF_TEAM = {
    "mean": lambda rewards: rewards.mean(1),
    "sum": lambda rewards: rewards.sum(1),
    "shared": lambda rewards: rewards[:, 0],
}


OWN_REWARDS = {"shared_rew": False, "n_agents": 3}  # of navigation: agents share none


@pytest.mark.parametrize(
    ("scenario", "scenario_kwargs", "team_reward"),
    [
        *(("balance", {}, team_reward) for team_reward in OF_TEAM),
        *(("discovery", {}, team_reward) for team_reward in OF_TEAM),
        ("navigation", OWN_REWARDS, "mean"),
        ("navigation", OWN_REWARDS, "sum"),
    ],
)
def test_observations_and_rewards_equal_vmas(scenario, scenario_kwargs, team_reward):
    env = make_env(scenario, seed=3, team_reward=team_reward, scenario_kwargs=scenario_kwargs)
    reference = unmodified(scenario, seed=3, **scenario_kwargs)
    data, theirs = env.reset(), reference.reset()
    assert torch.equal(data[OBSERVATION], torch.stack(theirs, 1))
    for action in random_actions(env, 10):  # [E, N]
        after = env.step(data.set(ACTION, action))["next"]
        theirs, rewards, done, _ = reference.step([a[:, None] for a in action.unbind(1)])
        rewards = torch.stack(rewards, 1).unsqueeze(-1)  # [E, N, 1]
        assert torch.equal(after[OBSERVATION], torch.stack(theirs, 1))
        assert torch.equal(after[AGENT_REWARD], rewards)
        assert torch.equal(after[REWARD], OF_TEAM[team_reward](rewards))
        assert torch.equal(after[TERMINATED], done.unsqueeze(-1))
        data = step_mdp(data)


def test_agents_have_different_rewards_unless_the_scenario_shares_them():
    env = make_env("navigation", scenario_kwargs={"shared_rew": False})
    rewards = rollout(env, 5)[next_key(AGENT_REWARD)]  # [E, T, N, 1]
    assert (rewards[:, :, 0] != rewards[:, :, 1]).any()


def test_a_reset_of_one_environment_equals_vmas_and_does_not_change_the_others():
    env, reference = make_env(seed=3), unmodified("balance", seed=3)
    data = env.reset()
    reference.reset()
    for action in random_actions(env, 5):
        env.step(data.set(ACTION, action))
        reference.step([a[:, None] for a in action.unbind(1)])
        before, data = data, step_mdp(data)
    data = env.reset(data.set("_reset", torch.tensor([[False], [True]])))
    assert torch.equal(data[OBSERVATION][1], torch.stack(reference.reset(), 1)[1])
    assert torch.equal(data[OBSERVATION][0], before["next"][OBSERVATION][0])
    assert not torch.equal(data[OBSERVATION][1], before["next"][OBSERVATION][1])


def test_an_environment_that_idles_is_not_observed_again():
    # asym_joint adds new noise to every observation.
    env = make_env("asym_joint", n_envs=3, reset_when_done=False)
    step = env.reset()
    step = env.step(step.set(ACTION, torch.zeros(3, env_dims(env).n_agents, dtype=torch.int64)))[
        "next"
    ]
    after = env.reset(step.clone().set("_reset", torch.tensor([[False], [True], [False]])))
    assert torch.equal(after[OBSERVATION], step[OBSERVATION])
    assert not torch.equal(env.reset()[OBSERVATION], step[OBSERVATION])


def test_rewards_of_another_shape_are_flattened_in_wheel():
    env = make_env("wheel")
    assert unmodified("wheel", seed=0).step([torch.zeros(2, 1)] * 4)[1][0].shape == (2, 1)
    data = env.reset()
    env.simulator.scenario.line.state.ang_vel = torch.tensor([[0.2], [-0.01]])
    for action in random_actions(env, 5):
        after = env.step(data.set(ACTION, action))["next"]
        # wheel's own formula, its desired velocity at the default of 0.05
        spin = env.simulator.scenario.line.state.ang_vel  # [E, 1]
        expected = -(spin.abs() - 0.05).abs()
        assert torch.equal(after[AGENT_REWARD], expected.unsqueeze(1).expand(2, 4, 1))
        torch.testing.assert_close(after[REWARD], expected)
        data = step_mdp(data)
    assert (spin != 0).all()


def test_the_world_state_holds_every_entity():
    env = make_env("balance")
    data = env.reset()
    for action in random_actions(env, 10):
        after = env.step(data.set(ACTION, action))["next"]
        data = step_mdp(data)
    entities = env.simulator.world.entities
    assert len(entities) == 7
    state = after[STATE].reshape(2, 7, 6)  # [E, entities, 6]
    for i, entity in enumerate(entities):
        body = entity.state
        assert torch.equal(state[:, i, :2], body.pos)
        assert torch.equal(state[:, i, 2:4], body.vel)
        assert torch.equal(state[:, i, 4:5], body.rot)
        assert torch.equal(state[:, i, 5:], body.ang_vel)
    line = entities.index(env.simulator.scenario.line)
    assert (state[:, line] != 0).all()


def test_the_state_of_observations_concatenates_those_of_all_agents():
    batch = rollout(make_env("balance", state="observations"), 5)
    for at in (lambda key: key, next_key):
        observation = batch[at(OBSERVATION)]  # [E, T, N, O]
        expected = torch.cat([observation[:, :, i] for i in range(3)], -1)
        assert torch.equal(batch[at(STATE)], expected)


# ------------------------------------------------------------------ ends and resets


def test_the_time_limit_truncates_and_does_not_terminate():
    batch = rollout(make_env("simple_spread", max_steps=4), 10)
    limit = torch.tensor([0, 0, 0, 1, 0, 0, 0, 1, 0, 0], dtype=torch.bool).expand(2, 10)
    assert torch.equal(batch[next_key(TRUNCATED)][..., 0], limit)
    assert torch.equal(batch[next_key(DONE)][..., 0], limit)
    assert not batch[next_key(TERMINATED)].any()


def test_balance_terminates_at_a_fall_and_the_time_limit_counts_from_there():
    env = make_env("balance", n_envs=8, max_steps=40)
    scenario, world = env.simulator.scenario, env.simulator.world
    data, age, seen = env.reset(), torch.zeros(8, 1), set()
    for action in random_actions(env, 70):
        data.set(ACTION, action)
        after = env.step(data)["next"]
        floor, goal = scenario.floor, scenario.package.goal
        fallen = world.is_overlapping(scenario.package, floor)
        fallen |= world.is_overlapping(scenario.line, floor)
        over = (fallen | world.is_overlapping(scenario.package, goal)).unsqueeze(-1)  # [E, 1]
        age += 1
        assert torch.equal(after[TERMINATED], over)
        assert torch.equal(after[TRUNCATED], age == 40)
        assert torch.equal(after[DONE], over | (age == 40))
        assert (after[REWARD][fallen] < -5).all()  # a fall costs 10, more than anything else
        seen |= set(zip(over[:, 0].tolist(), (age == 40)[:, 0].tolist(), strict=True))
        age[after[DONE]] = 0
        data = env.maybe_reset(step_mdp(data))
    assert seen >= {(False, False), (True, False), (False, True)}


@pytest.mark.parametrize("state", ["world", "observations"])
def test_the_true_last_observation_differs_from_the_first_one_after_the_reset(state):
    batch = rollout(make_env("balance", state=state, max_steps=4), 9)
    for key in (OBSERVATION, STATE):
        now, after = batch[key], batch[next_key(key)]
        for t in range(8):
            for env in range(2):
                same = torch.equal(after[env, t], now[env, t + 1])
                assert same != (t in (3, 7))
    # Everything starts at rest and moves within four steps.
    speed = batch[OBSERVATION][..., 2:4].abs().sum((2, 3))  # [E, T]
    assert (speed[:, [0, 4, 8]] == 0).all()
    assert (batch[next_key(OBSERVATION)][..., 2:4].abs().sum((2, 3))[:, [3, 7]] > 0).all()


def test_is_init_is_set_right_after_resets_only():
    batch = rollout(make_env("balance", n_envs=8, max_steps=40), 80)
    done = batch[next_key(DONE)]  # [E, T, 1]
    assert batch[next_key(TERMINATED)].any()
    assert batch[IS_INIT][:, 0].all()
    assert torch.equal(batch[IS_INIT][:, 1:], done[:, :-1])
    assert not batch[next_key(IS_INIT)].any()


def test_every_episode_has_the_whole_time_limit():
    # Only environment 1 is reset, after 2 of 5 steps: its time limit counts from there.
    env = make_env("simple_spread", max_steps=5)
    data = env.reset()
    truncated = []
    for step, action in enumerate(random_actions(env, 8)):
        env.step(data.set(ACTION, action))
        truncated.append(data[next_key(TRUNCATED)][:, 0].tolist())
        data = step_mdp(data)
        if step == 1:
            data = env.reset(data.set("_reset", torch.tensor([[False], [True]])))
        else:
            data = env.maybe_reset(data)
    no = [False, False]
    assert truncated == [no, no, no, no, [True, False], no, [False, True], no]


def test_without_reset_when_done_an_environment_runs_on():
    env = make_env("balance", max_steps=3, reset_when_done=False)
    batch = rollout(env, 6)
    first = torch.tensor([1, 0, 0, 0, 0, 0], dtype=torch.bool).expand(2, 6)
    assert torch.equal(batch[IS_INIT][..., 0], first)
    late = torch.tensor([0, 0, 1, 1, 1, 1], dtype=torch.bool).expand(2, 6)
    assert torch.equal(batch[next_key(TRUNCATED)][..., 0], late)
    for key in (OBSERVATION, STATE):
        assert torch.equal(batch[key][:, 1:], batch[next_key(key)][:, :-1])
    again = rollout(env, 3)
    assert again[IS_INIT][:, 0].all()
    assert torch.equal(again[next_key(TRUNCATED)][..., 0], late[:, :3])
    assert not torch.equal(again[OBSERVATION][:, 0], batch[next_key(OBSERVATION)][:, -1])


# ------------------------------------------------------------------ random streams


# balance draws from torch at resets, discovery also in steps, het_mass from NumPy at resets.
DRAWING = ("balance", "discovery", "het_mass")
COMPARED = (OBSERVATION, STATE, next_key(OBSERVATION), next_key(REWARD), next_key(DONE))


def out_of_step(env, n_steps, *, seed):
    """Yield random steps [E]; the second environment is reset alone after the first step."""
    policy, data = RandomPolicy(env_dims(env).n_actions, seed=seed), env.reset()
    for step in range(n_steps):
        taken = env.step(policy(data))
        yield taken.select(*COMPARED).clone()
        data = step_mdp(taken)
        if step == 0:
            data = env.reset(data.set("_reset", torch.tensor([[False], [True]])))
        else:
            data = env.maybe_reset(data)


def together(steps):
    """Return a sequence of steps [E] as one batch [E, T]."""
    return torch.stack(list(steps), 1)


def assert_same_steps(one, other):
    """Assert that two batches are equal."""
    for key in COMPARED:
        assert torch.equal(one[key], other[key]), key


def masses(env):
    """Return the masses of an environment's agents, which het_mass draws."""
    return [float(agent.mass) for agent in env.simulator.agents]


@pytest.mark.parametrize("scenario", DRAWING)
def test_two_environments_step_as_each_does_alone(scenario):
    alone = []
    for seed in (1, 2):
        env = make_env(scenario, seed=seed, max_steps=3)
        alone.append((together(out_of_step(env, 8, seed=seed)), masses(env)))
    envs = [make_env(scenario, seed=seed, max_steps=3) for seed in (1, 2)]
    pairs = zip(*(out_of_step(env, 8, seed=i + 1) for i, env in enumerate(envs)), strict=True)
    for env, steps, (expected, drawn) in zip(envs, zip(*pairs, strict=True), alone, strict=True):
        assert_same_steps(together(steps), expected)
        assert masses(env) == drawn


def random_states():
    """Return the states of all generators of the process, including VMAS's, as plain values."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    states = [torch.get_rng_state(), numpy_state, random.getstate()]
    return [
        state.tolist()
        if isinstance(state, torch.Tensor)
        else [part.tolist() if isinstance(part, np.ndarray) else part for part in state]
        for state in (*states, *Environment.vmas_random_state)
    ]


@pytest.mark.parametrize("scenario", DRAWING)
def test_no_generator_of_the_process_is_touched(scenario):
    before = random_states()
    env = make_env(scenario, max_steps=3)
    together(out_of_step(env, 8, seed=0))
    env.set_seed(4)
    env.reset()
    assert random_states() == before


@pytest.mark.parametrize("scenario", DRAWING)
def test_the_seed_reproduces(scenario):
    one, same, other = (make_env(scenario, seed=seed, max_steps=3) for seed in (5, 5, 6))
    steps = [together(out_of_step(env, 8, seed=0)) for env in (one, same)]
    assert_same_steps(*steps)
    assert masses(one) == masses(same)
    if scenario != "het_mass":
        assert not torch.equal(one.reset()[OBSERVATION], other.reset()[OBSERVATION])


@pytest.mark.parametrize("scenario", DRAWING)
def test_set_seed_reproduces(scenario):
    env, drawn = make_env(scenario, max_steps=3), []
    for seed in (5, 5, 6):
        env.set_seed(seed)
        drawn.append((together(out_of_step(env, 8, seed=0)), masses(env)))
    assert_same_steps(drawn[0][0], drawn[1][0])
    assert drawn[0][1] == drawn[1][1]
    if scenario == "het_mass":
        assert drawn[0][1] != drawn[2][1]
    else:
        assert not torch.equal(drawn[0][0][OBSERVATION], drawn[2][0][OBSERVATION])


# ------------------------------------------------------------------ groups, own scenarios


def test_the_chosen_group_is_the_team_and_other_agents_do_nothing():
    env = make_env("simple_tag", seed=2, group="adversary")
    reference = unmodified("simple_tag", seed=2)
    names = [agent.name for agent in reference.agents]
    team = [i for i, name in enumerate(names) if name.startswith("adversary")]
    assert len(team) == env_dims(env).n_agents == 3
    data = env.reset()
    reference.reset()
    for action in random_actions(env, 10):
        after = env.step(data.set(ACTION, action))["next"]
        theirs = [torch.zeros(2, 1, dtype=torch.int64) for _ in names]
        for column, i in enumerate(team):
            theirs[i] = action[:, column, None]
        observations, rewards, _, _ = reference.step(theirs)
        assert torch.equal(after[OBSERVATION], torch.stack([observations[i] for i in team], 1))
        reward = torch.stack([rewards[i] for i in team], 1).unsqueeze(-1)  # [E, N, 1]
        assert torch.equal(after[AGENT_REWARD], reward)
        assert after[STATE].shape == (2, 6 * len(reference.world.entities))
        data = step_mdp(data)


def test_the_other_group_can_be_the_team():
    assert env_dims(make_env("simple_tag", group="agent")).n_agents == 1


@pytest.mark.parametrize("scenario", SEVERAL_GROUPS)
def test_a_scenario_with_several_groups_needs_a_group(scenario):
    with pytest.raises(ConfigError, match=r"several groups: .*choose the team, e\.g\. env\.group="):
        make_env(scenario)


def test_the_message_about_groups_names_them_with_their_sizes():
    with pytest.raises(ConfigError, match=r"adversary \(3\), agent \(1\).*env\.group=adversary"):
        make_env("simple_tag")
    with pytest.raises(ConfigError, match=r"no group 'adversry'; did you mean 'adversary'\?"):
        make_env("simple_tag", group="adversry")


def test_an_own_scenario():
    env = make_env(OwnScenario(), team_reward="sum", scenario_kwargs={"n_walkers": 3})
    check_env_specs(env)
    dims = env_dims(env)
    assert (dims.n_agents, dims.observation_dim, dims.n_actions) == (3, 4, 9)
    assert dims.state_shape == (4 * 6,)
    batch = rollout(env, 60)
    position = batch[next_key(OBSERVATION)][..., 0]  # [E, T, N]
    torch.testing.assert_close(batch[next_key(REWARD)][..., 0], position.sum(-1))
    assert torch.equal(batch[next_key(TERMINATED)][..., 0], position[..., 0] > 0.02)
    assert batch[next_key(TERMINATED)].any()
    # VMAS lists landmarks, here one, before agents.
    state = batch[STATE].reshape(2, 60, 4, 6)[:, :, 1:]  # [E, T, agents, 6]
    assert torch.equal(batch[OBSERVATION], state[..., :4])


def test_keywords_of_an_own_scenario_are_checked():
    with pytest.raises(ConfigError, match=r"scenario 'OwnScenario'; did you mean 'n_walkers'\?"):
        make_env(OwnScenario(), scenario_kwargs={"n_walker": 3})


def test_agents_with_rewards_of_their_own_have_no_shared_one():
    message = r"team_reward: shared .*'OwnScenario' gives \w+ -?\d\S* and \w+ -?\d\S* at a step"
    with pytest.raises(ConfigError, match=message):
        rollout(make_env(OwnScenario(), team_reward="shared"), 60)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"scenario": "balanse"},
            r"env\.scenario: .*'balanse'; did you mean 'balance'.*qmix-trl names scenarios",
        ),
        (
            {"scenario_kwargs": {"n_agent": 2}},
            r"kwargs\.n_agent: .*'balance'; did you mean 'n_agents'.*takes: .*, package_mass",
        ),
        (
            {"scenario": "give_way", "scenario_kwargs": {"n_agents": 2}},
            r"scenario_kwargs\.n_agents: unknown .*it takes: ",
        ),
        ({"state": "global"}, r"env\.state: expected one of world, observations, got 'global'"),
        ({"team_reward": "max"}, r"env\.team_reward: expected one of mean, sum, shared, got 'max'"),
        ({"n_envs": 0}, r"env\.n_envs: expected at least 1, got 0"),
        ({"max_steps": 0}, r"env\.max_steps: expected at least 1, got 0"),
        ({"group": "adversary"}, r"env\.group: .*'balance' has no group 'adversary'.*agents \(3\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_run_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_env(**settings)


def test_keywords_reach_the_scenario():
    # 5 agents, package, goal, line and floor
    dims = env_dims(make_env("balance", scenario_kwargs={"n_agents": 5}))
    assert (dims.n_agents, dims.state_shape) == (5, (54,))


def test_vmas_itself_renders_and_the_compiled_engines_name_it(monkeypatch):
    env = make_env("balance", engine="eager")
    monkeypatch.setattr(env.simulator, "render", lambda *args, **kwargs: (args, kwargs))
    assert env.render(mode="rgb_array", env_index=1) == ((), {"mode": "rgb_array", "env_index": 1})
    with pytest.raises(RuntimeError, match="engine='eager'"):
        make_env("balance", engine="kernel").render()
