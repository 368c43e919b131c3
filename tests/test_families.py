"""The contract of environments, the same over every family."""

import pytest
import torch
from family_tools import FAMILIES, LIMIT, made
from resume_tools import check_resumes
from torchrl.envs import check_env_specs

from qmix_trl import (
    ENVS,
    EpsilonGreedyAction,
    FeedforwardAgent,
    QMixer,
    QMixLoss,
    RandomPolicy,
    SequenceRows,
    env_dims,
    episode_returns,
    make_collector,
    make_policy,
    make_replay,
    with_memory,
)
from qmix_trl.functional import first_episode_mask
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    AGENT_REWARD,
    DONE,
    IS_INIT,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TRUNCATED,
    next_key,
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A family with settings of an environment."""
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def env(family):
    """Three environments of the family, for tests that seed or reset them."""
    return made(family)


def rolled_out(env, steps, seed=0):
    """Return steps [E, T] of random actions, from the first episodes of a seed on."""
    env.set_seed(seed)
    policy = RandomPolicy(env_dims(env).n_actions, seed=1)
    return env.rollout(steps, policy, break_when_any_done=False)


def collector_of(env, *, rows, steps, kind="auto", n_batches=2):
    """Return a collector of exploring actions."""
    torch.manual_seed(0)
    dims = env_dims(env)
    agent = FeedforwardAgent(dims.n_agents, dims.observation_dim, dims.n_actions, hidden_dims=(8,))
    policy = make_policy(agent, EpsilonGreedyAction(0.8, 0.8, 0, seed=1))
    return make_collector(
        with_memory(env, agent), policy, rows=rows, steps=steps, n_batches=n_batches, collector=kind
    )


def test_every_family_is_tested():
    assert {family.name for family in FAMILIES.values()} == set(ENVS)


def test_the_specs_hold(family, env):
    check_env_specs(env, seed=None)
    assert env_dims(env).n_agents == env.n_agents >= 2
    assert (ACTION_MASK in env.observation_spec.keys(True, True)) == family.masked
    assert str(env.how)


def test_a_seed_reproduces_and_another_does_not(family, env):
    batches = [rolled_out(env, 2 * LIMIT, seed) for seed in (3, 3, 4)]
    again = rolled_out(made(family, seed=9), 2 * LIMIT, 3)  # a new environment
    for key in (OBSERVATION, STATE, ACTION, next_key(REWARD), next_key(DONE)):
        assert torch.equal(batches[0][key], batches[1][key]), key
        assert torch.equal(batches[0][key], again[key]), key
    is_same = torch.equal(batches[0][OBSERVATION], batches[2][OBSERVATION])
    assert is_same != family.draws


def test_a_time_limit_truncates(env):
    batch = rolled_out(env, 3 * LIMIT)
    step = torch.zeros(3, dtype=torch.int64)
    truncated = 0
    for before in batch.unbind(1):
        step = torch.where(before[IS_INIT][:, 0], 0, step) + 1
        after = before["next"]
        at_limit = step == LIMIT
        assert torch.equal(after[TRUNCATED][:, 0], at_limit)
        assert torch.equal(after[DONE], after[TRUNCATED] | after[TERMINATED])
        truncated += int((at_limit & ~after[TERMINATED][:, 0]).sum())
    assert truncated >= 3


def test_a_reset_of_one_environment_leaves_the_others(env):
    shown = env.reset()
    policy = RandomPolicy(env_dims(env).n_actions, seed=2)
    _, shown = env.step_and_maybe_reset(policy(shown))
    chosen = torch.tensor([[False], [True], [False]])
    fresh = env.reset(shown.clone().set("_reset", chosen))
    others = ~chosen[:, 0]
    for key in (OBSERVATION, STATE):
        assert torch.equal(fresh[key][others], shown[key][others])
        assert not torch.equal(fresh[key][1], shown[key][1])
    assert torch.equal(fresh[IS_INIT], chosen)
    length = torch.tensor([1, 0, 1])  # of the episodes
    for _ in range(LIMIT):
        stepped, fresh = env.step_and_maybe_reset(policy(fresh))
        length += 1
        done, truncated = (stepped["next", key][:, 0] for key in (DONE, TRUNCATED))
        assert torch.equal(truncated, length == LIMIT)
        length = torch.where(done, 0, length)


def test_actions_are_available_and_each_agent_has_one(family, env):
    batch = rolled_out(env, 4 * LIMIT)
    if not family.masked:
        assert ACTION_MASK not in batch.keys(True, True)
        return
    for shown in (batch, batch["next"]):
        assert shown[ACTION_MASK].any(-1).all()
    taken = batch[ACTION_MASK].gather(-1, batch[ACTION].unsqueeze(-1))
    assert taken.all()


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.dies])
def test_dead_agents_see_zeros_earn_nothing_and_have_one_action(name):
    family = FAMILIES[name]
    batch = rolled_out(made(family), 4 * LIMIT)
    dead = (batch[OBSERVATION] == 0).all(-1) & ~batch[IS_INIT]  # [E, T, N]
    assert dead.any()
    assert not dead.all(-1).any()  # then the team would be done
    assert (batch[ACTION_MASK].sum(-1)[dead] == 1).all()
    assert (batch[next_key(AGENT_REWARD)][..., 0][dead] == 0).all()


def test_collectors_give_the_same_rows(family):
    for rows, steps in (("slices", 2 * LIMIT + 1), ("episodes", LIMIT)):
        batches = {}
        for kind in ("stock", "auto"):
            env = made(family, reset_when_done=rows == "slices", seed=5)
            batches[kind] = list(collector_of(env, rows=rows, steps=steps, kind=kind))
        for stock, auto in zip(batches["stock"], batches["auto"], strict=True):
            valid = stock[MASK]
            assert torch.equal(valid, auto[MASK])
            assert valid.all() or rows == "episodes"
            for key in (OBSERVATION, ACTION, STATE, next_key(OBSERVATION), next_key(REWARD)):
                assert torch.equal(stock[key][valid], auto[key][valid]), key
            for flag in (DONE, TERMINATED, TRUNCATED):
                assert torch.equal(stock[next_key(flag)][valid], auto[next_key(flag)][valid])


def test_rows_of_whole_episodes_end_with_them(family):
    env = made(family, reset_when_done=False)
    for batch in collector_of(env, rows="episodes", steps=LIMIT):
        assert torch.equal(batch[MASK], first_episode_mask(batch[next_key(DONE)]))
        assert (batch[IS_INIT].sum(1) == 1).all() or family.name == "custom"  # which goes on
        ends = (batch[next_key(DONE)][..., 0] & batch[MASK]).sum(1)
        assert torch.equal(ends, torch.ones_like(ends))


def test_replay_and_loss_take_the_rows(env):
    dims = env_dims(env)
    collector = collector_of(env, rows="slices", steps=LIMIT + 2)
    replay = make_replay(SequenceRows(max_steps=LIMIT), capacity_rows=8, batch_rows=4, seed=0)
    for batch in collector:
        replay.extend(batch)
    agent = FeedforwardAgent(dims.n_agents, dims.observation_dim, dims.n_actions, hidden_dims=(8,))
    loss = QMixLoss(agent, QMixer(dims.n_agents, dims.state_shape), gamma=0.9, td_lambda=0.5)
    loss(replay.sample())["loss"].backward()
    gradients = [parameter.grad for parameter in loss.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_returns_are_those_of_the_first_episodes(family):
    env = made(family, reset_when_done=False)
    n_actions = env_dims(env).n_actions
    returns = episode_returns(env, RandomPolicy(n_actions, seed=1), max_steps=LIMIT, seed=2)
    batch = rolled_out(env, LIMIT, 2)
    expected = torch.zeros(3)
    for e, row in enumerate(batch):
        for step in row:
            expected[e] += step["next", REWARD].item()
            if step["next", DONE]:
                break
    assert torch.allclose(returns, expected)


@pytest.mark.parametrize("rows", ["slices", "episodes"])
def test_collection_resumes_in_the_middle_of_episodes(family, rows, tmp_path):
    if not family.resumes:
        pytest.skip("its environment has no state to resume from")

    def make(seed):
        env = made(family, seed=seed, reset_when_done=rows == "slices")
        steps = LIMIT - 2 if rows == "slices" else LIMIT
        return {"collector": collector_of(env, rows=rows, steps=steps, n_batches=99)}

    def advance(parts):
        return next(iter(parts["collector"])).clone()

    check_resumes(tmp_path, make, advance, before=3, after=4)
