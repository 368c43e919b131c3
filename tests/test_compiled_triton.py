"""The Triton kernel compared with the C++ kernel and with the definitions of operations.

Without a GPU it runs in Triton's interpreter and is compiled for an H100; ``triton_checks`` holds
those checks.
"""

import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import triton_checks
import triton_operations
from triton_checks import (
    SCENARIOS,
    assert_same,
    engines,
    needs_interpreter,
    needs_triton,
    run_checks,
    state_of,
    task_of,
    zeros,
)

from qmix_trl.envs.compiled.choose import Settings, kernel
from qmix_trl.envs.compiled.codegen import triton as triton_print
from qmix_trl.envs.compiled.engines.buffers import SeenLayout
from qmix_trl.envs.compiled.engines.packed_state import PackedNumber
from qmix_trl.envs.compiled.engines.triton import TritonEngine, faster_compilation
from qmix_trl.envs.compiled.lower.ops import OPS
from qmix_trl.errors import Refused
from qmix_trl.native import build
from qmix_trl.native.built_file import built_file

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("triton") is None,
    reason="needs a CUDA device and Triton",
)


def settings_on(device):
    """Return the settings of an engine for balance on a device."""
    return Settings(task_of("balance"), SeenLayout(4, 16, None), 8, 5, 0, torch.device(device))


def test_printing_gives_the_same_program_each_time():
    text = triton_print.source(triton_operations.operations_step())
    assert text == triton_print.source(triton_operations.operations_step())
    compile(text, "step.py", "exec")


def test_every_operation_has_a_case():
    # A cast is not made by ``apply``: it has lines of its own in ``operations_step``.
    assert {op for op, _, _ in triton_operations.CASES} | {"cast"} == set(OPS)


def test_without_triton_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(build.NoCompiler, match="pip install triton"):
        kernel(settings_on("cuda"))


def test_other_devices_have_no_kernel():
    with pytest.raises(Refused, match="there is no kernel for xpu"):
        kernel(settings_on("xpu"))


# A check takes 2 to 16 seconds: of the scenarios one with joints, and one with lidars that spawns.
INTERPRETED = [
    name if name in ("operations", "gru") else pytest.param(name, marks=pytest.mark.slow)
    for name in ("balance", "discovery", "operations", "gru", "task_to_batch")
]


@needs_interpreter
@pytest.mark.parametrize("name", INTERPRETED)
def test_in_the_interpreter(name, tmp_path):
    try:
        build.compiler()
    except build.NoCompiler as error:
        pytest.skip(str(error))
    raised = run_checks(triton_checks.__file__, tmp_path, [name], interpreted=True)[name]
    assert not raised, raised


@needs_triton
@pytest.mark.parametrize("name", ["code_for_a_gpu", "gru_for_a_gpu"])
def test_kernels_compile_for_a_gpu(name, tmp_path):
    raised = run_checks(triton_checks.__file__, tmp_path, [name], interpreted=False)
    assert not raised[name], raised[name]


@needs_triton
def test_what_triton_does_not_compile_is_refused_in_one_line(tmp_path):
    """The kernel is a stand-in whose launch fails."""
    source = tmp_path / "step.py"
    source.write_text(
        "class rollout:\n"
        "    def __class_getitem__(cls, grid):\n"
        "        return lambda *args, **options: 1 // 0\n"
    )
    fresh = triton_checks.pool_of_operations(1)
    with pytest.raises(build.BuildFailed, match="Triton: ZeroDivisionError integer division"):
        TritonEngine(built_file(source), fresh, 10, 0)


@needs_triton
def test_compilation_is_shortened_only_for_a_while():
    from triton._C.libtriton import passes

    kept = passes.ttgpuir.add_coalesce
    with faster_compilation():
        assert passes.ttgpuir.add_coalesce is not kept
    assert passes.ttgpuir.add_coalesce is kept


def test_two_zeros_are_equal_and_all_other_bits_are_compared():
    columns = {"f": [-(2**31), 0, 0x7FC00123, -1], "i": [-(2**31), 0, 1, -1], "b": [0, -1, 0, 0]}
    numbers = [PackedNumber(dtype, 0, dtype, True) for dtype in columns]
    packed = torch.tensor(list(columns.values()), dtype=torch.int32).T  # -2**31: the bits of -0.0
    expected = packed.clone()
    expected[0, 0] = 0
    assert torch.equal(
        triton_checks.bits(packed.contiguous().view(torch.float32), numbers), expected
    )


# ----------------------------------------------------------------------------------- on a device

CUDA = torch.device("cuda")


@pytest.fixture
def pair(tmp_path):
    """The C++ kernel and the Triton kernel on a GPU, reset to equal states."""
    made = engines(task_of("simple_spread"), tmp_path, 100, max_steps=7, device=CUDA)
    for engine in made:
        to = engine.fresh.device
        everywhere = torch.ones(100, dtype=torch.bool, device=to)
        engine.reset(everywhere, torch.zeros(100, engine.layout.size, device=to))
    return made


@needs_cuda
@pytest.mark.parametrize("scenario", ["balance", "navigation", "transport", "discovery"])
def test_the_gate_passes_on_a_device(scenario):
    keywords = SCENARIOS[scenario]
    small = replace(settings_on("cuda"), task=task_of(scenario, **keywords))
    assert isinstance(kernel(small), TritonEngine)


@needs_cuda
def test_twenty_steps_on_a_device_are_those_of_the_kernel(pair):
    generator = torch.Generator().manual_seed(0)
    buffers = [zeros(engine, 20, engine.fresh.device) for engine in pair]
    action = torch.randint(5, buffers[0].action.shape, generator=generator)
    for engine, to in zip(pair, buffers, strict=True):
        to.action.copy_(action)
        engine.advance(to, 0, 20, reset_when_done=True)
    cpp, ours = pair
    assert_same(vars(buffers[1]), vars(buffers[0]))
    assert_same(state_of(ours), state_of(cpp))


@needs_cuda
def test_steps_do_not_wait_for_the_device_and_can_be_captured(pair):
    cpp, ours = pair
    called, captured = zeros(cpp, 1, torch.device("cpu")), zeros(ours, 1, CUDA)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.advance(captured, 0, 1, reset_when_done=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.advance(captured, 0, 1, reset_when_done=True)
    for _ in range(9):
        graph.replay()
    for _ in range(10):
        cpp.advance(called, 0, 1, reset_when_done=True)
    assert ours.env_state.state()["key"].tolist() == [5, 10]
    assert_same(vars(captured), vars(called))
    assert_same(state_of(ours), state_of(cpp))


@needs_cuda
def test_batches_on_a_device_are_those_of_the_kernel():
    batches, start = triton_checks.fused_batches(CUDA)
    triton_checks.compare_batches(batches, start, 1e-5)
