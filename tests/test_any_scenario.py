"""All that VMAS takes from a scenario: right values on each engine, or one line."""

import random

import numpy as np
import pytest
import scenarios_any as s
import torch
import vmas
from tensordict import TensorDict
from torchrl.envs import check_env_specs
from vmas.simulator.core import Landmark
from vmas_tools import make_env, rollout

from qmix_trl import ConfigError, NoOpPolicy, env_dims, make_collector
from qmix_trl.envs.compiled.choose import ENGINES
from qmix_trl.envs.scenario_copies import copied
from qmix_trl.envs.vmas_scenarios import scenario_keywords
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    AGENT_REWARD,
    DONE,
    IS_INIT,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    next_key,
)

INFO = ("agents", "info")
EACH = ENGINES[1:]


# ------------------------------------------------------------------------ types and shapes


@pytest.mark.parametrize("engine", ["kernel", "eager"])  # inductor would compile for a minute
def test_every_type_of_number_is_float32_or_bool(engine):
    env = make_env(s.Mixed(), n_envs=6, max_steps=9, engine=engine)
    assert env.how.name == engine
    batch = rollout(env, 30)
    after = batch[next_key(OBSERVATION)]  # [E, T, 5, 4]: x, y, int(4 x), y > 0.5
    x, y = after[..., 0], after[..., 1]  # [E, T, 5]
    assert torch.equal(after[..., 2], (x * 4).trunc())
    assert torch.equal(after[..., 3], (y > 0.5).float())
    assert {after.dtype, batch[STATE].dtype, batch[next_key(REWARD)].dtype} == {torch.float32}
    expected = [
        (x[..., 0] * 4).trunc(),
        (x[..., 1] > 0.5).float(),
        x[..., 2],
        x[..., 3],
        torch.full_like(x[..., 4], -1.0),
    ]
    assert torch.equal(batch[next_key(AGENT_REWARD)][..., 0], torch.stack(expected, -1))
    mean = torch.stack(expected, -1).mean(-1)
    torch.testing.assert_close(batch[next_key(REWARD)][..., 0], mean)
    ended = batch[next_key(TERMINATED)][..., 0]
    assert ended.dtype == torch.bool
    assert torch.equal(ended, x[..., 0] > 0.5)
    assert set(ended.flatten().tolist()) == {False, True}


SAME = {
    "done float": ("done", lambda x: x.float()),
    "done int": ("done", lambda x: x.long()),
    "done column": ("done", lambda x: x[:, None]),
    "reward column": ("reward", lambda x: x[:, None]),
    "reward double": ("reward", lambda x: x.double()),
    "observation double": ("observation", lambda x: x.double()),
    "observation parts": ("observation", lambda x: {"x": x[:, 0], "rest": {"y": x[:, 1:]}}),
}


@pytest.mark.parametrize("kind", SAME)
def test_the_same_numbers_of_another_type_or_shape_make_the_same_batch(kind):
    expected = rollout(make_env(s.Walk(), n_envs=6, max_steps=9), 20)
    batch = rollout(make_env(s.Returning(*SAME[kind]), n_envs=6, max_steps=9), 20)
    for key in (OBSERVATION, STATE, *map(next_key, (REWARD, AGENT_REWARD, DONE, OBSERVATION))):
        assert torch.equal(batch[key], expected[key]), key
        assert batch[key].dtype == expected[key].dtype


def test_one_end_is_that_of_all_environments():
    env = make_env(s.Returning("done", lambda x: torch.tensor(True)), n_envs=3)
    assert rollout(env, 4)[next_key(TERMINATED)].all()


WRONG = {
    "two rewards": ("reward", lambda x: torch.stack([x, x], 1), r"reward of agent_0: .*\[2, 2\]"),
    "two ends": ("done", lambda x: torch.stack([x, x], 1), r"done: expected .*\[2\].*got \[2, 2\]"),
    "no reward": ("reward", lambda x: x[:0], r"reward of agent_0: expected .*, got \[0\]"),
    "number": ("reward", lambda x: 0.0, r"'float' .*scenario\.reward\(agent\).*for agent_0"),
    "flag": ("done", lambda x: False, r"'bool' object .*self\.scenario\.done\(\)"),
    "list": ("observation", lambda x: x.tolist(), r"'list' object.* for agent_0"),
    "flat": (
        "observation",
        lambda x: x.flatten(),
        r"observation of agent_0: .*\[2, \.\.\.\].*\[4\]",
    ),
    "shared": ("observation", lambda x: x[:1], r"observation of agent_0: expected .*got \[1, 2\]"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_wrong_shapes_and_types_are_told_in_one_line(kind, engine):
    method, change, message = WRONG[kind]
    with pytest.raises(ConfigError, match=rf"VMAS scenario 'Returning'.*{message}") as told:
        make_env(s.Returning(method, change), engine=engine)
    assert "\n" not in str(told.value)


def test_observations_of_another_length_than_at_first_are_refused():
    class Growing(s.Walk):
        def observation(self, agent):
            return agent.state.pos.repeat(1, 2 if self.world.agents[0].action.u is not None else 1)

    with pytest.raises(
        ConfigError, match=r"observation: expected 4 numbers of each agent as at first, got 2"
    ):
        make_env(Growing()).reset()


class MoreLandmarks(s.Walk):
    """Each reset adds a landmark."""

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        if self.world.agents[0].action.u is not None:  # from the first step on
            landmark = Landmark(f"trail {len(self.world.landmarks)}", collide=False)
            self.world.add_landmark(landmark)


def test_a_world_that_grows_has_no_state_of_fixed_size():
    with pytest.raises(
        ConfigError, match=r"state: expected 18 numbers as at first, got 12; .*env.state=obs"
    ):
        make_env(MoreLandmarks()).reset()
    grown = make_env(MoreLandmarks(), state="observations").reset()
    assert grown[STATE].shape == grown[OBSERVATION].flatten(1).shape


# ------------------------------------------------------------------------------ keywords

READERS = (s.Walk, s.Named, s.Subscript, s.OtherName, s.OfBase, s.Helper, s.Kept)


@pytest.mark.parametrize("cls", READERS)
def test_keywords_are_taken_however_they_are_read(cls):
    env = make_env(cls(), scenario_kwargs={"n_agents": 3})
    assert env_dims(env).n_agents == 3


@pytest.mark.parametrize(
    ("cls", "keywords"),
    [
        (s.Walk, ["n_agents"]),
        (s.Mixed, []),
        (s.Subscript, ["n_agents"]),
        (s.OtherName, ["n_agents"]),
        (s.OfBase, ["n_agents", "scale"]),
        (s.Helper, None),
        (s.Kept, None),
    ],
)
def test_the_source_lists_the_keywords_or_leaves_them_open(cls, keywords):
    assert scenario_keywords(cls()) == keywords


def test_a_misspelt_keyword_is_refused_where_the_list_is_complete():
    for cls in (s.Walk, s.Subscript, s.OtherName, s.OfBase):
        with pytest.raises(ConfigError, match=r"n_agent: unknown .*did you mean 'n_agents'\?"):
            make_env(cls(), scenario_kwargs={"n_agent": 3})
    assert env_dims(make_env(s.Helper(), scenario_kwargs={"n_agent": 3})).n_agents == 2


def test_a_setting_of_vmas_itself_is_no_keyword():
    with pytest.raises(ConfigError, match=r"scenario_kwargs\.max_steps: a setting of VMAS's"):
        make_env(s.Kept(), scenario_kwargs={"max_steps": 5})


def test_a_class_without_source_takes_keywords():
    space = {"__name__": "typed", "Walk": s.Walk}
    exec(  # as typed into an interpreter
        "class Typed(Walk):\n"
        "    def make_world(self, batch_dim, device, **kwargs):\n"
        "        return self.world_of(batch_dim, device, kwargs['n_agents'])\n",
        space,
    )
    assert scenario_keywords(space["Typed"]()) is None
    env = make_env(space["Typed"], scenario_kwargs={"n_agents": 3})
    assert env_dims(env).n_agents == 3


# ---------------------------------------------------- errors, and one environment only


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_scenario_of_one_environment_runs_with_one(engine):
    env = make_env(s.OneEnv(), n_envs=1, max_steps=9, engine=engine)
    assert env.how.name == "eager"
    if engine == "auto":
        assert "fails in a batch of 37: RuntimeError Boolean" in env.how.passed_over["kernel"]
    batch = rollout(env, 30)
    x = batch[next_key(OBSERVATION)][..., 0]  # [E, T, N]
    assert torch.equal(batch[next_key(AGENT_REWARD)][..., 0], x + 10 * (x > 0.5))
    assert set((x > 0.5).flatten().tolist()) == {False, True}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_scenario_of_one_environment_is_refused_with_several(engine):
    message = r"in a batch of 2: RuntimeError .* at scenarios_any\.py:\d+ \(return .*n_envs=1 only"
    with pytest.raises(ConfigError, match=message) as told:
        make_env(s.OneEnv(), n_envs=4, engine=engine)
    assert isinstance(told.value.__cause__, RuntimeError)


def test_an_error_in_a_scenario_is_one_line_and_leaves_the_generators_alone():
    class Broken(s.Walk):
        def pre_step(self):
            torch.rand(3)
            raise KeyError("wind")

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    message = (
        r"'Broken' fails in a batch of 2: KeyError 'wind' at test_any_scenario\.py:\d+ \(raise"
    )
    with pytest.raises(ConfigError, match=message):
        make_env(Broken())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_an_error_by_a_keyword_names_the_keywords():
    # balance asserts 1 < n_agents
    with pytest.raises(
        ConfigError, match=r"kwargs: {'n_agents': 1}: .* at balance\.py:\d+ \(assert"
    ):
        make_env(scenario_kwargs={"n_agents": 1})


# ------------------------------------------------------------- classes, instances, copies


def test_a_class_is_as_good_as_an_instance():
    batches = [rollout(make_env(given, n_envs=3), 5) for given in (s.Walk, s.Walk())]
    assert torch.equal(batches[0][OBSERVATION], batches[1][OBSERVATION])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (s, "expected a name, or a class or an instance of BaseScenario, got 'scenarios_any'"),
        (None, "got 'NoneType'"),
        (int, "got 'int'"),
        (s.Returning, r"Returning\(\) fails: TypeError .*'change' at scenarios_any\.py:"),
    ],
)
def test_other_things_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        make_env(given)


@pytest.fixture
def holding(tmp_path):
    (tmp_path / "lines").write_text("one\ntwo\nthree\n")
    scenario = s.Holding(tmp_path / "lines")
    assert scenario.file.readline() == "one\n"
    return scenario


def test_a_copy_shares_no_state(holding):
    copies = [copied(holding) for _ in range(2)]
    for copy in copies:
        copy.scale = 3.0
        assert (copy.scaled(2.0), copy.bound(2.0)) == (6.0, 3.0)
        assert (copy.counted(), copy.counted()) == (1, 2)
        assert copy.file.readline() == "two\n"
        assert copy.torch is torch
        with copy.lock:
            pass
    assert (holding.scaled(2.0), holding.counted(), holding.file.readline()) == (2.0, 1, "two\n")


def test_a_scenario_that_holds_locks_functions_and_files_steps(holding):
    # Up to the first reset: those of ``holding`` go one by one, which draws in another order.
    batch, expected = (rollout(make_env(x, n_envs=3), 1) for x in (holding, s.Walk()))
    assert torch.equal(batch[next_key(OBSERVATION)], expected[next_key(OBSERVATION)])


def test_an_attribute_that_cannot_be_copied_is_named_and_a_class_serves():
    class Generating(s.Walk):
        def __init__(self):
            super().__init__()
            self.bonus = (float(i) for i in range(1000))

        def reward(self, agent):
            return super().reward(agent) + next(self.bonus)

    with pytest.raises(
        ConfigError, match=r"'bonus' of Generating cannot be copied: .*give the class"
    ):
        make_env(Generating())
    batch = rollout(make_env(Generating, n_envs=3), 5)
    rewards, x = batch[next_key(AGENT_REWARD)][..., 0], batch[next_key(OBSERVATION)][..., 0]
    torch.testing.assert_close(rewards, -x + torch.arange(10.0).view(5, 2))  # [E, T, N]


def test_state_that_a_scenario_carries_over_episodes_begins_as_in_vmas():
    batch = rollout(make_env(s.Carry(), max_steps=5), 12)
    simulator = vmas.make_env(s.Carry(), num_envs=2, continuous_actions=False, seed=0)
    simulator.reset()
    for t in range(12):
        (theirs, _), *_ = simulator.step([torch.zeros(2, 1)] * 2)
        assert torch.equal(batch[next_key(OBSERVATION)][:, t, 0], theirs)
        assert (theirs == t + 1).all()


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_colours_that_are_read_are_right(engine):
    batch = rollout(make_env(s.ReadingColours(), engine=engine), 6)
    red = batch[next_key(OBSERVATION)][0, :, :, 0]  # [T, N]: the first agent begins red
    assert red.tolist() == [[0.0, 1.0], [1.0, 0.0]] * 3


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_recolouring_changes_no_number(engine):
    batch = rollout(make_env(s.Recolouring(), engine=engine), 6)
    after = batch[next_key(OBSERVATION)]
    torch.testing.assert_close(batch[next_key(AGENT_REWARD)], -after[..., :1])


# ------------------------------------------------------------------------------- infos


def test_infos_are_entries_of_each_step_and_zero_at_resets():
    env = make_env(s.Informing(), n_envs=3, max_steps=4, info=True)
    check_env_specs(env)
    batch = rollout(env, 9)
    assert batch[next_key(INFO)]["x"].shape == (3, 9, 2, 1)
    after = batch[next_key(OBSERVATION)]  # [E, T, N, 2]
    assert torch.equal(batch[next_key((*INFO, "x"))], after[..., :1])
    # The world's state holds both agents' position, velocity, rotation and its speed.
    velocity = batch[next_key(STATE)].unflatten(-1, (2, 6))[..., 2:4]  # [E, T, N, 2]
    assert torch.equal(batch[next_key((*INFO, "more", "speed"))], velocity * 2)
    assert (velocity != 0).any()
    first = batch[IS_INIT][..., 0]
    assert (batch[(*INFO, "x")][first] == 0).all()
    later = batch[next_key((*INFO, "x"))][:, :-1][~first[:, 1:]]
    assert torch.equal(batch[(*INFO, "x")][:, 1:][~first[:, 1:]], later)


def test_infos_are_in_the_batches_of_both_collectors():
    batches = []
    for kind in ("fused", "stock"):
        env = make_env(s.Informing(), n_envs=3, max_steps=4, info=True)
        batches.append(next(iter(collector_of(env, kind))))
    for key in ((*INFO, "x"), next_key((*INFO, "more", "speed"))):
        assert torch.equal(batches[0][key], batches[1][key]), key
    assert (batches[0][next_key((*INFO, "x"))] != 0).all()


def collector_of(env, kind):
    """Return a collector of 9 steps a batch."""
    policy = NoOpPolicy(env_dims(env).n_actions)
    return make_collector(env, policy, rows="slices", steps=9, n_batches=1, collector=kind)


def test_infos_need_the_eager_engine():
    env = make_env(s.Informing(), engine="auto", info=True)
    assert env.how.name == "eager"
    assert env.how.passed_over["kernel"] == "only VMAS itself computes infos"
    with pytest.raises(ConfigError, match=r"env\.engine: kernel shows no infos"):
        make_env(s.Informing(), engine="kernel", info=True)
    with pytest.raises(ConfigError, match=r"env\.info: VMAS scenario 'Walk' has no infos"):
        make_env(s.Walk(), info=True)


def test_agents_with_other_infos_are_refused():
    class Uneven(s.Informing):
        def info(self, agent):
            return {agent.name: agent.state.pos}

    with pytest.raises(ConfigError, match=r"info: expected the same entries .*agent_1"):
        make_env(Uneven(), info=True)


# --------------------------------------------------------------------- groups, actions


@pytest.mark.parametrize("engine", ["kernel", "eager"])
def test_all_groups_can_be_one_team(engine):
    env = make_env(s.Groups(), engine=engine, group="all")
    assert env_dims(env).n_agents == 2
    data = env.reset()
    # Action 2 of 3 x 3: force 0 in x, its greatest in y; action 0 does nothing.
    after = env.step(data.set(ACTION, torch.tensor([[0, 2], [2, 0]])))["next"]
    moved = after[OBSERVATION] != data[OBSERVATION]  # [E, N, 2]
    no, yes = [False, False], [False, True]
    assert moved.tolist() == [[no, yes], [yes, no]]


def test_all_groups_may_have_other_sizes():
    theirs = vmas.make_env("simple_world_comm", num_envs=2, continuous_actions=False)
    sizes = [observation.shape[1] for observation in theirs.reset()]
    counts = [space.n for space in theirs.action_space]
    assert (len({*sizes}), len({*counts})) == (2, 2)
    env = make_env("simple_world_comm", group="all")
    dims, shown = env_dims(env), env.reset()
    assert (dims.observation_dim, dims.n_actions) == (max(sizes), max(counts))
    assert shown[ACTION_MASK].sum(-1)[0].tolist() == counts
    short = shown[OBSERVATION][:, sizes.index(min(sizes)), min(sizes) :]
    assert not short.any()
    assert env_dims(make_env(group="all")).n_agents == 3


@pytest.mark.parametrize("engine", ["kernel", "eager"])
@pytest.mark.parametrize("action", [-1, 9, 2**40 + 3])
def test_actions_out_of_range_are_refused(engine, action):
    env = make_env(s.Walk(), engine=engine)
    actions = torch.tensor([[0, 1], [action, 8]])
    with pytest.raises(ValueError, match=rf"expected actions from 0 to 8, got {action}"):
        env.step(env.reset().set(ACTION, actions))
    with pytest.raises(ValueError, match=rf"expected actions from 0 to 8, got {action}"):
        env.step_buffers(env.begin_buffers(1), 0, actions)


def test_actions_of_another_type_or_shape_are_refused():
    env = make_env(s.Walk())
    for actions in (torch.zeros(2, 2), torch.zeros(2, 2, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"expected actions int64 \[2, 2\], got torch\."):
            env._step(TensorDict({ACTION: actions}, [2]))
