"""Policies in the processes of TorchRL's collectors: masks, epsilon and random streams."""

from functools import partial

import pytest
import torch
from collect_tools import A, CounterEnv, N
from torchrl.collectors import AsyncBatchedCollector, MultiSyncCollector

from qmix_trl import EpsilonGreedyAction, FeedforwardAgent, GreedyAction, make_policy
from qmix_trl.functional import greedy_action
from qmix_trl.keys import ACTION, ACTION_MASK, ACTION_VALUE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

STEPS = 20
OF_WORKER = 2 * STEPS  # frames of a worker, with two environments


def policy_of(head):
    """Return the policy of a small agent of ``CounterEnv``."""
    torch.manual_seed(0)
    return make_policy(FeedforwardAgent(N, 4, A, hidden_dims=(8,)), head)


def greedy_policy():
    """Return a greedy policy, as processes make it."""
    return policy_of(GreedyAction())


def available(batch):
    """Say whether all actions of a batch are available."""
    return bool(batch[ACTION_MASK].gather(-1, batch[ACTION].unsqueeze(-1)).all())


def greedy_share(batch):
    """Return the share of actions that are greedy."""
    greedy = greedy_action(batch[ACTION_VALUE], batch[ACTION_MASK])
    return (batch[ACTION] == greedy).float().mean().item()


@pytest.mark.parametrize("seed", [0, None])
def test_workers_anneal_epsilon_and_draw_on_their_own(seed):
    policy = policy_of(EpsilonGreedyAction(1.0, 0.0, 4 * OF_WORKER, seed=seed))
    collector = MultiSyncCollector(
        [CounterEnv, CounterEnv],
        policy,
        frames_per_batch=2 * OF_WORKER,
        total_frames=6 * OF_WORKER,
        cat_results=0,
        auto_register_policy_transforms=False,
    )
    shares, states = [], {}
    try:
        for batch in collector:
            assert available(batch)
            first, second = batch.chunk(2)  # of the workers, which see the same
            assert torch.equal(first[ACTION_MASK], second[ACTION_MASK])
            if not shares:  # both explore alone: a pair of their actions agrees half of the time
                assert 0.3 < (first[ACTION] == second[ACTION]).float().mean() < 0.7
            shares.append(greedy_share(batch))
            policy.head.step(2 * OF_WORKER)
            collector.update_policy_weights_()
        states = collector.state_dict()
    finally:
        collector.shutdown()
    # Two of three actions are available: half of the explored ones are greedy by chance. Epsilon
    # is 1, then 1/2: three quarters, then 0; 160 actions have a deviation of 0.04.
    assert shares == pytest.approx([0.5, 0.75, 1.0], abs=0.15)
    assert shares[2] == 1
    first, second = (states[f"worker{i}"]["policy_state_dict"] for i in (0, 1))
    assert first["module.1.frames"] == second["module.1.frames"] == 6 * OF_WORKER
    streams = [state["module.1._extra_state"]["generator"] for state in (first, second)]
    assert torch.equal(*streams) == (seed is None)  # torch's global stream is not the policy's


def test_a_policy_in_a_process_of_its_own_sees_the_masks():
    collector = AsyncBatchedCollector(
        [partial(CounterEnv, 1)] * 2,
        policy_factory=greedy_policy,
        frames_per_batch=40,
        total_frames=80,
        backend="multiprocessing",
        env_backend="multiprocessing",
        transport="auto",
    )
    try:
        assert collector.server_backend == "process"  # with requests of exactly ``in_keys``
        batches = list(collector)
    finally:
        collector.shutdown()
    assert len(batches) == 2
    for batch in batches:
        assert available(batch)
        assert greedy_share(batch) == 1
