"""The arguments of the functions of ``rollout.h``."""

import ctypes

from qmix_trl.native.structures import pointer_to

# The fields that hold the engine's buffers, named as in ``buffers.Buffers``.
BUFFERS = {
    "action": "const int64_t",
    "seen": "float",
    "last_seen": "float",
    "agent_reward": "float",
    "reward": "float",
    "terminated": "bool",
    "truncated": "bool",
    "done": "bool",
}


class Rollout(ctypes.Structure):
    """A call for T steps of E environments; pointers hold the addresses of tensors.

    ``state`` is [K, stride]: the numbers of environments E and above pad the last block. The
    buffers begin at the first step to take, and each has room for ``buffer_steps`` steps.
    """

    _fields_ = [
        ("n_envs", ctypes.c_int64),  # E
        ("n_steps", ctypes.c_int64),  # T
        ("threads", ctypes.c_int64),
        ("state", pointer_to("float")),  # [NUMBERS, stride]
        ("stride", ctypes.c_int64),
        ("steps", pointer_to("int32_t")),  # [E] since the last reset
        ("resets", pointer_to("int32_t")),  # [E] since the pool was drawn
        ("key", pointer_to("const int64_t")),  # [2], seed and number of the first step
        ("max_steps", ctypes.c_int64),
        ("reset_when_done", ctypes.c_int64),
        ("pool", pointer_to("const float")),  # [pool_size, NUMBERS + SEEN]
        ("pool_size", ctypes.c_int64),
        ("buffer_steps", ctypes.c_int64),
        *((name, pointer_to(element)) for name, element in BUFFERS.items()),
    ]
