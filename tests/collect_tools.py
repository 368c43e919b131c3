"""Environments, agents and batches for the tests of collection and replay."""

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from qmix_trl import FeedforwardAgent, QMixer, QMixLoss, RecurrentAgent, VDNMixer, env_dims
from qmix_trl import make_env as make_env_of
from qmix_trl.collect import make_collector
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
)
from qmix_trl.policy import EpsilonGreedyAction, GreedyAction, make_policy, with_memory
from qmix_trl.replay import make_replay
from qmix_trl.rows import read_rows

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
    keys = QMixLoss.default_keys()
    return read_rows(
        batch,
        keys,
        masks=[keys.mask],
        n_actions=agent.n_actions,
        reward=REWARD,
        needs_state=False,
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


# Of 16 steps, environment 0 is done at 5, 8, 13, 16 and environment 1 at 3, 8, 11, 16, alternately
# truncated and terminated: two truncations followed by a reset in the row, and one.
STEPS, CUTS = 16, 2
