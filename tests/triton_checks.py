"""Checks of Triton kernels that run in processes of their own.

Triton's interpreter must be chosen before Triton is imported. It accepts some code that the
compiler refuses, so a kernel is compiled for a GPU, too; that needs no GPU.

    python triton_checks.py FILE FOLDER CHECK ...

runs checks in a folder and writes their error messages to a file, as JSON.
"""

import json
import os
import subprocess
import sys
import traceback
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton_operations as ops
from compiled_tools import bare_step
from packaging.version import Version

from qmix_trl import AGENTS, GreedyAction, make_collector, make_env, make_policy, with_memory
from qmix_trl.agents import gru, gru_triton
from qmix_trl.chosen import POLICY_KERNEL, Chosen
from qmix_trl.envs.compiled import backends, compile, gate_runs
from qmix_trl.envs.compiled.codegen import triton as triton_print
from qmix_trl.envs.compiled.engines import triton as triton_kernel
from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.kernel import KernelEngine
from qmix_trl.envs.compiled.engines.packed_state import PackedNumber, as_bits
from qmix_trl.envs.compiled.engines.pool import PASSES, FreshStates
from qmix_trl.envs.compiled.engines.triton import TritonEngine
from qmix_trl.envs.compiled.lower.expressions import FLOAT
from qmix_trl.envs.compiled.trace import draws
from qmix_trl.envs.contract import env_dims
from qmix_trl.envs.vmas_scenarios import load_scenario
from qmix_trl.envs.vmas_simulation import Task
from qmix_trl.errors import ConfigError
from qmix_trl.keys import ACTION, AGENT_REWARD, DONE, OBSERVATION, REWARD, STATE, next_key
from qmix_trl.native import store
from qmix_trl.native.built_file import built_file

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
needs_interpreter = pytest.mark.skipif(
    find_spec("triton") is None
    or (Version(version("triton")).minor < 7 and Version(version("numpy")) >= Version("2.4")),
    reason="needs Triton; the interpreter of Triton 3.6 needs NumPy before 2.4",
)
CPU = torch.device("cpu")
# Joints and contacts, lidars, contacts of a package, and spawning in the step. Few agents, because
# the interpreter takes milliseconds for an operation.
SCENARIOS = {
    "balance": {"n_agents": 2},
    "navigation": {"n_agents": 2},
    "transport": {"n_agents": 2},
    "discovery": {"n_agents": 2, "n_targets": 2},
}


def task_of(name, **keywords):
    """Return a scenario as a task."""
    return Task(
        name=name,
        scenario=load_scenario(name),
        scenario_kwargs=keywords,
        state="world",
        team_reward="mean",
        group=None,
    )


# ------------------------------------------------------------------- compared with the C++ kernel


def engines(task, folder, n_envs, *, max_steps, device):
    """Return the C++ kernel and the Triton kernel of a task, with equal pools of 4 E states.

    VMAS draws other states on a GPU than on the CPU, so the second engine gets those of the first.
    """
    source = folder / f"{task.name}.py"

    def printed(step):
        source.write_text(triton_print.source(step))
        return cpu.source(step)

    cpu = backends.of_cpu()
    both = replace(cpu, source=printed, tools=lambda: f"{cpu.tools()} and {source}")
    step = compile.compiled_step(task, both)
    made = []
    for engine, built, to in (
        (KernelEngine, step.library, CPU),
        (TritonEngine, built_file(source), device),
    ):
        fresh = FreshStates(task, n_envs, 3, step, least_states=1, device=to)
        made.append(engine(built, fresh, max_steps, 5))
    made[1].env_state.load_state(made[0].env_state.state())
    return made


def zeros(engine, n_steps, device):
    """Return buffers of zeros, since engines do not write all of their numbers."""
    buffers = Buffers.empty(engine.fresh.n_envs, n_steps, engine.layout, device)
    for tensor in vars(buffers).values():
        tensor.zero_()
    return buffers


def assert_same(ours, theirs):
    """Compare tensors by name, bit for bit except the bits of NaN."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name].cpu(), tensor, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: n + m
        )


def state_of(engine):
    """Return an engine's tensors, packed numbers as their bits.

    The random numbers of the pool are left out: a GPU has a generator more.
    """
    state = engine.env_state.state()
    own = {name: tensor for name, tensor in state.items() if not name.startswith("random ")}
    return {**own, "packed_state": bits(own["packed_state"], engine.fresh.step.numbers)}


def bits(packed, numbers):
    """Return the bits of a packed state, int32 [E, K], and those of 0.0 for the float -0.0.

    The minimum of 0.0 and -0.0 has either sign, by the processor.
    """
    is_float = torch.tensor([n.dtype == FLOAT for n in numbers], device=packed.device)
    return torch.where(is_float & (packed == 0), 0.0, packed).view(torch.int32)


def check_rollouts(folder, name):
    """Compare engines after resets, after two steps at once and after single steps."""
    n_envs, n_steps = 18, 2  # blocks that are not full
    task = task_of(name, **SCENARIOS[name])
    cpp, ours = pair = engines(task, folder, n_envs, max_steps=3, device=CPU)
    buffers = [zeros(engine, n_steps, CPU) for engine in pair]
    seen = [torch.zeros(n_envs, cpp.layout.size) for _ in pair]
    generator = torch.Generator().manual_seed(0)
    everywhere = torch.ones(n_envs, dtype=torch.bool)
    some = torch.arange(n_envs) % 3 > 0  # so that episodes end at different steps
    for begun in (everywhere, some):
        for engine, to in zip(pair, seen, strict=True):
            engine.reset(begun, to)
    assert torch.equal(seen[1], seen[0])
    ends = 0
    for t, n, reset_when_done in ((0, 2, True), (1, 1, True), (0, 1, False)):
        action = torch.randint(5, (n_envs, n_steps, cpp.layout.n_agents), generator=generator)
        for engine, to in zip(pair, buffers, strict=True):
            to.action.copy_(action)
            engine.env_state.renew()  # the C++ kernel's ``advance`` does that
            engine.advance(to, t, n, reset_when_done=reset_when_done)
        assert_same(vars(buffers[1]), vars(buffers[0]))
        assert_same(state_of(ours), state_of(cpp))
        ends += int(buffers[0].done.sum())
    assert ends > n_envs
    check_pools(pair, buffers, seen)


def check_pools(pair, buffers, seen):
    """Compare engines from a loaded state, at the end of the pool, and after it is refilled."""
    cpp, ours = pair
    kept = cpp.env_state.state()
    assert cpp.fresh.taken == kept["resets"].sum() > cpp.fresh.n_envs
    kept["resets"] = kept["resets"] + cpp.fresh.states_per_env  # the second pass through the pool
    kept["steps"][::2] = 2  # so that these episodes end
    everywhere = torch.ones(cpp.fresh.n_envs, dtype=torch.bool)
    for engine, to in zip(pair, buffers, strict=True):
        engine.env_state.seed(8)
        engine.env_state.load_state(kept)
        engine.advance(to, 0, 1, reset_when_done=True)
    assert buffers[0].done[::2, 0].all()
    assert_same(vars(buffers[1]), vars(buffers[0]))
    pool = cpp.fresh.pool.clone()
    for engine, to in zip(pair, seen, strict=True):
        engine.env_state.load_state({**kept, "resets": torch.zeros_like(kept["resets"])})
        for _ in range(PASSES * cpp.fresh.states_per_env):
            engine.reset(everywhere, to)
        assert torch.equal(engine.fresh.pool.cpu(), pool)
        engine.env_state.renew()
        assert not torch.equal(engine.fresh.pool.cpu(), pool)
        engine.reset(everywhere, to)
    assert torch.equal(seen[1], seen[0])
    assert_same(state_of(ours), state_of(cpp))


# ------------------------------------------------------------------------------ from task to batch


def environment(device, **settings):
    """Return an environment with a small step, on a kernel."""
    return make_env(
        "vmas",
        scenario="simple_spread",
        n_envs=18,
        max_steps=4,
        state="world",
        team_reward="mean",
        seed=0,
        device=device,
        engine="kernel",
        **settings,
    )


def fused_batches(device):
    """Return batches of the fused collector over the Triton kernel, and the state before them."""
    torch.manual_seed(0)
    env = environment(device)
    start = env.simulation_state()
    assert isinstance(env.engine, TritonEngine)
    dims = env_dims(env)
    agent = AGENTS["recurrent"](dims.n_agents, dims.observation_dim, dims.n_actions).to(device)
    policy = make_policy(agent, GreedyAction())
    settings = {"rows": "slices", "steps": 5, "n_batches": 2, "collector": "fused"}
    collector = make_collector(with_memory(env, agent), policy, **settings)
    if device.type == "cuda":
        assert collector.how == Chosen(POLICY_KERNEL)
    return list(collector), start


def compare_batches(batches, start, tolerance):
    """Replay the actions of batches by the C++ kernel, from the state before them."""
    env = environment(CPU)
    env.load_simulation_state(start)
    env.reset()
    for batch in batches:
        buffers = env.begin_buffers(5)
        buffers.action.copy_(batch[ACTION].cpu())
        env.engine.advance(buffers, 0, 5, reset_when_done=True)
        theirs = batch.cpu().clone()
        env.pack_buffers(buffers, theirs)
        assert theirs[next_key(DONE)].any()
        for key in (OBSERVATION, STATE, AGENT_REWARD, REWARD, DONE):
            ours = batch[next_key(key)].cpu()
            torch.testing.assert_close(ours, theirs[next_key(key)], rtol=tolerance, atol=tolerance)


def check_task_to_batch(folder):
    """Trace, print, store, check and collect with the interpreter as the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends.BACKENDS, "cpu", backends.of_gpu)
        batches, start = fused_batches(CPU)
        patch.setitem(triton_print.FORMS, "sub", "({1} - {0})")
        with pytest.raises(ConfigError, match="its step differs from VMAS's"):
            environment(CPU, scenario_kwargs={"n_agents": 2})
    compare_batches(batches, start, 0.0)
    kept = {(path.stem[:5], path.suffix) for path in store.folder().glob("simple_spread-*/*")}
    needed = {("notes", ".json"), ("step-", ".cpp"), ("step-", ".py"), ("step-", ".so")}
    assert kept >= needed, kept  # other tests may be building in the folder


# ---------------------------------------------------------------------- operations by definition


def operations_source(folder):
    """Return the built file of a kernel with all operations."""
    triton_print.SPAWN_TRIES = ops.TRIES
    path = folder / "operations.py"
    path.write_text(triton_print.source(ops.operations_step()))
    return built_file(path)


def pool_of_operations(n_seen):
    """Return a stand-in for the pool of a step with all operations."""
    numbers = [PackedNumber(x, 0, dtype, True) for x, dtype in ops.TYPES.items()]
    step = bare_step(numbers, SeenLayout(1, n_seen, None))
    pool = torch.zeros(4 * ops.E, len(numbers) + n_seen)
    return SimpleNamespace(
        n_envs=ops.E,
        step=step,
        pool=pool,
        taken=0,
        device=CPU,
        first_states=lambda: pool[:1, : len(step.numbers)].repeat(ops.E, 1),
    )


def check_operations(folder):
    """Compare each operation with its definition."""
    draws.SPAWN_TRIES = ops.TRIES
    expected = ops.by_definition()
    fresh = pool_of_operations(expected.shape[1])
    engine = TritonEngine(operations_source(folder), fresh, 100, 0)
    state = torch.stack([as_bits(value, value.dtype) for value in ops.columns().values()], 1)
    buffers = zeros(engine, 1, CPU)
    engine.env_state.jump(state, ops.KEY)
    engine.advance(buffers, 0, 1, reset_when_done=False)
    names = [f"{op} {args}" for op, args, _ in ops.CASES]
    for j, (ours, theirs) in enumerate(zip(buffers.seen[:, 1].T, expected.T, strict=True)):
        name = names[j] if j < len(names) else f"number {j}"
        torch.testing.assert_close(
            ours, theirs, rtol=1e-5, atol=2e-6, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert torch.equal(buffers.terminated[:, 0], ops.columns()["q"])
    assert torch.equal(buffers.reward[:, 0], ops.columns()["b"])
    assert torch.equal(engine.env_state.packed_state().view(torch.int32), state.view(torch.int32))


# -------------------------------------------------------------------------------- for a GPU


class H100:
    """The answers of a device to Triton when it compiles."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def check_code_for_a_gpu(folder):
    """Compile a kernel with all operations for an H100: once, rounded as in C++, in 32 bits."""
    from triton.runtime import driver

    driver.set_active(H100())
    kernel, compiled = triton_kernel.load(operations_source(folder).path), []

    class Compiles:
        def __getitem__(self, grid):
            return lambda *args, **options: compiled.append(
                kernel.warmup(*args, grid=grid, **options)
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_kernel, "load", lambda source: Compiles())
        engine = TritonEngine(operations_source(folder), pool_of_operations(100), 100, 0)
    buffers = zeros(engine, 3, CPU)
    for t, n in ((0, 1), (1, 1), (1, 2)):
        engine.advance(buffers, t, n, reset_when_done=True)
    assert len(compiled) == 4
    assert all(made is compiled[0] for made in compiled)
    assert compiled[0].metadata.shared == 0  # guards need no barrier
    for word in ("fma.rn", ".approx", ".ftz", ".f64", "bar.sync"):
        assert word not in compiled[0].asm["ptx"], word


# ------------------------------------------------------------------------------------- the GRU


def check_gru(folder):
    """Compare the GRU's kernels with the steps in float64 by torch, shared and own weights."""
    generator = torch.Generator().manual_seed(0)
    is_init = torch.tensor([[[0], [0], [1]], [[1], [0], [0]]], dtype=torch.bool)
    for own, with_hidden in (((), True), ((2,), False)):
        shapes = [(2, 3, 2, 15), (2, 2, 5), (*own, 15, 5), (*own, 15)]
        floats = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
        gates, hidden, weight, bias = floats
        wide = [None if x is hidden and not with_hidden else x.double() for x in floats]
        expected = gru.unroll_by_steps(wide[0], is_init, *wide[1:])
        grad = torch.randn(expected.shape, generator=generator)
        given = [x.detach() for x in floats]
        if not with_hidden:
            given[1] = None
        found, kept = gru_triton.forward(given[0], is_init, *given[1:], keep=True)
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)
        again, nothing = gru_triton.forward(given[0], is_init, *given[1:], keep=False)
        assert torch.equal(again, found)
        assert nothing is None
        gradients = gru_triton.backward(kept, is_init, *given[2:], grad)
        wanted = floats if with_hidden else [gates, weight, bias]
        exact = torch.autograd.grad(expected, wanted, grad.double())
        of_wanted = gradients if with_hidden else (gradients[0], *gradients[2:])
        for one, other in zip(of_wanted, exact, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


def check_gru_for_a_gpu(folder):
    """Compile the GRU's kernels for an H100: only sums over H move values between threads."""
    from triton.runtime import driver

    from qmix_trl.agents import gru_kernels

    driver.set_active(H100())
    compiled = []

    def compiles(kernel):
        def launch(*args, **options):
            compiled.append(kernel.warmup(*args, grid=(1,), **options))

        return {(3,): launch, (6,): launch}  # by the grid: a program for each agent's sequence

    with pytest.MonkeyPatch.context() as patch:
        for name in ("forward", "backward"):
            patch.setattr(gru_kernels, name, compiles(getattr(gru_kernels, name)))
        weight, bias = torch.zeros(192, 64), torch.zeros(192)
        for n_sequences, n_steps in ((2, 4), (1, 1)):
            is_init = torch.zeros(n_sequences, n_steps, 1, dtype=torch.bool)
            gates = torch.zeros(n_sequences, n_steps, 3, 192)
            hiddens, kept = gru_triton.forward(gates, is_init, None, weight, bias, keep=True)
            gru_triton.backward(kept, is_init, weight, bias, hiddens)
    assert compiled[2:] == compiled[:2]  # one kernel for all sizes
    for made, n_moved in zip(compiled, (1, 3, 1, 3), strict=True):
        assert made.asm["ttgir"].count("= ttg.convert_layout") == n_moved
        assert made.metadata.shared <= 2048
        assert ".f64" not in made.asm["ptx"]


CHECKS = {
    **{name: lambda folder, name=name: check_rollouts(folder, name) for name in SCENARIOS},
    "operations": check_operations,
    "task_to_batch": check_task_to_batch,
    "code_for_a_gpu": check_code_for_a_gpu,
    "gru": check_gru,
    "gru_for_a_gpu": check_gru_for_a_gpu,
}


def run_checks(program, folder, names, *, interpreted):
    """Run checks in a process of their own; return their error messages by name, "" for none.

    Args:
        program: the file of the checks, such as this one.
        folder: to run in.
        names: of the checks.
        interpreted: run Triton's kernels in its interpreter.
    """
    outcome = folder / "outcome.json"
    env = {
        **os.environ,
        "TRITON_INTERPRET": str(int(interpreted)),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "QMIX_TRL_CACHE": str(folder / "steps"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", program, outcome, folder, *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(outcome.read_text())


def main(checks, outcome, folder, *names):
    """Run checks of a table and write their error messages."""
    # The interpreter is slow.
    gate_runs.RESET_STEPS = gate_runs.FREE_STEPS = 4
    gate_runs.MOST_FREE_STEPS, gate_runs.AFTER_LIMIT, gate_runs.EDGE_ROUNDS = 0, 0, 1
    raised = dict.fromkeys(names, "")
    for name in names:
        try:
            checks[name](Path(folder))
        except Exception:
            raised[name] = traceback.format_exc()
        Path(outcome).write_text(json.dumps(raised))


if __name__ == "__main__":
    main(CHECKS, *sys.argv[1:])
