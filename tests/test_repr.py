"""Short texts of the parts: their sizes, and the implementation that runs."""

import pytest
import torch
from torchrl.envs.libs.vmas import VmasEnv

import qmix_trl as q
from qmix_trl import FeedforwardAgent, QFixMixer, QMixer, QPlexMixer, RecurrentAgent, VDNMixer


@pytest.mark.parametrize(
    "part",
    [
        RecurrentAgent(2, 3, 4, hidden_dim=5, share_parameters=False),
        RecurrentAgent(2, 3, 4, use_last_action=False, use_agent_id=False),
        FeedforwardAgent(2, 3, 4, hidden_dims=[7, 6], use_last_action=True),
        RecurrentAgent(2, 3, 4, layer_norm=True),
        FeedforwardAgent(2, 3, 4, hidden_dims=[7, 6], layer_norm=True, share_parameters=False),
        QMixer(2, (3, 4), mixing_embed_dim=5),
        QMixer(2, 3, hypernet_layers=2, hypernet_embed_dim=6),
        VDNMixer(3),
        VDNMixer(),
        QFixMixer(2, (3, 4), 5, QMixer(2, (3, 4), 6), embed_dim=7),
        QPlexMixer(2, 3, 4, n_heads=2),
    ],
    ids=repr,
)
def test_the_text_of_a_network_makes_one_like_it(part):
    again = eval(repr(part))
    assert repr(again) == repr(part)
    shapes = [{n: x.shape for n, x in net.state_dict().items()} for net in (part, again)]
    assert shapes[0] == shapes[1]
    assert len(repr(part)) < 200


def test_the_texts_of_networks_name_their_arguments():
    assert repr(RecurrentAgent(2, 3, 4)) == (
        "RecurrentAgent(n_agents=2, observation_dim=3, n_actions=4, hidden_dim=64, "
        "layer_norm=False, share_parameters=True, use_last_action=True, use_agent_id=True)"
    )
    assert repr(QMixer(2, (3, 4), hypernet_layers=2)) == (
        "QMixer(n_agents=2, state_shape=(3, 4), mixing_embed_dim=32, hypernet_layers=2, "
        "hypernet_embed_dim=64)"
    )


ENVS = {
    "games": (
        {"scenario": "two_step", "state": "world"},
        "GameTeam(n_envs=2, n_agents=2, observation_dim=4, n_actions=2, state_shape=(4,); tables)",
        "StockCollector(n_envs=2, steps=3, n_batches=1, rows='episodes'; TorchRL's Collector)",
    ),
    "foraging": (
        {"scenario": "8x8-2p-3f", "state": "observations", "engine": "tensors"},
        "ForagingTeam(8x8-2p-3f, n_envs=2, n_agents=2, observation_dim=15, n_actions=6, "
        "state_shape=(30,); tensors)",
        "FusedCollector(n_envs=2, steps=3, n_batches=1, rows='episodes'; step loop)",
    ),
    "vmas": (
        {"scenario": "balance", "state": "observations", "team_reward": "mean", "engine": "eager"},
        "VmasTeam(balance, n_envs=2, n_agents=3, observation_dim=16, n_actions=9, "
        "state_shape=(48,); eager)",
        "FusedCollector(n_envs=2, steps=3, n_batches=1, rows='episodes'; step loop)",
    ),
}


@pytest.mark.parametrize("family", ENVS)
def test_environments_and_collectors_tell_sizes_and_what_runs_them(family):
    settings, of_env, of_collector = ENVS[family]
    env = q.make_env(family, **settings, n_envs=2, max_steps=3, seed=0, reset_when_done=False)
    assert repr(env) == of_env
    policy = q.RandomPolicy(q.env_dims(env).n_actions, seed=0)
    collector = q.make_collector(env, policy, rows="episodes", steps=3, n_batches=1)
    assert repr(collector) == of_collector


def test_environments_of_others_are_one_line():
    env = q.TeamEnv(VmasEnv("balance", num_envs=2, continuous_actions=False), max_steps=3)
    assert repr(env) == (
        "TeamEnv(n_envs=2, n_agents=3, observation_dim=16, n_actions=9, state_shape=(48,); VmasEnv)"
    )
    pytest.importorskip("lbforaging", reason="needs the extra envs")
    settings = {"scenario": "Foraging-8x8-2p-2f-coop-v3", "n_envs": 2, "max_steps": 3, "seed": 0}
    assert repr(q.make_env("lbforaging", **settings, team_reward="sum")) == (
        "PythonTeam(n_envs=2, n_agents=2, observation_dim=12, n_actions=6, state_shape=(24,); "
        "Python loop)"
    )


def test_loss_update_replay_and_learner_tell_their_parts():
    agent = RecurrentAgent(2, 3, 4)
    loss = q.QMixLoss(agent, QMixer(2, 5), gamma=0.9, td_lambda=0.5, bounded_targets=True)
    assert repr(loss) == (
        "QMixLoss(RecurrentAgent, QMixer, gamma=0.9, double_q=True, td_lambda=0.5, "
        "reward_scale=1.0, burn_in=0, bounded_targets=True)"
    )
    assert repr(loss.agent) == repr(agent)  # whose parameters the loss holds
    alone = q.QMixLoss(RecurrentAgent(2, 3, 4), None, gamma=0.9)
    assert repr(alone).startswith("QMixLoss(RecurrentAgent, no mixer, gamma=0.9, ")
    targets = q.make_hard_updater(loss, period_updates=9)
    adam = torch.optim.Adam(loss.parameters(), lr=0.01)
    update = q.Update(loss, adam, targets, max_grad_norm=10)
    assert repr(update) == (
        f"Update(QMixLoss, Adam, HardTargets, lr=0.01, max_grad_norm=10; {update.how.name})"
    )
    replay = q.make_replay(q.SequenceRows(), capacity_rows=8, batch_rows=4, seed=0)
    text = "SequenceReplay({} rows, capacity_rows=8, batch_rows=4; LazyTensorStorage)"
    assert repr(replay) == text.format(0)
    env = q.make_env("games", scenario="two_step", n_envs=3, max_steps=2, state="world", seed=0)
    policy = q.RandomPolicy(2, seed=0)
    for batch in q.make_collector(env, policy, rows="episodes", steps=2, n_batches=1):
        replay.extend(batch)
    assert repr(replay) == text.format(3)
    learner = q.Learner(update, replay, n_steps=6)
    assert repr(learner) == f"Learner({update!r},\n  {replay!r}, n_steps=6)"
