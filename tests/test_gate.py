"""The gate: faults of a compiled step that it has to see, and differences that it has to allow."""

from dataclasses import replace

import pytest
import torch
from compiled_tools import Plain, simulation_of
from trace_tools import state_of
from vmas.simulator.core import Agent, Landmark, Sphere, World

from qmix_trl.envs.compiled import gate, gate_runs
from qmix_trl.envs.compiled.engines.buffers import layout_of
from qmix_trl.envs.compiled.gate import COPIES, Mismatch, Reference, check
from qmix_trl.envs.compiled.gate_runs import (
    AFTER_LIMIT,
    AGAIN,
    PILOTS,
    Extent,
    Pilots,
    full_extent,
    mentioned_numbers,
    pushes,
    write_edges,
)
from qmix_trl.envs.vmas_simulation import VmasSimulation

E = 37


class Pair(Plain):
    """Two agents that push each other, in a walled world, with their age; one landmark."""

    late = 250.0  # mentioned, but less than the least length of a free run

    def make_world(self, batch_dim, device, **kwargs):
        self.age = torch.zeros(batch_dim)
        world = World(batch_dim, device, x_semidim=1.5, y_semidim=1.0)
        for i in range(2):
            world.add_agent(Agent(name=f"agent_{i}", shape=Sphere(0.05)))
        world.add_landmark(Landmark(name="mark", collide=False))
        return world

    def reset_world_at(self, env_index=None):
        for agent in self.world.agents:
            n = self.world.batch_dim if env_index is None else 1
            agent.set_pos(torch.rand(n, 2) - 0.5, batch_index=env_index)
        self.age[slice(None) if env_index is None else env_index] = 0

    def post_step(self):
        self.age += 1

    def observation(self, agent):
        return torch.cat([agent.state.pos, agent.state.vel], -1)


class Limited(Pair):
    """Has limits in an attribute, a method, and a number that is no limit of steps."""

    def make_world(self, batch_dim, device, **kwargs):
        self.limit = 420
        return super().make_world(batch_dim, device)

    def done(self):
        return (self.age >= 640) | (self.age >= 10_000)


def reference_of(simulation):
    """Return a reference whose packed state is the state's tensors, one after another."""
    paths = state_of(simulation)

    def pack(of, contents):
        values = [v for v in paths.read_from(contents) if v.shape[:1] == (of.n_envs,)]
        return torch.cat([value.reshape(of.n_envs, -1).float() for value in values], 1)

    scratch = VmasSimulation(simulation.task, COPIES * simulation.n_envs, 0, simulation.device)
    return Reference(
        simulation, scratch, paths, layout_of(simulation), pack, lambda x: x, draws=True
    )


def step_with(reference, fault):
    """Return a step by VMAS whose reward is wrong by 1 where a fault says so.

    Args:
        reference: the gate's.
        fault: returns where, bool [E], given the simulation and the actions.
    """
    mine = replace(reference, scratch=VmasSimulation(reference.simulation.task, COPIES * E, 0, CPU))

    def step(state, action, key):
        simulation = reference.simulation
        wrong = fault(simulation, action)
        before = [value.clone() for value in reference.paths.read(simulation.simulator)]
        outcome, _ = mine.near(before, action, key)
        return replace(outcome, reward=outcome.reward + wrong.float()[:, None])

    return step


CPU = torch.device("cpu")


def places(simulation):
    return torch.stack([agent.state.pos for agent in simulation.simulator.agents])  # [N, E, 2]


def late(simulation, action):
    return simulation.simulator.scenario.age > 200


def at_the_bounds(simulation, action):
    return (places(simulation).abs() >= torch.tensor([1.5, 1.0])).any(-1).any(0)


def coincident(simulation, action):
    return (places(simulation)[0] == places(simulation)[1]).all(-1)


def fast(simulation, action):
    return simulation.simulator.agents[0].state.vel.abs().amax(-1) > 5


class HeldFor30:
    """Where all agents have held action 7 for 30 steps."""

    def __init__(self):
        self.held = torch.zeros(E)

    def __call__(self, simulation, action):
        self.held = torch.where((action == 7).all(-1), self.held + 1, 0)
        return self.held > 30


# By the run that finds it: the fault, and the lengths of the gate's runs.
FAULTS = {
    "without resets": (late, Extent(0, 240, 0)),
    "agents move outwards": (at_the_bounds, Extent(0, 80, 0)),
    "at the bounds": (at_the_bounds, Extent(0, 0, 1)),
    "on one spot|in pairs|on the first agent": (coincident, Extent(0, 0, 1)),
    "fast": (fast, Extent(0, 0, 1)),
    "all agents hold action 7|outwards": (HeldFor30(), Extent(0, 50, 0)),
}


@pytest.mark.parametrize("where", FAULTS)
def test_a_fault_is_found_and_its_run_is_named(where):
    fault, extent = FAULTS[where]
    reference = reference_of(simulation_of(Pair(), E))
    with pytest.raises(Mismatch, match=where) as raised:
        check(reference, step_with(reference, fault), extent)
    assert "reward[0] is" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault, _ in FAULTS.values()])
def test_the_run_with_resets_alone_does_not_see_the_fault(fault):
    reference = reference_of(simulation_of(Pair(), E))
    check(reference, step_with(reference, fault), Extent(60, 0, 0))


def test_a_step_equal_to_vmas_passes_without_a_difference():
    reference = reference_of(simulation_of(Pair(), E))
    step = step_with(reference, lambda simulation, action: torch.zeros(E, dtype=torch.bool))
    report = check(reference, step, Extent(12, 40, 2))
    assert (report.compared, report.by_rounding) == ((12 + 40 + 2 * 5) * E, 0)


class Apart(Pair):
    """Two agents that are too far apart for VMAS to compute their collision; a reward for it."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        for agent, x in zip(self.world.agents, (-1.0, 1.0), strict=True):
            agent.set_pos(torch.tensor([[x, 0.0]]), batch_index=env_index)

    def reward(self, agent):
        is_computed = self.world.collides(*self.world.agents)
        return torch.full((self.world.batch_dim,), float(is_computed))


def test_differences_by_the_broad_phase_are_counted_and_few_are_allowed(monkeypatch):
    reference = reference_of(simulation_of(Apart(), E))
    step = step_with(reference, lambda simulation, action: torch.zeros(E, dtype=torch.bool))
    few = {"FEW_SKIPPED": 3 * E, "BROAD_PHASE": 0.0}
    for name, value in few.items():
        monkeypatch.setattr(gate, name, value)
    report = check(reference, step, Extent(3, 0, 0))
    assert (report.by_broad_phase, report.by_rounding) == (3 * E, 0)
    monkeypatch.setattr(gate, "FEW_SKIPPED", 3 * E - 1)
    line = r"at test_gate\.py:\d+ \(is_computed = self\.world\.collides"
    with pytest.raises(Mismatch, match=line):
        check(reference, step, Extent(3, 0, 0))


def test_without_a_line_that_asks_vmas_computes_every_pair_after_few_differences(monkeypatch):
    reference = reference_of(simulation_of(Apart(), E))
    monkeypatch.setattr(gate.Reference, "lines_that_ask", lambda reference: set())
    monkeypatch.setattr(gate, "FEW_SKIPPED", E)
    step = step_with(reference, lambda simulation, action: torch.zeros(E, dtype=torch.bool))
    report = check(reference, step, Extent(6, 0, 0))
    assert (report.by_broad_phase, report.by_rounding) == (2 * E, 0)  # of six steps, two
    with pytest.raises(Mismatch, match="step 4 after resets"):
        check(reference, step_with(reference, FromStep(4)), Extent(6, 0, 0))


class FromStep:
    """Everywhere, from a step on."""

    def __init__(self, first):
        self.left = first

    def __call__(self, simulation, action):
        self.left -= 1
        return torch.full((E,), self.left < 0)


# ------------------------------------------------------------------- lengths and actions


def test_a_free_run_is_longer_than_any_limit_that_is_mentioned(monkeypatch):
    monkeypatch.setattr(gate_runs, "FREE_STEPS", 300)
    limited = simulation_of(Limited(), 2)
    # 250 of the class Pair, 420 of the attribute and 640 of ``done``; 10,000 is past the cap.
    assert {250, 420, 640, 10_000} <= mentioned_numbers(limited.simulator)
    assert full_extent(limited).free == 640 + AFTER_LIMIT
    assert full_extent(simulation_of(Pair(), 2)).free == 300
    assert AGAIN.free == AGAIN.edges == 0


def test_every_action_is_held_by_all_agents():
    simulation = simulation_of(Pair(), E)
    pilots = Pilots(simulation, simulation_of(Pair(), E), 300)
    held = {n for n in pilots.names(0) if "hold" in n}
    assert held == {f"all agents hold action {a}" for a in range(9)}
    actions = pilots.actions(0)
    for e, name in enumerate(pilots.names(0)):
        if "hold" in name:
            assert actions[e].tolist() == [int(name.split()[-1])] * 2
    few = simulation_of(Pair(), 5)  # 3 environments hold: 3 actions each, one after another
    pilots = Pilots(few, simulation_of(Pair(), 5), 300)
    assert {n for t in range(300) for n in pilots.names(t) if "hold" in n} == held


def test_a_push_is_the_change_of_velocity_by_an_action():
    moved = pushes(simulation_of(Pair(), E))  # [N, A, 2]
    # VMAS's actions are pairs of none, less and more: 3 for x times 3 for y; forces are at most 1.
    signs = torch.tensor([0, -1, 1])
    assert torch.equal(moved.sign()[0, :, 0].long(), signs.repeat_interleave(3))
    assert torch.equal(moved.sign()[1, :, 1].long(), signs.repeat(3))


def test_steered_agents_meet_or_reach_the_walls():
    simulation = simulation_of(Pair(), E)
    simulation.reset()
    pilots = Pilots(simulation, simulation_of(Pair(), E), 60)
    begin = distances(simulation)
    for t in range(60):
        simulation.step(pilots.actions(t))
    end, rules = distances(simulation), [PILOTS[e % len(PILOTS)] for e in range(E)]
    meet = torch.tensor([rule == "towards each other" for rule in rules])
    out = torch.tensor([rule == "outwards" for rule in rules])
    assert end[meet].mean() < 0.6 * begin[meet].mean()
    assert (places(simulation)[:, out].abs() >= 0.99 * torch.tensor([1.5, 1.0])).all(-1).all()


def distances(simulation):
    """Return the distance of the two agents, float [E]."""
    return (places(simulation)[0] - places(simulation)[1]).norm(dim=-1)


def test_edge_states_are_on_one_spot_in_pairs_and_at_the_bounds():
    simulation = simulation_of(Pair(), 8)
    simulation.reset()
    write_edges(simulation, torch.Generator().manual_seed(0))
    place = places(simulation)
    speed = torch.stack([a.state.vel for a in simulation.simulator.agents]).abs()
    assert torch.equal(place[:, :2], torch.zeros(2, 2, 2))
    assert torch.equal(place[0, [2, 3, 6, 7]], place[1, [2, 3, 6, 7]])
    assert torch.equal(place[:, 4:6].abs(), torch.tensor([1.5, 1.0]).expand(2, 2, 2))
    # Every second environment is fast; VMAS's agents have no greatest speed: 10.
    assert torch.equal(speed, torch.tensor([0.0, 10.0]).repeat(4)[None, :, None].expand(2, 8, 2))
