"""Engines compared with VMAS and with each other: steps, resets, state, and the choice of one."""

import copy
import gc
import pickle
import resource
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import cloudpickle
import pytest
import torch
from compiled_tools import Plain
from scipy.stats import ks_2samp
from torchrl.envs import check_env_specs
from vmas.simulator.core import Agent, Sphere, World
from vmas.simulator.scenario import BaseScenario

from qmix_trl import (
    env_dims,
    make_env,
)
from qmix_trl.chosen import Chosen
from qmix_trl.envs.compiled import choose as engines
from qmix_trl.envs.compiled.codegen import cpp
from qmix_trl.envs.compiled.engines.buffers import Buffers, SeenLayout
from qmix_trl.envs.compiled.engines.inductor import load_package
from qmix_trl.envs.compiled.engines.packed_state import read_packed_state
from qmix_trl.envs.compiled.trace.pure import static_collisions
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_simulation import VmasSimulation
from qmix_trl.errors import ConfigError, MachineError, Refused
from qmix_trl.keys import OBSERVATION
from qmix_trl.native import build
from qmix_trl.native.built_file import NotLoadable, built_file

try:
    build.compiler()
except build.NoCompiler as error:
    pytest.skip(str(error), allow_module_level=True)

# Contacts, with and without joints, lidars, spawning in a step, noise, communication, several
# groups, choices and masses that resets draw.
SCENARIOS = {
    "balance": None,
    "transport": None,
    "dispersion": None,
    "simple_spread": None,
    "navigation": None,
    "discovery": None,
    "dropout": None,
    "wheel": None,
    "goal": None,
    "drone": None,
    "het_mass": None,
    "wind_flocking": None,
    "simple_reference": None,
    "simple_adversary": "adversary",
    "line_trajectory": None,
}
CPU = torch.device("cpu")


def env_of(scenario="balance", **settings):
    """Return a small environment; ``settings`` replace the defaults."""
    settings = {
        "n_envs": 8,
        "max_steps": 20,
        "state": "world",
        "team_reward": "mean",
        "seed": 0,
        "engine": "kernel",
        "group": SCENARIOS.get(scenario) if isinstance(scenario, str) else None,
        **settings,
    }
    return make_env("vmas", scenario=scenario, **settings)


def actions(env, n_steps, *, seed=0):
    """Return random actions int64 [E, T, N]."""
    dims, generator = env_dims(env), torch.Generator().manual_seed(seed)
    shape = (env.batch_size[0], n_steps, dims.n_agents)
    return torch.randint(dims.n_actions, shape, generator=generator)


def rollout(env, n_steps, *, seed=0):
    """Return buffers of ``n_steps`` random steps."""
    buffers = env.begin_buffers(n_steps)
    buffers.action.copy_(actions(env, n_steps, seed=seed))
    env.engine.advance(buffers, 0, n_steps, reset_when_done=True)
    env.seen.copy_(buffers.seen[:, -1])
    return buffers


def simulation_of(env, n_envs, seed):
    """Return a simulation of an environment's task by unmodified VMAS."""
    return VmasSimulation(env.engine.fresh.simulation.task, n_envs, seed, CPU)


# --------------------------------------------------------------- steps compared with VMAS


def slow(*values):
    """Return a parameter set of slow tests: a kernel takes seconds to build."""
    return pytest.param(*values, marks=pytest.mark.slow)


DRAWS_IN_STEPS = ("discovery", "line_trajectory")  # other tests compare the distributions
LIKE_OTHERS = (  # in their physics
    *("goal", "drone", "het_mass", "transport", "wheel", "wind_flocking"),
    *("simple_adversary", "simple_reference"),
)
QUICK = ("balance", "simple_spread")
COMPARED = [
    s if s in QUICK else slow(s) for s in SCENARIOS if s not in (*DRAWS_IN_STEPS, *LIKE_OTHERS)
]


@pytest.mark.parametrize("scenario", COMPARED)
def test_200_steps_equal_vmas_from_equal_states(scenario):
    env = env_of(scenario, n_envs=16, max_steps=10**6)
    fresh, engine = env.engine.fresh, env.engine
    vmas = simulation_of(env, 16, seed=5)
    buffers = Buffers.empty(16, 1, engine.layout, CPU)
    action = actions(env, 200)  # [E, T, N]
    # VMAS skips a pair that is far apart in every environment of the batch, and in navigation a
    # penalty with it. Here navigation computes every pair that may collide.
    wrong = 0
    for t in range(200):
        broad_phase = (
            static_collisions(vmas.simulator) if scenario == "navigation" else nullcontext()
        )
        if t % 50 == 0:
            vmas.reset()
        state = read_packed_state(
            vmas.simulator, fresh.step.numbers, fresh.choice(walk(vmas.simulator))
        )
        engine.env_state.jump(state, torch.tensor([0, t]))
        buffers.action[:, 0] = action[:, t]
        engine.advance(buffers, 0, 1, reset_when_done=False)
        with broad_phase:
            theirs = vmas.step(action[:, t])
        for a, b in (
            (buffers.seen[:, 1], engine.layout.pack(theirs.seen)),
            (buffers.agent_reward[:, 0], theirs.agent_reward[..., 0]),
            (buffers.reward, theirs.reward),
            (buffers.terminated, theirs.terminated),
        ):
            close = torch.isclose(a.float(), b.float(), rtol=1e-4, atol=1e-3)
            wrong += int((~close.flatten(1).all(1)).sum())
    # Stiff contacts sometimes multiply a rounding beyond any fixed bound.
    assert wrong <= 4, f"{wrong} of 12,800 comparisons"


def test_balance_is_bit_equal_to_vmas():
    # As long as nothing touches, observations of balance take only operations that IEEE rounds, in
    # VMAS's order: exp, log, sin and cos serve contacts only.
    env = env_of(n_envs=16, max_steps=10**6)
    engine, vmas = env.engine, simulation_of(env, 16, seed=5)
    vmas.reset()
    engine.env_state.jump(
        read_packed_state(vmas.simulator, engine.fresh.step.numbers, 0), torch.tensor([0, 0])
    )
    buffers = Buffers.empty(16, 1, engine.layout, CPU)
    buffers.action[:, 0] = actions(env, 1)[:, 0]
    engine.advance(buffers, 0, 1, reset_when_done=False)
    theirs = vmas.step(buffers.action[:, 0])
    assert torch.equal(buffers.seen[:, 1], engine.layout.pack(theirs.seen))


@pytest.mark.slow
def test_spawning_in_a_step_has_the_distribution_of_vmas():
    # discovery: covered targets come back at a random place, at a distance from all others.
    env = env_of("discovery", n_envs=100, max_steps=10**6)
    engine, vmas = env.engine, simulation_of(env, 100, seed=5)
    vmas.reset()
    agents, targets = vmas.simulator.agents, vmas.simulator.scenario._targets
    for agent in agents[:2]:  # two agents on one target cover it
        agent.set_pos(targets[0].state.pos.clone(), batch_index=None)
    state = read_packed_state(vmas.simulator, engine.fresh.step.numbers, 0)
    buffers = Buffers.empty(100, 2, engine.layout, CPU)  # no forces
    engine.env_state.jump(state, torch.tensor([0, 0]))
    engine.advance(buffers, 0, 2, reset_when_done=False)
    for _ in range(2):
        vmas.step(buffers.action[:, 0])
    place = vmas.simulator.world.entities.index(targets[0]) * 6  # of position, in the state
    ours = engine.layout.state(buffers.seen[:, 2])[:, place : place + 2]
    theirs = targets[0].state.pos
    moved = (theirs - state_position(state, engine, targets[0])).norm(dim=-1) > 1e-6
    assert moved.all()
    for axis in range(2):
        assert ks_2samp(ours[:, axis].numpy(), theirs[:, axis].numpy()).pvalue > 1e-3


def state_position(state, engine, entity):
    """Return an entity's position in a state [E, K]: float [E, 2]."""
    path = f"<{entity.name}>._state._pos"
    columns = [k for k, number in enumerate(engine.fresh.step.numbers) if number.path == path]
    return state[:, columns]


# ----------------------------------------------------------------------------- resets


@pytest.mark.parametrize(
    ("scenario", "shared"),
    [("balance", False), slow("give_way", True)],
)
def test_the_pool_has_the_distribution_of_vmas_resets_one_by_one(scenario, shared):
    env = env_of(scenario, n_envs=200)
    fresh = env.engine.fresh
    assert fresh.step.shared is shared
    vmas = simulation_of(env, 4, seed=5)
    numbers, theirs = fresh.step.numbers, []
    for _ in range(100):
        for i in range(4):
            vmas.reset_at(i)
        theirs.append(read_packed_state(vmas.simulator, numbers, 0))
    theirs = torch.cat(theirs)  # [400, K]
    ours = fresh.pool[:, : len(numbers)]
    compared = 0
    for k, number in enumerate(numbers):
        if number.dtype == "f" and theirs[:, k].std() > 1e-6:
            compared += 1
            assert ks_2samp(ours[:, k].numpy(), theirs[:, k].numpy()).pvalue > 1e-4, number.path
    assert compared >= 4


def test_no_environment_takes_a_state_of_the_pool_twice():
    fresh = env_of(n_envs=8).engine.fresh
    fresh.pool[:, 0] = torch.arange(len(fresh.pool))
    taken = [fresh.states_for(torch.full((8,), r))[:, 0] for r in range(len(fresh.pool))]
    for numbers in torch.stack(taken, 1).tolist():
        assert len(set(numbers)) == len(fresh.pool)


def test_the_kernel_takes_the_states_that_the_pool_names():
    env = env_of(n_envs=8, max_steps=3)
    fresh = env.engine.fresh
    env.engine.fresh.taken = -(10**9)  # so that the pool is not refilled
    env.reset()
    expected = fresh.states_for(torch.zeros(8, dtype=torch.int64))[:, len(fresh.step.numbers) :]
    assert torch.equal(env.seen, expected)
    buffers = rollout(env, 7)
    for r, t in ((1, 3), (2, 6)):
        expected = fresh.states_for(torch.full((8,), r))[:, len(fresh.step.numbers) :]
        assert torch.equal(buffers.seen[:, t], expected)


@pytest.mark.parametrize("engine", ["kernel", "eager"])
def test_the_last_observation_before_a_reset_is_kept(engine):
    env = env_of(n_envs=8, max_steps=5, engine=engine)
    env.reset()
    start = env.simulation_state()
    buffers = rollout(env, 5)
    env.load_simulation_state(start)
    unbroken = env.begin_buffers(5)
    unbroken.action.copy_(buffers.action)
    env.engine.advance(unbroken, 0, 5, reset_when_done=False)
    assert buffers.done[:, 4].all()
    assert torch.equal(buffers.next_seen[:, 4], unbroken.seen[:, 5])
    assert not torch.equal(buffers.seen[:, 5], unbroken.seen[:, 5])


def test_a_masked_reset_of_vmas_leaves_the_others_alone():
    env = env_of("navigation", n_envs=6, engine="eager")
    env.reset()
    rollout(env, 3)
    before = env.engine.env_state.state()
    mask = torch.tensor([True, False, True, False, False, True])
    env.engine.reset(mask, env.seen)
    after = env.engine.env_state.state()
    changed = 0
    for path, value in before.items():
        if path.startswith("vmas <") and value.shape[:1] == (6,):
            assert torch.equal(value[~mask], after[path][~mask]), path
            changed += int((value[mask] != after[path][mask]).any())
    assert changed > 4


# -------------------------------------------------------------------- seeds and state


@pytest.mark.parametrize("scenario", ["balance", slow("discovery"), "line_trajectory"])
def test_the_seed_reproduces(scenario):
    first, again, other = (env_of(scenario, seed=seed) for seed in (3, 3, 4))
    seen = []
    for env in (first, again, other):
        env.reset()
        seen.append(rollout(env, 50).seen)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    other.set_seed(3)
    other.reset()
    first.set_seed(3)
    first.reset()
    assert torch.equal(rollout(first, 30).seen, rollout(other, 30).seen)


@pytest.mark.parametrize("engine", ["kernel", "eager"])
@pytest.mark.parametrize(
    "scenario", ["balance", slow("discovery"), "het_mass", slow("simple_reference")]
)
def test_a_saved_state_continues_bit_for_bit(scenario, engine):
    env, other = env_of(scenario, engine=engine), env_of(scenario, engine=engine, seed=9)
    env.reset()
    rollout(env, 33)
    state = env.simulation_state()
    expected = rollout(env, 60, seed=1)
    other.reset()
    rollout(other, 7)
    other.load_simulation_state(state)
    got = rollout(other, 60, seed=1)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    for part in ("seen", "next_seen", "agent_reward", "reward", "terminated", "done"):
        assert torch.equal(getattr(got, part), getattr(expected, part)), part


@pytest.mark.parametrize("engine", ["kernel", "eager"])
def test_a_deep_copy_continues_independently_from_the_same_state(engine):
    env = env_of(engine=engine)
    env.reset()
    rollout(env, 7)
    other = copy.deepcopy(env)
    expected = rollout(env, 40, seed=1)
    got = rollout(other, 40, seed=1)  # not shared: the first has gone on
    assert torch.equal(got.next_seen, expected.next_seen)
    assert torch.equal(got.done, expected.done)


def test_an_environment_sent_to_another_process_saves_and_loads_its_state():
    env = env_of(engine="kernel")
    env.reset()
    rollout(env, 7)
    other = pickle.loads(cloudpickle.dumps(env))  # as TorchRL sends environments
    state = other.simulation_state()
    expected = rollout(other, 20, seed=1)
    other.load_simulation_state(state)
    got = rollout(other, 20, seed=1)
    assert torch.equal(got.next_seen, expected.next_seen)
    assert torch.equal(rollout(env, 20, seed=1).next_seen, expected.next_seen)


# -------------------------------------------------------------------- the environment


@pytest.mark.parametrize("scenario", ["balance", "simple_adversary"])
def test_environments_keep_their_specs(scenario):
    env = env_of(scenario, max_steps=3)
    assert env.how.name == "kernel"
    check_env_specs(env)


@pytest.mark.slow
def test_state_of_observations_concatenates_the_teams():
    env = env_of(state="observations")
    step = env.reset()
    assert torch.equal(step["state"], step[OBSERVATION].flatten(1))


def test_the_number_of_threads_changes_no_number():
    seen = []
    for n in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(n)
        env = env_of(n_envs=100)
        env.reset()
        seen.append(rollout(env, 40).seen)
        torch.set_num_threads(before)
    assert torch.equal(*seen)


class OwnScenario(BaseScenario):
    """One agent, rewarded near the origin; with ``branches``, by a branch in Python."""

    def make_world(self, batch_dim, device, **kwargs):
        self.branches = kwargs.pop("branches", False)
        world = World(batch_dim, device)
        world.add_agent(Agent("walker_0", shape=Sphere(0.05)))
        return world

    def reset_world_at(self, env_index=None):
        pos = torch.zeros(1 if env_index is not None else self.world.batch_dim, 2).uniform_(-1, 1)
        self.world.agents[0].set_pos(pos, batch_index=env_index)

    def observation(self, agent):
        return agent.state.pos

    def reward(self, agent):
        distance = agent.state.pos.norm(dim=-1)
        if self.branches and distance.max() > 1:
            return -2 * distance
        return -distance


def test_a_users_scenario_is_compiled():
    env = env_of(OwnScenario(), engine="auto")
    assert env.how == Chosen("kernel")
    env.reset()
    buffers = rollout(env, 10)
    position = env.engine.layout.observation(buffers.next_seen)[:, :, 0]
    assert torch.allclose(buffers.reward, -position.norm(dim=-1), atol=1e-6)


def test_a_step_that_branches_on_tensors_runs_on_vmas_itself():
    env = env_of(OwnScenario(), engine="auto", scenario_kwargs={"branches": True})
    assert env.how.name == "eager"
    assert "depends on tensors at test_engines.py" in env.how.passed_over["kernel"]
    env.reset()
    rollout(env, 3)


def test_a_requested_engine_that_cannot_run_is_an_error():
    with pytest.raises(ConfigError, match=r"env\.engine: .* does not run on kernel: .*branches"):
        env_of(OwnScenario(), engine="kernel", scenario_kwargs={"branches": True})


def test_a_wrong_kernel_does_not_pass_the_gate(monkeypatch):
    monkeypatch.setitem(cpp.FORMS, "sub", "({1} - {0})")
    with pytest.raises(ConfigError, match="its step differs from VMAS's"):
        env_of(OwnScenario(), engine="kernel", scenario_kwargs={"branches": 0})


# ------------------------------------------------------------------- the choice of engines


def refuses(reason):
    """Return a function that refuses whatever it is called with."""

    def refuse(*args):
        raise Refused(reason)

    return refuse


def test_without_a_compiler_vmas_itself_steps_and_the_reason_says_what_to_install(monkeypatch):
    def none():
        raise build.NoCompiler("no C++ compiler was found; install one (apt install g++)")

    monkeypatch.setattr(engines, "check_compiler", none)
    monkeypatch.setattr("qmix_trl.envs.compiled.backends.toolchain", none)
    env = env_of(engine="auto")
    reason = "no C++ compiler was found; install one (apt install g++)"
    assert env.how == Chosen("eager", {"kernel": reason, "inductor": reason})
    env.reset()
    rollout(env, 3)


@pytest.mark.parametrize(
    ("text", "reason"), [("echo boom >&2; exit 1", "boom"), ("", "no library")]
)
def test_with_a_compiler_that_fails_nothing_is_traced_and_vmas_itself_steps(
    monkeypatch, tmp_path, text, reason
):
    cxx = tmp_path / "cxx"
    cxx.write_text(f"#!/bin/sh\n{text}\n")
    cxx.chmod(0o755)
    monkeypatch.setenv("CXX", str(cxx))
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "steps"))
    for function in (build.command, build.toolchain, build._broken):  # they know another compiler
        monkeypatch.setattr(build, function.__name__, function.__wrapped__)
    monkeypatch.setattr("qmix_trl.envs.compiled.backends.toolchain", build.toolchain)
    monkeypatch.setattr("qmix_trl.envs.compiled.compile.recorded", None)
    monkeypatch.setattr(engines, "inductor_engine", None)
    env = env_of(OwnScenario(), engine="auto")
    assert env.how.name == "eager"
    assert list(env.how.passed_over) == ["kernel", "inductor"]
    assert all(reason in text for text in env.how.passed_over.values())
    for engine in ("kernel", "inductor"):
        with pytest.raises(MachineError, match=rf"does not run on {engine}: .*cxx: .*{reason}"):
            env_of(OwnScenario(), engine=engine)


def test_a_pickled_environment_whose_library_is_damaged_builds_it_again(monkeypatch, tmp_path):
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "steps"))
    env = env_of(OwnScenario())
    pickled = cloudpickle.dumps(env)
    (library,) = tmp_path.glob("steps/*/*.so")
    content = library.read_bytes()
    library.unlink()  # what the process has loaded stays as it is
    library.write_bytes(content[:-1])
    other = pickle.loads(pickled)
    assert other.how.name == "kernel"
    assert torch.equal(rollout(other, 5).reward, rollout(env, 5).reward)
    (library,) = tmp_path.glob("steps/*/*.so")
    assert build.is_whole(library)


def test_a_damaged_kernel_is_built_again_in_the_same_process(monkeypatch, tmp_path):
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "steps"))
    steps = rollout(env_of(OwnScenario()), 5)
    (library,) = tmp_path.glob("steps/*/*.so")
    content = library.read_bytes()
    library.unlink()  # what the process has loaded stays as it is
    library.write_bytes(content[:9000])
    again = rollout(env_of(OwnScenario()), 5)
    assert torch.equal(steps.reward, again.reward)
    (library,) = tmp_path.glob("steps/*/*.so")
    assert build.is_whole(library)


class FromFile(Plain):
    """Reads its reward from a file when the world is made."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def make_world(self, batch_dim, device, **kwargs):
        self.weight = float(Path(self.path).read_text())
        return super().make_world(batch_dim, device)

    def reward(self, agent):
        return torch.full((self.world.batch_dim,), self.weight)


def test_a_file_that_is_edited_between_two_environments_of_a_process_counts(tmp_path):
    path = tmp_path / "weight.txt"
    for weight in (2.0, 3.0, 2.0):
        path.write_text(f"{weight}")
        env = env_of(FromFile(path), engine="kernel")
        assert (rollout(env, 3).reward == weight).all()


def test_a_failed_build_is_told_and_tried_again(monkeypatch, tmp_path):
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path))

    def fails(source, path):
        raise build.BuildFailed("g++: error: out of disk")

    with monkeypatch.context() as patch:
        patch.setattr("qmix_trl.envs.compiled.backends.build", fails)
        patch.setitem(engines.MAKERS, "inductor", refuses("not today"))
        env = env_of(OwnScenario(), engine="auto")
    expected = {"kernel": "g++: error: out of disk", "inductor": "not today"}
    assert env.how == Chosen("eager", expected)
    assert env_of(OwnScenario(), engine="auto").how == Chosen("kernel")


def test_on_another_device_each_compiled_engine_says_why_not(monkeypatch):
    task = env_of(engine="eager").engine.simulation.task
    monkeypatch.setitem(engines.MAKERS, "eager", lambda settings: "VMAS")
    monkeypatch.setitem(sys.modules, "triton", None)
    reasons = {}
    for device in ("xpu", "cuda"):
        settings = engines.Settings(task, SeenLayout(4, 16, None), 8, 5, 0, torch.device(device))
        engine, how = engines.make_engine(settings, "auto")
        assert (engine, how.name, list(how.passed_over)) == (
            "VMAS",
            "eager",
            ["kernel", "inductor"],
        )
        assert how.passed_over["inductor"] == f"there is no inductor engine for {device}"
        reasons[device] = how.passed_over["kernel"]
    assert reasons["xpu"] == "there is no kernel for xpu"
    assert "pip install triton" in reasons["cuda"]


def test_a_requested_engine_passes_over_none():
    assert env_of(engine="eager").how == Chosen("eager")


def test_a_trace_that_failed_before_is_not_tried_again(monkeypatch):
    settings = {"engine": "auto", "scenario_kwargs": {"branches": True}}
    first = env_of(OwnScenario(), **settings).how
    monkeypatch.setattr(engines, "inductor_engine", None)
    again = env_of(OwnScenario(), **settings).how
    assert first == again
    assert again.passed_over["inductor"] == again.passed_over["kernel"]


def test_inductor_refuses_graphs_that_are_too_large(monkeypatch):
    monkeypatch.setattr(engines, "known_refusal", lambda *_: ("too large for C++", 8001))
    with pytest.raises(ConfigError, match="its traced step has 8,001 operations, more than 8,000"):
        env_of(OwnScenario(), engine="inductor")
    monkeypatch.setattr(engines, "known_refusal", lambda *_: None)
    monkeypatch.setattr("qmix_trl.envs.compiled.compile_inductor.MOST_NODES", 3)
    with pytest.raises(ConfigError, match=r"its traced step has .* operations, more than 3"):
        env_of(OwnScenario(), engine="inductor")


class Scaled(OwnScenario):
    """Pays by a number without axes, which it gives one."""

    def reward(self, agent):
        return super().reward(agent) * torch.tensor(0.25).unsqueeze(0)


@pytest.mark.slow
def test_a_step_of_inductor_is_kept_and_built_again_if_it_is_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("QMIX_TRL_CACHE", str(tmp_path / "steps"))

    def steps_of_a_new_env():
        env = env_of(Scaled(), engine="inductor", n_envs=3)
        return rollout(env, 5), rollout(pickle.loads(cloudpickle.dumps(env)), 5, seed=1).reward

    first = steps_of_a_new_env()
    with monkeypatch.context() as patch:
        patch.setattr("qmix_trl.envs.compiled.compile_inductor.package", None)
        again = steps_of_a_new_env()
    (package,) = tmp_path.glob("steps/*/*.pt2")
    content = bytearray(package.read_bytes())
    content[len(content) // 2] ^= 1
    package.write_bytes(content)
    built = steps_of_a_new_env()
    for steps, later in (again, built):
        assert torch.equal(steps.seen, first[0].seen)
        assert torch.equal(later, first[1])


def test_a_package_that_torch_does_not_load_is_told(tmp_path):
    path = tmp_path / "step.pt2"
    path.write_bytes(b"no package")
    with pytest.raises(NotLoadable, match="a package of torch does not load: "):
        load_package(built_file(path))


def test_a_state_of_inductor_goes_on_in_the_kernel(monkeypatch):
    ours = env_of(OwnScenario(), engine="kernel", max_steps=5, seed=1)
    monkeypatch.setattr("qmix_trl.envs.compiled.backends.build", None)  # inductor needs no kernel
    theirs = env_of(OwnScenario(), engine="inductor", max_steps=5, scenario_kwargs={"branches": 0})
    theirs.reset()
    rollout(theirs, 7)
    state = theirs.simulation_state()
    assert {k: v.dtype for k, v in state.items()} == {
        k: v.dtype for k, v in ours.simulation_state().items()
    }
    # Inductor's packed state has all numbers of VMAS's state, the kernel's those that it reads.
    numbers = [env.engine.fresh.step.numbers for env in (ours, theirs)]
    read = [numbers[1].index(number) for number in numbers[0]]
    seen = range(len(numbers[1]), state["pool"].shape[1])
    with pytest.raises(ValueError, match="expected 'packed_state' of shape"):
        ours.load_simulation_state(state)
    mapped = {
        "packed_state": state["packed_state"][:, read],
        "pool": state["pool"][:, [*read, *seen]],
    }
    ours.load_simulation_state({**state, **mapped})
    for name, tensor in ours.simulation_state().items():
        assert torch.equal(tensor, mapped.get(name, state[name])), name
    got, expected = (rollout(env, 12, seed=1) for env in (ours, theirs))
    for part in ("seen", "next_seen", "reward", "done"):
        torch.testing.assert_close(getattr(got, part), getattr(expected, part))


# ------------------------------------------------------------------------------ memory


def test_a_thousand_rollouts_leak_nothing():
    env = env_of(n_envs=256)
    env.reset()
    for _ in range(50):
        rollout(env, 10)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    for _ in range(1000):
        rollout(env, 10)
    # Buffers take 1.4 MB: to leak them at each rollout would take 1.4 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


PEAK = """
import resource, sys, torch
from qmix_trl import make_env
env = make_env("vmas", scenario="navigation", n_envs=4096, max_steps=20, state="world",
               team_reward="mean", seed=0, engine=sys.argv[1])
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
env.reset()
buffers = env.begin_buffers(10)
for _ in range(3):
    env.engine.advance(buffers, 0, 10, reset_when_done=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_at_4096_environments_is_below_twice_vmas():
    env_of("navigation")  # built before memory is measured
    peaks = []
    for engine in ("kernel", "eager"):
        command = [sys.executable, "-W", "ignore", "-c", PEAK, engine]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[0] < 2 * peaks[1]
