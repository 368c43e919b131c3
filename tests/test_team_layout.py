"""Layouts that a team is found in, and those that are refused in one line."""

from dataclasses import replace

import pytest
import torch
from team_tools import AnyEnv, Layout
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, Unbounded
from torchrl.modules import RandomPolicy

from qmix_trl.envs.team import TeamEnv
from qmix_trl.errors import ConfigError

PLAIN = Layout()
WITH_PREY = Layout(group="hunters", prey=True)


def changed(*, layout=PLAIN, observation=None, action=None, reward=None, done=None):
    """Return an environment with entries of its specs replaced or added; None removes one."""
    env = AnyEnv(layout)
    for name, entries in (("observation", observation), ("action", action), ("reward", reward)):
        spec = getattr(env, f"full_{name}_spec").clone()
        for key, leaf in (entries or {}).items():
            if leaf is None:
                del spec[key]
            else:
                spec[key] = leaf
        setattr(env, f"full_{name}_spec" if name != "observation" else "observation_spec", spec)
    if done is not None:
        env.done_spec = done
    return env


def refusal(make):
    """Return the message of the refusal, asserted to be one line."""
    with pytest.raises(ConfigError) as caught:
        make()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert message.startswith(("TeamEnv", "env.")), message
    return message


def prey_policy(env):
    """Return a policy of random actions of the second group."""
    return RandomPolicy(Composite(prey=env.full_action_spec["prey"], shape=env.batch_size))


def of_two(dims):
    """Return the spec of a group whose agents observe different numbers."""
    return torch.stack([Composite(observation=Unbounded((2, n)), shape=(2,)) for n in dims], 1)


def of_flags(n):
    """Return the spec of n flags of each agent."""
    return Binary(n, (*TEAM, n), dtype=torch.bool)


HUNTERS = AnyEnv(WITH_PREY)
TEAM = (2, 2)  # two environments of two agents
TWO_NUMBERS = MultiCategorical([2, 3], (*TEAM, 2))

REFUSED = {
    "no environment": (lambda: TeamEnv("simple_spread"), "an EnvBase of TorchRL, got str"),
    "several groups": (lambda: TeamEnv(HUNTERS), "'hunters', 'prey'; choose the team"),
    "an unknown group": (lambda: TeamEnv(HUNTERS, group="hunter"), "did you mean 'hunters'?"),
    "others without a policy": (
        lambda: TeamEnv(HUNTERS, group="hunters"),
        "a policy that writes the other groups' actions, [('prey', 'action')], got none",
    ),
    "a policy without others": (
        lambda: TeamEnv(AnyEnv(), others=prey_policy(HUNTERS)),
        "others: expected no policy",
    ),
    "an unknown name": (lambda: TeamEnv(AnyEnv(), keys={"mask": "x"}), "unknown entry 'mask'"),
    "no observation": (
        lambda: TeamEnv(AnyEnv(), keys={"observation": None}),
        "expected a key of 'observation', got None",
    ),
    "a key that is not there": (
        lambda: TeamEnv(AnyEnv(), keys={"observation": ("agents", "pixels")}),
        "'observation' among ('agents', 'observation') [2, 2, 5]",
    ),
    "a key of another shape": (
        lambda: TeamEnv(AnyEnv(), keys={"observation": "state"}),
        "expected 'state' of [2, 2] and more, got [2, 3]",
    ),
    "continuous actions": (
        lambda: TeamEnv(changed(action={("agents", "action"): Bounded(-1, 1, (*TEAM, 2))})),
        "discrete actions ('agents', 'action'), one for each agent, got Bounded",
    ),
    "several actions at once": (
        lambda: TeamEnv(changed(action={("agents", "action"): TWO_NUMBERS})),
        "got MultiCategorical",
    ),
    "two actions": (
        lambda: TeamEnv(changed(action={("agents", "say"): Categorical(2, TEAM)})),
        "one action of each agent, got ('agents', 'action'), ('agents', 'say')",
    ),
    "no axis of agents": (
        lambda: TeamEnv(
            changed(
                layout=replace(PLAIN, group=None),
                action={"action": Categorical(2, (2,))},
            )
        ),
        "[*B, N] of N agents in a batch of shape B = [2], got [2]",
    ),
    "two observations": (
        lambda: TeamEnv(
            changed(
                observation={
                    ("agents", "observation"): None,
                    ("agents", "near"): Unbounded((*TEAM, 3)),
                    ("agents", "far"): Unbounded((*TEAM, 4)),
                }
            )
        ),
        "('agents', 'near') [2, 2, 3], ('agents', 'far') [2, 2, 4]; name it by keys=",
    ),
    "agents that differ": (
        lambda: TeamEnv(changed(observation={"agents": of_two((3, 4))})),
        "entries of one shape for all agents of group 'agents'",
    ),
    "a mask of another shape": (
        lambda: TeamEnv(changed(observation={("agents", "action_mask"): of_flags(4)})),
        "expected ('agents', 'action_mask') of [2, 2, 3], got [2, 2, 4]",
    ),
    "two masks": (
        lambda: TeamEnv(
            changed(
                layout=replace(PLAIN, action_mask="can"),
                observation={("agents", "may"): of_flags(3)},
            )
        ),
        "one mask of actions, got ('agents', 'can'), ('agents', 'may')",
    ),
    "no state": (
        lambda: TeamEnv(AnyEnv(replace(PLAIN, state=None)), state="world"),
        "state='world': expected an entry 'state', got ('agents', 'observation')",
    ),
    "a state that is not asked for": (
        lambda: TeamEnv(AnyEnv(), state="observations", keys={"state": "state"}),
        "expected no 'state' with state='observations'",
    ),
    "an unknown state": (lambda: TeamEnv(AnyEnv(), state="words"), "state: expected one of auto"),
    "no rewards": (
        lambda: TeamEnv(changed(reward={("agents", "reward"): Unbounded((*TEAM, 2))})),
        "rewards of the agents [2, 2, 1] or of the team [2, 1], got ('agents', 'reward') [2, 2, 2]",
    ),
    "two rewards": (
        lambda: TeamEnv(changed(reward={("agents", "bonus"): Unbounded((*TEAM, 1))})),
        "one agent_reward, got ('agents', 'reward'), ('agents', 'bonus')",
    ),
    "the mean of one reward": (
        lambda: TeamEnv(
            AnyEnv(replace(PLAIN, agent_reward=None, team_reward="score")), team_reward="mean"
        ),
        "team_reward='mean': expected rewards of the agents",
    ),
    "an unknown team reward": (
        lambda: TeamEnv(AnyEnv(), team_reward="max"),
        "env.team_reward: expected one of auto, mean, sum",
    ),
    "no time": (lambda: TeamEnv(AnyEnv(), max_steps=0), "env.max_steps: expected at least 1"),
    "flags of another group": (
        lambda: TeamEnv(
            AnyEnv(replace(WITH_PREY, agent_flags=True, team_flags=False)),
            group="prey",
            others=prey_policy(HUNTERS),
        ),
        "expected an entry 'done' of the environment or of group 'prey'",
    ),
    "resets of its own": (lambda: TeamEnv(AutoEnv(auto_reset=True)), "which resets itself"),
}


class AutoEnv(AnyEnv):
    """The environment as one that TorchRL takes for resetting itself."""

    def __init__(self, **kwargs):
        super().__init__()


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case):
    make, part = REFUSED[case]
    assert part in refusal(make)
