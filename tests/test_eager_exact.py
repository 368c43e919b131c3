"""The eager engine compared with VMAS itself: partial resets, state outside of tensors, saving."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
import vmas
from compiled_tools import Plain, task_of
from vmas_tools import SEVERAL_GROUPS, make_env

from qmix_trl import env_dims
from qmix_trl.envs.compiled.choose import Settings, eager
from qmix_trl.envs.compiled.engines.buffers import layout_of
from qmix_trl.envs.compiled.engines.joint_reset import may_reset_together, reset_together
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.envs.vmas_scenarios import SCENARIOS, first_group
from qmix_trl.envs.vmas_simulation import VmasSimulation
from qmix_trl.errors import ConfigError
from qmix_trl.keys import ACTION, AGENT_REWARD, OBSERVATION, TERMINATED

CPU = torch.device("cpu")
E = 5
AGE, CREATED, IDS = [0], 0, itertools.count()  # globals that scenarios below keep state in

# ------------------------------------------------------------------- compared with VMAS

QUICK = ("balance", "navigation", "asym_joint", "give_way", "simple_tag")
COARSE = {  # fewer calls of torch
    "sampling": {"grid_spacing": 0.2},
    "pollock": {"n_agents": 3, "n_boxes": 3},
    "road_traffic": {"n_agents": 4},
}


def of_all(names):
    """Return parameters of all scenarios; all but a few are slow tests."""
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


def env_of(scenario, **settings):
    """Return an environment of E environments on the eager engine."""
    name = scenario if isinstance(scenario, str) else None
    settings = {
        "n_envs": E,
        "group": first_group(name) if name in SEVERAL_GROUPS else None,
        "scenario_kwargs": COARSE.get(name),
        "seed": 3,
        **settings,
    }
    return make_env(scenario, **settings)


def unmodified(scenario, n_envs=E):
    """Return an environment of VMAS itself."""
    name = scenario if isinstance(scenario, str) else None
    keywords = COARSE.get(name, {})
    return vmas.make_env(scenario, num_envs=n_envs, continuous_actions=False, seed=3, **keywords)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("scenario", of_all(SCENARIOS))
def test_steps_and_partial_resets_equal_vmas(scenario):
    """With resets one by one, everything equals VMAS bit for bit from the same random stream.

    Otherwise a reset draws other numbers, and everything equals VMAS until then.
    """
    env, theirs = env_of(scenario, max_steps=10**6), unmodified(scenario)
    env.engine.together = False
    team, generator = env.engine.simulation.team, torch.Generator().manual_seed(0)
    n_actions = env_dims(env).n_actions
    data, _ = env.reset(), theirs.reset()
    for t in range(9):
        action = torch.randint(n_actions, (E, len(team)), generator=generator)
        data = env.step(data.set(ACTION, action))["next"]
        every = [torch.zeros(E, 1, dtype=torch.int64) for _ in theirs.agents]
        for column, i in enumerate(team):
            every[i] = action[:, column, None]
        observations, rewards, done, _ = theirs.step(every)
        assert_same(data[OBSERVATION], [observations[i] for i in team])
        assert_same(data[AGENT_REWARD], [rewards[i].reshape(-1, 1) for i in team])
        assert torch.equal(data[TERMINATED], done.reshape(-1, 1))
        if t % 3 == 2:
            mask = torch.rand(E, generator=generator) < 0.5
            mask[t % E] = False  # a reset of all would be one at the user's wish
            data = env.reset(data.set("_reset", mask[:, None]))
            for e in mask.nonzero()[:, 0].tolist():
                theirs.reset_at(e, return_observations=False)
            if mask.any():
                (observations,) = theirs.get_from_scenario(True, False, False, False)
                mine = [flat(observations[i]) for i in team]
                assert torch.equal(data[OBSERVATION][mask], torch.stack(mine, 1)[mask])


def assert_same(ours, parts):
    """Compare a tensor [E, N, ..] with a list of VMAS's, bit for bit."""
    theirs = torch.stack([flat(part) for part in parts], 1)
    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def flat(observation):
    if isinstance(observation, dict):
        return torch.cat([flat(part) for part in observation.values()], -1)
    return observation.flatten(1)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("scenario", of_all(SCENARIOS))
def test_a_partial_reset_leaves_the_others_as_they_were(scenario):
    """The reset environments have the state that a reset of all gives from the same stream."""
    envs = [env_of(scenario, max_steps=10**6) for _ in range(2)]
    if not envs[0].engine.together:
        pytest.skip("its environments are reset one by one, by VMAS itself")
    simulation, other = (env.engine.simulation for env in envs)
    for env in envs:
        env.reset()
        for _ in range(3):
            simulated = env.engine.simulation
            simulated.step(torch.ones(E, len(simulated.team), dtype=torch.int64))
    before = tensors_by_env(simulation)
    mask = torch.tensor([True, False, True, False, False])
    assert reset_together(simulation, mask)
    other.reset()
    after, of_all_reset = tensors_by_env(simulation), tensors_by_env(other)
    assert after.keys() == before.keys() == of_all_reset.keys()
    for path, value in after.items():
        assert torch.equal(value[~mask], before[path][~mask]), path
        assert torch.equal(value[mask], of_all_reset[path][mask]), path


def tensors_by_env(simulation):
    """Return copies of the tensors [E, ..] of a simulation."""
    tensors = walk(simulation.simulator).tensors().items()
    return {path: x.nan_to_num().clone() for path, x in tensors if x.shape[:1] == (E,)}


# -------------------------------------------------------- state that is no tensor [E, ..]


class Aging(Plain):
    """Each environment has an age; environment e ends when it is e + 3 steps old."""

    def make_world(self, batch_dim, device, **kwargs):
        self.age = self.new_ages(batch_dim)
        return super().make_world(batch_dim, device)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        for e in range(self.world.batch_dim) if env_index is None else [env_index]:
            self.age[e] = 0

    def post_step(self):
        for e in range(self.world.batch_dim):
            self.age[e] += 1

    def ages(self):
        return torch.tensor([float(self.age[e]) for e in range(self.world.batch_dim)])

    def observation(self, agent):
        return self.ages()[:, None]

    def done(self):
        return self.ages() >= torch.arange(self.world.batch_dim) + 3


class InList(Aging):
    new_ages = staticmethod(lambda n: [0] * n)


class InDictionary(Aging):
    new_ages = staticmethod(lambda n: dict.fromkeys(range(n), 0))


class InArray(Aging):
    new_ages = staticmethod(np.zeros)


class Rarely(Aging):
    """Ages only from the 7th step of the simulation on: no trial sees a reset change an age."""

    new_ages = staticmethod(lambda n: [0] * n)
    lived = 0

    def post_step(self):
        self.lived += 1
        if self.lived > 40:
            super().post_step()


class Carried(Plain):
    """The number of steps since the scenario was made; no reset touches it."""

    def make_world(self, batch_dim, device, **kwargs):
        self.life = torch.zeros(batch_dim)
        return super().make_world(batch_dim, device)

    def post_step(self):
        self.life += 1

    def observation(self, agent):
        return self.life[:, None].clone()

    def done(self):
        return self.life % (torch.arange(self.world.batch_dim) + 3) == 0


class Curriculum(Plain):
    """Episodes begin further away with every reset."""

    count = 0  # of the class, until it is counted

    def reset_world_at(self, env_index=None):
        self.count += 1
        place = torch.tensor([[self.count / 200, 0.0]])
        self.world.agents[0].set_pos(place, batch_index=env_index)

    def observation(self, agent):
        return agent.state.pos.clone()

    def done(self):
        return torch.ones(self.world.batch_dim, dtype=torch.bool)


class Global(Plain):
    """One age for all environments, a global of the module."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        AGE[0] = 0

    def post_step(self):
        AGE[0] += 1

    def observation(self, agent):
        return torch.full((self.world.batch_dim, 1), float(AGE[0]))

    def done(self):
        return torch.full((self.world.batch_dim,), AGE[0] >= 4)


class OfClass(Plain):
    """One age for all environments, an attribute of the class."""

    age = 0

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        OfClass.age = 0

    def post_step(self):
        OfClass.age += 1

    def observation(self, agent):
        return torch.full((self.world.batch_dim, 1), float(OfClass.age))

    def done(self):
        return torch.full((self.world.batch_dim,), OfClass.age >= 4)


class Crowd(Plain):
    """A reset places an environment by the mean over all environments."""

    def reset_world_at(self, env_index=None):
        agent = self.world.agents[0]
        agent.set_pos(agent.state.pos.mean(0)[None] + 1, batch_index=env_index)

    def post_step(self):
        self.world.agents[0].set_pos(self.world.agents[0].state.pos + 0.25, batch_index=None)

    def observation(self, agent):
        return agent.state.pos.clone()

    def done(self):
        return self.world.agents[0].state.pos[:, 0] > 1.5 + torch.arange(self.world.batch_dim) / 4


def ages_by_vmas(scenario, n_steps):
    """Return the observations of VMAS itself that resets environments one by one: [T, E, O]."""
    simulator, seen = unmodified(scenario), []
    simulator.reset()
    for _ in range(n_steps):
        observations, _, done, _ = simulator.step([torch.zeros(E, 1)])
        seen.append(observations[0].clone())
        for e in done.nonzero()[:, 0].tolist():
            simulator.reset_at(e, return_observations=False)
    return torch.stack(seen)


KEPT = (InList, InDictionary, InArray, Rarely, Carried, Curriculum, Global, OfClass, Crowd)


@pytest.mark.parametrize("scenario", KEPT)
def test_what_scenarios_keep_outlives_the_resets_of_others_as_in_vmas(scenario):
    engine = engine_of(scenario())
    ours = steps_of(engine, 60)
    assert torch.equal(ours, ages_by_vmas(scenario(), 60))


def engine_of(scenario, n_envs=E):
    """Return the eager engine of a scenario, reset."""
    task = task_of(scenario)
    layout = layout_of(VmasSimulation(task, 1, 0, CPU))
    engine = eager(Settings(task, layout, n_envs, 10**6, 3, CPU))
    engine.reset(torch.ones(n_envs, dtype=torch.bool), torch.zeros(n_envs, layout.size))
    return engine


def steps_of(engine, n_steps):
    """Return the observations of steps without forces, float [T, E, O]; environments are reset."""
    seen, n_envs = [], engine.simulation.n_envs
    for _ in range(n_steps):
        stepped = engine.simulation.step(torch.zeros(n_envs, 1, dtype=torch.int64))
        seen.append(stepped.seen.observation[:, 0].clone())
        done = stepped.terminated[:, 0]
        engine.env_state.ended.copy_(done)
        if done.any():
            engine.reset(done, torch.zeros(n_envs, engine.layout.size))
    return torch.stack(seen) if seen else torch.zeros(0)


@pytest.mark.parametrize("scenario", [InList, InArray, Curriculum, Global, OfClass, Crowd])
def test_resets_that_change_more_than_tensors_are_made_one_by_one(scenario):
    assert not may_reset_together(task_of(scenario()), CPU)


@pytest.mark.parametrize("scenario", [Plain, Carried, Rarely])
def test_resets_that_change_only_tensors_in_trials_are_made_together(scenario):
    assert may_reset_together(task_of(scenario()), CPU)


def test_a_reset_that_changes_more_than_the_trials_saw_is_undone():
    engine = engine_of(Rarely())
    assert engine.together
    steps_of(engine, 60)
    assert not engine.together


class Created(Plain):
    """Counts worlds in a global and resets in an attribute of the class; no reset clears them."""

    resets = 0

    def make_world(self, batch_dim, device, **kwargs):
        global CREATED
        CREATED += 1
        return super().make_world(batch_dim, device)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        Created.resets += 1


def test_trials_leave_modules_and_classes_as_they_were():
    before = (CREATED, Created.resets)
    may_reset_together(task_of(Created()), CPU)
    assert (CREATED, Created.resets) == before


class Numbered(Plain):
    """Numbers its worlds by an iterator, which cannot be set back."""

    def make_world(self, batch_dim, device, **kwargs):
        self.number = next(IDS)
        return super().make_world(batch_dim, device)


def test_without_a_way_to_undo_trials_there_are_none():
    first = next(copy.copy(IDS))
    assert not may_reset_together(task_of(Numbered()), CPU)
    assert next(copy.copy(IDS)) == first


# ------------------------------------------------------------------------------- saving


class Notebook(Plain):
    """Keeps numbers, texts, None, a growing list, a dictionary, an array and generators."""

    def make_world(self, batch_dim, device, **kwargs):
        self.python, self.old = random.Random(1), np.random.RandomState(2)
        self.new = np.random.default_rng(3)
        self.lines, self.counts, self.word, self.maybe = [], {}, "a", None
        self.array, self.scalar = np.zeros(batch_dim), np.float64(0.5)
        return super().make_world(batch_dim, device)

    def post_step(self):
        self.lines.append(self.python.random())
        self.counts[len(self.lines)] = self.old.rand()
        self.word = self.word[-3:] + str(len(self.lines))
        self.maybe = None if self.maybe is not None else torch.rand(self.world.batch_dim)
        self.array += self.new.random()
        self.scalar = self.scalar * np.float64(1.5)
        self.late = len(self.lines)  # an attribute that the first step sets

    def observation(self, agent):
        numbers = [sum(self.lines), sum(self.counts.values()), len(self.word), self.array[0]]
        numbers += [0.0 if self.maybe is None else float(self.maybe[0]), float(self.scalar)]
        return torch.tensor(numbers, dtype=torch.float32).expand(self.world.batch_dim, -1)


@pytest.mark.parametrize("late", [0, 4])
@pytest.mark.parametrize("scenario", [Notebook, InArray, InDictionary, Global, OfClass])
def test_a_saved_state_continues_exactly_in_another_environment(scenario, late):
    engine, other = engine_of(scenario()), engine_of(scenario())
    steps_of(engine, late)
    state = engine.env_state.state()
    expected = steps_of(engine, 5)
    steps_of(other, 2)
    other.env_state.load_state(state)
    again = other.env_state.state()
    assert {k for k in state if not torch.equal(state[k], again[k])} == set()
    assert torch.equal(steps_of(other, 5), expected)


class Iterating(Plain):
    """Draws numbers from an iterator."""

    def make_world(self, batch_dim, device, **kwargs):
        self.ticks = itertools.count()
        return super().make_world(batch_dim, device)

    def post_step(self):
        next(self.ticks)


def test_what_cannot_be_saved_is_refused_by_its_name():
    engine = engine_of(Iterating())
    engine.env_state.state()
    steps_of(engine, 1)
    with pytest.raises(ConfigError, match=r"saved, but env\.scenario\.ticks changed"):
        engine.env_state.state()


class Handled(Plain):
    """Makes an object in its first step, which a snapshot cannot make."""

    def post_step(self):
        self.helper = Plain()


def test_a_state_that_cannot_be_loaded_is_refused_by_its_name():
    engine = engine_of(Handled())
    before = engine.env_state.state()
    steps_of(engine, 1)
    with pytest.raises(ConfigError, match=r"env\.scenario\.helper"):
        engine.env_state.state()
    engine.env_state.load_state(before)
    assert not hasattr(engine.simulation.simulator.scenario, "helper")
