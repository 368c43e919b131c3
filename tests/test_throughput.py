"""The throughput recipe: baselines compute the same loss, clocks wait for a GPU, and it runs."""

import argparse
import json
import re
import warnings
from dataclasses import replace

import pytest
import throughput
import torch
from recipe_tools import call, check_told
from support.throughput import collection, timing
from support.throughput import plan as plans
from support.throughput.ceiling import ceiling
from support.throughput.plan import CPU_PLAN, GPU_PLAN, plan_of
from support.throughput.profile import waiting_places
from support.throughput.report import print_table
from support.throughput.timing import Case, Operations, Runner, made, measured, timed
from support.throughput.updates import (
    HIDDEN_DIM,
    SIMPLE_SPREAD,
    PlainUpdate,
    TorchRLUpdate,
    our_update,
    perceptrons,
    products,
    random_batch,
    recurrent,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from qmix_trl import ConfigError, RecurrentAgent
from qmix_trl.chosen import Chosen
from qmix_trl.native.networks import dense
from qmix_trl.native.networks import library as networks


@pytest.mark.parametrize("resets", [False, True])
def test_the_loop_of_cells_learns_what_we_learn(resets):
    torch.manual_seed(0)
    agent = RecurrentAgent(*SIMPLE_SPREAD[:3], hidden_dim=HIDDEN_DIM)
    ours = our_update(agent, SIMPLE_SPREAD)
    plain = PlainUpdate(SIMPLE_SPREAD)
    for networks_of in (plain.networks, plain.targets):
        agents, mixer = networks_of
        agents.load_state_dict(agent.state_dict())
        flat = ours.loss.mixer_params.flatten_keys(".").items()
        named = {name.removeprefix("module."): x for name, x in flat}
        mixer.load_state_dict(named)
    batch = random_batch(resets=resets)[:4, :30]
    for _ in range(3):
        torch.testing.assert_close(ours(batch)["loss"], plain(batch), rtol=1e-4, atol=1e-5)


def test_torchrls_update_learns():
    update, batch = TorchRLUpdate(SIMPLE_SPREAD), random_batch(resets=False)[:4, :10].contiguous()
    losses = []
    for _ in range(20):
        losses.append(update.loss(batch)["loss"].item())
        update(batch)
    assert losses[-1] < losses[0]


def test_an_update_is_few_operations(monkeypatch):
    agent = RecurrentAgent(*SIMPLE_SPREAD[:3], hidden_dim=HIDDEN_DIM)
    ours = our_update(agent, SIMPLE_SPREAD)
    batch = random_batch(resets=False)
    ours(batch)
    counts = []
    for serves in (networks.serves, lambda *_: False):
        monkeypatch.setattr(networks, "serves", serves)
        with Operations() as mode:
            ours(batch)
        counts.append(mode.count)
    if networks.missing(dense.library, torch.float32) is None:
        assert counts[0] < 400 < counts[1]


# Clocks, memory and failures

CUDA = torch.device("cuda")
GIB = 2**30


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of products, by torch's own formulas."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        self.count += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


@pytest.mark.parametrize(
    ("agent", "tolerance"),
    [(perceptrons, 0.0), (recurrent, 0.002)],  # an unrolled GRU needs no first gradient
)
def test_the_products_are_those_of_an_update_by_torch(agent, tolerance, monkeypatch):
    monkeypatch.setattr(networks, "missing", lambda *library: "left out")
    plan = replace(CPU_PLAN, device=torch.device("cpu"))
    update, batch = our_update(agent(plan.device), SIMPLE_SPREAD), random_batch(resets=False)
    with Flops() as expected:
        update(batch)
    runner = products(plan, agent)
    with Flops() as found:
        runner.run()
    assert found.count == pytest.approx(expected.count, rel=tolerance)


def test_the_ceiling_is_a_rate_of_products_and_of_copies():
    line = re.fullmatch(
        r"ceiling of 2 threads: (\d+) GFLOP/s in .*, (\d+) GB/s in a copy", ceiling(2)
    )
    assert all(int(rate) > 0 for rate in line.groups())


def test_the_timer_waits_for_the_gpu_before_and_after(monkeypatch):
    clock, queued = [0.0], [7.0]  # seconds; the GPU is still busy with earlier work

    def run():
        clock[0] += 2.0
        queued.append(4.0)

    def wait(device):
        assert device == CUDA
        clock[0] += sum(queued)
        queued.clear()

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    assert timed(Runner(run, n_steps=10), CUDA) == (600.0, 200.0)  # (2 + 4) / 10 s, 2 / 10 s


def test_memory_is_the_peak_above_that_before(monkeypatch):
    allocated, peak = [1.5 * GIB], [9.0 * GIB]  # the peak is of earlier work

    def make():
        peak[0] = max(peak[0], allocated[0] + 2.5 * GIB)
        return Runner(lambda: None, 1)

    def reset(device):
        peak[0] = allocated[0]

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    assert made(make, CUDA).peak_gib == 2.5


def case_of(theirs, **ours):
    """Return a case of sides on the CPU."""
    return Case("env", "balance", 8, torch.device("cpu"), "VmasEnv", theirs, ours, per_step=8)


def idle(**fields):
    """Return a function that makes a runner which does nothing."""
    return lambda: Runner(lambda: None, 1, **fields)


def out_of_memory(*_):
    """Raise as torch does where a GPU is full."""
    raise torch.OutOfMemoryError("tried to allocate 90 GiB")


@pytest.mark.parametrize("theirs", [out_of_memory, lambda: Runner(out_of_memory, 1)])
def test_a_baseline_without_memory_leaves_its_column_empty(theirs, capsys):
    (line,), sides = measured(case_of(theirs, kernel=idle()), rounds=2)
    assert (line.ratio, line.baseline_ms, list(sides)) == (None, None, ["kernel"])
    assert "env balance 8, baseline: left out: OutOfMemoryError" in capsys.readouterr().out
    print_table([line], header=False, details=True)
    assert capsys.readouterr().out.split()[:4] == ["env", "balance", "8", "kernel"]


def test_an_engine_that_is_refused_or_too_large_is_left_out(capsys):
    def refused():
        raise ConfigError("env.engine: no kernel")

    case = case_of(idle(), kernel=refused, inductor=lambda: Runner(out_of_memory, 1), eager=idle())
    lines, _ = measured(case, rounds=2)
    assert [line.engine for line in lines] == ["eager"]
    said = capsys.readouterr().out
    assert "kernel: left out: ConfigError env.engine: no kernel" in said
    assert "inductor: left out: OutOfMemoryError" in said


def test_a_line_says_what_ran_and_shows_a_fallback(capsys):
    how = {"env": Chosen("eager", {"kernel": "it has none"}), "collector": Chosen("CUDA graph")}
    (line,), _ = measured(case_of(idle(), eager=idle(how=how, parts=lambda: {"a_s": 2.0})), 1)
    assert line.how == how
    print_table([line], header=False, details=False)
    assert capsys.readouterr().out.splitlines()[1:] == ["    env: eager (no kernel: it has none)"]
    print_table([line], header=False, details=True)
    said = capsys.readouterr().out
    assert "collector: CUDA graph" in said
    assert "a_s 2.000" in said


def test_places_at_which_the_host_waits(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run():
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    line = run.__code__.co_firstlineno + 1
    assert waiting_places(run) == [f"test_throughput.py:{line}"]
    assert modes == ["warn", "default"]


# Plans


@pytest.mark.parametrize(
    ("base", "steps", "expected", "baseline"),
    [
        (CPU_PLAN, None, [25, 25, 25], [25, 25, 25]),
        (GPU_PLAN, None, [100, 100, 25], [20, 20, 20]),
        (GPU_PLAN, 50, [50, 50, 50], [20, 20, 20]),
    ],
)
def test_steps_of_a_batch_by_the_number_of_environments(base, steps, expected, baseline):
    plan = replace(base, steps=steps)
    assert [plan.batch_steps(n) for n in (4096, 32768, 131072)] == expected
    assert [plan.baseline_batch_steps(n) for n in (4096, 32768, 131072)] == baseline


def test_options_replace_the_defaults_of_the_device():
    given = argparse.Namespace(envs=[8], rounds=None, what=None, threads=1, device="cuda")
    plan = plan_of(given, CUDA)
    assert (plan.device, plan.on_gpu, plan.envs, plan.rounds) == (CUDA, True, [8], 3)
    assert plan_of(given, torch.device("cpu")) == replace(CPU_PLAN, envs=[8])


def test_cuda_is_refused_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        call("throughput.py", "--device", "cuda")
    check_told(caught.value.code, capsys.readouterr().err, 3, ["--device: cuda", "--device=auto"])


@pytest.mark.parametrize(
    "option", [["--picture", "no/x.png"], ["--picture", "x.foo"], ["--json", "no/x.json"]]
)
def test_a_file_that_cannot_be_written_is_told_before_the_measurement(
    option, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        call("throughput.py", *option)
    assert caught.value.code == 2
    assert f"argument {option[0]}: expected a " in capsys.readouterr().err.splitlines()[-1]


# Runs


def test_a_plan_of_a_gpu_runs_on_the_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(collection, "MAX_STEPS", 4)
    plan = replace(
        GPU_PLAN,
        what=("env", "collect"),
        scenarios=("simple_spread",),
        engines=("eager",),
        envs=(2,),
        rounds=1,
        steps=2,
        baseline_steps=2,
        rollout_steps={"eager": 2},
    )
    file = tmp_path / "timings.json"
    timings = throughput.measure(plan, file, tmp_path / "profiles")
    assert [timing.baseline for timing in timings] == [
        "VmasEnv, 2 steps",
        "Collector over VmasEnv, 2 steps",
    ]
    env, collect = json.loads(file.read_text())
    assert env["how"] == {"env": {"name": "eager", "passed_over": {}}}
    assert collect["how"]["collector"]["name"] == "step loop"
    assert collect["parts"]["without_renewals_ms"] > 0
    assert 0 < env["host_ms"] <= env["ms"]
    assert "host_ms" in capsys.readouterr().out
    assert (tmp_path / "profiles" / "collect-simple_spread-2-eager.txt").exists()


@pytest.mark.slow
def test_every_part_of_a_gpus_plan_runs_on_the_cpu():
    plan = replace(
        GPU_PLAN,
        scenarios=("simple_spread",),
        envs=(4,),
        rounds=1,
        baseline_steps=2,
        round_updates=4,
        train_envs=32,
    )
    timings = throughput.measure(plan, None, None)
    updates = ["update-mlp", "update-gru", "update-gru"]
    assert [t.what for t in timings] == ["env", "collect", *updates, "train-1"]
    assert [set(t.parts) for t in timings] == [
        {"step_by_step_ms", "renewal_s"},
        {"without_renewals_ms", "collector_s"},
        *[{"with_sampling_ms", "without_graph_ms"}] * 3,
        set(),
    ]
    assert set(timings[-1].how) == {"env", "collector", "update"}


@pytest.mark.slow
def test_the_recipe_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plans, "CPU_PLAN", replace(CPU_PLAN, train_envs=32))
    asked = "--what env collect update-mlp train-1 --scenarios simple_spread --envs 2"
    files = ["--json", str(tmp_path / "timings.json"), "--picture", str(tmp_path / "a.png")]
    call("throughput.py", *asked.split(), "--engines", "eager", "--rounds", "1", *files)
    lines = json.loads((tmp_path / "timings.json").read_text())
    assert [line["what"] for line in lines] == ["env", "collect", "update-mlp", "train-1"]
    for line in lines:
        assert 0 < line["ratio"]["min"] <= line["ratio"]["median"] <= line["ratio"]["max"]
        assert line["ms"] > 0
        assert line["machine"]["torch"] == torch.__version__
    table = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert table[0].startswith("ceiling of 1 thread: ")
    assert len(table) == 2 + len(lines) + 1
    assert (tmp_path / "a.png").exists()
