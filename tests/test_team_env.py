"""Any environment as a team under the contract."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from team_tools import LAYOUTS, LIMIT, A, AnyEnv, Game, N, O, team_of
from tensordict import TensorDict, assert_close
from torchrl.data import Composite
from torchrl.envs import SerialEnv, check_env_specs
from torchrl.modules import RandomPolicy

from qmix_trl import (
    EpsilonGreedyAction,
    FeedforwardAgent,
    NoOpPolicy,
    QMixer,
    QMixLoss,
    SequenceRows,
    env_dims,
    episode_returns,
    make_collector,
    make_policy,
    make_replay,
    with_memory,
)
from qmix_trl.envs.team import TeamEnv
from qmix_trl.errors import ConfigError
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

STEPS, BATCHES = 12, 2


@pytest.fixture(scope="module", params=LAYOUTS)
def name(request):
    """The name of a layout."""
    return request.param


@pytest.fixture(scope="module")
def team(name):
    """The layout's environment as a team."""
    env = team_of(name)
    yield env
    env.close(raise_if_closed=False)


def agent_of(env):
    """Return a small agent."""
    torch.manual_seed(0)
    dims = env_dims(env)
    return FeedforwardAgent(dims.n_agents, dims.observation_dim, dims.n_actions, hidden_dims=(8,))


def collected(env, *, rows="slices", steps=STEPS):
    """Return batches of exploring actions, from the first episode on."""
    env.set_seed(0)
    agent = agent_of(env)
    collector = make_collector(
        with_memory(env, agent),
        make_policy(agent, EpsilonGreedyAction(0.8, 0.8, 0, seed=1)),
        rows=rows,
        steps=steps,
        n_batches=BATCHES,
    )
    return [batch.clone() for batch in collector]


def mask_of(name, game):
    """Return the expected mask of a game; None if the layout has none."""
    layout = LAYOUTS[name]
    if layout.action_mask is None and layout.agent_mask is None:
        return None
    if layout.action_mask is None:
        return [[u == 0 or not game.dead[a] for u in range(A)] for a in range(N)]
    return [[u in available for u in range(A)] for available in game.available()]


@pytest.mark.filterwarnings("ignore")
def test_the_specs_hold(name, team):
    check_env_specs(team, seed=None)
    dims = env_dims(team)
    size = 3 if LAYOUTS[name].state else N * O
    assert (dims.n_agents, dims.observation_dim, dims.n_actions) == (N, O, A)
    assert dims.state_shape == (size,)
    assert team.n_agents == N


def shown(name, game):
    """Return what a team sees of a game: its observations, and its state."""
    seen, layout = game.observation(), LAYOUTS[name]
    state = [game.t, game.episode, game.number] if layout.state else [*seen[0], *seen[1]]
    return seen, state, mask_of(name, game)


def check_shown(name, step, game):
    """Compare what a step shows with a game."""
    seen, state, mask = shown(name, game)
    assert step[OBSERVATION].tolist() == seen
    start = 1 if LAYOUTS[name].prey else 0  # the prey's random actions are added to the first one
    assert step[STATE].tolist()[start:] == state[start:]
    assert (ACTION_MASK in step.keys(True, True)) == (mask is not None)
    if mask is not None:
        assert step[ACTION_MASK].tolist() == mask


def check_rewards(name, after, rewards):
    """Compare the rewards of a step with those of a game's agents."""
    layout = LAYOUTS[name]
    team = 10 * sum(rewards) if layout.team_reward else sum(rewards) / N
    own = rewards if layout.agent_reward else [team] * N
    assert after[REWARD].tolist() == pytest.approx([team])
    assert after[AGENT_REWARD][:, 0].tolist() == pytest.approx(own)


def check_rows(name, rows, games):
    """Compare rows [E, T] with games that take the rows' actions, step by step; count the ends."""
    ends = {"terminated": 0, "truncated": 0}
    for row, game in zip(rows, games, strict=True):
        for step in row.unbind(0):
            if step[IS_INIT]:
                game.reset()
            check_shown(name, step, game)
            action = step[ACTION].tolist()
            if (mask := mask_of(name, game)) is not None:
                assert all(mask[a][u] for a, u in enumerate(action))
            rewards, terminated, truncated = game.step(action)
            after = step["next"]
            check_shown(name, after, game)
            check_rewards(name, after, rewards)
            flags = [after[key].item() for key in (TERMINATED, TRUNCATED, DONE)]
            assert flags == [terminated, truncated, terminated or truncated]
            ends["terminated"] += terminated
            ends["truncated"] += truncated
    return ends


def test_a_collector_finds_the_games_steps(name, team):
    batches = collected(team)
    n_envs = team.batch_size.numel()
    assert all(batch.shape == (n_envs, STEPS) for batch in batches)
    rows = torch.cat(batches, 1)
    games = [Game(i, int(rows[OBSERVATION][i, 0, 0, 1]) - 1) for i in range(n_envs)]
    ends = check_rows(name, rows, games)
    assert min(ends.values()) > 0


def test_rows_of_whole_episodes_end_with_them(name, team):
    for batch in collected(team, rows="episodes", steps=LIMIT):
        for row in batch:
            steps = int(row["collector", "mask"].sum())
            done = row[next_key(DONE)][:, 0]
            assert bool(done[steps - 1])
            assert not done[: steps - 1].any()
            episode = row[OBSERVATION][:steps, 0, 1]
            assert steps == (LIMIT if (episode[0] + row[OBSERVATION][0, 0, 2]) % 2 == 0 else 3)


def test_replay_and_loss_take_what_is_collected(name, team):
    agent, dims = agent_of(team), env_dims(team)
    loss = QMixLoss(agent, QMixer(dims.n_agents, dims.state_shape), gamma=0.9, td_lambda=0.5)
    batches = collected(team)
    replay = make_replay(SequenceRows(max_steps=3), capacity_rows=8, batch_rows=2, seed=0)
    for batch in batches:
        replay.extend(batch)
    direct = loss(torch.cat(batches))
    stored = loss(replay[:])
    torch.testing.assert_close(stored["loss"], direct["loss"])
    stored["loss"].backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_returns_of_whole_episodes(name, team):
    team.set_seed(0)
    n_envs = team.batch_size.numel()
    returns = episode_returns(team, NoOpPolicy(A), max_steps=LIMIT, seed=0)
    expected = []
    for i in range(n_envs):
        game, done, total = Game(i), False, 0.0
        game.reset()
        while not done:
            mask = mask_of(name, game)
            action = [0, 0] if mask is None else [mask[a].index(True) for a in range(N)]
            rewards, terminated, truncated = game.step(action)
            total += 10 * sum(rewards) if LAYOUTS[name].team_reward else sum(rewards) / N
            done = terminated or truncated
        expected.append(total)
    assert returns.tolist() == pytest.approx(expected)


# What a team passes on


def batched(**arguments):
    """Return two environments as a team."""
    return TeamEnv(AnyEnv(), **arguments)


def test_team_rewards():
    env = AnyEnv(LAYOUTS["one-hot actions, another group, both rewards"])
    prey = Composite(prey=env.full_action_spec["prey"], shape=env.batch_size)
    step = TensorDict({"agents": TensorDict({"action": torch.tensor([[0, 2], [1, 1]])}, (2, N))}, 2)
    # In step 1 agents get (u + 1) / 4 + a: 1/4 and 7/4, and 1/2 and 3/2. The team gets ten times
    # the sum from the environment.
    for kind, expected in {"mean": 1.0, "sum": 2.0, "auto": 20.0}.items():
        team = TeamEnv(env, group="hunters", others=RandomPolicy(prey), team_reward=kind)
        team.reset()
        assert team.step(step.clone())[next_key(REWARD)].tolist() == [[expected]] * 2


def test_a_state_of_ones_own_or_of_all_observations():
    own, observed = batched().reset(), batched(state="observations").reset()
    assert own[STATE].shape == (2, 3)
    assert torch.equal(observed[STATE], observed[OBSERVATION].flatten(1))


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_a_time_limit_truncates(limit):
    team = batched(max_steps=limit)
    batch = team.rollout(5, break_when_any_done=False)
    t, episode, number = batch[STATE].unbind(-1)
    ends = ((episode + number) % 2 == 1) & (t == 2)  # terminated in step 3
    assert torch.equal(batch[next_key(TERMINATED)][..., 0], ends)
    truncated = (t == limit - 1) & ~(ends & (limit > 3))
    assert torch.equal(batch[next_key(TRUNCATED)][..., 0], truncated)
    assert int(t.max()) == limit - 1


def test_names_seeds_pictures_and_the_end_are_passed_on():
    env = AnyEnv()
    env.render = lambda *args, **kwargs: (args, kwargs)
    team = TeamEnv(env)
    assert team.group_map == {"agents": ["left", "right"]}
    assert team.render(1, mode="x") == ((1,), {"mode": "x"})
    team.rollout(12, break_when_any_done=False)
    next_seed = team.set_seed(7)
    assert next_seed == AnyEnv().set_seed(7)
    assert team.reset()[OBSERVATION][..., 1].eq(0).all()  # episode 0
    team.close()
    assert team.is_closed
    assert env.is_closed


def test_steps_of_some_environments_are_passed_on():
    make = partial(AnyEnv, replace(LAYOUTS["batched"], n_envs=None))
    env = SerialEnv(2, [partial(make, first=i) for i in range(2)])
    torch.manual_seed(0)
    raw = env.rollout(9, break_when_all_done=True)
    env.set_seed(0)
    torch.manual_seed(0)
    batch = TeamEnv(env).rollout(9, break_when_all_done=True)
    # Environment 0 is truncated in step 5; 1 is terminated in step 3 and stays there.
    assert batch[STATE][..., 0].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 2, 2]]
    assert [int(each.step_of) for each in env._envs] == [5, 3]
    for key in (STATE, DONE, next_key(DONE), next_key(AGENT_REWARD)):
        assert torch.equal(batch[key], raw[key])


def test_a_step_needs_a_reset():
    with pytest.raises(RuntimeError, match="expected a call of reset before the first step"):
        batched().step(batched().rand_action())


def test_a_team_inside_of_a_batch_is_the_team_around_it():
    layout = replace(LAYOUTS["batched"], n_envs=None)
    makers = [partial(AnyEnv, layout, first=i) for i in range(2)]
    around = TeamEnv(SerialEnv(2, makers))
    inside = SerialEnv(2, [lambda make=make: TeamEnv(make()) for make in makers])
    batches = [collected(env)[0] for env in (around, inside)]
    assert_close(*(batch.exclude("collector") for batch in batches))


def test_what_follows_may_write_to_the_entries():
    team, untouched = batched(), batched()
    shown, expected = team.reset(), untouched.reset()
    for entry in shown.values(True, True):
        entry.zero_()
    action = torch.zeros(2, N, dtype=torch.int64)
    steps = [x.set(ACTION, action) for x in (shown, expected)]
    after, expected = team.step(steps[0])["next"], untouched.step(steps[1])["next"]
    assert_close(after, expected)


def test_an_entry_of_another_shape_than_its_spec_is_refused():
    env = AnyEnv()
    team = TeamEnv(env)
    env.last = torch.zeros(2, N + 1, dtype=torch.int64)
    env._entries = lambda: TensorDict({"agents": {"observation": torch.zeros(2, 9)}}, [2])
    with pytest.raises(ConfigError, match=r"of \[2, 2, 5\], as the .* spec says, got \[2, 9\]"):
        team.reset()


def test_others_that_write_no_action_are_refused():
    env = AnyEnv(LAYOUTS["one-hot actions, another group, both rewards"])
    team = TeamEnv(env, group="hunters", others=lambda shown: shown)
    with pytest.raises(ConfigError, match=r"got one without \[\('prey', 'action'\)\]"):
        team.rollout(1)
