"""MPE Spread beside the original: its five actions, its physics and its rewards."""

import numpy as np
import pytest
import torch
import vmas
from environments.mpe_spread import MpeSpread
from torch.testing import assert_close

from qmix_trl import env_dims, make_env

CONTACT = 0.3  # the distance of two agents that touch
E, T = 20, 25


def world_of(n_envs, seed=0):
    """Return VMAS with the scenario, after a reset."""
    return vmas.make_env(MpeSpread(), n_envs, continuous_actions=False, seed=seed)


def set_positions(world, *positions):
    """Place the three agents of a single environment, at rest."""
    for agent, position in zip(world.agents, positions, strict=True):
        agent.set_pos(torch.tensor([position]), batch_index=None)


def act(world, *actions):
    """Take a step of all environments; an action is a number, or one for each of them."""
    wide = [torch.as_tensor(action).expand(world.num_envs).clone() for action in actions]
    return world.step(wide)[1][0].numpy()  # the rewards of all agents are the same


def positions(world):
    """Return the positions of all agents, float64 [E, N, 2]."""
    return torch.stack([agent.state.pos for agent in world.agents], 1).double().numpy()


# ------------------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("action", "moved"),
    [(0, [0, 0]), (1, [-0.05, 0]), (2, [0.05, 0]), (3, [0, -0.05]), (4, [0, 0.05])],
)
def test_an_action_is_a_force_of_five(action, moved):
    world = world_of(1)
    set_positions(world, [0.0, 0.0], [9.0, 9.0], [-9.0, 9.0])
    act(world, action, 0, 0)  # 5 x 0.1 s is a speed of 0.5, and that x 0.1 s a way of 0.05
    assert_close(world.agents[0].state.pos, torch.tensor([moved], dtype=torch.float32))


def test_rewards_are_the_sum_of_mpes_without_collisions_with_oneself():
    world = world_of(1)
    set_positions(world, [0.0, 0.0], [0.0, 0.1], [3.0, 0.0])
    for landmark, x in zip(world.world.landmarks, (1.0, 2.0, 3.5), strict=True):
        landmark.set_pos(torch.tensor([[x, 0.0]]), batch_index=None)
    reward = world.scenario.reward(world.agents[0]).item()
    # Distances 1 and 1 and 0.5 for each of three agents, and -1 for two of them that collide.
    assert reward == pytest.approx(3 * -2.5 - 2)
    paper = sum(-2.5 - touching for touching in (2, 2, 1))  # each agent touches itself, too
    assert paper == reward - 3  # 75 less in 25 steps


# ------------------------------------------------------------------------ beside the original


@pytest.fixture
def original():
    """Return MPE's scenario; its worlds move by the new velocity, as in the paper's version."""
    spread = pytest.importorskip("mpe2.simple_spread.simple_spread", reason="needs the extra envs")

    def integrate_state(world, p_force):
        for entity, force in zip(world.entities, p_force, strict=True):
            if entity.movable:
                entity.state.p_vel = entity.state.p_vel * (1 - world.damping)
                entity.state.p_vel += force / entity.mass * world.dt
                entity.state.p_pos += entity.state.p_vel * world.dt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(spread.World, "integrate_state", integrate_state)
        yield spread.Scenario()


DIRECTIONS = 5.0 * np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])


class Originals:
    """MPE's worlds in the states of VMAS's environments."""

    def __init__(self, scenario, world):
        self.scenario = scenario
        self.worlds = []
        for e in range(world.num_envs):
            game = scenario.make_world(3)
            ours = world.agents + world.world.landmarks
            for entity, other in zip(game.entities, ours, strict=True):
                entity.state.p_pos = other.state.pos[e].double().numpy().copy()
                entity.state.p_vel = np.zeros(2)
            self.worlds.append(game)

    def act(self, actions):
        """Take a step of actions [E, N]; return the team's rewards [E]."""
        for game, of_agents in zip(self.worlds, actions, strict=True):
            for agent, action in zip(game.agents, of_agents, strict=True):
                agent.action.u, agent.action.c = DIRECTIONS[action], np.zeros(2)
            game.step()
        return np.array([self.reward(game) for game in self.worlds])

    def reward(self, game):
        """Return the sum of the agents' rewards, each with all distances."""
        own = sum(self.scenario.reward(agent, game) for agent in game.agents)  # collisions alone
        return own + 3 * self.scenario.global_reward(game)

    def positions(self):
        """Return the positions of all agents [E, N, 2]."""
        return np.array([[agent.state.p_pos for agent in game.agents] for game in self.worlds])


def both(scenario, seed):
    """Return rewards [T, E] and positions [T, E, N, 2] of random episodes, MPE's and ours."""
    world = world_of(E, seed)
    originals = Originals(scenario, world)
    actions = np.random.default_rng(seed).integers(0, 5, (T, E, 3))
    rewards, places = [], []
    for action in actions:
        rewards.append((originals.act(action), act(world, *action.T)))
        places.append((originals.positions(), positions(world)))
    return (*np.array(rewards).swapaxes(0, 1), *np.array(places).swapaxes(0, 1))


def push(distance):
    """Return MPE's force between two agents: 100 x 0.001 ln(1 + exp((0.3 - distance) / 0.001))."""
    return 0.1 * np.log1p(np.exp((CONTACT - distance) / 0.001))


def test_mpe_pushes_agents_apart_a_millimetre_before_they_touch_and_vmas_does_not(original):
    world = world_of(1)
    distance = CONTACT + 5e-4
    set_positions(world, [0.0, 0.0], [distance, 0.0], [3.0, 3.0])
    originals = Originals(original, world)
    originals.act([[0, 0, 0]])
    act(world, 0, 0, 0)
    apart = np.array(
        [np.ptp(place[0, :2, 0]) for place in (originals.positions(), positions(world))]
    )
    assert apart - distance == pytest.approx([2 * push(distance) * 0.01, 0], abs=1e-6)
    assert push(distance) == pytest.approx(0.0474, abs=1e-4)


@pytest.mark.parametrize("seed", [3, 5])
def test_but_for_that_push_all_steps_are_mpes(original, seed, monkeypatch):
    force = original.make_world(3).__class__.get_collision_force

    def touching_alone(world, a, b):
        distance = np.linalg.norm(a.state.p_pos - b.state.p_pos)
        return force(world, a, b) if distance <= CONTACT else [None, None]

    monkeypatch.setattr("mpe2._mpe_utils.core.World.get_collision_force", touching_alone)
    theirs, ours, their_places, our_places = both(original, seed)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(our_places, their_places, atol=1e-4)


def test_with_that_push_few_rewards_differ(original):
    theirs, ours, their_places, our_places = both(original, 3)
    moved = np.abs(their_places - our_places).max((2, 3))  # [T, E]
    assert moved.max() > 1e-3  # some agents were that near, among 500 steps
    assert (np.abs(theirs - ours) < 0.01).mean() > 0.98
    assert ours.sum(0).mean() == pytest.approx(theirs.sum(0).mean(), abs=0.05)


# ------------------------------------------------------------------------ on the kernel


@pytest.mark.slow
def test_it_runs_on_the_kernel():
    env = make_env(
        "vmas",
        scenario=MpeSpread,
        n_envs=4,
        max_steps=T,
        state="world",
        team_reward="shared",
        seed=0,
        engine="kernel",
        verify=0.0,
    )
    dims = env_dims(env)
    assert (dims.n_agents, dims.observation_dim, dims.n_actions) == (3, 14, 5)
