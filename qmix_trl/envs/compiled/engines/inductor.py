"""The engine by torch's inductor, for steps that the compiler cannot lower to one environment."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.envs.compiled.engines.env_state import EnvState
from qmix_trl.envs.compiled.engines.pool import FreshStates
from qmix_trl.envs.compiled.trace.draws import draw
from qmix_trl.envs.compiled.trace.graph import Draw
from qmix_trl.envs.compiled.trace.pure import Untraceable
from qmix_trl.errors import one_line
from qmix_trl.native.built_file import BuiltFile, NotLoadable


def load_package(package: BuiltFile) -> Callable[..., list[Tensor]]:
    """Return the step of a package of torch.

    Raises:
        NotLoadable: if the package is damaged, or torch does not load it.
    """
    package.check()
    try:
        return torch._inductor.aoti_load_package(str(package.path))
    except RuntimeError as error:
        raise NotLoadable(f"a package of torch does not load: {one_line(error)}") from error


class InductorEngine:
    """Steps environments by a package of torch, which holds a step of as many environments.

    Args:
        package: the built package.
        fresh: the pool that resets take states from.
        max_steps: the time limit in steps.
        seed: of the random numbers of steps.
        draws: the random numbers of a step, in order.

    Raises:
        NotLoadable: if the package is damaged, or torch does not load it.
        Untraceable: if resets change a number that is one for all environments.
    """

    compiled_loop = None

    def __init__(
        self,
        package: BuiltFile,
        fresh: FreshStates,
        max_steps: int,
        seed: int,
        draws: Sequence[Draw],
    ) -> None:
        for k, number in enumerate(fresh.step.numbers):
            if not number.batched and (fresh.pool[:, k] != fresh.pool[0, k]).any():
                raise Untraceable(f"its resets change {number.path}, one for all environments")
        self.fresh = fresh
        self.layout = fresh.step.layout
        self.max_steps = max_steps
        self.env_state = EnvState(fresh, seed, fresh.first_states())
        self._package = package
        self._draws = tuple(draws)
        self._step = load_package(self._package)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._step = load_package(self._package)

    def twin(self) -> "InductorEngine":
        """Return an engine of the same package with its own state, for steps without resets."""
        twin = copy(self)
        twin.env_state = EnvState(self.fresh, 0, self.env_state.packed_state())
        return twin

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Reset environments to states of the pool.

        Args:
            mask: bool [E], the environments to reset.
            seen: float [E, R]; their new observations and states are written to it.
        """
        self.env_state.reset(mask, seen)

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by the actions in them.

        Args:
            buffers: hold the actions; the results are written to them.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: reset environments that are done.
        """
        state = self.env_state
        for i in range(t, t + n_steps):
            action = buffers.action[:, i].clone()
            out = self._step(state.packed, action, state.key, *self._numbers())
            seen, agent_reward, reward, terminated, packed = out
            state.packed.copy_(packed)
            state.key[1] += 1
            state.steps += 1
            truncated = state.steps >= self.max_steps
            buffers.write(i, seen, agent_reward, reward, terminated, truncated)
            if reset_when_done and buffers.done[:, i].any():
                self.reset(buffers.done[:, i], buffers.seen[:, i + 1])

    def _numbers(self) -> list[Tensor]:
        """Return the random numbers of the next step, float32 [E, ..] for each draw."""
        first, numbers = 0, []
        for d in self._draws:
            numbers.append(draw(d.kind, self.env_state.key, self.fresh.n_envs, first, d.shape))
            first += numbers[-1][0].numel()
        return numbers
