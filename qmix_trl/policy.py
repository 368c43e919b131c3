"""Acting: heads that turn action values into actions, and the policies made of them."""

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor
from torch.nn import functional as F
from torchrl.envs import EnvBase, TensorDictPrimer, TransformedEnv

from qmix_trl.functional import greedy_action, random_action
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
    LAST_ACTION,
    OBSERVATION,
    next_key,
)

MOST_REPEATED = 100  # steps, by an agent that repeats what it explores


class GreedyAction(TensorDictModuleBase):
    """Writes each agent's available action of highest value."""

    in_keys = [ACTION_VALUE]
    out_keys = [ACTION]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions, int64 [*B, N]."""
        values, mask = tensordict.get(ACTION_VALUE), tensordict.get(ACTION_MASK, None)
        return tensordict.set(ACTION, greedy_action(values, mask))


class EpsilonGreedyAction(TensorDictModuleBase):
    """Lets each agent by itself explore with probability epsilon, and act greedily else.

    Epsilon is linear in the frames that ``step`` has counted, computed anew from their number, so
    that nothing drifts. An exploring agent draws uniformly from its available actions (QMIX,
    appendix C). With ``repeat_exponent`` it prefers them in the drawn order for n steps, n with a
    probability proportional to ``n ** -repeat_exponent`` up to ``MOST_REPEATED``, also across a
    reset: epsilon-z-greedy (Dabney et al. 2021, arXiv 2006.01782, section 4.1).
    Epsilon is then the probability to begin, and the share of steps that explore is higher.
    It explores whatever TorchRL's exploration type is: evaluate by ``GreedyAction``.

    Args:
        epsilon_start: at frame 0, in [0, 1].
        epsilon_end: from ``anneal_frames`` on, in [0, 1].
        anneal_frames: the frames from one to the other; 0 for ``epsilon_end`` at once.
        repeat_exponent: 0 or more, or None to explore each step by itself.
        seed: of the random stream, which is this module's own.
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
        self.frames = 0
        self.generator = torch.Generator(device).manual_seed(seed)
        self._repeats = None if repeat_exponent is None else Repeats(repeat_exponent, device)

    @property
    def epsilon(self) -> float:
        """The probability with which an agent explores; with repeats, begins to."""
        if self.frames >= self.anneal_frames:
            return self.epsilon_end
        done = self.frames / self.anneal_frames
        return self.epsilon_start + (self.epsilon_end - self.epsilon_start) * done

    def step(self, frames: int) -> None:
        """Count frames, each one step of one environment."""
        self.frames += frames

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actions, int64 [*B, N]."""
        values, mask = tensordict.get(ACTION_VALUE), tensordict.get(ACTION_MASK, None)
        explore, choose = (draws[0] for draws in self.draws(1, values.shape))
        explored, greedy = greedy_action(choose, mask), greedy_action(values, mask)
        return tensordict.set(ACTION, torch.where(explore < self.epsilon, explored, greedy))

    def draws(self, n_steps: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Draw what decides so many steps.

        Args:
            n_steps: T.
            shape: of the action values, [*B, N, A].

        Returns:
            float [T, *B, N] below 1, an agent explores where it is below epsilon; and float
            [T, *B, N, A], an agent that explores takes the available action of the highest.
        """
        device = self.generator.device
        explore = torch.empty(n_steps, *shape[:-1], device=device)
        choose = torch.empty(n_steps, *shape, device=device)
        for t in range(n_steps):
            explore[t].uniform_(generator=self.generator)
            choose[t].uniform_(generator=self.generator)
            if self._repeats is not None:
                self._repeats(explore[t], choose[t], self.epsilon, self.generator)
        return explore, choose


class Repeats:
    """Lets exploring agents go on with what they explore.

    Args:
        exponent: n steps in all have a probability proportional to ``n ** -exponent``.
        device: of what is drawn.
    """

    def __init__(self, exponent: float, device: torch.device | str) -> None:
        steps = torch.arange(1, MOST_REPEATED + 1, dtype=torch.float64)
        sums = (steps**-exponent).cumsum(0)
        self._up_to = (sums / sums[-1]).float().to(device)  # [MOST_REPEATED]
        self._left = torch.empty(0, device=device)  # steps to go on for, int64 [*B, N]
        self._choose = torch.empty(0, device=device)  # at the step before, float [*B, N, A]

    def __call__(
        self, explore: Tensor, choose: Tensor, epsilon: float, generator: torch.Generator
    ) -> None:
        """Change, in place, the draws of a step where an agent goes on.

        Args:
            explore: float [*B, N], as drawn; where an agent goes on it becomes -1.
            choose: float [*B, N, A], as drawn; where an agent goes on it becomes that of before.
            epsilon: an agent begins to explore where ``explore`` is below it.
            generator: the random stream.
        """
        if self._left.shape != explore.shape:
            self._left = torch.zeros_like(explore, dtype=torch.int64)
            self._choose = choose.clone()
        goes_on = self._left > 0
        begins = (explore < epsilon) & ~goes_on
        explore.masked_fill_(goes_on, -1.0)
        choose.copy_(torch.where(goes_on.unsqueeze(-1), self._choose, choose))
        draw = torch.rand(explore.shape, generator=generator, device=explore.device)
        further = torch.searchsorted(self._up_to, draw)  # n - 1
        self._left = torch.where(begins, further, (self._left - 1).clamp(min=0))
        self._choose = choose.clone()


class RememberAction(TensorDictModuleBase):
    """Writes the one-hot action where the agent of the next step reads it."""

    in_keys = [ACTION]
    out_keys = [next_key(LAST_ACTION)]

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.n_actions = n_actions

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the one-hot actions, float [*B, N, A]."""
        one_hot = F.one_hot(tensordict.get(ACTION), self.n_actions).float()
        return tensordict.set(next_key(LAST_ACTION), one_hot)


class RandomPolicy(TensorDictModuleBase):
    """Draws each agent's action uniformly from its available ones.

    Args:
        n_actions: A.
        seed: of the random stream, which is this module's own.
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
        like = action_scores(tensordict, self.n_actions)
        mask = tensordict.get(ACTION_MASK, None)
        return tensordict.set(ACTION, random_action(like, mask, self.generator))


class NoOpPolicy(TensorDictModuleBase):
    """Gives each agent action 0, in VMAS "no force", or the first that is available.

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
        like = action_scores(tensordict, self.n_actions)
        return tensordict.set(ACTION, greedy_action(like, tensordict.get(ACTION_MASK, None)))


def action_scores(tensordict: TensorDictBase, n_actions: int) -> Tensor:
    """Return equal scores [*B, N, A] of all actions of the agents that observe."""
    observation = tensordict.get(OBSERVATION)
    return observation.new_zeros(*observation.shape[:-1], n_actions)


def make_policy(
    agent: TensorDictModuleBase, head: GreedyAction | EpsilonGreedyAction
) -> TensorDictSequential:
    """Return the agent with a head that chooses, and the memory of what was chosen."""
    return TensorDictSequential(agent, head, RememberAction(agent.n_actions))


def with_memory(env: EnvBase, agent: TensorDictModuleBase) -> TransformedEnv:
    """Return the environment with what the agent carries from step to step, zero at a reset."""
    memory = agent.memory_spec.to(env.device)
    return TransformedEnv(env, TensorDictPrimer(memory, expand_specs=True))
