"""Acting without Python between steps: networks, choice and the compiled step in one call.

One library serves the agents of ``agents`` in all sizes. Its numbers are torch's but for
roundings, and the same on every processor.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor

from qmix_trl.agents import FeedforwardAgent, RecurrentAgent
from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.envs.compiled.engines.kernel import LANES, KernelEngine
from qmix_trl.fused.packed_weights import Linear, Network, array
from qmix_trl.fused.step_loop import Key, Taken
from qmix_trl.keys import ACTION_VALUE, HIDDEN, IS_INIT, LAST_ACTION, next_key
from qmix_trl.native.build import BuildFailed, NoCompiler
from qmix_trl.native.large_pages import empty
from qmix_trl.native.networks.library import network_library
from qmix_trl.native.store import header
from qmix_trl.policy import EpsilonGreedyAction, GreedyAction, RememberAction

ROWS_TOGETHER = 96  # agents that think at a time: enough for the weights, few for the cache
STEPS_OF_A_CALL = 20  # between calls the pool of fresh states is renewed if it is due
PARTS = (  # of the policies that there is a kernel for
    (RecurrentAgent, FeedforwardAgent),
    (GreedyAction, EpsilonGreedyAction),
    (RememberAction,),
)
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64
_LAYERS = ctypes.POINTER(Linear)


class Acting(ctypes.Structure):
    """``Acting`` of ``policy.h``."""

    _fields_ = [
        *((name, _INT) for name in ("n_envs", "n_agents", "n_actions", "observation_dim")),
        *((name, _INT) for name in ("hidden_dim", "shared", "use_last_action", "use_agent_id")),
        ("n_layers", _INT),
        *((name, _LAYERS) for name in ("layers", "gates", "new_input", "new_recurrent", "head")),
        ("width", _INT),
        ("epsilon", ctypes.c_float),
        *(
            (name, _INT)
            for name in ("block", "reset_when_done", "first", "n_steps", "buffer_steps")
        ),
        *((name, _INT) for name in ("seen_size", "threads")),
        *((name, _POINTER) for name in ("explore", "choose", "seen", "done", "is_init", "hidden")),
        *((name, _POINTER) for name in ("next_hidden", "last_action", "next_last_action")),
        *((name, _POINTER) for name in ("action_value", "action")),
    ]


@cache
def library() -> ctypes.CDLL:
    """Return the library, from disk or newly built.

    Raises:
        NoCompiler: if there is no compiler.
        BuildFailed: if it refuses the source.
    """
    source = header(__package__, "policy.h")
    loaded = network_library("policy", source)
    loaded.act.argtypes = [ctypes.POINTER(Acting), _POINTER, _POINTER]
    loaded.act.restype = loaded.lanes.restype = _INT
    return loaded


def is_known(policy: TensorDictModuleBase) -> bool:
    """Say whether a policy is one of ``make_policy``'s, of our agents."""
    parts = list(policy.module) if isinstance(policy, TensorDictSequential) else []
    return len(parts) == len(PARTS) and all(
        type(part) in known for part, known in zip(parts, PARTS, strict=True)
    )


def why_not(policy: TensorDictModuleBase, env: Any) -> str | None:
    """Return why there is no kernel of a policy in an environment, None if there is."""
    if not isinstance(getattr(env, "engine", None), KernelEngine):
        return "the environment's step is not compiled for the CPU"
    if not is_known(policy):
        return "the policy is none of make_policy's"
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
        policy: what acts; its weights are read anew for each batch.
        env: where it acts.
    """

    def __init__(self, policy: TensorDictSequential, env: Any) -> None:
        self.agent: RecurrentAgent | FeedforwardAgent
        self.agent, self.head, _ = policy.module  # pyright: ignore[reportAttributeAccessIssue]
        self.env = env

    def collect(self, rows: Buffers, begins: Tensor, memory: dict[Key, Tensor]) -> Taken:
        """Take all steps of rows, as ``Loop.collect``."""
        n_envs, n_steps, n_agents = rows.action.shape
        carried: dict[Key, Tensor] = {}  # one step more than there are
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
        self._act(rows, carried, written)
        last = {key: sequence[:, -1].clone() for key, sequence in carried.items()}
        before = {key: sequence[:, :-1] for key, sequence in carried.items()}
        return before | written, last.pop(IS_INIT), last

    def _act(self, rows: Buffers, carried: dict[Key, Tensor], written: dict[Key, Tensor]) -> None:
        n_envs, n_steps, _ = rows.action.shape
        network = Network(self.agent, library().lanes())
        acting = self._acting(network)
        acting.n_envs, acting.buffer_steps = n_envs, n_steps
        acting.seen_size = rows.seen.shape[-1]
        for name, tensor in {
            "seen": rows.seen,
            "done": rows.done,
            "is_init": carried[IS_INIT],
            "hidden": carried.get(HIDDEN),
            "next_hidden": written.get(next_key(HIDDEN)),
            "last_action": carried.get(LAST_ACTION),
            "next_last_action": written[next_key(LAST_ACTION)],
            "action_value": written[ACTION_VALUE],
            "action": rows.action,
        }.items():
            setattr(acting, name, None if tensor is None else tensor.data_ptr())

        def act(one_step: Any, rollout: Any) -> int:
            return library().act(ctypes.byref(acting), one_step, rollout)

        reset_when_done = self.env.reset_when_done
        for t in range(0, n_steps, STEPS_OF_A_CALL):
            acting.first, acting.n_steps = t, min(STEPS_OF_A_CALL, n_steps - t)
            if isinstance(self.head, EpsilonGreedyAction):
                draws = self.head.draws(acting.n_steps, written[ACTION_VALUE][:, 0].shape)
                acting.explore, acting.choose = (draw.data_ptr() for draw in draws)
                acting.epsilon = self.head.epsilon
            self.env.engine.advance_by(
                act, rows, t, acting.n_steps, reset_when_done=reset_when_done
            )

    def _acting(self, network: Network) -> Acting:
        """Return what does not depend on the batch."""
        agent, inputs = self.agent, self.agent.inputs
        recurrent = network.gates is not None
        together = inputs.n_agents if network.shared else 1  # rows of an environment
        acting = Acting(
            n_agents=inputs.n_agents,
            n_actions=agent.n_actions,
            observation_dim=inputs.observation_dim,
            hidden_dim=agent.hidden_dim if recurrent else 0,
            shared=network.shared,
            use_last_action=inputs.use_last_action,
            use_agent_id=inputs.use_agent_id,
            n_layers=len(network.layers),
            layers=array(network.layers),
            head=array([network.head]),
            width=network.width,
            block=LANES * max(1, ROWS_TOGETHER // (LANES * together)),
            reset_when_done=self.env.reset_when_done,
            threads=torch.get_num_threads(),
        )
        if recurrent:
            acting.gates = array([network.gates])
            acting.new_input = array([network.new_input])
            acting.new_recurrent = array([network.new_recurrent])
        return acting
