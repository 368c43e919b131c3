"""Parts of a run, and the state from which each continues.

Anything is a part that has one of these pairs of methods, looked for in this order:

1. ``run_state()`` and ``load_run_state(state)``: all that later steps depend on (this package's
   environments and ``FusedCollector``).
2. TorchRL's replay buffers, ``Collector`` and ``TransformedEnv``, whose own ``state_dict`` leaves
   out running episodes or writes rows that hold nothing: by the functions of this file.
3. ``state_dict()`` and ``load_state_dict(state)``: modules, losses, optimisers, schedulers, target
   updaters.
4. ``get_state()`` and ``set_state(state)``: ``torch.Generator``.

Tensors, numbers, texts, None, and lists, tuples, dictionaries and TensorDicts of them are values.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.collectors import BaseCollector, Collector
from torchrl.data import ReplayBuffer
from torchrl.envs import EnvBase

from qmix_trl.checkpoint.nested import CONTAINERS, SCALARS
from qmix_trl.envs.contract import env_state, load_env_state


def is_value(part: Any) -> bool:
    """Return whether a part is a value, and no object that has a state."""
    return isinstance(part, (*SCALARS, *CONTAINERS))


def part_state(name: str, part: Any) -> Any:
    """Return the state of a part.

    Raises:
        TypeError: if it has none that it could continue from.
    """
    return _methods(name, part)[0]()


def load_part(name: str, part: Any, state: Any) -> None:
    """Let a part continue from a state.

    Raises:
        TypeError: if it has no methods for it.
    """
    _methods(name, part)[1](state)


def _methods(name: str, part: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Return the function that returns a part's state, and the function that loads one."""

    def of_file(save: Callable[[Any], Any], load: Callable[[Any, Any], None]):
        return lambda: save(part), lambda state: load(part, state)

    if _has(part, "run_state", "load_run_state"):
        return part.run_state, part.load_run_state
    if isinstance(part, ReplayBuffer):
        return of_file(replay_state, load_replay_state)
    if isinstance(part, Collector):
        return of_file(collector_state, load_collector_state)
    if isinstance(part, EnvBase):
        return of_file(env_state, load_env_state)
    if isinstance(part, BaseCollector):
        raise TypeError(
            f"{name}: expected a collector of this process, got {type(part).__name__}, whose "
            f"workers hold the running episodes; save {name}.state_dict() to begin new ones"
        )
    if _has(part, "state_dict", "load_state_dict"):
        return part.state_dict, part.load_state_dict
    if isinstance(part, torch.Generator):
        return part.get_state, part.set_state
    raise TypeError(
        f"{name}: expected an object with state_dict and load_state_dict, got {type(part).__name__}"
    )


def _has(part: Any, *methods: str) -> bool:
    """Return whether a part's class has methods; environments answer for others' attributes."""
    return all(callable(getattr(type(part), method, None)) for method in methods)


def replay_state(replay: ReplayBuffer) -> dict[str, Any]:
    """Return the state of a replay buffer, with views of the rows that it holds.

    Raises:
        TypeError: if samples are drawn ahead, in a thread: its random stream is ahead, too.
    """
    if replay._prefetch:
        raise TypeError("replay: expected a buffer without prefetch, whose samples are drawn ahead")
    n_rows = len(replay)
    rng = replay._rng
    return {
        "rows": replay.storage.get(slice(0, n_rows)) if n_rows else None,
        "n_rows": n_rows,
        "capacity": replay.storage.max_size,
        "sampler": replay.sampler.state_dict(),
        "writer": replay.writer.state_dict(),
        "transform": replay.transform.state_dict(),
        "generator": None if rng is None else rng.get_state(),
    }


def load_replay_state(replay: ReplayBuffer, state: Mapping[str, Any]) -> None:
    """Let a replay buffer continue from a ``replay_state`` of a buffer of the same capacity.

    Raises:
        ValueError: if the capacity differs, or only one has a random stream of its own.
    """
    if state["capacity"] != replay.storage.max_size:
        raise ValueError(
            f"expected the capacity {state['capacity']} as it was saved, got "
            f"{replay.storage.max_size}"
        )
    if (replay._rng is None) != (state["generator"] is None):
        raise ValueError("expected a random stream of the buffer's own in both or in none")
    replay.empty()
    if state["n_rows"]:
        replay.storage.set(range(state["n_rows"]), state["rows"])
    replay.sampler.load_state_dict(state["sampler"])
    order = getattr(replay.sampler, "_sample_list", None)  # of SamplerWithoutReplacement
    if order is not None:  # a loaded one is on the CPU, and the next is drawn where this one is
        replay.sampler._sample_list = order.to(replay.storage.device)
    replay.writer.load_state_dict(state["writer"])
    replay.transform.load_state_dict(state["transform"])
    if replay._rng is not None:
        replay._rng.set_state(state["generator"])


def collector_state(collector: Collector) -> dict[str, Any]:
    """Return the state of TorchRL's collector with its environment and its running episodes.

    Raises:
        TypeError: if the environment has no state that it could continue from.
    """
    return {
        "collector": collector.state_dict(),
        "env": env_state(collector.env),
        "carrier": collector._carrier,
    }


def load_collector_state(collector: Collector, state: Mapping[str, Any]) -> None:
    """Let TorchRL's collector continue from a ``collector_state``, before it collects.

    Raises:
        TypeError: if the environment cannot continue from a state.
    """
    saved = state["collector"]
    collector.load_state_dict(saved)
    if "traj_pool" in saved:  # of which loading has taken numbers for new episodes
        collector._traj_pool.load_state_dict(saved["traj_pool"])
    load_env_state(collector.env, state["env"])
    carrier: TensorDict = state["carrier"]
    before = collector._carrier
    carrier = carrier.to(next(iter(before.values(True, True))).device)
    collector._carrier = carrier.clear_device_() if before.device is None else carrier
