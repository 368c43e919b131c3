"""The memory of a run, estimated before it starts, against what the run then takes."""

import gc
import json
from pathlib import Path

import pytest
import torch
from recipe_tools import AGENTS, call, check_told, game, tiny
from support import components, memory, room
from support.evaluation import Evaluation
from torchrl.envs import RewardSum

from qmix_trl import MachineError, load_config, make_policy, with_memory
from qmix_trl.keys import EPISODE_REWARD, REWARD
from qmix_trl.trained import build_agent

CPU = torch.device("cpu")
SIZES = ["env.n_envs=64", "replay.capacity_rows=512", "evaluation.episodes=32"]
STEPS = ["env.max_steps=12", "collection.steps=12", "collection.total_frames=10000"]
SLICES = ["collection.rows=slices", "collection.steps=8", "replay.burn_in=3"]
NAVIGATION = ["env.scenario=navigation", "env.scenario_kwargs={}"]
GAME = [
    game("two_step").replace("n_envs: 2", "n_envs: 64").replace("max_steps: 4", "max_steps: 12")
]
MASKED = [GAME[0].replace("two_step, scenario_kwargs: {}", "memory, scenario_kwargs: {delay: 2}")]
FORAGING = [
    "env={family: foraging, scenario: 10x10-3p-3f, scenario_kwargs: {}, n_envs: 64, max_steps: 12, "
    "state: observations, engine: auto}"
]
VDN = ["mixer={name: vdn}"]
CASES = {
    "perceptron, episodes": [],
    "GRU, slices, VDN": [AGENTS["recurrent"], *SLICES, *VDN],
    "GRU, stock collector": [AGENTS["recurrent"], "collection.collector=stock"],
    "navigation": NAVIGATION,
    "navigation, GRU, observations": [
        *NAVIGATION,
        AGENTS["recurrent"],
        "env.state=observations",
        *SLICES[:2],
    ],
    "game, GRU": [*GAME, AGENTS["recurrent"]],
    "game with masked actions, VDN, slices": [*MASKED, *SLICES, *VDN],
    "foraging, GRU": [*FORAGING, AGENTS["recurrent"]],
}

QUICK = ("navigation, GRU, observations", "game, GRU", "game with masked actions, VDN, slices")


def config_of(folder, *overrides):
    """Return the configuration of a run of a fraction of a second."""
    return load_config(tiny(folder), [*SIZES, *STEPS, *overrides])


def run_parts(config):
    """Return collector, replay, evaluation and agent of a run, made as train.py makes them."""
    slices = config.collection.rows == "slices"
    n_envs = config.env.n_envs
    env = components.build_env(config, CPU, n_envs=n_envs, seed=0, reset_when_done=slices)
    evaluation = Evaluation(config, CPU)
    agent = build_agent(config, evaluation.dims, CPU)
    env = with_memory(env, agent).append_transform(RewardSum([REWARD], [EPISODE_REWARD]))
    policy = make_policy(agent, components.build_exploration(config, CPU))
    collector = components.build_collector(config, env, policy)
    return collector, components.build_replay(config, CPU), evaluation, agent


def peak_bytes(config, folder):
    """Return the most bytes that torch allocates at once, and the bytes of the replay's rows.

    The run collects two batches and evaluates.
    """
    cpu = torch.profiler.ProfilerActivity.CPU
    # Simulators are cycles, and a process full of other objects seldom looks for those. A run has
    # a process of its own.
    gc.collect()
    gc.freeze()
    gc.collect()
    try:
        with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
            collector, replay, evaluation, agent = run_parts(config)
            batches = iter(collector)
            for _ in range(2):
                batch = next(batches)  # while the one before is still there, as in a loop
                replay.extend(batch)
            evaluation.greedy(agent)
    finally:
        gc.unfreeze()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = [event["args"] for event in events if event.get("name") == "[memory]"]
    before = events[0]["Total Allocated"] - events[0]["Bytes"]
    most = max(event["Total Allocated"] for event in events) - before
    return most, sum(x.nbytes for x in replay.storage._storage.values(True, True))


# Small batches: the memory of the networks, which is not counted, is below 1 %.
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in CASES],
)
def test_the_estimate_is_near_the_greatest_need(case, tmp_path):
    config = config_of(tmp_path, *CASES[case])
    sizes = memory.sizes_of(config)
    replay = memory.replay_need(config, sizes)
    estimate = replay.n_bytes + sum(need.n_bytes for need in memory.needs_of(config, sizes))
    most, stored = peak_bytes(config, tmp_path)
    assert replay.n_bytes == stored
    assert estimate == pytest.approx(most, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("many", [["evaluation.episodes=300"], ["env.max_steps=80", *SLICES]])
def test_the_estimate_counts_long_and_many_evaluations(many, tmp_path):
    config = config_of(tmp_path, "replay.capacity_rows=64", *many)
    sizes = memory.sizes_of(config)
    evaluation, environments, _ = memory.needs_of(config, sizes)
    assert evaluation.name.startswith("evaluation")
    estimate = memory.replay_need(config, sizes).n_bytes + sum(
        need.n_bytes for need in (evaluation, environments)
    )
    assert estimate == pytest.approx(peak_bytes(config, tmp_path)[0], rel=0.15)


@pytest.mark.slow
def test_the_estimate_counts_the_pool_of_a_kernel(tmp_path):
    config = config_of(tmp_path, "env.engine=kernel", "env.n_envs=512")
    sizes = memory.sizes_of(config)
    needs = [memory.replay_need(config, sizes), *memory.needs_of(config, sizes)]
    estimate = sum(need.n_bytes for need in needs)
    run_parts(config)  # builds the kernel: the profile of a build takes a minute to read
    # A simulator of 5 MB is garbage that waits for the collector, or does not.
    assert estimate == pytest.approx(peak_bytes(config, tmp_path)[0], rel=0.25)


HUGE = {
    "rows": (["replay.capacity_rows=999999999999999999"], "replay.capacity_rows=9999999999"),
    "environments": (["env.n_envs=10000000", "replay.capacity_rows=10000000"], "env.n_envs=100"),
    "a billion": (["env.n_envs=1000000000", "replay.capacity_rows=1000000000"], "env.n_envs=100"),
    "episodes": (["evaluation.episodes=1000000000"], "evaluation.episodes=1000000000"),
    "steps": (
        ["env.max_steps=1000000000000", "collection.steps=1000000000000"],
        "collection.steps=1000000000000",
    ),
    "steps of slices": (
        ["env.max_steps=1000000000000", "collection.rows=slices"],
        "env.max_steps=1000000000000",
    ),
    "networks": (["agent.hidden_dims=[1000000,1000000]"], "agent.hidden_dims=(1000000, 1000000)"),
    "disk": (
        ["replay.storage=memmap", "replay.capacity_rows=999999999999999999"],
        "the disk: expected at most",
    ),
}


@pytest.mark.parametrize("huge", HUGE)
def test_a_run_that_cannot_fit_is_refused_in_one_line(huge, tmp_path, monkeypatch, capsys):
    overrides, named = HUGE[huge]
    path = tiny(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        call("train.py", str(path), *overrides, "env.engine=auto")
    said = capsys.readouterr().err
    check_told(caught.value.code, said, 3, [named, "GiB", "which are free", "lower these keys"])
    assert not (tmp_path / "runs").exists()


def test_the_greatest_needs_are_named_first(monkeypatch, tmp_path):
    config = config_of(tmp_path, "replay.capacity_rows=1000000")
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**9)
    with pytest.raises(MachineError) as caught:
        memory.check_room(config, CPU, tmp_path)
    said = str(caught.value)
    # Of balance, with 4 agents, observations of 16 and a state of 48 numbers: 13 x 448 bytes seen,
    # 12 x (32 + 20 + 4) of actions, rewards and flags, 8 of the row's number: 6,504.
    assert "replay 6.06 GiB (replay.capacity_rows=1000000, collection.steps=12)" in said
    assert "env.n_envs" not in said  # less than 1 %
    assert said.endswith("lower these keys or set replay.storage=memmap")


def test_a_run_that_fits_is_not_refused(monkeypatch, tmp_path):
    config = config_of(tmp_path)
    sizes = memory.sizes_of(config)
    needs = [memory.replay_need(config, sizes), *memory.needs_of(config, sizes)]
    needed = sum(need.n_bytes for need in needs)
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    memory.check_room(config, CPU, tmp_path)
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1)
    with pytest.raises(MachineError):
        memory.check_room(config, CPU, tmp_path)


def test_a_run_that_goes_on_has_its_replay_twice(monkeypatch, tmp_path):
    config = config_of(tmp_path)
    sizes = memory.sizes_of(config)
    replay = memory.replay_need(config, sizes)
    needed = 2 * replay.n_bytes + sum(need.n_bytes for need in memory.needs_of(config, sizes))
    leftover = tmp_path / "run" / "replay" / ".new-killed"
    leftover.mkdir(parents=True)
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    memory.check_room(config, CPU, tmp_path, tmp_path / "run")
    assert not leftover.exists()
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1)
    with pytest.raises(MachineError, match="replay in the checkpoint"):
        memory.check_room(config, CPU, tmp_path, tmp_path / "run")


def test_a_gpus_own_memory_counts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 80))
    assert memory.free_memory(torch.device("cuda")) == 5


def written(root: Path, files: dict[str, str]) -> Path:
    """Write files below a folder; return it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_system_tells_the_available_memory(tmp_path):
    files = {"proc/meminfo": "MemTotal: 24 kB\nMemFree: 1 kB\nMemAvailable:  7 kB\n"}
    assert list(room.system_room(written(tmp_path, files))) == [7 * 1024]
    assert list(room.system_room(tmp_path / "other")) == []


def test_control_groups_limit_the_memory(tmp_path):
    second = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/memory.max": "1000\n",
        "sys/fs/cgroup/a/memory.current": "400\n",
        "sys/fs/cgroup/a/memory.stat": "anon 300\ninactive_file 100\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": "300\n",
    }
    assert list(room.cgroup_room(written(tmp_path / "2", second))) == [700]
    first = {  # in a container, where the path is the host's
        "proc/self/cgroup": "5:cpu,memory:/docker/x\n4:cpuset:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "500\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "600\n",
    }
    assert list(room.cgroup_room(written(tmp_path / "1", first))) == [0]
    assert list(room.cgroup_room(tmp_path)) == []
