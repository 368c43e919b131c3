"""Games given as tables, as TorchRL environments under the canonical contract.

The true values of such games can be worked out by hand and compared with learned values.
"""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from qmix_trl import keys
from qmix_trl.chosen import Chosen
from qmix_trl.envs.contract import (
    STATES,
    EnvDims,
    check_choice,
    check_resumed,
    check_sizes,
    env_repr,
    resets,
    set_flags,
    set_specs,
)
from qmix_trl.envs.game_tables import Game, make_game
from qmix_trl.errors import ConfigError


def make_env(
    *,
    scenario: str | Game,
    n_envs: int,
    max_steps: int,
    state: str,
    seed: int,
    device: torch.device | str = "cpu",
    scenario_kwargs: Mapping[str, Any] | None = None,
    reset_when_done: bool = True,
) -> "GameTeam":
    """Return ``n_envs`` copies of a game, stepped together.

    Each agent's reward is the team's.

    Args:
        scenario: a name in ``game_tables.GAMES``, or a ``Game``.
        n_envs: E.
        max_steps: the time limit in steps; reaching it truncates.
        state: "world", the game's state, one-hot; or "observations", the observations of all
            agents, concatenated.
        seed: the seed of the environment's own random stream, which draws starts.
        device: the device of the tables.
        scenario_kwargs: the keywords of the function in ``game_tables.GAMES``.
        reset_when_done: whether an environment that is done is reset at once. If not, it runs on
            until all are reset together; its steps in between belong to no episode.

    Raises:
        ConfigError: if the game, a keyword or the kind of state is unknown, a size is below 1, or
            a ``Game`` is given with keywords.
    """
    check_sizes(n_envs=n_envs, max_steps=max_steps)
    check_choice("state", state, STATES)
    game = scenario
    if not isinstance(game, Game):
        game = make_game(scenario, scenario_kwargs or {})
    elif scenario_kwargs:
        raise ConfigError("env.scenario_kwargs: expected none with a game of one's own")
    return GameTeam(
        game,
        n_envs=n_envs,
        max_steps=max_steps,
        state=state,
        seed=seed,
        device=device,
        reset_when_done=reset_when_done,
    )


class GameTeam(EnvBase):
    """Copies of a game, stepped together; made by ``make_env``.

    Args:
        game: the game's tables.
        n_envs: E.
        max_steps: as in ``make_env``.
        state: as in ``make_env``.
        seed: as in ``make_env``.
        device: as in ``make_env``.
        reset_when_done: as in ``make_env``.

    Attributes:
        how: the implementation that steps it.
    """

    batch_locked = True
    how = Chosen("tables")

    def __init__(
        self,
        game: Game,
        *,
        n_envs: int,
        max_steps: int,
        state: str,
        seed: int,
        device: torch.device | str,
        reset_when_done: bool,
    ) -> None:
        super().__init__(device=torch.device(device), batch_size=torch.Size([n_envs]))
        self.game = game
        self.max_steps = max_steps
        self.reset_when_done = reset_when_done
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._tables = {
            name: table.to(self.device) for name, table in vars(game).items() if table is not None
        }
        shown = {"world": torch.eye(game.n_states), "observations": game.observation.flatten(1)}
        self._tables["state"] = shown[state].to(self.device)  # [S, ..]
        # The state of each environment [E], and its number of steps since the reset [E, 1].
        self._place = torch.zeros(n_envs, dtype=torch.int64, device=self.device)
        self._steps = torch.zeros(n_envs, 1, dtype=torch.int64, device=self.device)
        dims = EnvDims(
            n_agents=game.n_agents,
            observation_dim=game.observation.shape[-1],
            n_actions=game.n_actions,
            state_shape=self._tables["state"].shape[1:],
        )
        set_specs(self, dims, masked=game.action_mask is not None)

    def __repr__(self) -> str:
        return env_repr(self)

    @property
    def place(self) -> Tensor:
        """The state of each environment, int64 [E]."""
        return self._place

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs) -> TensorDictBase:
        reset = resets(self, tensordict, reset_when_done=self.reset_when_done)  # [E, 1]
        self._place = torch.where(reset[:, 0], self._draw_starts(), self._place)
        self._steps = torch.where(reset, 0, self._steps)
        packed = self._observe().set(keys.IS_INIT, reset)
        return set_flags(packed, torch.zeros_like(reset), torch.zeros_like(reset))

    def _draw_starts(self) -> Tensor:
        """Return a start for every environment, int64 [E]; all starts are equally frequent."""
        starts = self._tables["starts"]  # [K]
        options = {"generator": self._generator, "device": self.device}
        first = torch.randint(len(starts), (1,), **options)
        order = torch.randperm(*self.batch_size, **options)  # [E]
        return starts[(order + first) % len(starts)]

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        joint = (self._place, *tensordict.get(keys.ACTION).unbind(-1))  # 1 + N of [E]
        reward = self._tables["reward"][joint].unsqueeze(-1)  # [E, 1]
        self._place = self._tables["next_state"][joint]
        self._steps = self._steps + 1
        terminated = self._tables["ends"][self._place].unsqueeze(-1)  # [E, 1]
        packed = self._observe().set(keys.REWARD, reward)
        n_agents = self.game.n_agents
        packed.set(keys.AGENT_REWARD, reward.unsqueeze(1).expand(-1, n_agents, 1).clone())
        packed.set(keys.IS_INIT, torch.zeros_like(terminated))
        return set_flags(packed, terminated, self._steps >= self.max_steps)

    def _observe(self) -> TensorDict:
        """Return observations, masks of actions and the state, as a TensorDict [E]."""
        team = TensorDict({}, (*self.batch_size, self.game.n_agents), device=self.device)
        packed = TensorDict({"agents": team}, self.batch_size, device=self.device)
        packed.set(keys.OBSERVATION, self._tables["observation"][self._place])
        if "action_mask" in self._tables:
            packed.set(keys.ACTION_MASK, self._tables["action_mask"][self._place])
        return packed.set(keys.STATE, self._tables["state"][self._place])

    def _set_seed(self, seed: int | None) -> None:
        self._generator.manual_seed(0 if seed is None else seed)

    def run_state(self) -> dict[str, Tensor]:
        """Return all that later steps depend on."""
        return {
            "place": self._place,
            "steps": self._steps,
            "generator": self._generator.get_state(),
        }

    def load_run_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a ``run_state`` of as many environments.

        Raises:
            ValueError: if it is of another number of environments.
        """
        check_resumed("GameTeam", state, place=self._place, steps=self._steps)
        self._place = state["place"].to(self.device)
        self._steps = state["steps"].to(self.device)
        self._generator.set_state(state["generator"])
