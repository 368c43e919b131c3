"""Unmodified VMAS as an engine, with resets of many environments at once."""

from collections.abc import Mapping

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.joint_reset import reset_together
from qmix_trl.envs.compiled.trace.snapshot import constants, restore, snapshot
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import VmasSimulation

PREFIX = "vmas "  # of the names of VMAS's own state


class EagerState:
    """The state of E environments that VMAS steps, under the interface of ``EnvState``.

    Args:
        simulation: of E environments, as VMAS made it.

    Attributes:
        simulation: VMAS and its random state.
        steps: int32 [E], since each environment's last reset.
        ended: bool [E], whether the last step ended the episode.
    """

    refusal = None

    def __init__(self, simulation: VmasSimulation) -> None:
        self.simulation = simulation
        self.steps = torch.zeros(simulation.n_envs, dtype=torch.int32, device=simulation.device)
        self.ended = torch.zeros_like(self.steps, dtype=torch.bool)
        self._begun = constants(walk(simulation.simulator))

    def renew(self) -> None:
        """Do nothing: there is no pool, VMAS draws at each reset."""

    def seed(self, seed: int) -> None:
        """Restart all random numbers from a seed."""
        self.simulation.random_stream.seed(seed)

    def state(self) -> dict[str, Tensor]:
        """Return copies of all values that later steps depend on.

        Returns:
            VMAS's snapshot (``vmas ...``), ``steps`` int32 [E], ``ended`` bool [E], and the random
            state (``random ...``).

        Raises:
            ConfigError: if the scenario changed a value that cannot be saved.
        """
        vmas = snapshot(self.simulation.simulator, self._begun)
        kept = {f"{PREFIX}{path}": value for path, value in vmas.items()}
        own = {"steps": self.steps.clone(), "ended": self.ended.clone()}
        return {**kept, **self.simulation.random_stream.get_state(), **own}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a dictionary that ``state`` returned.

        Raises:
            ValueError: if this simulation holds values that cannot be set to those of the state.
        """
        values = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
        restore(self.simulation.simulator, values)
        self.simulation.random_stream.set_state(state)
        self.steps.copy_(state["steps"])
        self.ended.copy_(state["ended"])


class EagerEngine:
    """Steps environments by VMAS itself.

    An environment that ends is reset as by VMAS's ``reset_at``. Where it is proved equal, all
    environments are reset at once and the others get their state back (``joint_reset.py``).

    Args:
        simulation: of E environments, as VMAS made it.
        layout: of observation and state.
        max_steps: the time limit in steps.
        together: resets of all environments were proved equal to resets one by one.
    """

    compiled_loop = None

    def __init__(
        self, simulation: VmasSimulation, layout: SeenLayout, max_steps: int, *, together: bool
    ) -> None:
        self.simulation = simulation
        self.env_state = EagerState(simulation)
        self.max_steps = max_steps
        self.layout = layout
        self.together = together

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Reset environments.

        Args:
            mask: bool [E], the environments to reset.
            seen: float [E, R]; their new observations and states are written to it.
        """
        if mask.all() and not self.env_state.ended.all():
            self.simulation.reset()  # at the user's wish, not as episodes ended
        else:
            self._reset_ended(mask)
        self.env_state.steps.masked_fill_(mask, 0)
        self.env_state.ended.masked_fill_(mask, False)
        now = self.layout.pack(self.simulation.observe())
        seen.copy_(torch.where(mask[:, None], now, seen))

    def _reset_ended(self, mask: Tensor) -> None:
        self.together = self.together and reset_together(self.simulation, mask)
        if not self.together:
            for i in mask.nonzero()[:, 0].tolist():
                self.simulation.reset_at(i)

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by the actions in them.

        Args:
            buffers: hold the actions; the results are written to them.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: reset environments that are done.
        """
        steps = self.env_state.steps
        for i in range(t, t + n_steps):
            stepped = self.simulation.step(buffers.action[:, i])
            steps += 1
            buffers.write(
                i,
                self.layout.pack(stepped.seen),
                stepped.agent_reward[..., 0],
                stepped.reward[:, 0],
                stepped.terminated[:, 0],
                steps >= self.max_steps,
            )
            self.env_state.ended.copy_(buffers.done[:, i])
            if reset_when_done and buffers.done[:, i].any():
                self.reset(buffers.done[:, i], buffers.seen[:, i + 1])
