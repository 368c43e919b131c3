"""FusedCollector among TorchRL's collectors: its trainer, checkpoints, weights and seeds."""

import pytest
import torch
from collect_tools import balance_env, make_agent, make_loss
from tensordict import TensorDict
from torchrl.checkpoint import Checkpoint
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.trainers import Trainer

from qmix_trl import EpsilonGreedyAction, GreedyAction, make_collector, make_policy, with_memory
from qmix_trl.fused import FusedCollector, policy_kernel
from qmix_trl.keys import ACTION, ACTION_VALUE, IS_INIT, OBSERVATION

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore:Nested")


def collector_of(head=None, *, kind="fused", n_batches=3, seed=0):
    """Return a collector of batches [2, 4] and its agent."""
    env = balance_env()
    agent = make_agent(env, seed=seed)
    policy = make_policy(agent, GreedyAction() if head is None else head)
    collector = make_collector(
        with_memory(env, agent), policy, rows="slices", steps=4, n_batches=n_batches, collector=kind
    )
    return collector, agent


def explorer(epsilon=0.5):
    """Return a head with constant epsilon."""
    return EpsilonGreedyAction(epsilon, epsilon, 0, seed=1)


def test_torchrls_trainer_trains_by_fused_batches(tmp_path):
    collector, agent = collector_of(explorer())
    assert isinstance(collector, FusedCollector)
    loss = make_loss(balance_env(), agent, mixer="vdn")
    before = [p.clone() for p in loss.parameters()]
    trainer = Trainer(
        collector=collector,
        total_frames=24,
        frame_skip=1,
        optim_steps_per_batch=1,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=0.01),
        progress_bar=False,
        seed=3,
        checkpoint=Checkpoint(),
        save_trainer_file=tmp_path / "trainer",
    )
    trainer.train()
    assert trainer.collected_frames == collector.total_frames == 24
    assert any(not torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))


def test_a_checkpoint_holds_policy_and_batches(tmp_path):
    collector, _ = collector_of(EpsilonGreedyAction(1.0, 0.0, 100, seed=1))
    batches = iter(collector)
    next(batches)
    collector.policy.head.step(40)
    Checkpoint(collector=collector).save(tmp_path / "one")
    other, _ = collector_of(EpsilonGreedyAction(1.0, 0.0, 100, seed=2), seed=9)
    Checkpoint(collector=other).load(tmp_path / "one")
    assert other.policy.head.epsilon == 0.6
    for a, b in zip(collector.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    rest = list(other)
    assert len(rest) == 2  # of three
    assert rest[0][IS_INIT][:, 0].all()  # new episodes


def test_a_collector_that_is_done_yields_nothing_more():
    collector, _ = collector_of()
    assert len(collector) == len(list(collector)) == 3
    assert list(collector) == []


def test_weights_are_sent_as_to_torchrls_collectors():
    collector, agent = collector_of()
    theirs, _ = collector_of(seed=5)
    for weights in (
        {"policy_or_weights": theirs.policy},
        {"policy_or_weights": TensorDict.from_module(theirs.policy)},
        {"weights_dict": {"policy": TensorDict.from_module(theirs.policy)}},
    ):
        for parameter in agent.parameters():
            parameter.data.zero_()
        collector.update_policy_weights_()
        assert all((p == 0).all() for p in agent.parameters())
        collector.update_policy_weights_(**weights)
        for a, b in zip(agent.parameters(), theirs.policy.parameters(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(KeyError, match="expected weights of 'policy', got 'critic'"):
        collector.update_policy_weights_(weights_dict={"critic": None})


def test_seeds_are_those_of_torchrls_collector():
    (stock, _), (fused, _) = collector_of(kind="stock"), collector_of()
    assert stock.set_seed(7) == fused.set_seed(7) != 7
    fused.reset()
    first = fused.collect()[OBSERVATION]
    fused.set_seed(7)
    fused.reset()
    assert torch.equal(fused.collect()[OBSERVATION], first)


@pytest.mark.parametrize("kind", ["stock", "fused", "step loop"])
def test_collectors_explore_whatever_the_exploration_type_around_them_is(kind, monkeypatch):
    if kind == "step loop":
        monkeypatch.setattr(policy_kernel, "why_not", lambda *_: "as asked for")
    collector, _ = collector_of(explorer(1.0), kind="stock" if kind == "stock" else "fused")
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        actions, values = [], []
        for batch in collector:
            actions.append(batch[ACTION].clone())
            values.append(batch[ACTION_VALUE].clone())
    greedy = torch.cat(values, 1).argmax(-1)
    assert not torch.equal(torch.cat(actions, 1), greedy)
