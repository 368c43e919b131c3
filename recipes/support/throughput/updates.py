"""Updates, for ``throughput.py``; the baselines are plain PyTorch and TorchRL's loss.

The plain update is written as in PyMARL: the online and the target agent call a GRUCell at each
step, their mixers are called once over all steps, and the targets are TD(0) with double Q.
TorchRL's update is its ``QMixerLoss`` with the networks of its own recipe. All train the same sizes
on the same batch.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from support.throughput.timing import Case, operations, timed
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import MultiAgentMLP, QValueModule
from torchrl.modules import QMixer as TorchRLQMixer
from torchrl.objectives import HardUpdate, QMixerLoss, ValueEstimators

from qmix_trl import FeedforwardAgent, QMixer, QMixLoss, RecurrentAgent, Update, make_hard_updater
from qmix_trl.keys import (
    ACTION,
    ACTION_VALUE,
    CHOSEN_ACTION_VALUE,
    CUT_STEPS,
    DONE,
    IS_INIT,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TOTAL_VALUE,
    next_key,
)

N_ROWS, N_STEPS = 32, 100  # of a batch
HIDDEN_DIM, EMBED_DIM = 64, 32
GAMMA, LR, MAX_GRAD_NORM, PERIOD_UPDATES = 0.99, 5e-4, 10.0, 200
ROUND_UPDATES = 5
CUT_STEPS_OF_SLICES = 4
RESETS = 0.02  # of a step, where there are any inside rows


class Sizes(NamedTuple):
    """The sizes that networks and batches are made for."""

    n_agents: int
    observation_dim: int
    n_actions: int
    state_dim: int


SIMPLE_SPREAD = Sizes(3, 18, 5, 54)


def random_batch(*, resets: bool) -> TensorDictBase:
    """Return a batch [B, T] of simple_spread's sizes; with resets, episodes terminate inside."""
    generator = torch.Generator().manual_seed(0)

    def sequence(*shape: int) -> tuple[Tensor, Tensor]:
        values = torch.randn(N_ROWS, N_STEPS + 1, *shape, generator=generator)
        return values[:, :-1].contiguous(), values[:, 1:].contiguous()

    done = torch.zeros(N_ROWS, N_STEPS, 1, dtype=torch.bool)
    if resets:
        done = torch.rand(done.shape, generator=generator) < RESETS
    begins = torch.cat([torch.ones_like(done[:, :1]), done[:, :-1]], 1)
    batch = TensorDict({MASK: torch.ones(N_ROWS, N_STEPS, dtype=torch.bool)}, (N_ROWS, N_STEPS))
    n_agents, observation_dim, n_actions, state_dim = SIMPLE_SPREAD
    for key, shape in ((OBSERVATION, (n_agents, observation_dim)), (STATE, (state_dim,))):
        batch[key], batch[next_key(key)] = sequence(*shape)
    batch[ACTION] = torch.randint(n_actions, (N_ROWS, N_STEPS, n_agents), generator=generator)
    batch[next_key(REWARD)] = torch.randn(done.shape, generator=generator)
    batch[IS_INIT] = begins
    batch[next_key(DONE)] = batch[next_key(TERMINATED)] = done
    n_cut_steps = CUT_STEPS_OF_SLICES if resets else 0  # as replay's rows have room for
    batch[CUT_STEPS] = torch.zeros(N_ROWS, N_STEPS, n_cut_steps, dtype=torch.int64)
    return batch


class PlainAgents(nn.Module):
    """The agent network, one call a step."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sum(sizes[:3]), HIDDEN_DIM)
        self.rnn = nn.GRUCell(HIDDEN_DIM, HIDDEN_DIM)
        self.fc2 = nn.Linear(HIDDEN_DIM, sizes.n_actions)

    def forward(self, inputs: Tensor, is_init: Tensor) -> Tensor:
        """Return action values [B, T+1, N, A] of inputs [B, T+1, N, D], from resets [B, T+1, 1]."""
        n_rows, n_steps, n_agents, _ = inputs.shape
        hidden = inputs.new_zeros(n_rows * n_agents, HIDDEN_DIM)
        values = []
        for t in range(n_steps):
            x = self.fc1(inputs[:, t].reshape(-1, inputs.shape[-1])).relu()
            going_on = ~is_init[:, t].repeat_interleave(n_agents, 0)
            hidden = self.rnn(x, hidden * going_on)
            values.append(self.fc2(hidden).unflatten(0, (n_rows, n_agents)))
        return torch.stack(values, 1)


class PlainUpdate:
    """The QMIX update as PyMARL writes it, with resets inside rows where they terminate."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.networks, self.targets = (
            nn.ModuleList(
                [PlainAgents(sizes), QMixer(sizes.n_agents, sizes.state_dim, EMBED_DIM, 2)]
            )
            for _ in range(2)
        )
        self.targets.load_state_dict(self.networks.state_dict())
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=LR)
        self.n_updates = 0

    def __call__(self, batch: TensorDictBase) -> Tensor:
        """Take one step; return the loss."""
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.n_updates += 1
        if self.n_updates % PERIOD_UPDATES == 0:
            self.targets.load_state_dict(self.networks.state_dict())
        return loss.detach()

    def loss(self, batch: TensorDictBase) -> Tensor:
        """Return the mean squared TD error of valid steps."""
        observation = batch[OBSERVATION], batch[next_key(OBSERVATION)][:, -1:]
        begins = batch[IS_INIT]
        is_init = torch.cat([begins, torch.zeros_like(begins[:, :1])], 1)
        taken = nn.functional.one_hot(batch[ACTION], self.sizes.n_actions).float()
        last = torch.cat([torch.zeros_like(taken[:, :1]), taken], 1)
        last = last * ~is_init.unsqueeze(-1)
        own = torch.eye(self.sizes.n_agents).expand(*last.shape[:3], -1)
        inputs = torch.cat([torch.cat(observation, 1), last, own], -1)
        agents, mixer = self.networks
        values = agents(inputs, is_init)
        chosen = values[:, :-1].gather(-1, batch[ACTION].unsqueeze(-1))
        total = mixer(chosen, batch[STATE])
        with torch.no_grad():
            target_agents, target_mixer = self.targets
            best = values[:, 1:].argmax(-1, keepdim=True)
            chosen_next = target_agents(inputs, is_init)[:, 1:].gather(-1, best)
            total_next = target_mixer(chosen_next, batch[next_key(STATE)])
            going_on = ~batch[next_key(TERMINATED)]
            target = batch[next_key(REWARD)] + GAMMA * going_on * total_next
        mask = batch[MASK].unsqueeze(-1)
        return ((total - target) * mask).square().sum() / mask.sum()


class TorchRLUpdate:
    """The update of TorchRL's ``QMixerLoss``, perceptrons as agents."""

    def __init__(self, sizes: Sizes) -> None:
        network = MultiAgentMLP(
            sizes.observation_dim,
            sizes.n_actions,
            sizes.n_agents,
            centralized=False,
            share_params=True,
            depth=2,
            num_cells=HIDDEN_DIM,
            activation_class=nn.ReLU,
        )
        values = TensorDictSequential(
            TensorDictModule(network, in_keys=[OBSERVATION], out_keys=[ACTION_VALUE]),
            QValueModule(
                action_value_key=ACTION_VALUE,
                out_keys=[ACTION, ACTION_VALUE, CHOSEN_ACTION_VALUE],
                spec=None,
                action_space="categorical",
            ),
        )
        mixer = TensorDictModule(
            TorchRLQMixer((sizes.state_dim,), EMBED_DIM, sizes.n_agents, "cpu"),
            in_keys=[CHOSEN_ACTION_VALUE, STATE],
            out_keys=[TOTAL_VALUE],
        )
        self.loss = QMixerLoss(values, mixer, delay_value=True, action_space="categorical")
        self.loss.set_keys(
            action_value=ACTION_VALUE,
            local_value=CHOSEN_ACTION_VALUE,
            global_value=TOTAL_VALUE,
            action=ACTION,
            reward=REWARD,
            done=DONE,
            terminated=TERMINATED,
        )
        self.loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=LR)
        self.updater = HardUpdate(self.loss, value_network_update_interval=PERIOD_UPDATES)

    def __call__(self, batch: TensorDictBase) -> None:
        """Take one step."""
        loss = self.loss(batch)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.loss.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.updater.step()


def our_update(agent: RecurrentAgent | FeedforwardAgent, sizes: Sizes) -> Update:
    """Return our update of an agent and a mixer."""
    loss = QMixLoss(
        agent,
        QMixer(sizes.n_agents, sizes.state_dim, EMBED_DIM, hypernet_layers=2),
        gamma=GAMMA,
    )
    return Update(
        loss,
        torch.optim.Adam(loss.parameters(), lr=LR, fused=True),
        make_hard_updater(loss, period_updates=PERIOD_UPDATES),
        max_grad_norm=MAX_GRAD_NORM,
    )


def updates() -> Iterator[Case]:
    """Yield the cases: perceptrons on whole episodes, the GRU on these and on rows with resets."""
    sizes = SIMPLE_SPREAD
    hidden = (HIDDEN_DIM, HIDDEN_DIM)
    perceptrons = FeedforwardAgent(*sizes[:3], hidden_dims=hidden, use_agent_id=False)
    ours = our_update(perceptrons, sizes)
    batch = random_batch(resets=False)
    yield _case("update-mlp", "episodes", "QMixerLoss", batch, TorchRLUpdate(sizes), ours)
    for rows, resets in (("episodes", False), ("slices", True)):
        agent = RecurrentAgent(*sizes[:3], hidden_dim=HIDDEN_DIM)
        ours = our_update(agent, sizes)
        batch = random_batch(resets=resets)
        yield _case("update-gru", rows, "GRUCell loop", batch, PlainUpdate(sizes), ours)


def _case(
    what: str,
    rows: str,
    name: str,
    batch: TensorDictBase,
    theirs: Callable[[TensorDictBase], Any],
    ours: Update,
) -> Case:
    def several(update: Callable[[TensorDictBase], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(ROUND_UPDATES):
                update(batch)

        return run

    several(theirs)()
    several(ours)()
    return Case(
        what=what,
        scenario=rows,
        n_envs=N_ROWS,
        baseline=name,
        theirs=timed(several(theirs), ROUND_UPDATES),
        ours={"kernel": (timed(several(ours), ROUND_UPDATES), operations(lambda: ours(batch)))},
    )
