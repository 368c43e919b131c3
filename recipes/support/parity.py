"""The comparison of an exported policy with its agent in the steps of an environment."""

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from qmix_trl import GreedyAction, make_policy, with_memory
from qmix_trl.export import FilePolicy, PlainPolicy
from qmix_trl.functional import value_of
from qmix_trl.keys import ACTION, ACTION_MASK, ACTION_VALUE, IS_INIT, OBSERVATION

OBSERVED = {"observation": OBSERVATION, "action_mask": ACTION_MASK}  # inputs of each step
CARRIED = ("last_action", "hidden")  # inputs from the step before
TOLERANCE = 1e-5  # of action values, relative to the largest one where that is above 1


@dataclass(frozen=True)
class Parity:
    """The differences of an exported policy from its agent.

    Attributes:
        steps: of the environment.
        decisions: the number of decisions of all agents in them.
        other_actions: decisions in which the file chooses a worse action; ties are none.
        difference: the largest difference of action values.
        largest_value: the largest action value, without its sign.
    """

    steps: int
    decisions: int
    other_actions: int
    difference: float
    largest_value: float

    @property
    def holds(self) -> bool:
        """Whether no action differs, and no action value by more than ``TOLERANCE``."""
        return not self.other_actions and self.difference <= self._tolerance

    @property
    def _tolerance(self) -> float:
        return TOLERANCE * max(1.0, self.largest_value)

    def __str__(self) -> str:
        return (
            f"{self.other_actions} of {self.decisions:,} actions in {self.steps} steps differ; "
            f"|dQ| <= {self.difference:.1e} (tolerance {self._tolerance:.1e})"
        )


@torch.no_grad()
def parity(
    env: EnvBase,
    agent: TensorDictModuleBase,
    policy: PlainPolicy,
    run: FilePolicy,
    *,
    n_steps: int,
) -> Parity:
    """Return the differences of a file from its agent in greedy steps of an environment.

    The file gets the agent's observations, masks and last actions. It carries a hidden state of
    its own, so that differences add up.

    Args:
        env: [E]; it resets each environment that is done.
        agent: acts in it.
        policy: the agent's, which was exported.
        run: the policy in the file.
        n_steps: T.
    """
    acting = make_policy(agent, GreedyAction())
    batch = with_memory(env, agent).rollout(n_steps, acting, break_when_any_done=False)
    batch = batch.reshape(-1, batch.shape[-1])  # [E, T]
    action, values = batch[ACTION], batch[ACTION_VALUE]
    its_action, its_values = _decisions(batch, policy, run)
    largest = values.abs().max().item()
    loss = value_of(values, action) - value_of(values, its_action)  # [E, T, N, 1]
    is_tie = loss[..., 0].abs() <= 2 * TOLERANCE * max(1.0, largest)
    return Parity(
        steps=batch.shape[1],
        decisions=action.numel(),
        other_actions=int(((action != its_action) & ~is_tie).sum()),
        difference=(values - its_values).abs().max().item(),
        largest_value=largest,
    )


def _decisions(
    batch: TensorDictBase, policy: PlainPolicy, run: FilePolicy
) -> tuple[Tensor, Tensor]:
    """Return the actions and action values of a file for the steps of an agent.

    Args:
        batch: [E, T], of the agent.
        policy: the agent's, which was exported.
        run: the policy in the file.

    Returns:
        int64 [E, T, N] and float [E, T, N, A].
    """
    n_envs, n_agents = batch.shape[0], batch[ACTION].shape[-1]
    first = policy.inputs(n_envs * n_agents)  # of B = E N decisions
    carried, found = {name: first[name] for name in CARRIED if name in first}, []
    for step in batch.unbind(1):  # [E]
        begins = step[IS_INIT].expand(n_envs, n_agents).flatten()  # [B]
        inputs = dict(first)
        for name, value in carried.items():
            starts = begins.reshape(-1, *[1] * (value.dim() - 1))
            inputs[name] = torch.where(starts, first[name], value)
        for name, key in OBSERVED.items():
            if name in first:
                inputs[name] = step[key].flatten(0, 1)
        action, values, *hidden = run(inputs)
        found.append((action, values))
        after = {"last_action": step[ACTION].flatten(), "hidden": hidden[0] if hidden else None}
        carried = {name: after[name] for name in carried}
    actions, values = (torch.stack(x) for x in zip(*found, strict=True))  # [T, B, ..]
    per_step = (x.unflatten(1, (n_envs, n_agents)).transpose(0, 1) for x in (actions, values))
    return tuple(per_step)
