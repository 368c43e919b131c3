"""From the environment to the loss: collected batches, rows of replay, and what is trained on."""

from dataclasses import dataclass

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, RewardSum, TransformedEnv, check_env_specs

from qmix_trl import FeedforwardAgent, QMixer, QMixLoss, RecurrentAgent, VDNMixer, env_dims
from qmix_trl import make_env as make_env_of
from qmix_trl.collect import finished_returns, make_collector
from qmix_trl.functional import value_of
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
    AGENT_REWARD,
    CUT_STEPS,
    DONE,
    EPISODE_REWARD,
    HIDDEN,
    IS_INIT,
    LAST_ACTION,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TRUNCATED,
    next_key,
)
from qmix_trl.policy import EpsilonGreedyAction, GreedyAction, make_policy, with_memory
from qmix_trl.replay import SequenceRows, make_replay
from qmix_trl.rows import read_rows

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore:Nested")

N, A, LIMIT = 2, 3, 5


@dataclass(frozen=True)
class Step:
    """One step of ``CounterEnv`` in one environment, as a slow loop finds it."""

    episode: int
    count: int  # before the step
    terminated: bool
    truncated: bool


def slow_steps(env, n_steps):
    """Return the steps of environment ``env`` that is reset when it is done."""
    steps, episode, count = [], 0, 0
    for _ in range(n_steps):
        terminated = count + 1 == 3 and (env + episode) % 2 == 1
        truncated = count + 1 == LIMIT
        steps.append(Step(episode, count, terminated, truncated))
        episode, count = (episode + 1, 0) if terminated or truncated else (episode, count + 1)
    return steps


class CounterEnv(EnvBase):
    """Counts its steps; observations tell environment, episode and count, and nothing is random.

    Every second episode terminates after three steps, the others are truncated after five: the
    episodes of environment 0 have 5, 3, 5, 3, .. steps and those of environment 1 have 3, 5, 3,
    5, ..; one action of each agent is not available, another one at each step.
    """

    batch_locked = True

    def __init__(self, n_envs=2, *, reset_when_done=True):
        super().__init__(batch_size=torch.Size([n_envs]))
        self.reset_when_done = reset_when_done
        self.count = torch.zeros(n_envs, 1, dtype=torch.int64)
        self.episode = torch.zeros(n_envs, 1, dtype=torch.int64)
        flag = Binary(1, (n_envs, 1), dtype=torch.bool)
        team = (n_envs, N)
        self.observation_spec = Composite(
            agents=Composite(
                observation=Unbounded((*team, 4)),
                action_mask=Binary(A, (*team, A), dtype=torch.bool),
                shape=team,
            ),
            state=Unbounded((n_envs, 3)),
            is_init=flag.clone(),
            shape=(n_envs,),
        )
        action = Categorical(A, shape=team)
        self.action_spec = Composite(agents=Composite(action=action, shape=team), shape=(n_envs,))
        self.reward_spec = Composite(
            reward=Unbounded((n_envs, 1)),
            agents=Composite(reward=Unbounded((*team, 1)), shape=team),
            shape=(n_envs,),
        )
        self.done_spec = Composite(
            done=flag.clone(), terminated=flag.clone(), truncated=flag.clone(), shape=(n_envs,)
        )

    def _set_seed(self, seed):
        """Do nothing: nothing here is random."""

    def _seen(self, is_init, terminated, truncated):
        n_envs = len(self.count)
        env = torch.arange(n_envs).unsqueeze(1)  # [E, 1]
        state = torch.cat([self.count / 5, self.episode / 5, env / 2], 1)  # [E, 3]
        agent = torch.arange(N).reshape(1, N, 1)
        team = state.unsqueeze(1).expand(n_envs, N, 3)
        observation = torch.cat([team, agent.expand(n_envs, N, 1) / 2], -1)  # [E, N, 4]
        closed = (self.count + self.episode + env).unsqueeze(-1) + agent  # [E, N, 1]
        data = TensorDict({"agents": TensorDict({}, [n_envs, N])}, [n_envs])
        data.set(OBSERVATION, observation)
        data.set(ACTION_MASK, torch.arange(A) != closed % A)
        data.set(STATE, state).set(IS_INIT, is_init)
        data.set(TERMINATED, terminated).set(TRUNCATED, truncated)
        return data.set(DONE, terminated | truncated)

    def _reset(self, tensordict=None, **kwargs):
        no = torch.zeros_like(self.count, dtype=torch.bool)
        reset = None if tensordict is None else tensordict.get("_reset", None)
        if reset is None:
            reset = ~no
        elif not self.reset_when_done:
            reset = no
        self.episode += reset & (self.count > 0)
        self.count.masked_fill_(reset, 0)
        return self._seen(reset, no, no)

    def _step(self, tensordict):
        action = tensordict.get(ACTION)  # [E, N]
        self.count += 1
        env = torch.arange(len(self.count)).unsqueeze(1)
        terminated = (self.count == 3) & ((env + self.episode) % 2 == 1)
        data = self._seen(torch.zeros_like(terminated), terminated, self.count >= LIMIT)
        reward = (action + 1) * self.count / 4  # [E, N]
        data.set(AGENT_REWARD, reward.unsqueeze(-1))
        return data.set(REWARD, reward.sum(1, keepdim=True))


def balance_env(*, reset_when_done=True):
    """Return two environments of VMAS balance with a short time limit."""
    return make_env_of(
        "vmas",
        scenario="balance",
        n_envs=2,
        max_steps=LIMIT,
        state="world",
        team_reward="mean",
        seed=0,
        reset_when_done=reset_when_done,
    )


ENVS = {"counter": CounterEnv, "balance": balance_env}
AGENTS = {
    "recurrent": lambda *dims: RecurrentAgent(*dims, hidden_dim=6),
    "feedforward": lambda *dims: FeedforwardAgent(*dims, hidden_dims=(8,), use_last_action=True),
}


def make_agent(env, name="recurrent", *, seed=0):
    """Return a small agent; the seed draws its weights."""
    torch.manual_seed(seed)
    dims = env_dims(env)
    return AGENTS[name](dims.n_agents, dims.observation_dim, dims.n_actions)


def collect(env, agent, *, rows, steps, n_batches, epsilon=0.5):
    """Return batches [E, T]; actions are greedy or drawn from a stream of their own."""
    head = EpsilonGreedyAction(epsilon, epsilon, 0, seed=1) if epsilon else GreedyAction()
    collector = make_collector(
        with_memory(env, agent),
        make_policy(agent, head),
        rows=rows,
        steps=steps,
        n_batches=n_batches,
    )
    with torch.no_grad():
        batches = [batch.clone() for batch in collector]
    collector.shutdown()
    return batches


def slices(steps, n_batches, *, agent=None, epsilon=0.5):
    """Return batches [2, steps] of the counting environment and its agent."""
    env = CounterEnv()
    agent = make_agent(env) if agent is None else agent
    return collect(env, agent, rows="slices", steps=steps, n_batches=n_batches, epsilon=epsilon)


def packed_and_back(batch, rows):
    """Return a batch put into a buffer and read out again, in order."""
    replay = make_replay(rows, capacity_rows=len(batch), batch_rows=1, seed=0)
    replay.extend(batch)
    return replay[:]


def rows_of(batch, agent):
    """Return a batch as the loss reads it, without states."""
    return read_rows(
        batch, QMixLoss.default_keys(), n_actions=agent.n_actions, reward=REWARD, needs_state=False
    )


def unrolled(batch, agent):
    """Return the action values [B, T, N, A] that training finds for a batch's own steps."""
    rows = rows_of(batch, agent)
    with torch.no_grad():
        values, _ = agent.unroll(rows.observation, rows.last_action, rows.is_init, rows.hidden)
    return values[:, :-1]


def make_loss(env, agent, *, mixer="qmix", **arguments):
    """Return a loss whose targets differ from what they follow."""
    dims = env_dims(env)
    made = {
        "qmix": lambda: QMixer(dims.n_agents, dims.state_shape, mixing_embed_dim=4),
        "vdn": VDNMixer,
        "none": lambda: None,
    }[mixer]()
    loss = QMixLoss(agent, made, gamma=0.9, **arguments)
    generator = torch.Generator().manual_seed(5)
    for parameter in loss.target_agent_params.values(True, True):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return loss


# ---------------------------------------------------------------------- collection


def test_the_counting_environment_keeps_its_specs():
    check_env_specs(CounterEnv())
    assert env_dims(CounterEnv()).n_actions == A


def test_slices_follow_the_environments_through_every_batch():
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


def test_memory_goes_on_from_step_to_step_and_batch_to_batch_but_not_over_a_reset():
    whole = torch.cat(slices(7, 3), 1)
    going_on = ~whole[IS_INIT][:, 1:].unsqueeze(-1)  # [E, 20, 1, 1]
    for key in (HIDDEN, LAST_ACTION):
        carried = whole[next_key(key)][:, :-1]
        assert (carried != 0).any(-1).all()
        assert torch.equal(whole[key][:, 1:], carried * going_on)
        assert (whole[key][:, 0] == 0).all()
    one_hot = torch.nn.functional.one_hot(whole[ACTION], A).float()
    assert torch.equal(whole[next_key(LAST_ACTION)], one_hot)


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


def test_other_rows_are_refused():
    env = CounterEnv()
    policy = make_policy(make_agent(env), GreedyAction())
    with pytest.raises(ValueError, match="rows of episodes, slices, got 'steps'"):
        make_collector(env, policy, rows="steps", steps=2, n_batches=1)


def with_returns(rows, steps, n_batches):
    """Return batches of the counting environment with the episodes' returns."""
    env = CounterEnv(reset_when_done=rows == "slices")
    summed = TransformedEnv(env, RewardSum(in_keys=[REWARD], out_keys=[EPISODE_REWARD]))
    return collect(summed, make_agent(env), rows=rows, steps=steps, n_batches=n_batches)


def test_finished_returns_are_those_of_the_episodes_that_end_in_the_batch():
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
        assert finished_returns(batch) == pytest.approx(sum(of_batch) / len(of_batch))


def test_finished_returns_leave_padding_out():
    (batch,) = with_returns("episodes", 7, 1)
    rewards = batch[next_key(REWARD)][..., 0]  # [E, T]
    expected = (rewards[0, :5].sum() + rewards[1, :3].sum()) / 2
    assert finished_returns(batch) == pytest.approx(expected.item())


def test_finished_returns_are_none_if_no_episode_ended():
    (batch,) = with_returns("slices", 2, 1)
    assert finished_returns(batch) is None


# ---------------------------------------------------------------------- rows


# Of 16 steps, environment 0 is done at 5, 8, 13, 16 and environment 1 at 3, 8, 11, 16, alternately
# truncated and terminated: two truncations followed by a reset in the row, and one.
STEPS, CUTS = 16, 2


# Room for ceil(15 / 5) = 3 cuts, one more than there are, and for as many as there are steps.
@pytest.mark.parametrize("max_steps", [LIMIT, 1])
def test_a_batch_comes_back_from_its_rows(max_steps):
    (batch,) = slices(STEPS, 1)
    back = packed_and_back(batch, SequenceRows(max_steps=max_steps))
    assert back.shape == (2, STEPS)
    followed = torch.cat([batch[IS_INIT][:, 1:], torch.zeros(2, 1, 1, dtype=torch.bool)], 1)
    unread = (batch[next_key(TERMINATED)] & followed)[..., 0]  # [E, T], no value beyond
    cut = (batch[next_key(TRUNCATED)] & followed)[..., 0]
    assert cut.sum(1).tolist() == [2, 1]
    for key in (OBSERVATION, STATE, ACTION_MASK):
        now, after = batch[key], batch[next_key(key)]
        assert torch.equal(back[key], now)
        assert torch.equal(back[next_key(key)][~unread], after[~unread])
        assert not torch.equal(after[:, :-1][cut[:, :-1]], now[:, 1:][cut[:, :-1]])
    for key in (ACTION, IS_INIT, MASK, *map(next_key, (REWARD, AGENT_REWARD, TERMINATED, DONE))):
        assert torch.equal(back[key], batch[key])


def test_sampled_rows_carry_the_steps_of_their_cuts():
    (batch,) = slices(STEPS, 1)
    back = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
    assert back[CUT_STEPS].shape == (2, STEPS, 3)  # ceil(15 / 5)
    assert (back[CUT_STEPS] == back[CUT_STEPS][:, :1]).all()
    first, second = (set(steps.tolist()) for steps in back[CUT_STEPS][:, 0])
    # Counted from 0: environment 0 is truncated at the 5th and the 13th step, environment 1 at the
    # 8th; at the 16th step no other episode follows in the row.
    assert first >= {4, 12}
    assert second >= {7}


def test_rows_show_the_memory_of_their_first_step():
    second = slices(7, 2)[1]
    back = packed_and_back(second, SequenceRows(max_steps=LIMIT))
    for key in (HIDDEN, LAST_ACTION):
        first = second[key][:, :1]
        assert (first != 0).any()
        assert torch.equal(back[key], first.expand(2, 7, *first.shape[2:]))


def test_rows_hold_no_other_entries():
    (batch,) = slices(7, 1)
    back = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
    kept = (OBSERVATION, STATE, ACTION_MASK)
    taken = (REWARD, AGENT_REWARD, TERMINATED, DONE)
    expected = {*kept, ACTION, IS_INIT, MASK, HIDDEN, LAST_ACTION, CUT_STEPS}
    expected |= {next_key(key) for key in (*kept, *taken)}
    assert set(back.keys(True, True)) == expected


def test_rows_leave_the_collected_batch_as_it_is():
    (batch,) = slices(STEPS, 1)
    before = batch.clone()
    packed_and_back(batch, SequenceRows(max_steps=LIMIT, burn_in=2))
    assert set(before.keys(True, True)) == set(batch.keys(True, True))
    assert (before == batch).all()


@pytest.mark.parametrize(("max_steps", "most"), [(None, 0), (STEPS - 1, 1)])
def test_more_cuts_than_the_time_limit_allows_are_refused(max_steps, most):
    (batch,) = slices(STEPS, 1)
    message = f"at most {most} truncations .* max_steps={max_steps}, got {CUTS}; set max_steps"
    with pytest.raises(ValueError, match=message):
        packed_and_back(batch, SequenceRows(max_steps=max_steps))


@pytest.mark.parametrize("arguments", [{"max_steps": 0}, {"burn_in": -1}])
def test_sizes_of_rows_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="max_steps of at least 1, or None, and burn_in of"):
        SequenceRows(**arguments)


def test_the_end_of_a_row_and_terminations_need_no_room():
    # Environment 0 is truncated at the last of 5 steps, environment 1 terminated at the third.
    (batch,) = slices(LIMIT, 1)
    assert batch[next_key(TRUNCATED)][..., 0].nonzero().tolist() == [[0, 4]]
    assert batch[next_key(TERMINATED)][..., 0].nonzero().tolist() == [[1, 2]]
    back = packed_and_back(batch, SequenceRows())
    unread = batch[next_key(TERMINATED)][..., 0]
    for key in map(next_key, (OBSERVATION, STATE, ACTION_MASK)):
        assert torch.equal(back[key][~unread], batch[key][~unread])


def test_truncations_in_the_padding_need_no_room():
    env = CounterEnv()
    (batch,) = collect(env, make_agent(env), rows="episodes", steps=STEPS, n_batches=1)
    # Only environment 0's first episode of 5 is truncated, and padding follows.
    packed_and_back(batch, SequenceRows())


# ---------------------------------------------------------------------- burn-in


def test_burn_in_puts_the_tail_of_the_batch_before_in_front():
    # T = 5: environment 0 is truncated at the seam, environment 1 is inside an episode.
    batches = slices(LIMIT, 3)
    rows, burn_in = SequenceRows(max_steps=LIMIT, burn_in=3), 3
    first, second, third = (packed_and_back(batch, rows) for batch in batches)
    assert torch.equal(first[MASK], (torch.arange(8) >= burn_in).expand(2, 8))
    for key in (OBSERVATION, STATE, ACTION, next_key(REWARD)):
        assert torch.equal(first[key][:, burn_in:], batches[0][key])
    assert batches[0][next_key(TRUNCATED)][:, -1, 0].tolist() == [True, False]
    for back, before, batch in ((second, *batches[:2]), (third, *batches[1:])):
        whole = torch.cat([before[:, -burn_in:], batch], 1)  # [E, 8]
        assert back[MASK].all()
        for key in (OBSERVATION, STATE, ACTION, IS_INIT, next_key(REWARD), next_key(DONE)):
            assert torch.equal(back[key], whole[key])
        for key in (HIDDEN, LAST_ACTION):
            assert torch.equal(back[key][:, 0], whole[key][:, 0])
        unread = whole[next_key(TERMINATED)][..., 0]
        for key in map(next_key, (OBSERVATION, STATE, ACTION_MASK)):
            assert torch.equal(back[key][~unread], whole[key][~unread])


def test_burn_in_longer_than_the_batches_reaches_back_over_several():
    batches = slices(2, 4)
    rows = SequenceRows(max_steps=LIMIT, burn_in=5)
    backs = [packed_and_back(batch, rows) for batch in batches]
    assert [int(back[MASK].sum(1)[0]) for back in backs] == [2, 4, 6, 7]
    whole = torch.cat(batches, 1)  # [E, 8]
    assert torch.equal(backs[-1][OBSERVATION], whole[OBSERVATION][:, 1:])
    assert torch.equal(backs[-1][HIDDEN][:, 0], whole[HIDDEN][:, 1])


def test_burnt_in_rows_unroll_to_the_values_of_acting():
    env = CounterEnv()
    agent = make_agent(env)
    rows = SequenceRows(max_steps=LIMIT, burn_in=3)
    batches = collect(env, agent, rows="slices", steps=7, n_batches=3)
    values = torch.cat([batch[ACTION_VALUE] for batch in batches], 1)  # [E, 21, N, A]
    for i, batch in enumerate(batches):
        again = unrolled(packed_and_back(batch, rows), agent)
        start = 3 if i == 0 else 0
        expected = values[:, 7 * i - 3 + start : 7 * i + 7]
        torch.testing.assert_close(again[:, start:], expected)


# ---------------------------------------------------------------------- the buffer


def numbered(first, n_rows, steps=2):
    """Return a batch [E, T] of whole rows whose states are their numbers."""
    number = torch.arange(first, first + n_rows).float().reshape(-1, 1, 1).expand(-1, steps, 1)
    flag = torch.zeros(n_rows, steps, 1, dtype=torch.bool)
    batch = TensorDict({STATE: number, IS_INIT: flag, MASK: ~flag[..., 0]}, [n_rows, steps])
    batch.set(next_key(STATE), number)
    return batch.set(next_key(DONE), flag).set(next_key(TERMINATED), flag.clone())


def drawn(replay):
    """Return the numbers of the rows of one sample."""
    return replay.sample()[STATE][:, 0, 0].int().tolist()


def numbered_replay(*, seed=0, capacity_rows=4, batch_rows=4):
    """Return an empty buffer for numbered rows."""
    rows = SequenceRows()
    return make_replay(rows, capacity_rows=capacity_rows, batch_rows=batch_rows, seed=seed)


def test_the_oldest_rows_give_way():
    replay = numbered_replay(capacity_rows=5)
    for first in (0, 2, 4):
        replay.extend(numbered(first, 2))
    assert len(replay) == 5
    assert sorted(replay[:][STATE][:, 0, 0].int().tolist()) == [1, 2, 3, 4, 5]


def test_rows_are_sampled_uniformly():
    replay = numbered_replay(batch_rows=4)
    replay.extend(numbered(0, 4))
    counts = torch.bincount(torch.tensor([drawn(replay) for _ in range(500)]).flatten())
    # 500 of each with a standard deviation of sqrt(2000 * 1/4 * 3/4) = 19.4; four of them.
    assert len(counts) == 4
    assert (counts - 500).abs().max() < 78


def test_sampling_has_a_stream_of_its_own():
    def samples(seed):
        replay = numbered_replay(seed=seed)
        replay.extend(numbered(0, 4))
        return [drawn(replay) for _ in range(10)]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = samples(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert samples(3) == first
    assert samples(4) != first
    assert first[0] != first[1]


def test_a_sample_has_the_shape_of_a_batch():
    replay = numbered_replay(batch_rows=3)
    replay.extend(numbered(0, 4, steps=6))
    assert replay.sample().shape == (3, 6)


@pytest.mark.parametrize(("batch_rows", "capacity_rows"), [(0, 4), (5, 4), (0, 0), (-1, 4)])
def test_sizes_that_do_not_fit_are_refused(batch_rows, capacity_rows):
    with pytest.raises(ValueError, match=f"got {batch_rows} and {capacity_rows}"):
        numbered_replay(batch_rows=batch_rows, capacity_rows=capacity_rows)


# ------------------------------------------------------------ what is trained on


@pytest.mark.parametrize("agent_name", AGENTS)
@pytest.mark.parametrize("rows", ["episodes", "slices"])
@pytest.mark.parametrize("env_name", ENVS)
def test_training_unrolls_to_the_values_of_acting(env_name, rows, agent_name):
    env = ENVS[env_name](reset_when_done=rows == "slices")
    agent = make_agent(env, agent_name)
    batches = collect(env, agent, rows=rows, steps=8, n_batches=3)
    for batch in batches:
        valid = batch[MASK]  # [E, T]
        back = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
        for source in (batch, back):
            values = unrolled(source, agent)
            torch.testing.assert_close(values[valid], batch[ACTION_VALUE][valid])
    if rows == "slices":
        assert batches[1][IS_INIT][:, 1:].any()
    else:
        assert not batches[0][MASK].all()


def test_acting_in_episodes_that_reset_themselves_equals_training_up_to_the_end():
    env = CounterEnv()
    agent = make_agent(env)
    (batch,) = collect(env, agent, rows="episodes", steps=8, n_batches=1)
    values = unrolled(batch, agent)
    torch.testing.assert_close(values[batch[MASK]], batch[ACTION_VALUE][batch[MASK]])


LOSSES = [
    {"td_lambda": 0.0, "double_q": False},
    {"td_lambda": 0.8},
    {"td_lambda": 0.8, "mixer": "none"},
    {"td_lambda": 0.0, "mixer": "vdn"},
]


@pytest.mark.parametrize("arguments", LOSSES, ids=str)
@pytest.mark.parametrize("agent_name", AGENTS)
def test_rows_have_the_loss_of_the_collected_batch(agent_name, arguments):
    env = CounterEnv()
    agent = make_agent(env, agent_name)
    batches = collect(env, agent, rows="slices", steps=STEPS - 2, n_batches=2)
    loss = make_loss(env, agent, **arguments)
    for batch in batches:
        back = packed_and_back(batch, SequenceRows(max_steps=LIMIT))
        torch.testing.assert_close(loss(back), loss(batch))


@pytest.mark.parametrize("through_replay", [False, True])
@pytest.mark.parametrize("arguments", LOSSES, ids=str)
@pytest.mark.parametrize("agent_name", AGENTS)
def test_whole_episodes_and_slices_have_the_same_loss(agent_name, arguments, through_replay):
    # Greedy acting draws nothing, so that both modes play the same four episodes of each
    # environment: 4 batches of one episode, or one of 16 = 5 + 3 + 5 + 3 steps.
    env = CounterEnv()
    agent = make_agent(env, agent_name)
    idle = CounterEnv(reset_when_done=False)
    (slice_batch,) = slices(STEPS, 1, agent=agent, epsilon=0)
    episodes = collect(idle, agent, rows="episodes", steps=LIMIT + 1, n_batches=4, epsilon=0)
    assert sum(int(batch[MASK].sum()) for batch in episodes) == slice_batch[MASK].sum() == 32
    assert_same_steps_in_both(slice_batch, episodes)
    loss = make_loss(env, agent, reduction="sum", **arguments)
    if through_replay:
        slice_batch = packed_and_back(slice_batch, SequenceRows(max_steps=LIMIT))
        episodes = [packed_and_back(e, SequenceRows()) for e in episodes]
    total = sum(loss(batch)["loss"] for batch in episodes)
    torch.testing.assert_close(loss(slice_batch)["loss"], total)


def assert_same_steps_in_both(slice_batch, episodes):
    """Assert that the valid steps of whole episodes, in order, are those of the slices."""
    for key in (OBSERVATION, ACTION, next_key(OBSERVATION), next_key(REWARD)):
        for env in range(2):
            played = torch.cat([batch[key][env][batch[MASK][env]] for batch in episodes])
            assert torch.equal(slice_batch[key][env], played)


def test_the_loss_of_a_slice_bootstraps_from_the_true_last_observation():
    # Worked by a slow loop over the episodes: every step's target from an unroll of its own
    # episode, one-step, VDN, the target network choosing.
    env = CounterEnv()
    agent = make_agent(env)
    (batch,) = slices(STEPS, 1)
    loss = make_loss(env, agent, mixer="vdn", reduction="sum", double_q=False)
    target_agent = make_agent(env)
    loss.target_agent_params.data.to_module(target_agent)
    expected, first = 0.0, {0: 0, 1: 0}
    for row, t in [(row, t) for row in range(2) for t in range(STEPS)]:
        if not batch[next_key(DONE)][row, t]:
            continue
        episode = batch[row : row + 1, first[row] : t + 1]  # [1, length]
        first[row] = t + 1
        observed = torch.cat([episode[OBSERVATION], episode[next_key(OBSERVATION)][:, -1:]], 1)
        did = torch.cat([episode[LAST_ACTION], episode[next_key(LAST_ACTION)][:, -1:]], 1)
        begins = torch.zeros(1, observed.shape[1], 1, dtype=torch.bool)
        values, _ = agent.unroll(observed, did, begins, None)  # [1, length + 1, N, A]
        target, _ = target_agent.unroll(observed, did, begins, None)
        best = target[:, 1:].masked_fill(~episode[next_key(ACTION_MASK)], -torch.inf).amax(-1)
        going_on = ~episode[next_key(TERMINATED)]  # [1, length, 1]
        y = episode[next_key(REWARD)] + 0.9 * going_on * best.sum(-1, keepdim=True)
        total = value_of(values[:, :-1], episode[ACTION]).sum(2)  # [1, length, 1]
        expected += (total - y).square().sum()
    assert first == {0: STEPS, 1: STEPS}
    torch.testing.assert_close(loss(batch)["loss"], expected)


def test_a_batch_without_a_mask_is_all_valid_and_one_without_is_init_is_refused():
    batch = slices(LIMIT, 1)[0]
    bare = packed_and_back(batch.exclude(MASK), SequenceRows(max_steps=LIMIT))
    assert bare[MASK].all()
    with pytest.raises(KeyError, match="is_init"):
        packed_and_back(batch.exclude(IS_INIT), SequenceRows(max_steps=LIMIT))


def test_burn_in_wants_a_first_batch_that_begins_with_resets():
    _, later = slices(7, 2)
    with pytest.raises(ValueError, match="first batch to begin with resets"):
        SequenceRows(max_steps=LIMIT, burn_in=3).inv(later)
