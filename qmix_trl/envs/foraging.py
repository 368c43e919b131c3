"""Level-based foraging as a TorchRL environment, many fields stepped together.

Players move on a grid and load foods; a food is taken if the levels of the players that load it
together sum to its level at least (Christianos et al. 2020; Papoudakis et al. 2021). The rules are
those of the package ``lbforaging`` (``foraging_rules.py``), but for three points:

- The time limit truncates; in the package it terminates.
- New episodes do not depend on earlier ones. In the package's resets the cells of the players at
  the end of an episode stay occupied until each of them has its new place.
- A start never fails by chance: the package gives up after 1,000 cells in vain.
"""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from qmix_trl import keys
from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.contract import (
    STATES,
    EnvDims,
    check_choice,
    check_sizes,
    env_repr,
    resets,
    set_flags,
    set_specs,
)
from qmix_trl.envs.foraging_engines import ENGINES, FieldState, make_engine
from qmix_trl.envs.foraging_rules import N_ACTIONS
from qmix_trl.envs.packing import pack_buffers, pack_seen
from qmix_trl.foraging_task import ForagingTask, foraging_task


def make_env(
    *,
    scenario: str,
    n_envs: int,
    max_steps: int,
    state: str,
    seed: int,
    device: torch.device | str = "cpu",
    scenario_kwargs: Mapping[str, Any] | None = None,
    engine: str = "auto",
    reset_when_done: bool = True,
) -> "ForagingTeam":
    """Return ``n_envs`` fields of a task of level-based foraging, stepped together.

    The team's reward is the sum of the agents', as in EPyMARL: all foods of an episode give 1.
    All actions are always available; one without an effect does nothing.

    Args:
        scenario: a name such as ``2s-8x8-2p-2f-coop`` (``foraging_task.py``).
        n_envs: E.
        max_steps: the time limit in steps; reaching it truncates.
        state: "observations", the observations of all agents, concatenated, as in EPyMARL; or
            "world", row, column and level of all foods and players.
        seed: of the starts.
        device: of all tensors.
        scenario_kwargs: options of ``ForagingTask`` but for those in the name.
        engine: "kernel" for C++, "tensors", or "auto" for the kernel where it can be had. All
            return the same numbers.
        reset_when_done: whether an environment that is done is reset at once. If not, it runs on
            until all are reset together; its steps in between belong to no episode.

    Raises:
        ConfigError: if a name or an option is unknown or out of range, or the kernel is asked for
            and cannot be had.
    """
    check_sizes(n_envs=n_envs, max_steps=max_steps)
    check_choice("state", state, STATES)
    check_choice("engine", engine, ENGINES)
    return ForagingTeam(
        foraging_task(scenario, scenario_kwargs or {}),
        n_envs=n_envs,
        max_steps=max_steps,
        state=state,
        seed=seed,
        device=device,
        engine=engine,
        reset_when_done=reset_when_done,
    )


class ForagingTeam(EnvBase):
    """Fields of one task, stepped together; made by ``make_env``. A ``BufferedEnv``.

    Args:
        task: the task.
        n_envs: E.
        max_steps: as in ``make_env``.
        state: as in ``make_env``.
        seed: as in ``make_env``.
        device: as in ``make_env``.
        engine: as in ``make_env``.
        reset_when_done: as in ``make_env``.

    Attributes:
        how: the engine, and why a faster one does not run.
        compiled_loop: as in ``BufferedEnv``.
        refusal: None: the engine serves all episodes.
    """

    batch_locked = True
    refusal = None

    def __init__(
        self,
        task: ForagingTask,
        *,
        n_envs: int,
        max_steps: int,
        state: str,
        seed: int,
        device: torch.device | str,
        engine: str,
        reset_when_done: bool,
    ) -> None:
        super().__init__(device=torch.device(device), batch_size=torch.Size([n_envs]))
        self.task = task
        self.reset_when_done = reset_when_done
        size = 3 * (task.n_foods + task.n_players)
        layout = SeenLayout(task.n_players, size, size if state == "world" else None)
        self._fields = FieldState(task, n_envs, seed, self.device)
        self.engine, self.how = make_engine(engine, task, self._fields, layout, max_steps)
        self.compiled_loop = self.engine.compiled_loop
        self._seen = torch.zeros(n_envs, layout.size, device=self.device)
        self._one_step = Buffers.empty(n_envs, 1, layout, self.device)
        dims = EnvDims(
            n_agents=task.n_players,
            observation_dim=size,
            n_actions=N_ACTIONS,
            state_shape=layout.state(self._seen).shape[1:],
        )
        set_specs(self, dims)

    def __repr__(self) -> str:
        task = self.task
        field = f"{task.n_rows}x{task.n_columns}"
        return env_repr(self, f"{field}-{task.n_players}p-{task.n_foods}f")

    @property
    def units(self) -> Tensor:
        """Row, column and level of all foods and then players, float32 [E, U, 3]."""
        return self._fields.units

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs) -> TensorDictBase:
        reset = resets(self, tensordict, reset_when_done=self.reset_when_done)  # [E, 1]
        self.engine.reset(reset[:, 0], self._seen)
        packed = pack_seen(self._seen.clone(), self.engine.layout).set(keys.IS_INIT, reset)
        return set_flags(packed, torch.zeros_like(reset), torch.zeros_like(reset))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        b = self._one_step
        self.step_by(b, 0, tensordict.get(keys.ACTION), reset_when_done=False)
        self._seen.copy_(b.seen[:, 1])
        packed = pack_seen(self._seen.clone(), self.engine.layout)
        packed.set(keys.AGENT_REWARD, b.agent_reward[:, 0, :, None].clone())
        packed.set(keys.REWARD, b.reward.clone())
        packed.set(keys.IS_INIT, torch.zeros_like(b.done))
        return set_flags(packed, b.terminated.clone(), b.truncated.clone())

    def step_by(self, buffers: Buffers, t: int, action: Tensor, *, reset_when_done: bool) -> None:
        """Take step ``t`` of buffers.

        Args:
            buffers: the results are written to them.
            t: the step.
            action: int64 [E, N].
            reset_when_done: reset environments that are done.

        Raises:
            ValueError: if the actions are of another shape or type, or out of range.
        """
        self._check(action)
        buffers.action[:, t] = action
        self.engine.advance(buffers, t, 1, reset_when_done=reset_when_done)

    def _check(self, action: Tensor) -> None:
        shape = (*self.batch_size, self.task.n_players)
        if action.shape != shape or action.is_floating_point():
            raise ValueError(
                f"ForagingTeam: expected actions int64 {list(shape)}, got {action.dtype} "
                f"{list(action.shape)}"
            )
        if self.device.type == "cpu":  # on a GPU reading them would wait for it
            low, high = (int(x) for x in action.aminmax())
            if low < 0 or high >= N_ACTIONS:
                raise ValueError(
                    f"ForagingTeam: expected actions from 0 to {N_ACTIONS - 1}, got "
                    f"{low if low < 0 else high}"
                )

    def change_engine(self) -> None:
        """Do nothing: no engine refuses an episode."""

    def begin_buffers(self, n_steps: int) -> Buffers:
        """Return buffers of ``n_steps`` steps whose first observation is the present one."""
        (n_envs,) = self.batch_size
        buffers = Buffers.empty(n_envs, n_steps, self.engine.layout, self.device)
        buffers.seen[:, 0] = self._seen
        return buffers

    def observation_at(self, buffers: Buffers, t: int) -> TensorDict:
        """Return the observation and state of step ``t``, a TensorDict [E]."""
        return pack_seen(buffers.seen[:, t], self.engine.layout)

    def step_buffers(self, buffers: Buffers, t: int, action: Tensor) -> Tensor:
        """Take step ``t`` by actions int64 [E, N], with resets; return done, bool [E, 1]."""
        self.step_by(buffers, t, action, reset_when_done=self.reset_when_done)
        return buffers.done[:, t, None]

    def pack_buffers(self, buffers: Buffers, batch: TensorDict) -> None:
        """Write all that buffers hold to a batch [E, T], under the keys of the contract."""
        pack_buffers(buffers, self.engine.layout, batch)
        self._seen.copy_(buffers.seen[:, -1])

    def _set_seed(self, seed: int | None) -> None:
        self._fields.set_seed(0 if seed is None else seed)

    def run_state(self) -> dict[str, Any]:
        """Return all that later steps depend on, the same on each engine."""
        return {"seen": self._seen.clone(), **self._fields.run_state()}

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``run_state`` of the same task and as many environments.

        Raises:
            ValueError: if it is of another task or number of environments.
        """
        self._fields.load_run_state(state)
        self._seen.copy_(state["seen"])
