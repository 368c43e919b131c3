"""Environments of other packages, stepped one by one in Python, as a team under the contract."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from qmix_trl import keys
from qmix_trl.chosen import Chosen
from qmix_trl.envs.contract import check_resumed, env_repr, resets, set_flags, set_specs
from qmix_trl.envs.single_env import Shown, SingleEnv, dims_of

NO_EPISODE = -1  # in place of a seed, before the first reset
# The arguments of a ``PythonTeam``, by which a copy is made in another process.
RECIPE = (
    *("make", "n_envs", "max_steps", "team_reward", "reproduces", "first", "device"),
    "reset_when_done",
)
SAVED = ("episodes", "seeds", "steps", "actions", "observation")  # of ``PythonTeam.saved_episodes``
SHOWN_KEYS = (keys.OBSERVATION, keys.STATE, keys.ACTION_MASK)  # of the fields of ``Shown``


def episode_seed(seed: int, number: int, episode: int) -> int:
    """Return the seed of an episode, at most 2^31 - 1.

    Args:
        seed: of all environments.
        number: of the environment.
        episode: its number in the environment.
    """
    return int(np.random.SeedSequence([seed, number, episode]).generate_state(1)[0]) >> 1


@dataclass(frozen=True)
class Buffers:
    """T steps of E environments, on the CPU.

    Attributes:
        before: all that is shown before each step, [E, T, ...] by key.
        after: the same after each step, before a reset.
        action: int64 [E, T, N].
        agent_reward: float32 [E, T, N].
        terminated: bool [E, T].
        truncated: bool [E, T].
    """

    before: dict[NestedKey, Tensor]
    after: dict[NestedKey, Tensor]
    action: Tensor
    agent_reward: Tensor
    terminated: Tensor
    truncated: Tensor


class PythonTeam(EnvBase):
    """Environments of another package, stepped in a loop; made by ``make_team``.

    Each episode has a seed of its own, by the team's seed, the number of the environment and that
    of its episode. So a running episode is resumed by taking its actions again from its seed.

    Args:
        make: makes one of the environments.
        n_envs: E.
        max_steps: as in ``make_team``.
        team_reward: as in ``make_team``.
        reproduces: whether episodes reproduce from their seeds.
        first: the number of the first environment.
        device: as in ``make_team``.
        reset_when_done: as in ``make_team``.

    Attributes:
        how: the implementation that steps it.
        dims: its sizes.

    Raises:
        ConfigError: if environments differ in sizes.
    """

    batch_locked = True
    how = Chosen("Python loop")
    compiled_loop = None  # of ``BufferedEnv``, like the next one
    refusal = None

    def __init__(
        self,
        make: Callable[[], SingleEnv],
        *,
        n_envs: int,
        max_steps: int,
        team_reward: str,
        reproduces: bool,
        first: int = 0,
        device: torch.device | str = "cpu",
        reset_when_done: bool = True,
    ) -> None:
        recipe = {name: value for name, value in locals().items() if name in RECIPE}
        super().__init__(device=torch.device(device), batch_size=torch.Size([n_envs]))
        self._recipe = recipe
        self._envs = [make() for _ in range(n_envs)]
        self.dims = dims_of(self._envs)
        self.max_steps = max_steps
        self.reset_when_done = reset_when_done
        self._sums_rewards = team_reward == "sum"
        self._reproduces = reproduces
        self._seed, self._first = 0, first
        self._episodes = np.zeros(n_envs, np.int64)  # that have begun since the seed
        self._seeds = np.full(n_envs, NO_EPISODE)  # of the present episodes
        self._steps = np.zeros(n_envs, np.int64)  # since the reset
        self._actions = np.zeros((n_envs, max_steps, self.dims.n_agents), np.int64)  # of these
        self._agent_reward = np.zeros((n_envs, self.dims.n_agents), np.float32)  # of the last step
        self._terminated = np.zeros(n_envs, bool)
        self._truncated = np.zeros(n_envs, bool)
        self._seen = self._zeros()
        set_specs(self, self.dims, masked=keys.ACTION_MASK in self._seen)

    def __repr__(self) -> str:
        return env_repr(self)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Return the parts of a copy: its maker, its arguments, and the episodes that go on."""
        if not self._reproduces:
            return super().__reduce_ex__(protocol)
        return going_on, (self._recipe, self.run_state())

    def _zeros(self, *steps: int) -> dict[NestedKey, np.ndarray]:
        """Return arrays [E, *steps, ...] for all that environments show, by key."""
        dims, env, batch = self.dims, self._envs[0], (len(self._envs), *steps)
        team = (*batch, dims.n_agents)
        zeros = {keys.OBSERVATION: np.zeros((*team, dims.observation_dim), np.float32)}
        if env.has_state:
            zeros[keys.STATE] = np.zeros((*batch, *dims.state_shape), np.float32)
        if env.masked:
            zeros[keys.ACTION_MASK] = np.zeros((*team, dims.n_actions), bool)
        return zeros

    def _begin_next(self, e: int) -> None:
        """Begin the next episode of an environment."""
        self._episodes[e] += 1
        self._begin(e, episode_seed(self._seed, self._first + e, int(self._episodes[e])))

    def _begin(self, e: int, seed: int) -> None:
        """Begin the episode of a seed in an environment."""
        self._show(e, self._envs[e].reset(seed))
        self._seeds[e], self._steps[e] = seed, 0
        self._terminated[e] = self._truncated[e] = False

    def _show(self, e: int, shown: Shown) -> None:
        for key, array in zip(SHOWN_KEYS, shown, strict=True):
            if array is not None:
                self._seen[key][e] = array

    def _advance(self, actions: list[list[int]]) -> None:
        """Take a step in each environment that is not done."""
        self._agent_reward.fill(0)
        for e, action in enumerate(actions):
            if not (self._terminated[e] or self._truncated[e]):
                self._advance_one(e, action)

    def _advance_one(self, e: int, action: list[int]) -> None:
        shown, reward, terminated, truncated = self._envs[e].step(action)
        self._actions[e, self._steps[e]] = action
        self._steps[e] += 1
        self._show(e, shown)
        self._agent_reward[e] = reward
        self._terminated[e] = terminated
        self._truncated[e] = truncated or self._steps[e] >= self.max_steps

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs) -> TensorDictBase:
        reset = resets(self, tensordict, reset_when_done=self.reset_when_done)  # [E, 1]
        for e in reset[:, 0].nonzero()[:, 0].tolist():
            self._begin_next(e)
        packed = self._pack().set(keys.IS_INIT, reset)
        return set_flags(packed, torch.zeros_like(reset), torch.zeros_like(reset))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._advance(self._checked(tensordict.get(keys.ACTION)).tolist())
        packed = self._pack()
        self._set_rewards(packed, self._moved(self._agent_reward))
        terminated = self._moved(self._terminated).unsqueeze(-1)  # [E, 1]
        truncated = self._moved(self._truncated).unsqueeze(-1)
        packed.set(keys.IS_INIT, torch.zeros_like(terminated))
        return set_flags(packed, terminated, truncated)

    def _checked(self, action: Tensor) -> Tensor:
        """Return the actions.

        Raises:
            RuntimeError: if an environment has not been reset.
            ValueError: if they are of another shape or type, or out of range.
        """
        if (self._seeds == NO_EPISODE).any():
            raise RuntimeError("PythonTeam: expected a call of reset before the first step")
        shape, n_actions = (len(self._envs), self.dims.n_agents), self.dims.n_actions
        if action.shape != shape or action.is_floating_point():
            raise ValueError(
                f"PythonTeam: expected actions int64 {list(shape)}, got {action.dtype} "
                f"{list(action.shape)}"
            )
        low, high = (int(x) for x in action.aminmax())
        if low < 0 or high >= n_actions:
            raise ValueError(
                f"PythonTeam: expected actions from 0 to {n_actions - 1}, got "
                f"{low if low < 0 else high}"
            )
        return action

    def _moved(self, array: np.ndarray) -> Tensor:
        """Return a copy of an array on the team's device."""
        return torch.from_numpy(array).to(self.device, copy=True)

    def _pack(self) -> TensorDict:
        """Return a copy of all that is shown now, a TensorDict [E]."""
        team = TensorDict({}, (*self.batch_size, self.dims.n_agents), device=self.device)
        packed = TensorDict({"agents": team}, self.batch_size, device=self.device)
        for key, array in self._seen.items():
            packed.set(key, self._moved(array))
        if keys.STATE not in self._seen:
            packed.set(keys.STATE, packed.get(keys.OBSERVATION).flatten(1).clone())
        return packed

    def _team_reward(self, agent_reward: Tensor) -> Tensor:
        """Return the team's reward [*B, 1] by the agents' [*B, N]."""
        team = agent_reward.sum(-1) if self._sums_rewards else agent_reward.mean(-1)
        return team.unsqueeze(-1)

    def _set_rewards(self, packed: TensorDict, agent_reward: Tensor) -> None:
        packed.set(keys.AGENT_REWARD, agent_reward.unsqueeze(-1))
        packed.set(keys.REWARD, self._team_reward(agent_reward))

    def change_engine(self) -> None:
        """Do nothing: there is one engine, which refuses nothing."""

    def begin_buffers(self, n_steps: int) -> Buffers:
        """Return buffers of ``n_steps`` steps."""
        team = (len(self._envs), n_steps, self.dims.n_agents)
        before, after = (
            {key: torch.from_numpy(array) for key, array in self._zeros(n_steps).items()}
            for _ in range(2)
        )
        return Buffers(
            before=before,
            after=after,
            action=torch.zeros(team, dtype=torch.int64),
            agent_reward=torch.zeros(team),
            terminated=torch.zeros(team[:2], dtype=torch.bool),
            truncated=torch.zeros(team[:2], dtype=torch.bool),
        )

    def observation_at(self, buffers: Buffers, t: int) -> TensorDict:
        """Return all that is shown before step ``t``, the next one: a TensorDict [E]."""
        return self._pack()

    def step_buffers(self, buffers: Buffers, t: int, action: Tensor) -> Tensor:
        """Take step ``t`` by actions int64 [E, N], with resets; return done: bool [E, 1]."""
        self._keep(buffers.before, t)
        buffers.action[:, t] = self._checked(action)
        self._advance(action.tolist())
        self._keep(buffers.after, t)
        buffers.agent_reward[:, t] = torch.from_numpy(self._agent_reward)
        buffers.terminated[:, t] = torch.from_numpy(self._terminated)
        buffers.truncated[:, t] = torch.from_numpy(self._truncated)
        done = self._terminated | self._truncated
        if self.reset_when_done:
            for e in done.nonzero()[0].tolist():
                self._begin_next(e)
        return torch.from_numpy(done).to(self.device).unsqueeze(-1)

    def _keep(self, kept: Mapping[NestedKey, Tensor], t: int) -> None:
        """Write all that is shown now to a step of buffers."""
        for key, array in self._seen.items():
            kept[key][:, t] = torch.from_numpy(array)

    def pack_buffers(self, buffers: Buffers, batch: TensorDict) -> None:
        """Write all that buffers hold to a batch [E, T], under the keys of the contract."""
        for at, shown in ((lambda key: key, buffers.before), (keys.next_key, buffers.after)):
            for key, entry in shown.items():
                batch.set(at(key), entry.to(self.device))
            if keys.STATE not in shown:
                batch.set(at(keys.STATE), batch.get(at(keys.OBSERVATION)).flatten(2).clone())
        batch.set(keys.ACTION, buffers.action.to(self.device))
        agent_reward = buffers.agent_reward.to(self.device)
        batch.set(keys.next_key(keys.AGENT_REWARD), agent_reward.unsqueeze(-1))
        batch.set(keys.next_key(keys.REWARD), self._team_reward(agent_reward))
        terminated = buffers.terminated.to(self.device).unsqueeze(-1)
        flags = torch.zeros_like(terminated)
        batch.set(keys.next_key(keys.IS_INIT), flags)
        set_flags(batch, flags, flags)
        set_flags(batch.get("next"), terminated, buffers.truncated.to(self.device).unsqueeze(-1))

    def _set_seed(self, seed: int | None) -> None:
        self._seed = 0 if seed is None else seed
        self._episodes.fill(0)

    def run_state(self) -> dict[str, Any]:
        """Return the team's seed, and the actions taken in each environment's episode.

        Raises:
            TypeError: if episodes do not reproduce from their seeds.
        """
        check_reproduces(self._reproduces)
        return self.saved_episodes()

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``run_state``: begin its episodes and take their actions again.

        Raises:
            ValueError: if it is of other environments.
        """
        check_resumed("PythonTeam", state, actions=torch.from_numpy(self._actions))
        check_goes_on(self.load_episodes(state))

    def saved_episodes(self) -> dict[str, Any]:
        """Return the team's seed, and by name tensors of its episodes [E, ...]."""
        episodes = (self._episodes, self._seeds, self._steps, self._actions)
        tensors = (torch.from_numpy(x.copy()) for x in (*episodes, self._seen[keys.OBSERVATION]))
        return {"seed": self._seed, **dict(zip(SAVED, tensors, strict=True))}

    def load_episodes(self, state: Mapping[str, Any]) -> bool:
        """Continue from saved episodes; return whether they show the observations they have shown.

        Args:
            state: the ``saved_episodes`` of all processes, joined.
        """
        own = slice(self._first, self._first + len(self._envs))
        saved = (state[name][own].cpu().numpy().copy() for name in SAVED)
        self._episodes, self._seeds, steps, actions, observation = saved
        self._seed = state["seed"]
        begun = self._seeds != NO_EPISODE
        for e in begun.nonzero()[0].tolist():
            self._begin(e, int(self._seeds[e]))
            for action in actions[e, : steps[e]].tolist():
                self._advance_one(e, action)
        return np.array_equal(self._seen[keys.OBSERVATION][begun], observation[begun])

    def render(self, number: int = 0) -> Any:
        """Return the picture of an environment, drawn by its own ``render``."""
        return self._envs[number].render()

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environments."""
        super().close(raise_if_closed=raise_if_closed)
        for env in self._envs:
            env.close()


def going_on(recipe: Mapping[str, Any], state: Mapping[str, Any]) -> PythonTeam:
    """Return the team of a recipe that goes on from a ``run_state``, as after pickling.

    Args:
        recipe: the arguments of ``PythonTeam``.
        state: its ``run_state``.

    Raises:
        ValueError: if its episodes do not go on as they have begun.
    """
    team = PythonTeam(**recipe)
    team.load_run_state(state)
    return team


def check_reproduces(reproduces: bool) -> None:
    """Refuse to save the state of episodes that do not reproduce from their seeds.

    Raises:
        TypeError: if they do not.
    """
    if not reproduces:
        raise TypeError(
            "expected an environment that begins equal episodes from equal seeds, got one that "
            "does not; its episodes cannot go on from a checkpoint"
        )


def check_goes_on(goes_on: bool) -> None:
    """Refuse episodes that do not go on as they have begun.

    Raises:
        ValueError: if they do not.
    """
    if not goes_on:
        raise ValueError(
            "expected episodes that go on from their seeds and actions, got other observations "
            "than before; install the package in the version with which the run began"
        )
