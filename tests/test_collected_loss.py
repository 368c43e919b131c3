"""From the environment to the loss: training unrolls and values the steps that were collected."""

import pytest
import torch
from collect_tools import (
    AGENTS,
    ENVS,
    LIMIT,
    STEPS,
    CounterEnv,
    collect,
    make_agent,
    make_loss,
    packed_and_back,
    slices,
    unrolled,
)

from qmix_trl.functional import value_of
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
    DONE,
    IS_INIT,
    LAST_ACTION,
    MASK,
    OBSERVATION,
    REWARD,
    TERMINATED,
    next_key,
)
from qmix_trl.replay import SequenceRows

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore:Nested")


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


def test_training_unrolls_to_the_values_of_acting_up_to_the_end_of_an_episode():
    env = CounterEnv()
    agent = make_agent(env)
    (batch,) = collect(env, agent, rows="episodes", steps=8, n_batches=1)
    values = unrolled(batch, agent)
    torch.testing.assert_close(values[batch[MASK]], batch[ACTION_VALUE][batch[MASK]])


@pytest.mark.parametrize("agent_name", AGENTS)
def test_a_reset_inside_padding_leaves_the_true_last_observation(agent_name):
    """Episodes end by truncation before the row does, and the environment is reset at once."""
    env = CounterEnv(reset_when_done=True)
    agent = make_agent(env, agent_name)
    (batch,) = collect(env, agent, rows="episodes", steps=8, n_batches=1)
    done, valid = batch[next_key(DONE)][..., 0], batch[MASK]
    last = done & valid
    assert last.sum(1).tolist() == [1, 1]
    batch[next_key(TERMINATED)] = torch.zeros_like(batch[next_key(TERMINATED)])
    back = packed_and_back(batch, SequenceRows())
    assert torch.equal(back[next_key(OBSERVATION)][last], batch[next_key(OBSERVATION)][last])
    resets = batch[OBSERVATION].roll(-1, 1)[last]  # that followed
    assert (back[next_key(OBSERVATION)][last] != resets).any()
    loss = make_loss(env, agent, td_lambda=0.8)
    for key, value in loss(batch).items():
        torch.testing.assert_close(loss(back)[key], value, rtol=0, atol=0, msg=key)


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
