"""The shadow check: right steps pass, faults are found at their step and place, numbers stay."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from compiled_tools import Plain, Scattered
from recipe_tools import call, check_told, run, summary, tiny
from tensordict import TensorDict
from vmas_tools import rollout

from qmix_trl import env_dims, make_env
from qmix_trl.envs.compiled import shadow as shadows
from qmix_trl.envs.compiled.engines.kernel import KernelEngine
from qmix_trl.envs.compiled.engines.packed_state import (
    CHOICE,
    PackedNumber,
    as_bits,
    unpack_state,
)
from qmix_trl.envs.compiled.trace.contents import Contents, Slot
from qmix_trl.envs.compiled.vmas_replay import VmasReplay
from qmix_trl.errors import Refused, WrongStepError
from qmix_trl.native import build

try:
    build.compiler()
except build.NoCompiler as error:
    pytest.skip(str(error), allow_module_level=True)

E = 8


class Noisy(Plain):
    """Adds noise to the observation and to the reward of each step."""

    def reward(self, agent):
        return agent.state.pos[:, 0] + torch.randn(self.world.batch_dim)

    def observation(self, agent):
        return agent.state.pos + 0.1 * torch.rand(self.world.batch_dim, 2)


class Endless(Plain):
    """A scenario whose class a test changes after its kernel was built."""


def env_of(scenario, **settings):
    """Return a small environment; ``settings`` replace the defaults."""
    settings = {
        "n_envs": E,
        "max_steps": 60,
        "state": "world",
        "team_reward": "mean",
        "seed": 0,
        "engine": "kernel",
        "verify": 1.0,
        **settings,
    }
    return make_env("vmas", scenario=scenario, **settings)


def batches(env, n_batches, n_steps, *, seed=0):
    """Return batches [E, T] by random actions, collected in buffers, and their actions."""
    dims, generator = env_dims(env), torch.Generator().manual_seed(seed)
    env.reset()
    found = []
    for _ in range(n_batches):
        buffers = env.begin_buffers(n_steps)
        for t in range(n_steps):
            shape = (*env.batch_size, dims.n_agents)
            env.step_buffers(buffers, t, torch.randint(dims.n_actions, shape, generator=generator))
        batch = TensorDict({}, (*env.batch_size, n_steps))
        env.pack_buffers(buffers, batch)
        found.append(batch)
    return torch.cat(found, 1)


def faulty(monkeypatch, fault):
    """Let ``fault(engine, buffers, t)`` change what each step of every kernel engine writes."""
    advance = KernelEngine.advance

    def wrong(self, buffers, t, n_steps, *, reset_when_done):
        advance(self, buffers, t, n_steps, reset_when_done=reset_when_done)
        fault(self, buffers, t)

    monkeypatch.setattr(KernelEngine, "advance", wrong)


@pytest.fixture
def whole(monkeypatch):
    """Let the first check take whole episodes."""
    monkeypatch.setattr(shadows, "FIRST_STEPS", 100)


# -------------------------------------------------------------------------- right steps


SLOW = pytest.mark.slow  # a kernel of these takes half a minute to build


@pytest.mark.parametrize(
    "scenario",
    [
        "balance",
        Noisy,
        pytest.param("navigation", marks=SLOW),
        pytest.param("simple_reference", marks=SLOW),  # resets choose goals in Python
        pytest.param("discovery", marks=SLOW),  # entities are spawned in steps
    ],
)
def test_right_steps_pass(scenario, whole):
    env = env_of(scenario if isinstance(scenario, str) else scenario())
    batches(env, 6, 25)
    assert env.shadow.verified_steps > 20
    assert env.shadow.refusal is None


@pytest.mark.slow
def test_right_steps_of_inductor_pass(whole):
    env = env_of(Scattered(), engine="inductor", n_envs=3)  # test_resume builds this one, too
    batches(env, 3, 25)
    assert env.shadow.verified_steps > 20


def test_a_first_check_ends_after_20_steps_or_with_the_episode():
    env = env_of(Noisy(), verify=1e-9)
    batches(env, 4, 15)  # 15 + 5 steps
    assert env.shadow.verified_steps == 20
    env = env_of(Noisy(), verify=1e-9, max_steps=15)
    batches(env, 4, 10)
    assert env.shadow.verified_steps == 15


@pytest.mark.parametrize("scenario", [Noisy, Plain])  # without and with the first observation
def test_single_steps_are_checked_too(scenario):
    env = env_of(scenario(), verify=1e-9)
    rollout(env, 70)
    assert env.shadow.verified_steps == 20


def test_vmas_itself_and_a_share_of_0_are_not_checked():
    assert env_of(Noisy(), engine="eager").shadow is None
    assert env_of(Noisy(), verify=0).shadow is None


def test_a_share_of_time_above_the_limit_waits(monkeypatch):
    now = 0.0
    monkeypatch.setattr(shadows.time, "perf_counter", lambda: now)
    env = env_of(Noisy(), verify=0.01, max_steps=20)
    check = env.shadow._check

    def takes_a_second(start):
        nonlocal now
        check(start)
        now += 1

    monkeypatch.setattr(env.shadow, "_check", takes_a_second)
    batches(env, 3, 20)  # 20 steps took 1 s; another 20 would make 2 s, 1 % of 200 s
    assert env.shadow.verified_steps == 20
    now = 198.0
    batches(env, 1, 20)
    assert env.shadow.verified_steps == 20
    now = 201.0
    batches(env, 1, 20)
    assert env.shadow.verified_steps == 40


def test_a_packed_state_is_written_to_the_places_it_was_read_from():
    held = {
        "flag": torch.tensor([[True], [False]]),
        "count": torch.tensor([[1, -2, 3], [4, 5, 6]]),
        "shared": torch.tensor([0.5, 0.25]),  # one for both environments
        "expanded": torch.zeros(1, 1).expand(2, 2),
        "mass": 1.5,
    }
    view = held["count"][1]
    slots = {path: Slot(held, path, value) for path, value in held.items()}
    contents = Contents(slots=slots, floats={"mass": slots.pop("mass")})
    numbers = [
        PackedNumber("flag", 0, "b", batched=True),
        PackedNumber("count", 2, "i", batched=True),
        PackedNumber("shared", 1, "f", batched=False),
        PackedNumber("expanded", 0, "f", batched=True),
        PackedNumber("mass", 0, "f", batched=False),
        PackedNumber(CHOICE, 0, "i", batched=False),
    ]
    columns = [
        as_bits(torch.tensor(column), torch.tensor(column).dtype)
        for column in ([False, True], [-7, 8], [0.75, 0.75], [3.0, 4.0], [2.5, 2.5], [1, 1])
    ]
    unpack_state(contents, numbers, torch.stack(columns, 1))
    assert held["flag"].tolist() == [[False], [True]]
    assert held["count"].tolist() == [[1, -2, -7], [4, 5, 8]]
    assert view.tolist() == [4, 5, 8]
    assert held["shared"].tolist() == [0.5, 0.75]
    assert held["expanded"].tolist() == [[3.0, 0.0], [4.0, 0.0]]
    assert held["mass"] == 2.5


# ------------------------------------------------------------------------ numbers stay


def test_a_check_changes_no_number():
    outcomes = []
    for verify in (0, 1.0):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - scenarios draw from it
        random.seed(0)
        env = env_of(Noisy(), verify=verify)
        batch, state = batches(env, 6, 25), env.simulation_state()
        drawn = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        outcomes.append((batch, state, drawn))
    (batch, state, drawn), (batch_2, state_2, drawn_2) = outcomes
    assert (batch == batch_2).all()
    assert (state == state_2).all()
    assert torch.equal(drawn[0], drawn_2[0])
    assert np.array_equal(drawn[1], drawn_2[1])
    assert drawn[2] == drawn_2[2]


def test_a_twin_neither_changes_nor_refills_the_pool():
    env = env_of(Noisy())
    env.reset()
    fresh, twin = env.engine.fresh, env.engine.twin()
    fresh.taken = 10**9  # due
    pool, packed = fresh.pool.clone(), env.engine.env_state.packed_state()
    twin.advance(env._step_buffers, 0, 1, reset_when_done=False)
    assert torch.equal(fresh.pool, pool)
    assert fresh.taken == 10**9
    assert torch.equal(env.engine.env_state.packed_state(), packed)


# ------------------------------------------------------------------------ wrong steps


def test_a_wrong_observation_is_found_at_its_step(monkeypatch):
    def fault(engine, buffers, t):
        late = engine.env_state.steps > 10
        buffers.seen[late, t + 1, 1] += 0.5  # number 1 of agent_0's observation

    env = env_of(Noisy())
    faulty(monkeypatch, fault)
    with pytest.raises(WrongStepError) as caught:
        batches(env, 2, 25)
    told, traces = str(caught.value), caught.value.traces
    assert told.startswith("env.engine: kernel differs from VMAS in environment ")
    assert "step 11 of its episode: observation[1] of agent_0 is " in told
    assert told.endswith("; take env.engine=eager")
    # Ten equal steps, and the wrong one.
    assert [step["step"] for step in traces["steps"]] == list(range(1, 12))
    for step in traces["steps"]:
        ours, theirs = step["engine"]["seen"], step["vmas"]["seen"]
        off = 0.5 if step["step"] == 11 else 0.0
        assert ours[1] - theirs[1] == pytest.approx(off, abs=1e-4)
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
    assert traces["message"] == told
    json.dumps(traces)


def test_a_wrong_reward_is_found_in_a_later_batch(monkeypatch, whole):
    def fault(engine, buffers, t):
        buffers.agent_reward[engine.env_state.steps == 33, t, 0] -= 1

    env = env_of(Noisy())
    faulty(monkeypatch, fault)
    with pytest.raises(WrongStepError, match="step 33 of its episode: the reward of agent_0 is "):
        batches(env, 2, 25)


def test_a_step_that_differs_once_is_found(monkeypatch):
    env = env_of(Noisy())
    advance = env.engine.advance

    def wrong_once(buffers, t, n_steps, *, reset_when_done):
        advance(buffers, t, n_steps, reset_when_done=reset_when_done)
        if t == 4:
            buffers.seen[:, t + 1, 0] += 1e-5  # less than the gate's margin

    monkeypatch.setattr(env.engine, "advance", wrong_once)
    with pytest.raises(WrongStepError, match=r"from its own step, taken again,.* step 5 of"):
        batches(env, 1, 25)


def test_a_state_that_changes_between_batches_is_found():
    env = env_of(Noisy(), verify=1e-9)
    batches(env, 1, 10)
    env.engine.env_state.packed.add_(1.0)
    with pytest.raises(WrongStepError, match=r"taken again,.* step 10 of .* is 1 instead of 0"):
        rollout_on(env)


def rollout_on(env):
    """Take a step without a reset."""
    buffers = env.begin_buffers(1)
    env.step_buffers(buffers, 0, torch.zeros(E, 1, dtype=torch.int64))
    env.pack_buffers(buffers, TensorDict({}, (E, 1)))


def test_a_wrong_time_limit_is_found():
    env = env_of(Noisy(), max_steps=20)
    env.shadow._max_steps = 19
    with pytest.raises(WrongStepError, match="step 19 of its episode: truncated is 0 instead of 1"):
        batches(env, 1, 20)


@pytest.mark.slow
def test_a_wrong_choice_of_a_reset_is_found():
    env = env_of("simple_reference")
    fresh = env.engine.fresh
    (k,) = [k for k, number in enumerate(fresh.step.numbers) if number.path == CHOICE]
    bits = fresh.pool[:, k].clone().view(torch.int32)
    fresh.pool[:, k] = ((bits + 1) % len(fresh.step.choices)).view(torch.float32)
    with pytest.raises(WrongStepError, match="step 1 of its episode: after the reset observation"):
        batches(env, 1, 5)


def test_a_count_in_python_that_ends_episodes_is_found(monkeypatch, whole):
    env = env_of(Endless())

    def reset_world_at(self, env_index=None):
        Plain.reset_world_at(self, env_index)
        self.n_steps = 0

    def post_step(self):
        self.n_steps += 1

    def done(self):
        return torch.full((self.world.batch_dim,), self.n_steps >= 40)

    for function in (reset_world_at, post_step, done):
        monkeypatch.setattr(Endless, function.__name__, function)
    with pytest.raises(WrongStepError, match="step 40 of its episode: terminated is 0 instead of"):
        batches(env, 2, 25)


# --------------------------------------------------------------- where it cannot check


def test_a_state_that_cannot_be_written_is_told():
    env = env_of(Noisy())
    fresh = env.engine.fresh
    numbers = [*fresh.step.numbers, PackedNumber("env.nowhere", 0, "f", batched=True)]
    fresh.step = replace(fresh.step, numbers=numbers)
    with pytest.raises(Refused, match=r"env\.nowhere cannot be written"):
        VmasReplay(fresh, 1, draws=True)
    shadow = shadows.Shadow(env.engine, "kernel", max_steps=60, share=0.1, seed=0)
    assert shadow.how == "nothing: env.nowhere cannot be written in 1 environments of VMAS"


def test_a_scenario_that_fails_in_a_replay_ends_the_checks(monkeypatch):
    env = env_of(Endless())

    def post_step(self):
        raise ZeroDivisionError("no one here")

    monkeypatch.setattr(Endless, "post_step", post_step, raising=False)
    with pytest.warns(UserWarning, match="nothing: VMAS fails in a replay: ZeroDivisionError"):
        batches(env, 3, 20)
    assert env.shadow.verified_steps == 0


# --------------------------------------------------------------------------- the recipe

ON_KERNEL = ("env.engine=kernel", "env.verify=0.001")


def test_a_run_tells_what_it_verified(tmp_path, capsys):
    folder = run(tmp_path, *ON_KERNEL)
    said = capsys.readouterr().out
    assert "verified: 1 of 2 environments by VMAS, at most 0.1 % of the time\n" in said
    assert summary(folder)["verified_steps"] == 4  # one episode, of the first batch


def test_a_mismatch_ends_the_run_and_leaves_both_traces(tmp_path, monkeypatch, capsys):
    twin_of = KernelEngine.twin

    def wrong_twin(self):
        twin = twin_of(self)
        advance = twin.advance

        def wrong(buffers, t, n_steps, *, reset_when_done):
            advance(buffers, t, n_steps, reset_when_done=reset_when_done)
            buffers.reward.add_(1)

        twin.advance = wrong
        return twin

    monkeypatch.setattr(KernelEngine, "twin", wrong_twin)
    config = str(tiny(tmp_path))
    with pytest.raises(SystemExit) as ended:
        call("train.py", config, *ON_KERNEL, "--runs", str(tmp_path / "runs"))
    place = "step 1 of its episode: the team's reward is"
    check_told(ended.value.code, capsys.readouterr().err, 5, [place, "take env.engine=eager"])
    traces = json.loads((tmp_path / "runs" / "tiny-1" / "mismatch.json").read_text())
    (step,) = traces["steps"]
    assert step["vmas"]["reward"] == pytest.approx(step["engine"]["reward"])
