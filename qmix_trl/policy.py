"""Policies: an agent, a head that turns action values into actions, and the agent's memory."""

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor
from torchrl.envs import EnvBase, TensorDictPrimer, TransformedEnv

from qmix_trl.functional import greedy_action, one_hot, random_action
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
    LAST_ACTION,
    OBSERVATION,
    next_key,
)

MOST_REPEATED = 100  # steps for which an agent repeats a random action at most


class GreedyAction(TensorDictModuleBase):
    """The head that writes each agent's available action of the highest value."""

    in_keys = [ACTION_VALUE]
    out_keys = [ACTION]

    generators = ()

    def draws(self, n_steps: int, shape: tuple[int, ...]) -> None:
        """Return None: a greedy choice needs no random numbers."""

    def random_state(self) -> dict[str, Tensor]:
        """Return no tensors: a greedy choice has no random state."""
        return {}

    def set_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing: a greedy choice has no random state."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions, int64 [*B, N]."""
        values, mask = tensordict.get(ACTION_VALUE), tensordict.get(ACTION_MASK, None)
        return tensordict.set(ACTION, greedy_action(values, mask))


class EpsilonGreedyAction(TensorDictModuleBase):
    """The head with which each agent explores with probability epsilon, and else acts greedily.

    Agents decide independently. Epsilon is linear in the frames that ``step`` has counted, and
    computed from their number, so that nothing drifts. An exploring agent draws uniformly from
    its available actions (QMIX, appendix C).

    With ``repeat_exponent`` an exploring agent repeats its draw for n steps, P(n) proportional to
    ``n ** -repeat_exponent``, n <= ``MOST_REPEATED``, also across a reset: epsilon-z-greedy
    (Dabney et al. 2021, arXiv 2006.01782, section 4.1). Where the action is not available it takes
    the next one in the drawn order. Epsilon is then the probability of *starting* to explore, and
    the share of exploring steps is higher.

    The head explores whatever TorchRL's exploration type is: evaluate by ``GreedyAction``.

    Args:
        epsilon_start: epsilon at frame 0, in [0, 1].
        epsilon_end: epsilon from ``anneal_frames`` on, in [0, 1].
        anneal_frames: the frames from one to the other; 0 for ``epsilon_end`` at once.
        repeat_exponent: 0 or more; None for a new draw at every exploring step.
        seed: of this module's own random stream.
        device: of the action values.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_keys = [ACTION_VALUE]
    out_keys = [ACTION]

    def __init__(
        self,
        epsilon_start: float,
        epsilon_end: float,
        anneal_frames: int,
        repeat_exponent: float | None = None,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if not (0 <= epsilon_start <= 1 and 0 <= epsilon_end <= 1 and anneal_frames >= 0):
            raise ValueError(
                "EpsilonGreedyAction: expected epsilon_start and epsilon_end in [0, 1] and "
                f"anneal_frames of at least 0, got {epsilon_start}, {epsilon_end}, {anneal_frames}"
            )
        if repeat_exponent is not None and repeat_exponent < 0:
            raise ValueError(
                "EpsilonGreedyAction: expected a repeat_exponent of at least 0, or None, got "
                f"{repeat_exponent}"
            )
        self.epsilon_start = epsilon_start
        self.epsilon_end = epsilon_end
        self.anneal_frames = anneal_frames
        self.generator = torch.Generator(device).manual_seed(seed)
        self._repeats = None if repeat_exponent is None else Repeats(repeat_exponent, device)
        # A CUDA graph reads epsilon from a tensor: it would repeat a number of Python.
        self._epsilon = torch.zeros((), device=device)
        self.frames = 0

    @property
    def frames(self) -> int:
        """The frames that ``step`` has counted."""
        return self._frames

    @frames.setter
    def frames(self, frames: int) -> None:
        self._frames = frames
        self._epsilon.fill_(self.epsilon)

    @property
    def generators(self) -> tuple[torch.Generator]:
        """The generators that ``forward`` draws from."""
        return (self.generator,)

    @property
    def epsilon(self) -> float:
        """The probability that an agent explores; with repeats, that it starts to."""
        if self.frames >= self.anneal_frames:
            return self.epsilon_end
        done = self.frames / self.anneal_frames
        return self.epsilon_start + (self.epsilon_end - self.epsilon_start) * done

    def step(self, frames: int) -> None:
        """Count frames: steps of one environment."""
        self.frames += frames

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions, int64 [*B, N]."""
        values, mask = tensordict.get(ACTION_VALUE), tensordict.get(ACTION_MASK, None)
        explore, choose = (draws[0] for draws in self.draws(1, values.shape))
        explored, greedy = greedy_action(choose, mask), greedy_action(values, mask)
        return tensordict.set(ACTION, torch.where(explore < self._epsilon, explored, greedy))

    def draws(self, n_steps: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the random numbers that decide T steps.

        Args:
            n_steps: T.
            shape: the shape of the action values, [*B, N, A].

        Returns:
            float [T, *B, N] below 1: an agent explores where it is below epsilon; and float
            [T, *B, N, A]: an exploring agent takes the available action with the highest.
        """
        device = self.generator.device
        explore = torch.empty(n_steps, *shape[:-1], device=device)
        choose = torch.empty(n_steps, *shape, device=device)
        for t in range(n_steps):
            explore[t].uniform_(generator=self.generator)
            choose[t].uniform_(generator=self.generator)
            if self._repeats is not None:
                self._repeats(explore[t], choose[t], self._epsilon, self.generator)
        return explore, choose

    def random_state(self) -> dict[str, Tensor]:
        """Return copies of the tensors that later draws depend on, but for epsilon."""
        repeats = {} if self._repeats is None else self._repeats.state()
        return {"generator": self.generator.get_state(), **repeats}

    def set_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a dictionary that ``random_state`` returned."""
        self.generator.set_state(state["generator"])
        if self._repeats is not None:
            self._repeats.load_state(state)


class Repeats:
    """The repetition of random actions by exploring agents.

    Args:
        exponent: an agent repeats for n steps with a probability proportional to
            ``n ** -exponent``.
        device: of the draws.
    """

    def __init__(self, exponent: float, device: torch.device | str) -> None:
        steps = torch.arange(1, MOST_REPEATED + 1, dtype=torch.float64)
        sums = (steps**-exponent).cumsum(0)
        self._up_to = (sums / sums[-1]).float().to(device)  # [MOST_REPEATED]
        # Both take their shapes at the first call, and keep their places from then on, as a CUDA
        # graph holds them: int64 [*B, N], steps left to repeat, and float [*B, N, A], the draw of
        # the last step.
        self._left = torch.empty(0, dtype=torch.int64, device=device)
        self._choose = torch.empty(0, device=device)

    def __call__(
        self, explore: Tensor, choose: Tensor, epsilon: Tensor, generator: torch.Generator
    ) -> None:
        """Replace, in place, the draws of one step where an agent repeats.

        Args:
            explore: float [*B, N], as drawn; it becomes -1 where an agent repeats.
            choose: float [*B, N, A], as drawn; it becomes the last step's where an agent repeats.
            epsilon: float [], an agent starts to explore where ``explore`` is below it.
            generator: the random stream.
        """
        if self._left.shape != explore.shape:
            self._left = torch.zeros_like(explore, dtype=torch.int64)
            self._choose = torch.zeros_like(choose)
        repeats = self._left > 0
        starts = (explore < epsilon) & ~repeats
        explore.masked_fill_(repeats, -1.0)
        choose.copy_(torch.where(repeats.unsqueeze(-1), self._choose, choose))
        draw = torch.rand(explore.shape, generator=generator, device=explore.device)
        further = torch.searchsorted(self._up_to, draw)  # n - 1
        self._left.copy_(torch.where(starts, further, (self._left - 1).clamp(min=0)))
        self._choose.copy_(choose)

    def state(self) -> dict[str, Tensor]:
        """Return copies of the steps that are left and of the draws that are repeated."""
        return {"left": self._left.clone(), "choose": self._choose.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a dictionary that ``state`` returned, in the same places if they fit."""
        for own, new in ((self._left, state["left"]), (self._choose, state["choose"])):
            own.resize_(new.shape).copy_(new)


class RememberAction(TensorDictModuleBase):
    """The memory of the last action: writes it, one-hot, where the next step's agent reads it."""

    in_keys = [ACTION]
    out_keys = [next_key(LAST_ACTION)]

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.n_actions = n_actions

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the one-hot actions, float32 [*B, N, A]."""
        action = tensordict.get(ACTION)
        like = torch.empty(self.n_actions, dtype=torch.float32, device=action.device)
        return tensordict.set(next_key(LAST_ACTION), one_hot(action, like))


class RandomPolicy(TensorDictModuleBase):
    """The policy that draws each agent's action uniformly from its available ones.

    Args:
        n_actions: A.
        seed: of this module's own random stream.
        device: of the observations.
    """

    in_keys = [OBSERVATION]
    out_keys = [ACTION]

    def __init__(self, n_actions: int, *, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.n_actions = n_actions
        self.generator = torch.Generator(device).manual_seed(seed)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions, int64 [*B, N]."""
        like = equal_scores(tensordict, self.n_actions)
        mask = tensordict.get(ACTION_MASK, None)
        return tensordict.set(ACTION, random_action(like, mask, self.generator))


class NoOpPolicy(TensorDictModuleBase):
    """The policy of action 0, in VMAS "no force", or of the first available action.

    Args:
        n_actions: A.
    """

    in_keys = [OBSERVATION]
    out_keys = [ACTION]

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.n_actions = n_actions

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions, int64 [*B, N]."""
        like = equal_scores(tensordict, self.n_actions)
        return tensordict.set(ACTION, greedy_action(like, tensordict.get(ACTION_MASK, None)))


def equal_scores(tensordict: TensorDictBase, n_actions: int) -> Tensor:
    """Return the same score for every action of every agent: float [*B, N, A]."""
    observation = tensordict.get(OBSERVATION)
    return observation.new_zeros(*observation.shape[:-1], n_actions)


class AgentPolicy(TensorDictSequential):
    """The policy of an agent: its action values, a head that chooses, and its last action.

    The fused collector computes it in C++ if the classes of agent and head say how: by
    ``network_layers`` and by ``draws``.
    """

    @property
    def agent(self) -> TensorDictModuleBase:
        """The agent that computes action values."""
        return self.module[0]

    @property
    def head(self) -> GreedyAction | EpsilonGreedyAction:
        """The head that chooses actions."""
        return self.module[1]


def make_policy(
    agent: TensorDictModuleBase, head: GreedyAction | EpsilonGreedyAction
) -> AgentPolicy:
    """Return the policy of an agent with a head."""
    return AgentPolicy(agent, head, RememberAction(agent.n_actions))


def with_memory(env: EnvBase, agent: TensorDictModuleBase) -> TransformedEnv:
    """Return the environment with the agent's memory, which is zero after a reset."""
    memory = agent.memory_spec.to(env.device)
    return TransformedEnv(env, TensorDictPrimer(memory, expand_specs=True))
