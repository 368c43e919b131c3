"""Fresh states: a pool that unmodified VMAS draws, for environments to begin anew from.

VMAS resets environments one by one, at the cost of a whole vectorised reset each. All that a
vectorised reset draws by environment has the same distribution; what it draws once for the whole
batch would make rows alike, so that such a scenario's pool mixes rows of many small resets.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from vmas.simulator.environment.environment import Environment, local_seed

from qmix_trl.envs.compiled.compiled_step import CompiledStep
from qmix_trl.envs.compiled.engines.packed_state import read_packed_state
from qmix_trl.envs.compiled.trace.draws import KINDS, OTHER_DRAWS
from qmix_trl.envs.compiled.trace.walk import Contents, differing, walk
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation

CPU = torch.device("cpu")
SHARED_STATES = 16  # environments of a reset that draws once for all of them
LAYERS = 4  # resets of each environment that a pool holds at least
PASSES = 4  # through a pool before it is drawn anew, which takes VMAS a tenth of a second
LEAST_STATES = 1024
MOST_TOGETHER = 4096  # environments of a reset, if there are not more: memory is theirs
WATCHED = (*KINDS, *OTHER_DRAWS, torch.Tensor.uniform_, torch.Tensor.normal_)


class SharedDraws(TorchFunctionMode):
    """Notes whether anything is drawn that is not of each environment's own."""

    def __init__(self, n_envs: int) -> None:
        super().__init__()
        self.n_envs = n_envs
        self.found = False

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in WATCHED and self.n_envs not in result.shape:
            self.found = True
        return result


def shares_draws(simulation: VmasSimulation) -> bool:
    """Say whether a full reset draws anything once for all environments.

    Args:
        simulation: of a number of environments that is no other size of the scenario's; left in
            another state.
    """
    simulation.reset()
    before = walk(simulation.simulator)
    randomness = local_seed(Environment.vmas_random_state)
    with simulation.own_randomness(), randomness, SharedDraws(simulation.n_envs) as watch:
        generators = _python_generators()
        simulation.simulator._reset(return_observations=False)
        drawn = watch.found or generators != _python_generators()
    after = walk(simulation.simulator)
    return (
        drawn or bool(differing(before, after)) or _moves_as_one(before, after, simulation.n_envs)
    )


def _moves_as_one(before: Contents, after: Contents, n_envs: int) -> bool:
    """Say whether a reset gave all environments the same new value, from whatever source."""

    def is_one(x: Tensor) -> bool:
        return x.shape[:1] != (n_envs,) or bool((x == x[:1]).all())

    old = before.tensors()
    return any(
        path in old
        and x.shape == old[path].shape
        and is_one(x)
        and is_one(old[path])
        and not torch.equal(x, old[path])
        for path, x in after.tensors().items()
    )


def _python_generators() -> tuple:
    kind, words, *rest = np.random.get_state()  # noqa: NPY002 - VMAS draws from it
    return random.getstate(), kind, words.tobytes(), *rest


class FreshStates:
    """A pool of states and of what is seen in them.

    Environment e's r-th reset since the pool was drawn takes row e + r E, and one further each
    time that the pool is through. So ``PASSES`` environments begin in a row, or E if they are
    fewer, each of them once.

    Args:
        task: what is simulated.
        n_envs: E.
        seed: of the random stream.
        step: the compiled step.
        least_states: P is at least this, and ``LAYERS`` E, or E where resets draw for many.
        device: of the pool; VMAS draws on the CPU, the same states for all devices.

    Attributes:
        pool: float32 [P, K + R], rows of the state and of what is seen.
    """

    def __init__(
        self,
        task: Task,
        n_envs: int,
        seed: int,
        step: CompiledStep,
        *,
        least_states: int = LEAST_STATES,
        device: torch.device = CPU,
    ) -> None:
        self.n_envs = n_envs
        self.device = device
        self.step = step
        self.n_layers = max(1 if step.shared else LAYERS, -(-least_states // n_envs))
        together = max(n_envs, min(self.n_layers * n_envs, MOST_TOGETHER))
        drawn_together = SHARED_STATES if step.shared else together
        self.simulation = VmasSimulation(task, drawn_together, seed, CPU)
        self.taken = 0
        self.pool = self.drawn().to(device)

    def choice(self, simulation: VmasSimulation) -> int:
        """Return the number of the choice that a simulation's last reset made."""
        if not self.step.choices:
            return 0
        values = walk(simulation.simulator).values
        chosen = [values.get(path) for path in self.step.choice_paths]
        if chosen not in self.step.choices:
            raise RuntimeError(
                f"a reset of VMAS scenario {simulation.task.name!r} chose {chosen} for "
                f"{self.step.choice_paths}, which none did when its step was compiled; use "
                "env.engine=eager"
            )
        return self.step.choices.index(chosen)

    def drawn(self) -> Tensor:
        """Return new rows [P, K + R], on the CPU."""
        wanted = self.n_layers * self.n_envs
        parts = [self._reset() for _ in range(-(-wanted // self.simulation.n_envs))]
        pool = torch.cat(parts)[:wanted]
        if self.step.shared:
            # PackedNumber i of the i-th reset next to row j of another one.
            n = self.simulation.n_envs
            order = torch.arange(len(parts) * n).view(-1, n).t().flatten()
            pool = torch.cat(parts)[order][:wanted]
        return pool.contiguous()

    def _reset(self) -> Tensor:
        self.simulation.reset()
        choice = self.choice(self.simulation)
        state = read_packed_state(self.simulation.simulator, self.step.numbers, choice)
        return torch.cat([state, self.step.layout.pack(self.simulation.observe())], 1)

    def states_for(self, resets: Tensor) -> Tensor:
        """Return each environment's next row [E, K + R], by how many it has taken int64 [E]."""
        place = torch.arange(self.n_envs, device=resets.device) + resets * self.n_envs
        return self.pool[(place + place // len(self.pool)) % len(self.pool)]

    def is_due(self) -> bool:
        """Say whether every row was taken as often as it may be."""
        return self.taken >= min(PASSES, self.n_envs) * len(self.pool)

    def renew(self) -> None:
        """Draw the whole pool anew, in its place."""
        self.pool.copy_(self.drawn())
        self.taken = 0

    def reseed(self, seed: int) -> None:
        """Begin another random stream, and a new pool of it."""
        self.simulation.seed(seed)
        self.renew()

    def state(self) -> dict[str, Tensor]:
        """Return all that later rows depend on."""
        taken = torch.tensor(self.taken)
        return {"pool": self.pool.clone(), "taken": taken, **self.simulation.random_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` returned."""
        self.pool.copy_(state["pool"])
        self.taken = int(state["taken"])
        self.simulation.set_random_state(state)
