"""Updates, for ``throughput.py``; the baselines are plain PyTorch and TorchRL's loss.

The plain update is written as in PyMARL: the online and the target agent call a GRUCell at each
step, their mixers are called once over all steps, and the targets are TD(0) with double Q.
TorchRL's update is its ``QMixerLoss`` with the networks of its own recipe. All train the same sizes
on the same batch.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from support.throughput.plan import MAX_STEPS, Plan
from support.throughput.timing import Case, Runner, operations, part_ms
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import MultiAgentMLP, QValueModule
from torchrl.modules import QMixer as TorchRLQMixer
from torchrl.objectives import HardUpdate, QMixerLoss, ValueEstimators

from qmix_trl import (
    FeedforwardAgent,
    Learner,
    QMixer,
    QMixLoss,
    RecurrentAgent,
    SequenceRows,
    Update,
    make_hard_updater,
    make_replay,
)
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
BASELINE_UPDATES = 5  # of a round
CUT_STEPS_OF_SLICES = 4
RESETS = 0.02  # of a step, where there are any inside rows
CPU = torch.device("cpu")


class Sizes(NamedTuple):
    """The sizes that networks and batches are made for."""

    n_agents: int
    observation_dim: int
    n_actions: int
    state_dim: int


SIMPLE_SPREAD = Sizes(3, 18, 5, 54)


def random_batch(*, resets: bool, device: torch.device = CPU) -> TensorDictBase:
    """Return a batch [B, T] of simple_spread's sizes; with resets, episodes terminate inside.

    The numbers are the same on every device.
    """
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
    return batch.to(device)


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

    def __init__(self, sizes: Sizes, device: torch.device = CPU) -> None:
        self.sizes = sizes
        self.networks, self.targets = (
            nn.ModuleList(
                [PlainAgents(sizes), QMixer(sizes.n_agents, sizes.state_dim, EMBED_DIM, 2)]
            ).to(device)
            for _ in range(2)
        )
        self.targets.load_state_dict(self.networks.state_dict())
        self.optimizer = adam(self.networks.parameters())
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
        own = torch.eye(self.sizes.n_agents, device=last.device).expand(*last.shape[:3], -1)
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

    def __init__(self, sizes: Sizes, device: torch.device = CPU) -> None:
        network = MultiAgentMLP(
            sizes.observation_dim,
            sizes.n_actions,
            sizes.n_agents,
            centralized=False,
            share_params=True,
            depth=2,
            num_cells=HIDDEN_DIM,
            activation_class=nn.ReLU,
            device=device,
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
            TorchRLQMixer((sizes.state_dim,), EMBED_DIM, sizes.n_agents, device),
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
        self.loss.to(device)
        self.optimizer = adam(self.loss.parameters())
        self.updater = HardUpdate(self.loss, value_network_update_interval=PERIOD_UPDATES)

    def __call__(self, batch: TensorDictBase) -> None:
        """Take one step."""
        loss = self.loss(batch)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.loss.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.updater.step()


def adam(parameters: Iterable[nn.Parameter], **options: Any) -> torch.optim.Adam:
    """Return the optimiser of all sides; on a GPU a graph can hold its step."""
    parameters = list(parameters)
    return torch.optim.Adam(parameters, lr=LR, capturable=parameters[0].is_cuda, **options)


def our_update(
    agent: RecurrentAgent | FeedforwardAgent,
    sizes: Sizes,
    *,
    compile: bool = False,
    cuda_graph: bool | str = "auto",
) -> Update:
    """Return our update of an agent and a mixer, on the agent's device.

    Args:
        agent: the agent network.
        sizes: of the networks.
        compile: as of ``Update``.
        cuda_graph: as of ``Update``.
    """
    device = next(agent.parameters()).device
    loss = QMixLoss(
        agent,
        QMixer(sizes.n_agents, sizes.state_dim, EMBED_DIM, hypernet_layers=2, device=device),
        gamma=GAMMA,
    )
    return Update(
        loss,
        adam(loss.parameters(), fused=True),
        make_hard_updater(loss, period_updates=PERIOD_UPDATES),
        max_grad_norm=MAX_GRAD_NORM,
        compile=compile,
        cuda_graph=cuda_graph,
    )


def perceptrons(device: torch.device) -> FeedforwardAgent:
    """Return the agents of ``update-mlp``."""
    hidden_dims = (HIDDEN_DIM, HIDDEN_DIM)
    sizes = SIMPLE_SPREAD[:3]
    return FeedforwardAgent(*sizes, hidden_dims=hidden_dims, use_agent_id=False, device=device)


def recurrent(device: torch.device) -> RecurrentAgent:
    """Return the agents of ``update-gru``."""
    return RecurrentAgent(*SIMPLE_SPREAD[:3], hidden_dim=HIDDEN_DIM, device=device)


def updates(plan: Plan) -> Iterator[Case]:
    """Yield the cases: perceptrons on whole episodes, the GRU on these and on rows with resets."""
    for what, rows, baseline, their_update, agent in (
        ("update-mlp", "episodes", "QMixerLoss", TorchRLUpdate, perceptrons),
        ("update-gru", "episodes", "GRUCell loop", PlainUpdate, recurrent),
        ("update-gru", "slices", "GRUCell loop", PlainUpdate, recurrent),
    ):
        batch = random_batch(resets=rows == "slices", device=plan.device)
        yield Case(
            what=what,
            scenario=rows,
            n_envs=N_ROWS,
            device=plan.device,
            baseline=baseline,
            theirs=partial(_theirs, plan, their_update, batch),
            ours={"kernel": partial(_ours, plan, agent, batch)},
            products=partial(products, plan, agent),
        )


def products(plan: Plan, agent: Callable) -> Runner:
    """Return the matrix products of an update, by torch, each over all its samples at once.

    Each layer has one in the forward pass of the network, one in that of its target, one for the
    gradient of its weight and, unless it reads observations or states, one for that of its inputs.
    """
    loss = our_update(agent(plan.device), SIMPLE_SPREAD).loss
    n_steps = {"agent": (N_STEPS + 1) * SIMPLE_SPREAD.n_agents, "mixer": N_STEPS}
    factors = []
    for name, steps in n_steps.items():
        weights = [x.detach() for x in getattr(loss, f"{name}_params").values(True, True)]
        weights = [weight for weight in weights if weight.dim() == 2]
        first = weights[0].shape[1]  # the size of what the first layer reads
        for weight in weights:
            x, y = (torch.rand(N_ROWS * steps, n, device=plan.device) for n in weight.shape[::-1])
            factors.append((x, weight, y, weight.shape[1] != first))

    def multiply() -> None:
        for x, weight, y, has_inner_inputs in factors:
            for _ in range(2):
                torch.mm(x, weight.T)
            torch.mm(y.T, x)
            if has_inner_inputs:
                torch.mm(y, weight)

    multiply()
    return Runner(multiply, 1)


def _theirs(plan: Plan, their_update: Callable, batch: TensorDictBase) -> Runner:
    update = their_update(SIMPLE_SPREAD, plan.device)
    run = several(partial(update, batch), BASELINE_UPDATES)
    run()
    return Runner(run, BASELINE_UPDATES)


def _ours(plan: Plan, agent: Callable, batch: TensorDictBase) -> Runner:
    update = our_update(agent(plan.device), SIMPLE_SPREAD, compile=plan.compile)
    run = several(partial(update, batch), plan.round_updates)
    run()

    def parts() -> dict[str, float]:
        numbers = {"with_sampling_ms": _with_sampling_ms(plan, agent, batch)}
        if plan.on_gpu:
            eager = our_update(
                agent(plan.device), SIMPLE_SPREAD, compile=plan.compile, cuda_graph=False
            )
            several_eager = several(partial(eager, batch), BASELINE_UPDATES)
            numbers["without_graph_ms"] = part_ms(several_eager, BASELINE_UPDATES, plan.device)
        return numbers

    return Runner(
        run, plan.round_updates, operations(lambda: update(batch)), {"update": update.how}, parts
    )


def several(update: Callable[[], object], n: int) -> Callable[[], None]:
    """Return a function that takes ``n`` updates."""

    def run() -> None:
        for _ in range(n):
            update()

    return run


def _with_sampling_ms(plan: Plan, agent: Callable, batch: TensorDictBase) -> float:
    """Return the milliseconds of an update on rows that are sampled from a replay buffer."""
    max_steps = MAX_STEPS if batch[CUT_STEPS].shape[-1] else None
    replay = make_replay(
        SequenceRows(max_steps=max_steps),
        capacity_rows=8 * N_ROWS,
        batch_rows=N_ROWS,
        seed=0,
        device=plan.device,
    )
    for _ in range(8):
        replay.extend(batch.clone())
    update = our_update(agent(plan.device), SIMPLE_SPREAD, compile=plan.compile)
    learner = Learner(update, replay, n_steps=plan.round_updates)
    learner()  # on a GPU, the steps before a graph is captured
    return part_ms(learner, plan.round_updates, plan.device)
