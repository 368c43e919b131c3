"""Policies: an agent, a head that turns action values into actions, and the agent's memory."""

from collections.abc import Mapping

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, exploration_type

from qmix_trl.agents.layers import RESET, check_agent, dispatched, memory_primer
from qmix_trl.errors import ConfigError
from qmix_trl.functional import greedy_action, one_hot, random_action
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
    LAST_ACTION,
    OBSERVATION,
    next_key,
)
from qmix_trl.random_stream import RandomStream

MOST_REPEATED = 100  # steps for which an agent repeats a random action at most
EXPLORING = (ExplorationType.RANDOM, None)  # as for TorchRL's EGreedyModule


def read_keys(entry: NestedKey, *, masked: bool) -> list[NestedKey]:
    """Return the ``in_keys`` of a module that chooses actions by an entry, and by the mask."""
    return [entry, ACTION_MASK] if masked else [entry]


def mask_of(tensordict: TensorDictBase, *, masked: bool) -> Tensor | None:
    """Return the action mask, bool [*B, N, A]; None if all actions are available.

    Args:
        tensordict: [*B]; it may hold a mask.
        masked: whether the module that reads it names the mask in its ``in_keys``.

    Raises:
        ValueError: if there is a mask that the module does not name.
    """
    mask = tensordict.get(ACTION_MASK, None)
    if mask is not None and not masked:
        raise ValueError(
            f"masked=False: expected no entry {ACTION_MASK!r}, got one; make the head or policy "
            "with masked=True"
        )
    return mask


class GreedyAction(TensorDictModuleBase):
    """The head that writes each agent's available action of the highest value.

    Args:
        masked: it takes available actions only. Its ``in_keys`` name the mask, and where a
            TensorDict holds none, all actions are available. False where masks do not exist and a
            caller supplies exactly ``in_keys``: a mask is then an error.
    """

    out_keys = [ACTION]
    generators = ()

    def __init__(self, *, masked: bool = True) -> None:
        super().__init__()
        self.masked = masked
        self.in_keys = read_keys(ACTION_VALUE, masked=masked)

    def draws(self, n_steps: int, shape: tuple[int, ...]) -> None:
        """Return None: a greedy choice needs no random numbers."""

    def epsilon_now(self) -> None:
        """Return None: no agent explores."""

    def random_state(self) -> dict[str, Tensor]:
        """Return no tensors: a greedy choice has no random state."""
        return {}

    def set_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing: a greedy choice has no random state."""

    @dispatched
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions, int64 [*B, N]."""
        values, mask = tensordict[ACTION_VALUE], mask_of(tensordict, masked=self.masked)
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

    Like TorchRL's ``EGreedyModule`` it is greedy, and draws nothing, where ``set_exploration_type``
    sets another type than RANDOM. The frames are a buffer, which a collector's
    ``update_policy_weights_`` sends to its workers. The state dict also holds the random state.

    Args:
        epsilon_start: epsilon at frame 0, in [0, 1].
        epsilon_end: epsilon from ``anneal_frames`` on, in [0, 1].
        anneal_frames: the frames from one to the other; 0 for ``epsilon_end`` at once.
        repeat_exponent: 0 or more; None for a new draw at every exploring step.
        seed: of this module's own random stream (``RandomStream``); None for torch's global one.
        masked: as in ``GreedyAction``.
        device: of the action values.

    Attributes:
        frames: int64 [], the frames that ``step`` has counted.

    Raises:
        ValueError: if an argument is out of its range.
    """

    out_keys = [ACTION]
    frames: Tensor

    def __init__(
        self,
        epsilon_start: float,
        epsilon_end: float,
        anneal_frames: int,
        repeat_exponent: float | None = None,
        *,
        seed: int | None,
        masked: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.masked = masked
        self.in_keys = read_keys(ACTION_VALUE, masked=masked)
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
        self._stream = RandomStream(seed, device)
        self._repeats = None if repeat_exponent is None else Repeats(repeat_exponent, device)
        self.register_buffer("frames", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def generator(self) -> torch.Generator | None:
        """The generator that ``forward`` draws from; None for torch's global one."""
        return self._stream.generator

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        """The generators that a CUDA graph has to know, which knows the global one."""
        return () if self.generator is None else (self.generator,)

    @property
    def epsilon(self) -> float:
        """The probability that an agent explores; with repeats, that it starts to."""
        return self.epsilon_now().item()

    def epsilon_now(self) -> Tensor:
        """Return epsilon, a tensor float64 []; a CUDA graph reads the frames of each replay."""
        done = self.frames.double() / self.anneal_frames
        annealed = self.epsilon_start + (self.epsilon_end - self.epsilon_start) * done
        return torch.where(self.frames >= self.anneal_frames, self.epsilon_end, annealed)

    def step(self, frames: int) -> None:
        """Count frames: steps of one environment."""
        self.frames.add_(frames)

    @dispatched
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions, int64 [*B, N]."""
        values, mask = tensordict[ACTION_VALUE], mask_of(tensordict, masked=self.masked)
        greedy = greedy_action(values, mask)
        if exploration_type() not in EXPLORING:
            return tensordict.set(ACTION, greedy)
        explore, choose = (draws[0] for draws in self.draws(1, values.shape))
        explored = greedy_action(choose, mask)
        explores = explore < self.epsilon_now().float()
        return tensordict.set(ACTION, torch.where(explores, explored, greedy))

    def draws(self, n_steps: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the random numbers that decide T steps.

        Args:
            n_steps: T.
            shape: the shape of the action values, [*B, N, A].

        Returns:
            float [T, *B, N] below 1: an agent explores where it is below epsilon; and float
            [T, *B, N, A]: an exploring agent takes the available action with the highest.
        """
        device, generator = self.frames.device, self.generator
        explore = torch.empty(n_steps, *shape[:-1], device=device)
        choose = torch.empty(n_steps, *shape, device=device)
        for t in range(n_steps):
            explore[t].uniform_(generator=generator)
            choose[t].uniform_(generator=generator)
            if self._repeats is not None:
                self._repeats(explore[t], choose[t], self.epsilon_now().float(), generator)
        return explore, choose

    def random_state(self) -> dict[str, Tensor]:
        """Return copies of the tensors that later draws depend on, but for the frames.

        The state of torch's global generator is the process's and left out.
        """
        repeats = {} if self._repeats is None else self._repeats.state()
        return {"generator": self._stream.get_state(), **repeats}

    def set_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a dictionary that ``random_state`` returned."""
        self._stream.set_state(state["generator"])
        if self._repeats is not None:
            self._repeats.load_state(state)

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the random state, for ``state_dict``."""
        return self.random_state()

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the random state of a ``state_dict``."""
        self.set_random_state(state)

    def _apply(self, fn, recurse: bool = True):
        """Move the random stream to the device to which torch moves the buffers."""
        super()._apply(fn, recurse)
        self._stream.move_to(self.frames.device)
        if self._repeats is not None:
            self._repeats.move_to(self.frames.device)
        return self


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
        self._left: Tensor | None = None
        self._choose: Tensor | None = None

    def __call__(
        self, explore: Tensor, choose: Tensor, epsilon: Tensor, generator: torch.Generator | None
    ) -> None:
        """Replace, in place, the draws of one step where an agent repeats.

        Args:
            explore: float [*B, N], as drawn; it becomes -1 where an agent repeats.
            choose: float [*B, N, A], as drawn; it becomes the last step's where an agent repeats.
            epsilon: float [], an agent starts to explore where ``explore`` is below it.
            generator: the random stream; None for torch's global one.
        """
        if self._left is None or self._choose is None or self._left.shape != explore.shape:
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
        if self._left is None or self._choose is None:
            return {}
        return {"left": self._left.clone(), "choose": self._choose.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a dictionary that ``state`` returned, in the same places if they fit."""
        left, choose = state.get("left"), state.get("choose")
        if left is None or choose is None:
            self._left = self._choose = None
        elif self._left is None or self._choose is None or self._left.shape != left.shape:
            self._left, self._choose = (x.to(self._up_to.device).clone() for x in (left, choose))
        else:
            self._left.copy_(left)
            self._choose.copy_(choose)

    def move_to(self, device: torch.device) -> None:
        """Repeat actions on a device from now on; a repetition ends where the device changes."""
        if self._up_to.device.type != device.type:
            self._up_to, self._left, self._choose = self._up_to.to(device), None, None


class RememberAction(TensorDictModuleBase):
    """The memory of the last action: writes it, one-hot, where the next step's agent reads it."""

    in_keys = [ACTION]
    out_keys = [next_key(LAST_ACTION)]

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.n_actions = n_actions

    @dispatched
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the one-hot actions, float32 [*B, N, A]."""
        action = tensordict[ACTION]
        like = torch.empty(self.n_actions, dtype=torch.float32, device=action.device)
        return tensordict.set(next_key(LAST_ACTION), one_hot(action, like))


class RandomPolicy(TensorDictModuleBase):
    """The policy that draws each agent's action uniformly from its available ones.

    Args:
        n_actions: A.
        seed: of this module's own random stream (``RandomStream``); None for torch's global one.
        masked: as in ``GreedyAction``.
        device: of the observations.
    """

    out_keys = [ACTION]

    def __init__(
        self,
        n_actions: int,
        *,
        seed: int | None,
        masked: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.masked = masked
        self.in_keys = read_keys(OBSERVATION, masked=masked)
        self.n_actions = n_actions
        self._stream = RandomStream(seed, device)

    @dispatched
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions, int64 [*B, N]."""
        like, mask = (
            equal_scores(tensordict, self.n_actions),
            mask_of(tensordict, masked=self.masked),
        )
        return tensordict.set(ACTION, random_action(like, mask, self._stream.generator))

    def get_extra_state(self) -> Tensor:
        """Return the random state, for ``state_dict``."""
        return self._stream.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from the random state of a ``state_dict``."""
        self._stream.set_state(state)


class NoOpPolicy(TensorDictModuleBase):
    """The policy of action 0, in VMAS "no force", or of the first available action.

    Args:
        n_actions: A.
        masked: as in ``GreedyAction``.
    """

    out_keys = [ACTION]

    def __init__(self, n_actions: int, *, masked: bool = True) -> None:
        super().__init__()
        self.masked = masked
        self.in_keys = read_keys(OBSERVATION, masked=masked)
        self.n_actions = n_actions

    @dispatched
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions, int64 [*B, N]."""
        like = equal_scores(tensordict, self.n_actions)
        return tensordict.set(ACTION, greedy_action(like, mask_of(tensordict, masked=self.masked)))


def equal_scores(tensordict: TensorDictBase, n_actions: int) -> Tensor:
    """Return the same score for every action of every agent: float [*B, N, A]."""
    observation = tensordict[OBSERVATION]
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
    """Return the policy of an agent with a head.

    Its ``in_keys`` name all that agent and head read: the head's mask, too, unless the head is
    made with ``masked=False``.

    Raises:
        TypeError: if ``agent`` is no agent.
    """
    check_agent(agent, "make_policy", "n_actions")
    return AgentPolicy(agent, head, RememberAction(agent.n_actions))


def with_memory(env: EnvBase, agent: TensorDictModuleBase) -> TransformedEnv:
    """Return the environment with the agent's memory, which is zero after a reset.

    Raises:
        TypeError: if ``agent`` is no agent.
        ConfigError: if the environment has no ``done`` of its own, only its agents.
    """
    check_agent(agent, "with_memory", "memory_spec")
    if RESET not in env.reset_keys:
        raise ConfigError(
            f"with_memory: expected an environment with an entry 'done', got {env.done_keys}; set "
            "'done' where the whole team is done"
        )
    return TransformedEnv(env, memory_primer(agent.memory_spec.to(env.device)))
