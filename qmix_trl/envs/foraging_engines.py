"""Engines of level-based foraging: C++ on the CPU, tensors on every device; the same numbers."""

import ctypes
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qmix_trl.chosen import CPP_LOOP, Chosen
from qmix_trl.envs.compiled.codegen.rollout import BUFFERS
from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.contract import check_resumed
from qmix_trl.envs.foraging_rules import Fields, ForagingRules
from qmix_trl.errors import ConfigError
from qmix_trl.foraging_task import ForagingTask
from qmix_trl.native import store
from qmix_trl.native.build import BuildFailed, NoCompiler
from qmix_trl.native.structures import c_struct, pointer_to

INT = ctypes.c_int64


class Foraging(ctypes.Structure):
    """A call of ``foraging.h``; pointers hold the addresses of tensors.

    The buffers begin at the first step to take, and each has room for ``buffer_steps`` steps.
    """

    _fields_ = [
        ("n_envs", INT),
        ("n_steps", INT),
        ("threads", INT),
        ("max_steps", INT),
        ("reset_when_done", INT),
        ("buffer_steps", INT),
        ("seen_size", INT),  # R
        ("shows_world", INT),
        ("n_rows", INT),
        ("n_columns", INT),
        ("start_rows", INT),
        ("start_columns", INT),
        ("n_players", INT),
        ("n_foods", INT),
        ("sight", INT),
        ("force_coop", INT),
        ("min_player_level", INT),
        ("max_player_level", INT),
        ("min_food_level", INT),
        ("max_food_level", INT),  # 0: by the levels of the players
        ("excludes_highest", INT),  # food by the levels of the players is below their sum
        ("normalize_reward", INT),
        ("unit", INT),  # observations and state are divided by it
        ("penalty", ctypes.c_float),
        ("seed", INT),
        ("units", pointer_to("float")),  # [E, U, 3]
        ("spawned", pointer_to("float")),  # [E]
        ("steps", pointer_to("int64_t")),  # [E]
        ("episodes", pointer_to("int64_t")),  # [E]
        *((name, pointer_to(element)) for name, element in BUFFERS.items()),
    ]


@cache
def library() -> ctypes.CDLL:
    """Return the library of ``foraging.h``, from disk or newly built.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it refuses the source, or the library cannot be kept or loaded.
    """
    source = "#include <stdint.h>\n" + c_struct(Foraging)
    source += store.header(__package__, "foraging.h")
    loaded = store.library("foraging", source, "one_step", "rollout", "reset")
    loaded.rollout.argtypes = [ctypes.POINTER(Foraging)]
    loaded.reset.argtypes = [ctypes.POINTER(Foraging), ctypes.c_void_p, ctypes.c_void_p]
    loaded.rollout.restype = loaded.reset.restype = None
    return loaded


class FieldState:
    """The state of E environments, in tensors that keep their places.

    Args:
        task: the task.
        n_envs: E.
        seed: of the starts.
        device: of the tensors.

    Attributes:
        seed: of the starts, of 32 bits.
        units: float32 [E, U, 3], as in ``Fields``.
        spawned: float32 [E], as in ``Fields``.
        steps: int64 [E], since the reset.
        episodes: int64 [E], the number of starts that each environment has drawn.
    """

    def __init__(self, task: ForagingTask, n_envs: int, seed: int, device: torch.device) -> None:
        self.units = torch.zeros(n_envs, task.n_foods + task.n_players, 3, device=device)
        self.spawned = torch.zeros(n_envs, device=device)
        self.steps = torch.zeros(n_envs, dtype=torch.int64, device=device)
        self.episodes = torch.zeros_like(self.steps)
        self.set_seed(seed)

    def set_seed(self, seed: int) -> None:
        """Draw the next starts from a seed."""
        self.seed = seed % 2**32
        self.episodes.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        names = ("units", "spawned", "steps", "episodes")
        return {name: getattr(self, name) for name in names}

    def run_state(self) -> dict[str, Any]:
        """Return copies of all that later steps depend on."""
        return {"seed": self.seed, **{name: x.clone() for name, x in self.tensors().items()}}

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``run_state``.

        Raises:
            ValueError: if it is of another task or number of environments.
        """
        check_resumed("ForagingTeam", state, **self.tensors())
        self.seed = state["seed"]
        for name, x in self.tensors().items():
            x.copy_(state[name])


class TensorEngine:
    """Steps environments by tensors.

    Args:
        task: the task.
        state: of the environments.
        layout: of observations and state.
        max_steps: the time limit.
    """

    compiled_loop = None

    def __init__(
        self, task: ForagingTask, state: FieldState, layout: SeenLayout, max_steps: int
    ) -> None:
        self.state = state
        self.layout = layout
        self._max_steps = max_steps
        self._rules = ForagingRules(task, state.units.device)

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Begin new episodes.

        Args:
            mask: bool [E], the environments.
            seen: float [E, R]; their observations and states are written to it.
        """
        state, chosen = self.state, mask.nonzero()[:, 0]
        fields = self._rules.spawn(state.seed, chosen, state.episodes[chosen])
        state.units[chosen], state.spawned[chosen] = fields
        state.steps[chosen] = 0
        state.episodes[chosen] += 1
        seen[chosen] = self._see(fields)

    def _see(self, fields: Fields) -> Tensor:
        """Return observation and state, float32 [E, R]."""
        seen = self._rules.observe(fields).flatten(1)
        if self.layout.state_dim is not None:
            seen = torch.cat([seen, self._rules.world(fields)], 1)
        unit = self._rules.task.unit
        return seen if unit == 1 else seen / unit

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by the actions in them.

        Args:
            buffers: hold the actions; the results are written to them.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: reset environments that are done.
        """
        for now in range(t, t + n_steps):
            self._step(buffers, now)
            if reset_when_done:
                self.reset(buffers.done[:, now], buffers.seen[:, now + 1])

    def _step(self, buffers: Buffers, t: int) -> None:
        state = self.state
        fields = Fields(state.units, state.spawned)
        fields, reward, terminated = self._rules.step(fields, buffers.action[:, t])
        state.units.copy_(fields.units)
        state.steps += 1
        team = sum(reward.unbind(1))  # in the order of the C++, as sums round
        truncated = state.steps >= self._max_steps
        buffers.write(t, self._see(fields), reward, team, terminated, truncated)


class KernelEngine:
    """Steps environments on the CPU by ``foraging.h``.

    Args:
        task: the task.
        state: of the environments.
        layout: of observations and state.
        max_steps: the time limit.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if the library cannot be built or loaded.
    """

    compiled_loop = CPP_LOOP

    def __init__(
        self, task: ForagingTask, state: FieldState, layout: SeenLayout, max_steps: int
    ) -> None:
        library()
        self.state = state
        self.layout = layout
        names = [name for name, _ in Foraging._fields_]
        self._numbers = {
            **{name: getattr(task, name) for name in names if hasattr(task, name)},
            "max_food_level": task.max_food_level or 0,
            "excludes_highest": task.rules != "v3" and not task.force_coop,
            "n_envs": len(state.steps),
            "max_steps": max_steps,
            "seen_size": layout.size,
            "shows_world": layout.state_dim is not None,
        }

    def _call(self) -> Foraging:
        addresses = {name: x.data_ptr() for name, x in self.state.tensors().items()}
        return Foraging(**self._numbers, **addresses, seed=self.state.seed)

    def reset(self, mask: Tensor, seen: Tensor) -> None:
        """Begin new episodes, as ``TensorEngine.reset``; ``seen`` is contiguous."""
        library().reset(ctypes.byref(self._call()), mask.contiguous().data_ptr(), seen.data_ptr())

    def advance(self, buffers: Buffers, t: int, n_steps: int, *, reset_when_done: bool) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by the actions in them.

        Args:
            buffers: as in ``TensorEngine.advance``.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: reset environments that are done.

        Raises:
            ValueError: if the buffers have no room for these steps.
        """
        library().rollout(ctypes.byref(self._steps(buffers, t, n_steps, reset_when_done)))

    def advance_by(
        self,
        act: Callable[[Any, Any], int],
        buffers: Buffers,
        t: int,
        n_steps: int,
        *,
        reset_when_done: bool,
    ) -> None:
        """Take steps ``t`` to ``t + n_steps`` of buffers, by actions that ``act`` chooses.

        Args:
            act: writes actions and takes the steps; called with C pointers to ``one_step`` of
                ``foraging.h`` and to its ``Foraging``.
            buffers: the actions and the results are written to them.
            t: the first step.
            n_steps: the number of steps.
            reset_when_done: reset environments that are done.
        """
        one_step = ctypes.cast(library().one_step, ctypes.c_void_p)
        act(one_step, ctypes.byref(self._steps(buffers, t, n_steps, reset_when_done)))

    def _steps(self, buffers: Buffers, t: int, n_steps: int, reset_when_done: bool) -> Foraging:
        """Return a call for steps of buffers."""
        buffers.check_room(t + n_steps)
        call = self._call()
        for name in BUFFERS:
            x = getattr(buffers, name)
            setattr(call, name, x.data_ptr() + t * x.stride(1) * x.element_size())
        call.buffer_steps = buffers.action.shape[1]
        call.n_steps, call.reset_when_done = n_steps, reset_when_done
        call.threads = torch.get_num_threads()
        return call


ENGINES = ("auto", "kernel", "tensors")


def make_engine(
    name: str, task: ForagingTask, state: FieldState, layout: SeenLayout, max_steps: int
) -> tuple[TensorEngine | KernelEngine, Chosen]:
    """Return an engine with its name and the reason why a faster one does not run.

    Args:
        name: one of ``ENGINES``; "auto" is the kernel where it can be had.
        task: the task.
        state: of the environments.
        layout: of observations and state.
        max_steps: the time limit.

    Raises:
        ConfigError: if the kernel is asked for and cannot be had.
    """
    arguments = (task, state, layout, max_steps)
    if name == "tensors":
        return TensorEngine(*arguments), Chosen("tensors")
    device = state.units.device
    reason = f"it runs on the CPU, not on {device}" if device.type != "cpu" else None
    if reason is None:
        try:
            return KernelEngine(*arguments), Chosen("kernel")
        except (NoCompiler, BuildFailed) as error:
            reason = str(error)
    if name == "kernel":
        raise ConfigError(f"env.engine: kernel is asked for, but {reason}; set env.engine=auto")
    return TensorEngine(*arguments), Chosen("tensors", {"kernel": reason})
