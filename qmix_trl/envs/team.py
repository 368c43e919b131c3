"""The contract over any environment of TorchRL: ``TeamEnv``."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torch.nn.functional import one_hot
from torchrl.envs import AutoResetEnv, EnvBase, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase

from qmix_trl import keys
from qmix_trl.chosen import Chosen
from qmix_trl.envs.contract import (
    EnvDims,
    check_choice,
    check_resumed,
    check_sizes,
    env_name,
    env_repr,
    env_state,
    load_env_state,
    resets,
    set_flags,
    set_specs,
)
from qmix_trl.envs.team_layout import LayoutFinder, Path, TeamLayout
from qmix_trl.errors import ConfigError

TEAM_REWARDS = ("auto", "mean", "sum")


class TeamEnv(EnvBase):
    """One group of agents of any environment as a team under the contract of ``contract.py``.

    The environment keeps its own batch shape B, which may be empty. Its entries are found in its
    specs, whatever their names:

    - actions, one-hot or categorical, become categorical [*B, N];
    - observations become float32 [*B, N, O]; further dimensions are flattened;
    - the state is the environment's entry ``state``, or all observations, side by side;
    - the action mask is the group's entry ``action_mask``, or its only bool one [*B, N, A];
    - an agent that does not act, as PettingZoo's entry ``mask`` tells of dead ones, has one
      available action, the first one. Rewards are those that the environment gives;
    - the team is done when the environment is, or if it has no ``done``, when all its agents are.
      A team that is done and not terminated is truncated.

    Infos, and entries of other groups, are left out. A reset of some environments is passed on.

    Args:
        env: the environment. It must be reset by calls and not by itself.
        group: the team's group, if agents act in several.
        others: the policy of all other groups, such as TorchRL's ``RandomPolicy``: it reads a
            TensorDict of the environment and writes their actions.
        state: "world", the entry ``state``; "observations"; or "auto", the first where it exists.
        team_reward: "mean" or "sum" of the agents' rewards; or "auto", the reward that the
            environment gives to the team, and the mean where it gives none.
        max_steps: a time limit in steps, which truncates; None for the environment's own alone.
        keys: the keys of entries that are not found, or ambiguous, by these names:
            "observation", "state", "reward" of the team, "agent_reward", "action_mask" and
            "agent_mask" (the agents that act). None leaves out a mask.

    Attributes:
        env: the environment.
        how: the environment's class.
        layout: where the team's entries stand in it.

    Raises:
        ConfigError: if ``env`` is no ``EnvBase``, resets itself, has no team of agents with
            discrete actions and observations of one size, or an argument does not fit it.
    """

    batch_locked = True

    def __init__(
        self,
        env: EnvBase,
        *,
        group: NestedKey | None = None,
        others: Callable[[TensorDictBase], TensorDictBase] | None = None,
        state: str = "auto",
        team_reward: str = "auto",
        max_steps: int | None = None,
        keys: Mapping[str, NestedKey | None] | None = None,
    ) -> None:
        check_env(env)
        check_choice("team_reward", team_reward, TEAM_REWARDS)
        if max_steps is not None:
            check_sizes(max_steps=max_steps)
        super().__init__(device=env.device, batch_size=env.batch_size)
        self.env = env
        self.others = others
        self.max_steps = max_steps
        self.how = Chosen(env_name(env))
        self.layout = LayoutFinder(env, group, keys or {}).layout(state)
        self._team_reward = self._kind_of_reward(team_reward)
        self._check_others()
        # What the environment shows now, and the number of steps since the reset [*B, 1].
        self._current: TensorDictBase | None = None
        self._steps = torch.zeros(*env.batch_size, 1, dtype=torch.int64, device=self.device)
        layout = self.layout
        masks = (layout.action_mask, layout.agent_mask)
        set_specs(self, dims_of(layout, env.batch_size), masked=any(m is not None for m in masks))
        self.group_map = {"agents": agent_names(env, layout.group, layout.n_agents)}

    def __repr__(self) -> str:
        return env_repr(self)

    def _kind_of_reward(self, wanted: str) -> str:
        """Return "team", "mean" or "sum": the origin of the team's reward."""
        if wanted == "auto":
            return "mean" if self.layout.reward is None else "team"
        if self.layout.agent_reward is None:
            raise ConfigError(
                f"TeamEnv of {self.how}: team_reward={wanted!r}: expected rewards of the agents, "
                f"got the team's alone, {self.layout.reward}; take team_reward='auto'"
            )
        return wanted

    def _check_others(self) -> None:
        """Refuse groups without a policy, and a policy without groups."""
        if self.layout.others and self.others is None:
            raise ConfigError(
                f"TeamEnv of {self.how}: expected a policy that writes the other groups' actions, "
                f"{self.layout.others}, got none; give others=..., such as TorchRL's "
                "RandomPolicy(env.full_action_spec)"
            )
        if self.others is not None and not self.layout.others:
            raise ConfigError(
                f"TeamEnv of {self.how}: others: expected no policy, as all agents are in the "
                "team, got one; leave it out"
            )

    def run_state(self) -> dict[str, Any]:
        """Return all that later steps depend on; ``others`` has no state that is saved.

        Raises:
            TypeError: if the environment has no state that it could continue from.
        """
        return {"env": env_state(self.env), "current": self._current, "steps": self._steps}

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``run_state``.

        Raises:
            TypeError: if the environment cannot continue from a state.
            ValueError: if it is of a batch of another shape.
        """
        check_resumed("TeamEnv", state, steps=self._steps)
        load_env_state(self.env, state["env"])
        current = state["current"]
        if current is not None and self.device is not None:
            current = current.to(self.device)
        self._current, self._steps = current, state["steps"].to(self._steps.device)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs) -> TensorDictBase:
        reset = resets(self, tensordict, reset_when_done=True)  # [*B, 1]
        if self._current is None or reset.all():
            self._current = self.env.reset()
        elif reset.any():
            current = self._current.copy()
            groups = zip(self.env.reset_keys, self.env.done_keys_groups, strict=True)
            for key, (done, *_) in groups:
                current.set(key, self._spread(reset, self.env.full_done_spec[done].shape))
            self._current = self.env.reset(current, select_reset_only=True)
        self._steps = torch.where(reset, 0, self._steps)
        packed = self._observed(self._current).set(keys.IS_INIT, reset)
        return set_flags(packed, torch.zeros_like(reset), torch.zeros_like(reset))

    def _spread(self, flag: Tensor, shape: torch.Size) -> Tensor:
        """Return a flag of each environment [*B, 1] as flags [*B, ...]."""
        n = len(self.batch_size)
        return flag.reshape(*self.batch_size, *[1] * (len(shape) - n)).expand(shape).clone()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self._current is None:
            raise RuntimeError("TeamEnv: expected a call of reset before the first step")
        current = self._with_actions(self._current.exclude("_step"), tensordict.get(keys.ACTION))
        stepping = tensordict.get("_step", None)  # [*B], TorchRL's entry for steps of some
        if stepping is not None:
            current.set("_step", stepping)
        stepped = self.env.step(current)
        self._current = self.env.step_mdp(stepped)
        after = stepped.get("next")
        self._steps = self._steps + (1 if stepping is None else stepping.reshape(self._steps.shape))
        packed = self._observed(after)
        agent_reward, reward = self._rewards(after)
        packed.set(keys.AGENT_REWARD, agent_reward)
        packed.set(keys.REWARD, reward)
        done, terminated = (
            self._of_whole_team(after, key) for key in (self.layout.done, self.layout.terminated)
        )
        packed.set(keys.IS_INIT, torch.zeros_like(done))
        truncated = done & ~terminated
        if self.max_steps is not None:
            truncated = truncated | (self._steps >= self.max_steps)
        return set_flags(packed, terminated, truncated)

    def _with_actions(self, current: TensorDictBase, action: Tensor) -> TensorDictBase:
        """Return the environment's TensorDict with the actions of all agents.

        Args:
            current: that TensorDict, without these actions.
            action: the team's, int64 [*B, N].

        Raises:
            ConfigError: if the policy of the other groups does not write their actions.
        """
        layout = self.layout
        if self.others is not None:
            current = self.others(current)
            missing = [key for key in layout.others if current.get(key, None) is None]
            if missing:
                raise ConfigError(
                    f"TeamEnv of {self.how}: others: expected a policy that writes the actions of "
                    f"all other groups, got one without {missing}"
                )
        if layout.one_hot:
            action = one_hot(action, layout.n_actions).to(self._action_dtype)
        return current.set(layout.action, action.reshape(layout.shapes[layout.action]))

    @property
    def _action_dtype(self) -> torch.dtype:
        return self.env.full_action_spec[self.layout.action].dtype

    def _entry(self, shown: TensorDictBase, key: Path) -> Tensor:
        """Return an entry of the environment.

        Raises:
            ConfigError: if it is missing, or has another shape than its spec.
        """
        entry, shape = shown.get(key, None), self.layout.shapes[key]
        if entry is None or entry.shape != shape:
            got = "none" if entry is None else list(entry.shape)
            raise ConfigError(
                f"TeamEnv of {self.how}: expected an entry {key} of {list(shape)}, as the "
                f"environment's spec says, got {got}; run TorchRL's check_env_specs on it"
            )
        return entry

    def _observed(self, shown: TensorDictBase) -> TensorDict:
        """Return observations, the mask of actions and the state, as a TensorDict [*B]."""
        layout, n = self.layout, len(self.batch_size)
        shape = (*self.batch_size, layout.n_agents)
        # Copies: what follows may change entries in place, and the environment reads its own.
        observation = self._entry(shown, layout.observation).to(torch.float32, copy=True)
        observation = observation.reshape(*shape, -1)
        team = TensorDict({"observation": observation}, shape, device=self.device)
        if layout.action_mask is not None or layout.agent_mask is not None:
            team.set(keys.ACTION_MASK[-1], self._mask(shown))
        packed = TensorDict({"agents": team}, self.batch_size, device=self.device)
        if layout.state is None:
            return packed.set(keys.STATE, observation.flatten(n).clone())
        state = self._entry(shown, layout.state).to(torch.float32, copy=True)
        return packed.set(keys.STATE, state if state.dim() > n else state.unsqueeze(-1))

    def _mask(self, shown: TensorDictBase) -> Tensor:
        """Return the available actions, bool [*B, N, A]: one of an agent that does not act."""
        layout = self.layout
        shape = (*self.batch_size, layout.n_agents, layout.n_actions)
        if layout.action_mask is None:
            mask = torch.ones(shape, dtype=torch.bool, device=self.device)
        else:
            mask = self._entry(shown, layout.action_mask).to(torch.bool, copy=True)
        if layout.agent_mask is None:
            return mask
        acts = self._entry(shown, layout.agent_mask).to(torch.bool).reshape(*shape[:-1], 1)
        first = one_hot(mask.int().argmax(-1), layout.n_actions).to(torch.bool)
        return torch.where(acts, mask, first)

    def _rewards(self, after: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Return the agents' rewards float32 [*B, N, 1] and the team's [*B, 1]."""
        layout = self.layout
        shape = (*self.batch_size, layout.n_agents, 1)
        of_team = of_agents = None
        if layout.reward is not None:
            of_team = self._entry(after, layout.reward).to(torch.float32, copy=True)
            of_team = of_team.reshape(*self.batch_size, 1)
        if layout.agent_reward is not None:
            of_agents = self._entry(after, layout.agent_reward).to(torch.float32, copy=True)
            of_agents = of_agents.reshape(shape)
        if self._team_reward != "team":
            mean = self._team_reward == "mean"
            return of_agents, of_agents.mean(-2) if mean else of_agents.sum(-2)
        if of_agents is None:
            of_agents = of_team.unsqueeze(-2).expand(shape).clone()
        return of_agents, of_team

    def _of_whole_team(self, after: TensorDictBase, key: Path) -> Tensor:
        """Return a flag of the environment, or whether all agents have it: bool [*B, 1]."""
        return self._entry(after, key).reshape(*self.batch_size, -1).all(-1, keepdim=True)

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        """Seed the environment; return the seed that another one would take."""
        return self.env.set_seed(seed, static_seed=static_seed)

    def _set_seed(self, seed: int | None) -> None:
        self.env.set_seed(seed)

    def render(self, *args, **kwargs) -> Any:
        """Return the environment's picture, drawn by its own ``render``.

        Args:
            *args: of that method.
            **kwargs: of that method.
        """
        return self.env.render(*args, **kwargs)

    def to(self, device: torch.device | str) -> "TeamEnv":
        """Move the environment to a device; reset it before the next step."""
        self.env = self.env.to(device)
        self._current, self._steps = None, self._steps.to(device)
        return super().to(device)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environment."""
        super().close(raise_if_closed=raise_if_closed)
        self.env.close(raise_if_closed=raise_if_closed)


def check_env(env: Any) -> None:
    """Refuse all but environments of TorchRL that are reset by calls.

    Raises:
        ConfigError: if it is one of these.
    """
    if not isinstance(env, EnvBase):
        raise ConfigError(
            f"TeamEnv: expected an EnvBase of TorchRL, got {type(env).__name__}; wrap it first, "
            "for PettingZoo by PettingZooWrapper(env)"
        )
    if any(isinstance(each, AutoResetEnv) or is_auto_reset(each) for each in nested(env)):
        raise ConfigError(
            f"TeamEnv: expected an environment that is reset by calls, got {env_name(env)}, which "
            "resets itself and loses the last observation of each episode; make it without "
            "auto_reset"
        )


def nested(env: EnvBase) -> list[EnvBase]:
    """Return an environment, and the one that its transforms wrap, and so on inwards."""
    inside = nested(env.base_env) if isinstance(env, TransformedEnv) else []
    return [env, *inside]


def is_auto_reset(env: EnvBase) -> bool:
    """Return whether an environment resets itself, as TorchRL marks it."""
    return bool(vars(env).get("_torchrl_native_autoreset", False))


def dims_of(layout: TeamLayout, batch: torch.Size) -> EnvDims:
    """Return a team's sizes.

    Args:
        layout: of the team.
        batch: the shape of the environment's batch.
    """
    n = len(batch)
    observation = layout.shapes[layout.observation][n + 1 :]
    whole = torch.Size([layout.n_agents * observation.numel()])
    state = whole if layout.state is None else layout.shapes[layout.state][n:]
    return EnvDims(
        n_agents=layout.n_agents,
        observation_dim=observation.numel(),
        n_actions=layout.n_actions,
        state_shape=state or torch.Size([1]),
    )


def agent_names(env: EnvBase, group: Path, n_agents: int) -> list[str]:
    """Return the names of a group's agents, of the environment's ``group_map`` if it has one."""
    base = nested(env)[-1]
    # Batched environments would ask their workers, which may not have started.
    known = None if isinstance(base, BatchedEnvBase) else getattr(base, "group_map", None)
    names = known.get(group[-1]) if isinstance(known, Mapping) and group else None
    return list(names) if names is not None else [f"agent_{i}" for i in range(n_agents)]
