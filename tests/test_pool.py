"""The pool of initial states: shared draws, the device of draws, and when it is refilled."""

import random
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from compiled_tools import Plain, bare_step, simulation_of, task_of
from vmas.simulator.utils import ScenarioUtils

from qmix_trl import make_env
from qmix_trl.envs.compiled.engines import pool
from qmix_trl.envs.compiled.engines.buffers import SeenLayout
from qmix_trl.envs.compiled.engines.env_state import EnvState, ExactSum
from qmix_trl.envs.compiled.engines.packed_state import as_numbers
from qmix_trl.envs.vmas_simulation import VmasSimulation

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("triton") is None,
    reason="needs a CUDA device and Triton",
)


class Drawing(Plain):
    """Calls a function of E in its resets."""

    drawing = staticmethod(lambda n_envs: None)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.drawing(self.world.batch_dim)


@pytest.mark.parametrize(
    ("drawing", "shared"),
    [
        (lambda n: None, False),
        (lambda n: torch.rand(n, 2), False),
        (lambda n: torch.zeros(n, 2).uniform_(-1, 1), False),
        (lambda n: torch.randint(3, (n,)), False),
        (lambda n: torch.rand(2), True),
        (lambda n: torch.zeros(1, 2).normal_(), True),
        (lambda n: torch.randint(3, (1,)), True),
        (lambda n: torch.randperm(3), True),
        (lambda n: random.random(), True),
        (lambda n: np.random.rand(n), True),  # noqa: NPY002 - as scenarios do
        (lambda n: np.random.randint(3), True),  # noqa: NPY002
    ],
)
def test_a_draw_for_the_whole_batch_is_noticed(drawing, shared):
    scenario = type("Case", (Drawing,), {"drawing": staticmethod(drawing)})()
    assert pool.shares_draws(simulation_of(scenario, 5)) is shared


@pytest.mark.parametrize("n", [1, 5])
def test_a_draw_from_a_private_generator_counts_as_shared(n):
    generator = np.random.default_rng(0)

    class Case(Plain):
        def reset_world_at(self, env_index=None):
            pos = torch.tensor(generator.random((n, 2)), dtype=torch.float32)
            self.world.agents[0].set_pos(pos, batch_index=None)

    assert pool.shares_draws(simulation_of(Case(), 5))


def test_a_spawning_scenario_shares_no_draws():
    class Spawning(Plain):
        def reset_world_at(self, env_index=None):
            ScenarioUtils.spawn_entities_randomly(
                self.world.agents + self.world.landmarks,
                self.world,
                env_index,
                0.1,
                (-1, 1),
                (-1, 1),
            )

    assert pool.shares_draws(simulation_of(Spawning(), 5)) is False


def step_of_plain(*, shared=False):
    """Return a step of ``Plain`` that reads no state."""
    return bare_step([], SeenLayout(1, 2, None), shared=shared)


@pytest.mark.parametrize("shared", [False, True])
def test_vmas_draws_on_the_pools_device_unless_draws_are_shared(shared, monkeypatch):
    devices = []

    def on_the_cpu(task, n_envs, seed, device):
        devices.append(device)
        return VmasSimulation(task, n_envs, seed, CPU)

    monkeypatch.setattr(pool, "VmasSimulation", on_the_cpu)
    device = torch.device("meta")  # stands for a GPU
    fresh = pool.FreshStates(task_of(Plain()), 4, 0, step_of_plain(shared=shared), device=device)
    assert devices == [CPU if shared else device]
    assert fresh.pool.device == device


def test_a_simulation_on_the_cpu_continues_from_the_state_of_a_gpus():
    ours, theirs = (simulation_of(Plain()).random_stream for _ in range(2))
    theirs.seed(8)
    ours.set_state({**theirs.get_state(), "random cuda": torch.zeros(16)})
    assert ours.get_state().keys() == theirs.get_state().keys()
    assert torch.equal(ours.get_state()["random torch"], theirs.get_state()["random torch"])


class EarlierSum(ExactSum):
    """A stand-in for ``LateSum`` on the CPU."""

    def take(self):
        self.taken = int(self._x.sum())

    def value(self):
        return self.taken


def resets_counted(late, n_calls):
    """Return the resets that each ``renew`` counts, and the refills so far.

    Between two calls 4 environments have 10 resets each.

    The pool has 16 states, each for 4 environments: it is due from 64 resets on.
    """
    fresh = pool.FreshStates(task_of(Plain()), 4, 0, step_of_plain(), least_states=1)
    state, counted, refills, refill = EnvState(fresh, 0, torch.zeros(4, 0)), [], [], fresh.renew
    fresh.renew = lambda: (refills.append(fresh.taken), refill())
    if late:
        state._taken = EarlierSum(state.resets)
        state._taken.take()
    for _ in range(n_calls):
        state.renew()
        counted.append((fresh.taken, len(refills)))
        state.resets += 10
    return state, counted


def test_a_late_count_of_resets_refills_the_pool_one_call_later():
    at_once = [(0, 0), (40, 0), (0, 1), (40, 1), (0, 2), (40, 2)]  # 80: refilled, nothing is taken
    late = [(0, 0), (0, 0), (40, 0), (0, 1), (0, 1), (40, 1)]  # sees 80 one call later
    assert resets_counted(False, 6)[1] == at_once
    assert resets_counted(True, 6)[1] == late


def test_a_late_count_begins_anew_with_a_seed_and_with_a_loaded_state():
    state, _ = resets_counted(True, 3)
    kept = state.state()
    assert kept["resets"].tolist() == [30] * 4
    state.seed(1)
    state.renew()
    assert state.fresh.taken == 0
    state.load_state({**kept, "resets": torch.full((4,), 3, dtype=torch.int32)})
    assert state.fresh.taken == 12
    state.renew()
    assert state.fresh.taken == 12


# ------------------------------------------------------------------------- a pool drawn on a GPU

SIZE = 4096  # environments: 16,384 states


def engine_of(scenario, device, seed=0, n_envs=SIZE):
    """Return the kernel engine of a scenario."""
    settings = {"max_steps": 9, "state": "world", "team_reward": "mean", "engine": "kernel"}
    made = make_env("vmas", scenario=scenario, n_envs=n_envs, seed=seed, device=device, **settings)
    return made.engine


def assert_alike(ours, theirs):
    """Compare ranges and means of two pools' numbers, drawn from the same distribution.

    The means of n draws each differ by a standard error of sqrt(2 / n) standard deviations; by
    five of them one number in two million does. The ends of the range are sparse for sums of
    draws: the 0.1 % quantiles are compared instead, to a standard deviation, which those of rare
    lidar hits need.
    """
    a, b = (
        torch.cat(
            [
                as_numbers(fresh.pool[:, : len(fresh.step.numbers)], fresh.step.numbers),
                fresh.pool[:, len(fresh.step.numbers) :],
            ],
            1,
        ).cpu()
        for fresh in (ours, theirs)
    )
    rounding = 1e-5 * (1 + b.abs().amax(0))
    assert a.shape == b.shape
    assert ((a.mean(0) - b.mean(0)).abs() <= 5 * b.std(0) * (2 / len(b)) ** 0.5 + rounding).all()
    for q in (0.001, 0.999):
        apart = (a.quantile(q, 0) - b.quantile(q, 0)).abs()
        assert (apart <= b.std(0) + rounding).all()


def test_a_pool_of_another_device_than_the_traces_is_served():
    fresh = engine_of("simple_spread", torch.device("cpu", 0), n_envs=4).fresh
    assert str(fresh.simulation.simulator.world.agents[0]._device) == "cpu:0"  # another name


# Uniform positions; a package on a line, by trigonometry; positions that keep a distance, lidars.
DRAWN = ["simple_spread", "balance", "navigation"]


@pytest.mark.parametrize("scenario", DRAWN[:1])
def test_pools_of_two_seeds_are_alike_and_those_of_two_scenarios_are_not(scenario):
    one, other = (engine_of(scenario, CPU, seed).fresh for seed in (0, 1))
    assert_alike(one, other)
    other.pool[:, 0] += 0.1
    with pytest.raises(AssertionError):
        assert_alike(one, other)


@needs_cuda
@pytest.mark.parametrize("scenario", DRAWN)
def test_a_pool_drawn_on_a_gpu_is_like_the_cpus(scenario):
    ours, theirs = (engine_of(scenario, device) for device in (CUDA, CPU))
    assert ours.fresh.simulation.device.type == ours.fresh.pool.device.type == "cuda"
    assert_alike(ours.fresh, theirs.fresh)
    before, outside = ours.fresh.pool.clone(), [torch.get_rng_state(), torch.cuda.get_rng_state()]
    ours.fresh.renew()
    assert_alike(ours.fresh, theirs.fresh)
    assert not torch.equal(ours.fresh.pool, before)
    assert torch.equal(torch.get_rng_state(), outside[0])
    assert torch.equal(torch.cuda.get_rng_state(), outside[1])


@needs_cuda
def test_a_pool_of_shared_draws_is_drawn_on_the_cpu_and_kept_on_the_gpu():
    ours, theirs = (engine_of("give_way", device, n_envs=32).fresh for device in (CUDA, CPU))
    assert ours.simulation.device == CPU
    assert ours.pool.is_cuda
    assert torch.equal(ours.pool.cpu(), theirs.pool)


@needs_cuda
def test_a_state_of_the_cpu_and_one_of_the_gpu_load_on_the_gpu():
    engines = (engine_of("simple_spread", device, n_envs=32) for device in (CUDA, CPU))
    ours, theirs = (engine.env_state for engine in engines)
    for kept in (theirs.state(), ours.state()):
        pools = []
        for _ in range(2):
            ours.load_state(kept)
            assert torch.equal(ours.fresh.pool.cpu(), kept["pool"].cpu())
            ours.fresh.renew()
            pools.append(ours.fresh.pool.clone())
        assert torch.equal(*pools)
    theirs.load_state(kept)
    assert torch.equal(theirs.fresh.pool, kept["pool"].cpu())


@needs_cuda
def test_a_late_count_on_a_gpu_waits_for_nothing_and_is_one_call_late():
    state = engine_of("simple_spread", CUDA, n_envs=32).env_state
    counted = []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            state.renew()
            counted.append(state.fresh.taken)
            state.resets += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counted == [0, 0, 32, 64]
