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
    appendix C). It explores whatever TorchRL's exploration type is: evaluate by ``GreedyAction``.

    Args:
        epsilon_start: at frame 0, in [0, 1].
        epsilon_end: from ``anneal_frames`` on, in [0, 1].
        anneal_frames: the frames from one to the other; 0 for ``epsilon_end`` at once.
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
        self.epsilon_start = epsilon_start
        self.epsilon_end = epsilon_end
        self.anneal_frames = anneal_frames
        self.frames = 0
        self.generator = torch.Generator(device).manual_seed(seed)

    @property
    def epsilon(self) -> float:
        """The probability with which an agent explores."""
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
        greedy = greedy_action(values, mask)
        draw = torch.rand(greedy.shape, generator=self.generator, device=values.device)
        explored = random_action(values, mask, self.generator)
        return tensordict.set(ACTION, torch.where(draw < self.epsilon, explored, greedy))

    def draws(self, n_steps: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Draw ahead what ``forward`` draws in so many steps.

        Args:
            n_steps: T.
            shape: of the action values, [*B, N, A].

        Returns:
            float [T, *B, N] in [0, 1), an agent explores where it is below epsilon; and float
            [T, *B, N, A], an agent that explores takes the action of the highest.
        """
        device = self.generator.device
        explore = torch.empty(n_steps, *shape[:-1], device=device)
        choose = torch.empty(n_steps, *shape, device=device)
        for t in range(n_steps):
            explore[t].uniform_(generator=self.generator)
            choose[t].uniform_(generator=self.generator)
        return explore, choose


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
