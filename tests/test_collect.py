"""Collected batches, by TorchRL's collector and without its step loop."""

import math
from functools import partial

import pytest
import torch
from collect_tools import (
    A,
    CounterEnv,
    balance_env,
    collect,
    make_agent,
    make_loss,
    slices,
    slow_steps,
)
from torchrl.collectors import Collector
from torchrl.data import Binary, Composite, OneHot
from torchrl.envs import (
    Compose,
    EnvBase,
    ExcludeTransform,
    FrameSkipTransform,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    TransformedEnv,
    check_env_specs,
)

from qmix_trl import env_dims, make_env
from qmix_trl.collect import MEMORY, ROWS, finished_return, make_collector
from qmix_trl.errors import ConfigError
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    AGENT_REWARD,
    DONE,
    EPISODE_REWARD,
    HIDDEN,
    IS_INIT,
    LAST_ACTION,
    MASK,
    REWARD,
    STATE,
    TERMINATED,
    TRUNCATED,
    next_key,
)
from qmix_trl.policy import GreedyAction, make_policy, with_memory

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore:Nested")

GAME = {"n_envs": 2, "max_steps": 2, "state": "world", "seed": 0}


def test_the_counting_environment_keeps_its_specs():
    check_env_specs(CounterEnv())
    assert env_dims(CounterEnv()).n_actions == A


def test_slices_follow_the_environments_across_batches():
    batches = slices(7, 3)
    whole = torch.cat(batches, 1)  # [E, 21]
    for env in range(2):
        expected = slow_steps(env, 21)
        counts = (whole[STATE][env] * 5).round().int()  # [21, 3]
        assert counts[:, 0].tolist() == [step.count for step in expected]
        assert counts[:, 1].tolist() == [step.episode for step in expected]
        assert whole[IS_INIT][env, :, 0].tolist() == [step.count == 0 for step in expected]
        ends = whole["next"][env]
        assert ends[TERMINATED][:, 0].tolist() == [step.terminated for step in expected]
        assert ends[TRUNCATED][:, 0].tolist() == [step.truncated for step in expected]
        # the true last observation: one more count, still of the episode that ends
        after = (ends[STATE] * 5).round().int()
        assert after[:, 0].tolist() == [step.count + 1 for step in expected]
        assert after[:, 1].tolist() == [step.episode for step in expected]
    assert all(batch[MASK].dtype == torch.bool and batch[MASK].all() for batch in batches)
    assert whole[ACTION_MASK].gather(-1, whole[ACTION].unsqueeze(-1)).all()


def test_memory_crosses_steps_and_batches_but_no_reset():
    whole = torch.cat(slices(7, 3), 1)
    going_on = ~whole[IS_INIT][:, 1:].unsqueeze(-1)  # [E, 20, 1, 1]
    for key in (HIDDEN, LAST_ACTION):
        carried = whole[next_key(key)][:, :-1]
        assert (carried != 0).any(-1).all()
        assert torch.equal(whole[key][:, 1:], carried * going_on)
        assert (whole[key][:, 0] == 0).all()
    one_hot = torch.nn.functional.one_hot(whole[ACTION], A).float()
    assert torch.equal(whole[next_key(LAST_ACTION)], one_hot)


def test_slices_are_refused_of_an_environment_that_is_not_reset_when_done():
    env = CounterEnv(reset_when_done=False)
    with pytest.raises(ValueError, match="got reset_when_done=False; make it with True"):
        collect(env, make_agent(env), rows="slices", steps=6, n_batches=1)


@pytest.mark.parametrize("reset_when_done", [True, False])
def test_episodes_begin_together_and_are_masked_after_their_end(reset_when_done):
    env = CounterEnv(reset_when_done=reset_when_done)
    batches = collect(env, make_agent(env), rows="episodes", steps=6, n_batches=3)
    for batch in batches:
        assert batch[IS_INIT][:, 0].all()
        assert (batch[STATE][:, 0, 0] == 0).all()
        assert (batch[HIDDEN][:, 0] == 0).all()
        assert (batch[LAST_ACTION][:, 0] == 0).all()
        assert batch[IS_INIT][:, 1:].any() == reset_when_done
    three, five = [True] * 3 + [False] * 3, [True] * 5 + [False]
    if not reset_when_done:
        # environment 0 has episodes of 5, 3, 5 steps, environment 1 of 3, 5, 3
        expected = [[five, three], [three, five], [five, three]]
        assert [batch[MASK].tolist() for batch in batches] == expected
    else:
        # Resets between are counted as episodes: the slow loop of the episode that is begun with.
        begun = [(batch[STATE][:, 0, 1] * 5).round().int() for batch in batches]
        for batch, episodes in zip(batches, begun, strict=True):
            odd = [(env + int(episode)) % 2 == 1 for env, episode in enumerate(episodes)]
            assert batch[MASK].tolist() == [three if o else five for o in odd]


@pytest.mark.parametrize("rows", ["episodes", "slices"])
def test_balance_is_collected_in_both_modes(rows):
    env = balance_env(reset_when_done=rows == "slices")
    batches = collect(env, make_agent(env), rows=rows, steps=7, n_batches=3)
    for i, batch in enumerate(batches):
        assert batch.shape == (2, 7)
        step = torch.arange(7 * i, 7 * i + 7)
        if rows == "slices":  # the time limit alone ends episodes so short: every 5 steps
            begins, valid = step % 5 == 0, step >= 0
        else:
            begins, valid = step == 7 * i, step < 7 * i + 5
        assert torch.equal(batch[IS_INIT][..., 0], begins.expand(2, 7))
        assert torch.equal(batch[MASK], valid.expand(2, 7))


def test_unknown_rows_are_refused():
    env = CounterEnv()
    policy = make_policy(make_agent(env), GreedyAction())
    with pytest.raises(ValueError, match="rows of episodes, slices, got 'steps'"):
        make_collector(env, policy, rows="steps", steps=2, n_batches=1)


def with_returns(rows, steps, n_batches):
    """Return batches of the counting environment with the episodes' returns."""
    env = CounterEnv(reset_when_done=rows == "slices")
    summed = TransformedEnv(env, RewardSum(in_keys=[REWARD], out_keys=[EPISODE_REWARD]))
    return collect(summed, make_agent(env), rows=rows, steps=steps, n_batches=n_batches)


def test_the_finished_return_is_the_mean_of_episodes_that_end_in_the_batch():
    batches = with_returns("slices", 7, 3)
    running, returns = [0.0, 0.0], [[], [], []]
    for i, batch in enumerate(batches):
        for t in range(7):
            for env in range(2):
                running[env] += batch[next_key(REWARD)][env, t].item()
                if batch[next_key(DONE)][env, t]:
                    returns[i].append(running[env])
                    running[env] = 0.0
    assert [len(of_batch) for of_batch in returns] == [2, 4, 4]
    for batch, of_batch in zip(batches, returns, strict=True):
        assert finished_return(batch) == pytest.approx(sum(of_batch) / len(of_batch))


def test_the_finished_return_ignores_padding():
    (batch,) = with_returns("episodes", 7, 1)
    rewards = batch[next_key(REWARD)][..., 0]  # [E, T]
    expected = (rewards[0, :5].sum() + rewards[1, :3].sum()) / 2
    assert finished_return(batch) == pytest.approx(expected.item())


def test_the_finished_return_is_none_if_no_episode_ended():
    (batch,) = with_returns("slices", 2, 1)
    assert finished_return(batch) is None


# ------------------------------------------------------------------- environments of any batch


class Unbatched(EnvBase):
    """One counting environment, without a batch dimension."""

    def __init__(self):
        super().__init__(batch_size=torch.Size([]))
        self.inner = CounterEnv(1)
        self.observation_spec = self.inner.observation_spec[0]
        self.action_spec = self.inner.full_action_spec[0]
        self.reward_spec = self.inner.full_reward_spec[0]
        self.done_spec = self.inner.full_done_spec[0]

    def _set_seed(self, seed):
        """Do nothing: nothing here is random."""

    def _reset(self, tensordict=None, **kwargs):
        return self.inner._reset()[0]

    def _step(self, tensordict):
        return self.inner._step(tensordict.unsqueeze(0))[0]


BATCHED = {
    "SerialEnv": (partial(SerialEnv, 3, CounterEnv), (3, 2)),
    "SerialEnv of VMAS": (partial(SerialEnv, 2, balance_env), (2, 2)),
    "unbatched": (Unbatched, ()),
}
KINDS = [(name, m, r) for name in BATCHED for m in MEMORY for r in ROWS]
BATCHED["ParallelEnv"] = (partial(ParallelEnv, 2, CounterEnv), (2, 2))  # its processes are slow


@pytest.mark.parametrize(("name", "memory", "rows"), [*KINDS, ("ParallelEnv", *KINDS[0][1:])])
def test_batches_of_any_environment_are_rows_of_steps(name, memory, rows):
    make, shape = BATCHED[name]
    env = make()
    assert env.batch_size == shape
    dims = env_dims(env)
    assert dims.n_agents == (3 if "VMAS" in name else 2)
    agent = make_agent(env)
    collector = make_collector(
        with_memory(env, agent),
        make_policy(agent, GreedyAction()),
        rows=rows,
        steps=7,
        n_batches=2,
        memory=memory,
    )
    assert "does not fill buffers of steps" in str(collector.how)
    loss = make_loss(env, agent)
    batches = [batch.clone() for batch in collector]
    collector.shutdown()
    assert len(batches) == 2
    for batch in batches:
        assert batch.shape == (math.prod(shape), 7)
        assert batch[MASK].shape == batch.shape
        assert loss(batch)["loss"].isfinite()
    if rows == "slices" and "VMAS" not in name:
        counts = torch.cat([batch[STATE] for batch in batches], 1)[..., 0] * 5
        for env_steps, env_index in zip(counts.round().int(), [0, 1] * 3, strict=False):
            expected = [step.count for step in slow_steps(env_index, 14)]
            assert env_steps.tolist() == expected


def test_sizes_of_environments_without_truncation_are_found():
    env = CounterEnv()
    flags = env.full_done_spec.clone()
    del flags["truncated"]
    env.done_spec = flags
    assert "truncated" not in list(env.full_done_spec.keys())
    assert env_dims(env).n_actions == A


def test_an_action_that_is_not_categorical_is_refused():
    env = CounterEnv()
    env.action_spec = Composite(
        agents=Composite(action=OneHot(A, shape=(2, 2, A)), shape=(2, 2)), shape=(2,)
    )
    with pytest.raises(ConfigError, match=r"CounterEnv: expected a categorical .* got OneHot"):
        env_dims(env)


def test_agents_with_ends_of_their_own_have_a_memory_of_the_team():
    class OwnEnds(CounterEnv):
        """Its agents have flags of their own, as in PettingZoo's environments."""

        def __init__(self):
            super().__init__()
            flags = self.full_done_spec.clone()
            flag = Binary(1, (2, 2, 1), dtype=torch.bool)
            flags["agents"] = Composite(done=flag, terminated=flag.clone(), shape=(2, 2))
            self.done_spec = flags

        def _seen(self, is_init, terminated, truncated):
            data = super()._seen(is_init, terminated, truncated)
            for key, flag in (("done", terminated | truncated), ("terminated", terminated)):
                data.set(("agents", key), flag.unsqueeze(1).expand(2, 2, 1))
            return data

    agent = make_agent(CounterEnv())
    policy = make_policy(agent, GreedyAction())
    own, team = (with_memory(env, agent) for env in (OwnEnds(), CounterEnv()))
    expected, found = (env.rollout(14, policy, break_when_any_done=False) for env in (team, own))
    assert found[IS_INIT].sum() > 2  # ends inside
    for key in (HIDDEN, LAST_ACTION, ACTION):
        assert torch.equal(found[key], expected[key])


def test_torchrls_collector_adds_the_memory_that_the_policy_asks_for():
    agent = make_agent(CounterEnv())
    policy = make_policy(agent, GreedyAction())
    added = Collector(
        CounterEnv(),
        policy,
        frames_per_batch=28,
        total_frames=28,
        auto_register_policy_transforms=True,
    )
    (expected,) = collect(CounterEnv(), agent, rows="slices", steps=14, n_batches=1, epsilon=0)
    for batch in added:
        for key in (HIDDEN, LAST_ACTION, ACTION):
            assert torch.equal(batch[key], expected[key])


def test_environments_name_their_agents_like_torchrls():
    for env in (balance_env(), make_env("games", scenario="two_step", **GAME)):
        n_agents = env_dims(env).n_agents
        assert env.n_agents == n_agents
        assert env.group_map == {"agents": [f"agent_{i}" for i in range(n_agents)]}
        assert with_memory(env, make_agent(env)).group_map == env.group_map


def test_transforms_of_one_reward_serve_once_the_agents_rewards_are_left_out():
    skip = Compose(ExcludeTransform(AGENT_REWARD), FrameSkipTransform(2))
    plain = CounterEnv()
    skipping = TransformedEnv(CounterEnv(), skip)
    step = plain.reset().set(ACTION, torch.ones(2, 2, dtype=torch.int64))
    skipped = skipping.step(skipping.reset().set(ACTION, step[ACTION]))
    one = plain.step(step)
    two = plain.step(one["next"].set(ACTION, step[ACTION]))
    expected = one[next_key(REWARD)] + two[next_key(REWARD)]
    assert torch.equal(skipped[next_key(REWARD)], expected)
    with pytest.raises(KeyError, match="more than one key"):
        TransformedEnv(CounterEnv(), FrameSkipTransform(2)).step(step)
