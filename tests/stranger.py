"""A program written from the pages alone: an environment of one's own, and TorchRL's workers."""

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.collectors import MultiSyncCollector
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import EGreedyModule

import qmix_trl as q

STEPS, BEST = 3, 3.6  # lift together twice, and dash in the last step: 1 + 1 + 2 * 0.8


class Raid(EnvBase):
    """Two adversaries wait (0), lift (1) or dash (2); lifting together pays 1, a dash 0.8.

    Who has dashed is dead and can only wait.
    """

    batch_locked = True

    def __init__(self, n_envs=8):
        super().__init__(batch_size=[n_envs])
        self.team = (n_envs, 2)
        sees = Unbounded((*self.team, STEPS + 3))
        can = Binary(3, (*self.team, 3), dtype=torch.bool)
        entries = Composite(sees=sees, can=can, shape=self.team)
        self.observation_spec = Composite(adversary=entries, shape=[n_envs])
        moves = Composite(move=Categorical(3, self.team), shape=self.team)
        self.action_spec = Composite(adversary=moves, shape=[n_envs])
        self.reward_spec = Composite(score=Unbounded((n_envs, 1)), shape=[n_envs])

    def _look(self):
        alive = ~self.dead.unsqueeze(-1)  # [E, 2, 1]
        time = torch.eye(STEPS + 1)[self.time].unsqueeze(1).expand(*self.team, STEPS + 1)
        sees = torch.cat([time, alive, alive.flip(1)], -1).float()
        can = torch.cat([torch.ones_like(alive), alive, alive], -1)
        adversary = TensorDict({"sees": sees, "can": can}, self.team)
        return TensorDict({"adversary": adversary}, self.batch_size)

    def _reset(self, tensordict=None, **kwargs):
        self.time = torch.zeros(*self.batch_size, dtype=torch.int64)  # all end together
        self.dead = torch.zeros(self.team, dtype=torch.bool)
        return self._look()

    def _step(self, tensordict):
        move = tensordict["adversary", "move"]
        self.time = self.time + 1
        score = (move == 1).all(-1, keepdim=True) + 0.8 * (move == 2).sum(-1, keepdim=True)
        self.dead = self.dead | (move == 2)
        done = self.time.unsqueeze(-1) >= STEPS
        return self._look().update({"score": score.float(), "done": done, "terminated": done})

    def _set_seed(self, seed):
        pass


def make_team():
    """Return eight environments as a team."""
    return q.TeamEnv(Raid())


def train(n_batches=80):
    """Return the greedy returns [E] after training with two workers."""
    torch.manual_seed(0)
    env = make_team()
    dims = q.env_dims(env)
    agent = q.FeedforwardAgent(dims.n_agents, dims.observation_dim, dims.n_actions)
    mixer = q.QMixer(dims.n_agents, dims.state_shape)
    loss = q.QMixLoss(agent, mixer, gamma=0.99, td_lambda=0.5)
    update = q.Update(
        loss,
        torch.optim.Adam(loss.parameters(), lr=3e-3),
        q.make_hard_updater(loss, period_updates=50),
        max_grad_norm=10,
    )
    explore = EGreedyModule(
        env.full_action_spec["agents", "action"],
        eps_end=0.1,
        annealing_num_steps=1000,
        action_key=("agents", "action"),
        action_mask_key=("agents", "action_mask"),
    )
    frames = 2 * 8 * STEPS
    collector = MultiSyncCollector(
        [make_team, make_team],
        TensorDictSequential(agent, q.GreedyAction(), explore),
        frames_per_batch=frames,
        total_frames=n_batches * frames,
        cat_results=0,
        auto_register_policy_transforms=False,
    )
    replay = q.make_replay(q.SequenceRows(), capacity_rows=2000, batch_rows=32, seed=0)
    learner = q.Learner(update, replay, n_steps=20)
    try:
        for batch in collector:  # [2 E, T]
            replay.extend(batch)
            learner()
            explore.step(frames)
            collector.update_policy_weights_()
    finally:
        collector.shutdown()
    greedy = q.make_policy(agent, q.GreedyAction())
    return q.episode_returns(q.with_memory(env, agent), greedy, max_steps=STEPS, seed=0)


if __name__ == "__main__":
    print(train(), BEST)
