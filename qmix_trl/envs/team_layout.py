"""Where a team's entries stand in an environment of any layout, found in its specs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tensordict import NestedKey, unravel_key
from torchrl.data import (
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    TensorSpec,
)
from torchrl.data.tensor_specs import Stacked, StackedComposite
from torchrl.envs import EnvBase

from qmix_trl.envs.contract import env_name
from qmix_trl.errors import ConfigError, nearest

Path = tuple[str, ...]  # a key, or the key of a group; () is the root
# The entries that ``keys`` can name; None leaves out one of the optional ones.
OPTIONAL = ("action_mask", "agent_mask")
NAMED = ("observation", "state", "reward", "agent_reward", *OPTIONAL)
STATES = ("auto", "world", "observations")
INFO = "info"  # TorchRL's entry for numbers that are no observations


@dataclass(frozen=True, kw_only=True)
class TeamLayout:
    """The keys of a team's entries and the team's sizes; the shapes begin with the batch's, B.

    Attributes:
        group: the key of the team's group of agents.
        others: the keys of the actions of all other groups.
        n_agents: N.
        n_actions: A.
        observation: [*B, N, ...].
        state: [*B, ...]; None for all observations.
        action: [*B, N] or [*B, N, 1], or with ``one_hot`` [*B, N, A].
        one_hot: whether actions are one-hot.
        action_mask: [*B, N, A], the available actions; None if all are available.
        agent_mask: [*B, N] or [*B, N, 1], the agents that act; None if all do.
        reward: the team's, [*B, 1]; None if agents alone have rewards.
        agent_reward: the agents', [*B, N, 1]; None if the team alone has one.
        done: of the team, or of its agents, [*B, ..., 1].
        terminated: of the same shape.
        shapes: the shape of each entry by its key.
    """

    group: Path
    others: list[Path]
    n_agents: int
    n_actions: int
    observation: Path
    state: Path | None
    action: Path
    one_hot: bool
    action_mask: Path | None
    agent_mask: Path | None
    reward: Path | None
    agent_reward: Path | None
    done: Path
    terminated: Path
    shapes: Mapping[Path, torch.Size]


def as_path(key: NestedKey) -> Path:
    """Return a key as a tuple of strings."""
    flat = unravel_key(key)
    return (flat,) if isinstance(flat, str) else flat


def leaves(spec: Composite) -> dict[Path, TensorSpec]:
    """Return the entries of a spec by key."""
    return {as_path(key): spec[key] for key in spec.keys(True, True)}


def shown(keys: Mapping[Path, TensorSpec]) -> str:
    """Return entries with their shapes, as an error lists them."""
    listed = (f"{_spelt(key)} {list(spec.shape)}" for key, spec in keys.items())
    return ", ".join(listed) or "none"


def _spelt(key: Path) -> str:
    """Return a key as a user writes it."""
    return repr(key[0] if len(key) == 1 else key)


class LayoutFinder:
    """Finds the layout of an environment's team.

    Args:
        env: the environment.
        group: the team's group; None if there is one.
        keys: the keys of entries by their names in ``NAMED``; all others are found.

    Raises:
        ConfigError: if an entry is not found, there are several that might be it, or it has a
            shape or a type that a team cannot have.
    """

    def __init__(
        self, env: EnvBase, group: NestedKey | None, keys: Mapping[str, NestedKey | None]
    ) -> None:
        self.name = f"TeamEnv of {env_name(env)}"
        self.batch = env.batch_size
        for name, key in keys.items():
            if name not in NAMED:
                raise self.wrong(
                    f"keys: unknown entry {name!r}{nearest(name, NAMED)}; known: {', '.join(NAMED)}"
                )
            if key is None and name not in OPTIONAL:
                raise self.wrong(
                    f"keys: expected a key of {name!r}, got None; only {' and '.join(OPTIONAL)} "
                    "can be left out"
                )
        self.keys = keys
        self.actions = leaves(env.full_action_spec)
        self.action = self._action_key(group)
        self.group = self.action[:-1]
        for spec in (env.full_action_spec, env.observation_spec, env.full_reward_spec):
            self._check_alike(spec)
        self.one_hot, self.n_agents, self.n_actions = self._sizes(self.actions[self.action])
        self.team = torch.Size((*self.batch, self.n_agents))
        self.observed = leaves(env.observation_spec)
        self.rewards = leaves(env.full_reward_spec)
        self.dones = leaves(env.full_done_spec)

    def wrong(self, message: str) -> ConfigError:
        """Return an error that names the environment."""
        return ConfigError(f"{self.name}: {message}")

    def layout(self, state: str) -> TeamLayout:
        """Return the layout.

        Args:
            state: one of ``STATES``.
        """
        action_mask, agent_mask = self._action_mask(), self._agent_mask()
        done, terminated = self._flags()
        agent_reward, reward = self._rewards()
        found = {
            "observation": self._observation({action_mask, agent_mask, self._own_state(state)}),
            "state": self._own_state(state),
            "action": self.action,
            "action_mask": action_mask,
            "agent_mask": agent_mask,
            "reward": reward,
            "agent_reward": agent_reward,
            "done": done,
            "terminated": terminated,
        }
        specs = {**self.observed, **self.rewards, **self.dones, **self.actions}
        return TeamLayout(
            group=self.group,
            others=[key for key in self.actions if key != self.action],
            n_agents=self.n_agents,
            n_actions=self.n_actions,
            one_hot=self.one_hot,
            shapes={key: specs[key].shape for key in found.values() if key is not None},
            **found,
        )

    def _action_key(self, group: NestedKey | None) -> Path:
        """Return the key of the team's actions."""
        groups = {key[:-1]: [k for k in self.actions if k[:-1] == key[:-1]] for key in self.actions}
        names = ", ".join(_spelt(g) if g else "the root" for g in groups)
        if group is None and len(groups) > 1:
            raise self.wrong(
                f"agents act in several groups: {names}; choose the team, e.g. "
                f"group={_spelt(next(iter(groups)))}, and a policy of the others, others=..."
            )
        chosen = next(iter(groups), ()) if group is None else as_path(group)
        if chosen not in groups:
            near = nearest(str(group), [g[-1] for g in groups if g])
            raise self.wrong(
                f"expected a group of agents that act, got {group!r}{near}; it has: {names}"
            )
        if len(groups[chosen]) > 1:
            raise self.wrong(
                f"expected one action of each agent, got {', '.join(map(_spelt, groups[chosen]))}; "
                "combine them to one discrete action"
            )
        return groups[chosen][0]

    def _check_alike(self, spec: Composite) -> None:
        """Refuse a group whose agents differ in shapes."""
        own = spec[self.group] if self.group and self.group in spec.keys(True) else spec
        parts = [own, *own.values(True, True)] if isinstance(own, Composite) else [own]
        if any(isinstance(part, (Stacked, StackedComposite)) for part in parts):
            raise self.wrong(
                f"expected entries of one shape for all agents of group {_spelt(self.group)}, got "
                "agents that differ; pad observations and actions to one size (of PettingZoo by "
                "SuperSuit's pad_observations_v0 and pad_action_space_v0), or take a smaller group"
            )

    def _sizes(self, spec: TensorSpec) -> tuple[bool, int, int]:
        """Return whether actions are one-hot, the number of agents, and that of actions."""
        one_hot = isinstance(spec, OneHot) and not isinstance(spec, MultiOneHot)
        numbers = isinstance(spec, Categorical) and not isinstance(spec, MultiCategorical)
        if not (one_hot or numbers):
            raise self.wrong(
                f"expected discrete actions {_spelt(self.action)}, one for each agent, got "
                f"{type(spec).__name__}; make the environment with discrete actions (VmasEnv: "
                "continuous_actions=False)"
            )
        n_actions, own = int(spec.space.n), spec.shape[len(self.batch) :]
        if not own or own[1:] not in ([(n_actions,)] if one_hot else [(), (1,)]):
            raise self.wrong(
                f"expected actions {_spelt(self.action)} [*B, N] of N agents in a batch of shape "
                f"B = {list(self.batch)}, got {list(spec.shape)}; give the agents' entries that "
                "axis, those of a single agent with N = 1"
            )
        return one_hot, own[0], n_actions

    def _of_group(self, entries: Mapping[Path, TensorSpec]) -> dict[Path, TensorSpec]:
        """Return the entries of the team's group; the root's own ones if that is the group."""
        depth = len(self.group)
        return {
            key: spec
            for key, spec in entries.items()
            if key[:depth] == self.group and (depth or len(key) == 1)
        }

    def _named(self, name: str, entries: Mapping[Path, TensorSpec]) -> Path | None:
        """Return the key that the user gives an entry; None if the user gives none."""
        if self.keys.get(name) is None:
            return None
        key = as_path(self.keys[name])
        if key not in entries:
            raise self.wrong(f"keys: expected {name!r} among {shown(entries)}; got {_spelt(key)}")
        return key

    def _observation(self, taken: set[Path | None]) -> Path:
        named = self._named("observation", self.observed)
        inside = self._of_group(self.observed)
        found = {
            key: spec
            for key, spec in inside.items()
            if spec.dtype != torch.bool
            and spec.shape[: len(self.team)] == self.team
            and key not in taken
            and INFO not in key
        }
        if named is not None:
            if self.observed[named].shape[: len(self.team)] != self.team:
                raise self._misshapen(named, self.observed, f"{list(self.team)} and more")
            return named
        usual = [key for key in found if key[-1] == "observation"]
        if len(usual) == 1 or len(found) == 1:
            return usual[0] if usual else next(iter(found))
        wanted = "one" if found else f"an entry of shape {[*self.team, '...']}"
        raise self.wrong(
            f"expected {wanted} as the agents' observation, got {shown(found or inside)}; name it "
            "by keys={'observation': ...}, or join entries by TorchRL's CatTensors"
        )

    def _misshapen(self, key: Path, entries: Mapping[Path, TensorSpec], wanted: str) -> ConfigError:
        return self.wrong(f"expected {_spelt(key)} of {wanted}, got {list(entries[key].shape)}")

    def _own_state(self, state: str) -> Path | None:
        """Return the key of the environment's state; None for all observations."""
        if state not in STATES:
            raise self.wrong(f"state: expected one of {', '.join(STATES)}, got {state!r}")
        key = self._named("state", self.observed) or ("state",)
        if state == "observations" or (state == "auto" and key not in self.observed):
            if "state" in self.keys:
                raise self.wrong("keys: expected no 'state' with state='observations', got one")
            return None
        if key not in self.observed:
            raise self.wrong(
                f"state='world': expected an entry 'state', got {shown(self.observed)}; name it by "
                "keys={'state': ...}, or take state='observations'"
            )
        if self.observed[key].shape[: len(self.batch)] != self.batch:
            raise self._misshapen(key, self.observed, f"{list(self.batch)} and more")
        return key

    def _action_mask(self) -> Path | None:
        if "action_mask" in self.keys and self.keys["action_mask"] is None:
            return None
        shape = (*self.team, self.n_actions)
        key = self._named("action_mask", self.observed)
        if key is None:
            inside = self._of_group(self.observed)
            usual = [k for k in inside if k[-1] == "action_mask"]
            flags = [k for k, spec in inside.items() if spec.dtype == torch.bool]
            found = usual or [k for k in flags if inside[k].shape == shape]
            if len(found) > 1:
                raise self.wrong(
                    f"expected one mask of actions, got {', '.join(map(_spelt, found))}; name it "
                    "by keys={'action_mask': ...}, or None for none"
                )
            key = found[0] if found else None
        if key is not None and self.observed[key].shape != shape:
            raise self._misshapen(key, self.observed, str(list(shape)))
        return key

    def _agent_mask(self) -> Path | None:
        key = self._named("agent_mask", self.observed)
        shapes = (self.team, (*self.team, 1))
        if key is not None and self.observed[key].shape not in shapes:
            raise self._misshapen(key, self.observed, str(list(self.team)))
        if key is not None or "agent_mask" in self.keys:
            return key
        usual = (*self.group, "mask")  # PettingZoo's
        spec = self.observed.get(usual)
        is_one = spec is not None and spec.dtype == torch.bool and spec.shape in shapes
        return usual if is_one else None

    def _rewards(self) -> tuple[Path | None, Path | None]:
        """Return the keys of the agents' rewards and of the team's; None for a missing one."""
        of_agents = [(*self.team, 1), tuple(self.team)]
        of_team = [(*self.batch, 1), tuple(self.batch)]
        inside = self._of_group(self.rewards)
        agents = self._one_reward("agent_reward", inside, of_agents)
        outside = {key: spec for key, spec in self.rewards.items() if len(key) == 1}
        team = self._one_reward(
            "reward", {key: spec for key, spec in outside.items() if key != agents}, of_team
        )
        if agents is None and team is None:
            raise self.wrong(
                f"expected rewards of the agents {list(of_agents[0])} or of the team "
                f"{list(of_team[0])}, got {shown(self.rewards)}"
            )
        return agents, team

    def _one_reward(
        self, name: str, entries: Mapping[Path, TensorSpec], shapes: list[tuple[int, ...]]
    ) -> Path | None:
        """Return the key of the only reward of some shapes; None if there is none."""
        named = self._named(name, self.rewards)
        if named is not None:
            if tuple(self.rewards[named].shape) not in shapes:
                raise self._misshapen(named, self.rewards, str(list(shapes[0])))
            return named
        found = [key for key, spec in entries.items() if tuple(spec.shape) in shapes]
        if len(found) > 1:
            raise self.wrong(
                f"expected one {name}, got {', '.join(map(_spelt, found))}; name it by "
                f"keys={{{name!r}: ...}}"
            )
        return found[0] if found else None

    def _flags(self) -> tuple[Path, Path]:
        """Return the keys of ``done`` and ``terminated``: the root's, or the group's."""
        for prefix in ((), self.group):
            done, terminated = (*prefix, "done"), (*prefix, "terminated")
            if done in self.dones:
                return done, terminated if terminated in self.dones else done
        raise self.wrong(
            f"expected an entry 'done' of the environment or of group {_spelt(self.group)}, got "
            f"{shown(self.dones)}"
        )
