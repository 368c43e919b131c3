"""Buffers of engines as TensorDicts, under the keys of the contract."""

import torch
from tensordict import TensorDict
from torch import Tensor

from qmix_trl import keys
from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.contract import set_flags


def pack_seen(seen: Tensor, layout: SeenLayout) -> TensorDict:
    """Return observation, state and action mask as a TensorDict [E].

    Args:
        seen: float [E, R].
        layout: of its numbers.
    """
    n_envs = len(seen)
    team = TensorDict({}, (n_envs, layout.n_agents), device=seen.device)
    packed = TensorDict({"agents": team}, (n_envs,), device=seen.device)
    return _set_seen(packed, seen, layout)


def pack_buffers(buffers: Buffers, layout: SeenLayout, batch: TensorDict) -> None:
    """Write all contents of buffers to a batch [E, T].

    Args:
        buffers: of T steps.
        layout: of observation, state and mask.
        batch: it gets an entry "next".
    """
    flags = torch.zeros_like(buffers.done)[..., None]
    _set_seen(batch, buffers.seen[:, :-1], layout)
    _set_seen(batch, buffers.next_seen, layout, of_next=True)
    batch.set(keys.ACTION, buffers.action)
    batch.set(keys.next_key(keys.AGENT_REWARD), buffers.agent_reward[..., None])
    batch.set(keys.next_key(keys.REWARD), buffers.reward[..., None])
    batch.set(keys.next_key(keys.IS_INIT), flags)
    set_flags(batch, flags, flags)
    set_flags(batch.get("next"), buffers.terminated[..., None], buffers.truncated[..., None])


def _set_seen(
    packed: TensorDict, seen: Tensor, layout: SeenLayout, *, of_next: bool = False
) -> TensorDict:
    """Write float [.., R] as observation, state and mask, of this step or of the next."""
    parts = {keys.OBSERVATION: layout.observation(seen), keys.STATE: layout.state(seen)}
    if layout.mask_dim:
        parts[keys.ACTION_MASK] = layout.mask(seen)
    for key, part in parts.items():
        packed.set(keys.next_key(key) if of_next else key, part)
    return packed
