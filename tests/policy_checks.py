"""Checks of the policy's Triton kernel that run in a process of their own, as ``triton_checks``.

python policy_checks.py FILE FOLDER CHECK ...
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import graph_tools
import pytest
import torch
import triton_checks
from tensordict import TensorDict
from triton_checks import CPU

from qmix_trl import (
    EpsilonGreedyAction,
    FeedforwardAgent,
    GreedyAction,
    RecurrentAgent,
    make_policy,
)
from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.fused import cuda_graph_loop, triton_loop
from qmix_trl.fused.step_loop import StepLoop
from qmix_trl.fused.triton_loop import TritonLoop
from qmix_trl.keys import ACTION_VALUE, HIDDEN, LAST_ACTION, OBSERVATION

E, T = 7, 5
# Several programs, of which the last is not full.
USUAL, triton_loop.OPTIONS["BLOCK"] = triton_loop.OPTIONS["BLOCK"], 16
# Rounding of float32, 6e-8, times the longest sum, 130 terms of up to 1, over 10 steps of a GRU.
TOLERANCE = 1e-5
HEADS = {
    "greedy": GreedyAction,
    "no exploration": lambda: EpsilonGreedyAction(0.0, 0.0, 0, seed=0),
    "some": lambda: EpsilonGreedyAction(0.3, 0.3, 0, seed=0),
    "only exploration": lambda: EpsilonGreedyAction(1.0, 1.0, 0, seed=0),
    "annealed": lambda: EpsilonGreedyAction(1.0, 0.1, 100, seed=0),
    "repeats": lambda: EpsilonGreedyAction(0.5, 0.5, 0, 1.5, seed=0),
}
# Sizes N, O, A and settings of agents.
AGENTS = {
    "as in balance": (RecurrentAgent, (3, 16, 9), {}),
    "narrow": (RecurrentAgent, (5, 7, 5), {"hidden_dim": 32}),
    "no powers of two": (RecurrentAgent, (1, 3, 17), {"hidden_dim": 37}),
    "wide": (RecurrentAgent, (2, 130, 2), {"hidden_dim": 20}),
    "only the observation": (
        RecurrentAgent,
        (3, 5, 4),
        {"hidden_dim": 16, "use_last_action": False, "use_agent_id": False},
    ),
    "only the last action": (RecurrentAgent, (3, 5, 4), {"hidden_dim": 8, "use_agent_id": False}),
    "feed-forward": (FeedforwardAgent, (3, 16, 9), {}),
    "feed-forward, one layer": (FeedforwardAgent, (2, 3, 3), {"hidden_dims": (9,)}),
    "feed-forward, three layers, last action": (
        FeedforwardAgent,
        (3, 6, 5),
        {"hidden_dims": (40, 3, 17), "use_last_action": True},
    ),
}


class RandomEnv:
    """A stand-in for an environment whose step is compiled: it goes through random numbers."""

    refusal = None

    def __init__(self, layout, *, reset_when_done=True):
        generator = torch.Generator().manual_seed(0)
        self.device, self.batch_size = CPU, torch.Size([E])
        self.reset_when_done = reset_when_done
        self.engine = SimpleNamespace(layout=layout, advance=self.advance)
        self.seen = torch.randn(40, E, layout.size, generator=generator)
        self.done = torch.rand(40, E, generator=generator) < 0.3
        self.step = 0

    def begin_buffers(self, n_steps):
        buffers = Buffers.empty(E, n_steps, self.engine.layout, CPU)
        buffers.seen[:, 0] = self.seen[self.step]
        return buffers

    def observation_at(self, buffers, t):
        observation = self.engine.layout.observation(buffers.seen[:, t])
        return TensorDict({OBSERVATION: observation}, (E,))

    def advance(self, buffers, t, n_steps, *, reset_when_done):
        assert (n_steps, reset_when_done) == (1, self.reset_when_done)
        self.step += 1
        buffers.seen[:, t + 1] = self.seen[self.step]
        buffers.done[:, t] = self.done[self.step]

    def step_buffers(self, buffers, t, action):
        buffers.action[:, t] = action
        self.advance(buffers, t, 1, reset_when_done=self.reset_when_done)
        return buffers.done[:, t, None]

    def simulation_state(self):
        return self.step

    def load_simulation_state(self, step):
        self.step = step


def agent_of(name):
    """Return an agent of the table whose values lie apart."""
    torch.manual_seed(0)
    kind, sizes, settings = AGENTS[name]
    agent = kind(*sizes, **settings)
    for parameter in agent.parameters():
        parameter.data.mul_(2)
    return agent


def loop_of(kind, agent, head, *, reset_when_done=True, keeps_memory=True):
    """Return a loop over the random environment, with a state as long as balance's."""
    layout = SeenLayout(agent.inputs.n_agents, agent.inputs.observation_dim, 42)
    env = RandomEnv(layout, reset_when_done=reset_when_done)
    return kind(make_policy(agent, HEADS[head]()), env, T, keeps_memory=keeps_memory)


def first_memory(agent):
    """Return environments that begin and others inside an episode, with the memory of both."""
    begins = torch.arange(E)[:, None] % 3 == 0
    n, n_actions = agent.inputs.n_agents, agent.n_actions
    memory, generator = {}, torch.Generator().manual_seed(0)
    if isinstance(agent, RecurrentAgent):
        memory[HIDDEN] = torch.rand(E, n, agent.hidden_dim, generator=generator) - 0.5
    if agent.inputs.use_last_action:
        last = torch.randint(n_actions, (E, n), generator=generator)
        memory[LAST_ACTION] = torch.nn.functional.one_hot(last, n_actions).float()
    return begins, {k: v.masked_fill(begins[..., None], 0) for k, v in memory.items()}


def batches(loop, n_batches=2, collect=None):
    """Return all tensors of batches by name, which follow one another, with all environments."""
    begins, memory = first_memory(loop.policy.agent)
    found = {}
    for i in range(n_batches):
        buffers = loop.env.begin_buffers(T)
        collected = (loop.collect if collect is None else collect)(buffers, begins, memory)
        entries, begins, memory = collected
        tensors = {"action": buffers.action, "begins": begins, **entries}
        found |= {(i, key): value.clone() for key, value in tensors.items()}
        found |= {(i, "last", key): value.clone() for key, value in memory.items()}
    return found


def assert_close(ours, theirs):
    """Compare tensors by name: actions and flags exactly, numbers to rounding."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        torch.testing.assert_close(
            ours[name],
            tensor,
            rtol=0,
            atol=TOLERANCE if tensor.is_floating_point() else 0,
            equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def check_agents(folder):
    """Compare every agent with torch's policy, over batches with ends."""
    for name in AGENTS:
        compare(name)


def check_settings(folder):
    """Compare batches without memory and without resets; and in programs of the usual size."""
    for name in ("narrow", "feed-forward, three layers, last action"):
        compare(name, keeps_memory=False)
        compare(name, reset_when_done=False)
    triton_loop.OPTIONS["BLOCK"] = USUAL
    compare("narrow")


def compare(name, **settings):
    """Compare an agent of the table with torch's policy."""
    pair = [loop_of(kind, agent_of(name), "some", **settings) for kind in (TritonLoop, StepLoop)]
    assert_close(*(batches(loop) for loop in pair))


def check_heads(folder):
    """Compare every head with torch's policy, and the random numbers that it draws afterwards."""
    for head in HEADS:
        pair = [loop_of(kind, agent_of("narrow"), head) for kind in (TritonLoop, StepLoop)]
        assert_close(*(batches(loop) for loop in pair))
        ours, theirs = (loop.policy.head.random_state() for loop in pair)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def check_ties(folder):
    """Compare actions where values are equal, infinite or no numbers."""
    inf, nan = float("inf"), float("nan")
    for biases in (
        [0.0, 0, 0, 0, 0],
        [0.0, 1, 0, 1, 1],
        [-inf] * 5,
        [-inf, -inf, 0, -inf, 0],
        [0.0, inf, 0, inf, 0],
        [0.0, nan, 5, 0, nan],
        [nan] * 5,
    ):
        agent = agent_of("narrow")
        for parameter in agent.parameters():
            parameter.data.zero_()
        agent.fc2.bias.data.copy_(torch.tensor(biases))
        ours, theirs = (
            batches(loop_of(kind, agent, "greedy"), 1) for kind in (TritonLoop, StepLoop)
        )
        assert_close(ours, theirs)
        assert (ours[0, "action"] == torch.tensor(biases).argmax()).all()
        assert torch.equal(ours[0, ACTION_VALUE].isnan().any(), torch.tensor(nan in biases))


def check_graph(folder):
    """Compare batches of a graph with the step loop's, also with other weights and epsilon."""
    ours, theirs = (
        loop_of(kind, agent_of("narrow"), "annealed", keeps_memory=False)
        for kind in (TritonLoop, StepLoop)
    )
    ours._act = graph_tools.foreign(ours._act)
    ours.env.engine.advance = graph_tools.foreign(ours.env.engine.advance)
    begins, memory = first_memory(ours.policy.agent)
    step = theirs.act(theirs.env.begin_buffers(1), 0, begins, memory)
    theirs.policy.head.set_random_state(ours.policy.head.random_state())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graph_loop, "warmed_up", lambda function: function())
        patch.setattr(cuda_graph_loop, "captured", graph_tools.captured)
        patch.setattr(cuda_graph_loop, "free_bytes", lambda device: 2**40)
        graph = cuda_graph_loop.GraphLoop(ours, step, begins, memory)
    for _ in range(2):
        assert_close(batches(ours, collect=graph.collect), batches(theirs))
        for loop in (ours, theirs):
            loop.policy.head.step(60)
            for parameter in loop.policy.agent.parameters():
                parameter.data.mul_(0.5)


# -------------------------------------------------------------------------------- for a GPU


def compiled_for_a_gpu(agent, precision):
    """Return the kernel of an agent, compiled for an H100, as often as it is compiled."""
    from triton.runtime import driver

    from qmix_trl.fused import policy_triton

    driver.set_active(triton_checks.H100())
    kernel, compiled = policy_triton.act, []

    class Compiles:
        def __getitem__(self, grid):
            return lambda *args, **options: compiled.append(
                kernel.warmup(*args, grid=grid, **options)
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_triton, "act", Compiles())
        patch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
        loop = loop_of(TritonLoop, agent, "some", keeps_memory=False)
        loop.collect(loop.env.begin_buffers(T), *first_memory(agent))
    assert len(compiled) == T + 1
    assert all(made is compiled[0] for made in compiled)
    return compiled[0]


def bytes_spilled(compiled):
    """Return the bytes of a thread's stack, on which registers are spilled."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


def check_code_for_a_gpu(folder):
    """Compile for an H100: on tensor cores, without much spilling, in the memory of a program."""
    triton_loop.OPTIONS["BLOCK"] = USUAL
    for precision in ("highest", "high"):
        compiled = compiled_for_a_gpu(agent_of("as in balance"), precision)
        assert "wgmma.mma_async" in compiled.asm["ptx"]
        assert "tf32" in compiled.asm["ptx"]
        assert bytes_spilled(compiled) < 256, (precision, bytes_spilled(compiled))
        assert compiled.metadata.shared <= 2**16  # three programs on a multiprocessor


CHECKS = {
    "agents": check_agents,
    "settings": check_settings,
    "heads": check_heads,
    "ties": check_ties,
    "graph": check_graph,
    "code_for_a_gpu": check_code_for_a_gpu,
}


if __name__ == "__main__":
    triton_checks.main(CHECKS, *sys.argv[1:])
