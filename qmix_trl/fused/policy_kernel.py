"""Acting without Python between steps: networks, choice and the compiled step in one C++ call.

One library serves the agents of ``qmix_trl.agents`` in all sizes. Its numbers are torch's to float
rounding, and the same on every processor.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from qmix_trl.chosen import CPP_LOOP
from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.envs.compiled.engines.kernel import LANES
from qmix_trl.fused.packed_weights import PackedWeights, array
from qmix_trl.fused.step_loop import Collected, Key
from qmix_trl.keys import ACTION_VALUE, HIDDEN, IS_INIT, LAST_ACTION, next_key
from qmix_trl.native.build import BuildFailed, NoCompiler
from qmix_trl.native.large_pages import empty
from qmix_trl.native.networks.layers import INT, READ, WRITTEN, Linear, Norm
from qmix_trl.native.networks.library import network_library
from qmix_trl.native.structures import pointer_to
from qmix_trl.policy import AgentPolicy, RememberAction

SAMPLES_TOGETHER = 96  # agents computed at a time: weights are read once, and the cache holds all
STEPS_PER_CALL = 20  # the pool of initial states is refilled between calls
_LAYERS = ctypes.POINTER(Linear)


class Acting(ctypes.Structure):
    """The arguments of ``policy.h``: E environments, N agents, buffers of T steps."""

    _fields_ = [
        ("n_envs", INT),  # E
        ("n_agents", INT),  # N
        ("n_actions", INT),  # A
        ("mask_at", INT),  # place of the action mask in R numbers; -1 if there is none
        ("observation_dim", INT),  # O
        ("hidden_dim", INT),  # H; 0 without a GRU
        ("shared", INT),  # agents share their weights
        ("use_last_action", INT),
        ("use_agent_id", INT),
        ("n_layers", INT),
        ("layers", _LAYERS),  # [n_layers], each followed by a ReLU
        ("norms", ctypes.POINTER(Norm)),  # [n_layers], before the ReLUs; null: none
        ("gates", _LAYERS),  # a GRU's, from both inputs to [reset, update]; null without one
        ("new_input", _LAYERS),  # of a GRU's candidate
        ("new_recurrent", _LAYERS),
        ("head", _LAYERS),  # to the action values
        ("stride", INT),  # from one sample to the next, enough for every layer
        ("epsilon", ctypes.c_float),
        ("block", INT),  # environments that are stepped together
        ("reset_when_done", INT),
        ("first", INT),  # step of the buffers
        ("n_steps", INT),  # of this call
        ("buffer_steps", INT),  # T
        ("seen_size", INT),  # R
        ("threads", INT),
        ("explore", READ),  # [n_steps, E, N] in [0, 1); null for greedy actions
        ("choose", READ),  # [n_steps, E, N, A]
        ("seen", READ),  # [E, T + 1, R]
        ("done", pointer_to("const bool")),  # [E, T]
        ("is_init", pointer_to("bool")),  # [E, T + 1]
        ("hidden", WRITTEN),  # [E, T + 1, N, H]
        ("next_hidden", WRITTEN),  # [E, T, N, H]
        ("last_action", WRITTEN),  # [E, T + 1, N, A]; null if the agent does not read it
        ("next_last_action", WRITTEN),  # [E, T, N, A]
        ("action_value", WRITTEN),  # [E, T, N, A]
        ("action", pointer_to("int64_t")),  # [E, T, N]
    ]


@cache
def library() -> ctypes.CDLL:
    """Return the library of ``policy.h``, from disk or newly built.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it refuses the source, or the library cannot be kept or loaded.
    """
    loaded = network_library(__package__, "policy", Acting, "act", "lanes")
    loaded.act.argtypes = [ctypes.POINTER(Acting), ctypes.c_void_p, ctypes.c_void_p]
    loaded.act.restype = loaded.lanes.restype = INT
    return loaded


def is_known(policy: TensorDictModuleBase) -> bool:
    """Return whether a policy is one of ``make_policy``'s whose agent and head have a C++ form.

    A subclass that only inherits the form is refused: it may compute something else.
    """
    if not isinstance(policy, AgentPolicy) or len(policy.module) != 3:
        return False
    agent, head, memory = policy.module
    return (
        "network_layers" in vars(type(agent))
        and {"draws", "forward"} <= vars(type(head)).keys()
        and type(memory) is RememberAction
    )


def why_not(policy: TensorDictModuleBase, env: Any) -> str | None:
    """Return the reason why the kernel cannot run a policy in an environment; None if it can."""
    if env.compiled_loop != CPP_LOOP:
        return "the environment's step is not compiled for the CPU"
    if not is_known(policy):
        return "the policy has no form in C++"
    if any(p.dtype != torch.float32 for p in policy.parameters()):
        return "the agent's weights are not float32"
    try:
        library()
    except (NoCompiler, BuildFailed) as error:
        return str(error)
    return None


class PolicyKernel:
    """Acts by a policy of ``make_policy`` in an environment whose step is compiled.

    Args:
        policy: to act by; its weights are read at the beginning of each batch.
        env: to act in.
    """

    def __init__(self, policy: AgentPolicy, env: Any) -> None:
        self.agent: Any = policy.agent
        self.head = policy.head
        self.env = env

    def collect(self, buffers: Buffers, begins: Tensor, memory: dict[Key, Tensor]) -> Collected:
        """Take all steps of the buffers, as ``Loop.collect``."""
        n_envs, n_steps, n_agents = buffers.action.shape
        carried: dict[Key, Tensor] = {}  # [E, T + 1, ..]
        for key, value in {**memory, IS_INIT: begins}.items():
            carried[key] = empty(n_envs, n_steps + 1, *value.shape[1:], dtype=value.dtype)
            carried[key][:, 0] = value
        values = (n_envs, n_steps, n_agents, self.agent.n_actions)
        written: dict[Key, Tensor] = {
            ACTION_VALUE: empty(*values),
            next_key(LAST_ACTION): empty(*values),
        }
        if HIDDEN in memory:
            written[next_key(HIDDEN)] = empty(n_envs, n_steps, *memory[HIDDEN].shape[1:])
        self._act(buffers, carried, written)
        last = {key: sequence[:, -1].clone() for key, sequence in carried.items()}
        before = {key: sequence[:, :-1] for key, sequence in carried.items()}
        return Collected(before | written, last.pop(IS_INIT), last)

    def _act(
        self, buffers: Buffers, carried: dict[Key, Tensor], written: dict[Key, Tensor]
    ) -> None:
        """Write actions, values and memory of all steps, and take the steps."""
        n_steps = buffers.action.shape[1]
        weights = PackedWeights(
            self.agent.network_layers(), self.agent.inputs.dim, library().lanes()
        )
        acting = self._acting(weights)
        _point_at(acting, buffers, carried, written)

        def act(one_step: Any, rollout: Any) -> int:
            return library().act(ctypes.byref(acting), one_step, rollout)

        reset_when_done = self.env.reset_when_done
        for t in range(0, n_steps, STEPS_PER_CALL):
            acting.first, acting.n_steps = t, min(STEPS_PER_CALL, n_steps - t)
            draws = self.head.draws(acting.n_steps, written[ACTION_VALUE][:, 0].shape)
            if draws is not None:
                acting.explore, acting.choose = (draw.data_ptr() for draw in draws)
                acting.epsilon = self.head.epsilon
            self.env.engine.advance_by(
                act, buffers, t, acting.n_steps, reset_when_done=reset_when_done
            )

    def _acting(self, weights: PackedWeights) -> Acting:
        """Return the arguments that do not depend on the batch."""
        inputs, layout = self.agent.inputs, self.env.engine.layout
        samples_per_env = inputs.n_agents if weights.shared else 1
        acting = Acting(
            n_agents=inputs.n_agents,
            n_actions=self.agent.n_actions,
            mask_at=layout.mask_at if layout.mask_dim else -1,
            observation_dim=inputs.observation_dim,
            hidden_dim=weights.hidden_dim,
            shared=weights.shared,
            use_last_action=inputs.use_last_action,
            use_agent_id=inputs.use_agent_id,
            n_layers=len(weights.layers),
            layers=array(weights.layers),
            head=array([weights.head]),
            stride=weights.stride,
            block=LANES * max(1, SAMPLES_TOGETHER // (LANES * samples_per_env)),
            reset_when_done=self.env.reset_when_done,
            threads=torch.get_num_threads(),
        )
        if weights.norms.array is not None:
            acting.norms = weights.norms.array
        if weights.gates is not None:
            acting.gates = array([weights.gates])
            acting.new_input = array([weights.new_input])
            acting.new_recurrent = array([weights.new_recurrent])
        return acting


def _point_at(
    acting: Acting, buffers: Buffers, carried: dict[Key, Tensor], written: dict[Key, Tensor]
) -> None:
    """Set the arguments that depend on the batch; the caller keeps the tensors."""
    acting.n_envs, acting.buffer_steps, _ = buffers.action.shape
    acting.seen_size = buffers.seen.shape[-1]
    tensors = {
        "seen": buffers.seen,
        "done": buffers.done,
        "action": buffers.action,
        "is_init": carried[IS_INIT],
        "hidden": carried.get(HIDDEN),
        "next_hidden": written.get(next_key(HIDDEN)),
        "last_action": carried.get(LAST_ACTION),
        "next_last_action": written[next_key(LAST_ACTION)],
        "action_value": written[ACTION_VALUE],
    }
    for name, tensor in tensors.items():
        setattr(acting, name, None if tensor is None else tensor.data_ptr())
