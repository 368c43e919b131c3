"""Environments and losses in other processes: pickles, ``EnvFactory``, TorchRL's workers."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from collect_tools import CounterEnv, make_agent, make_loss, slices, unrolled
from family_tools import FAMILIES, made
from resume_tools import exact
from torchrl.collectors import MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import ParallelEnv

from qmix_trl import (
    EnvFactory,
    EpsilonGreedyAction,
    RandomPolicy,
    env_dims,
    load_config,
    make_env,
    make_policy,
    with_memory,
)
from qmix_trl.collect import mark_all_valid
from qmix_trl.config.schema import settings
from qmix_trl.envs.compiled.choose import MAKERS
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
    EPISODE_REWARD,
    HIDDEN,
    OBSERVATION,
    REWARD,
    next_key,
)
from qmix_trl.trained import build_agent

cloudpickle = pytest.importorskip("cloudpickle")  # by which TorchRL and Ray send

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
RESUMED = [name for name, family in FAMILIES.items() if family.resumes]
BEFORE, AFTER = 3, 9  # steps, of episodes of at most 5

every_way = pytest.mark.parametrize("way", [pickle, cloudpickle], ids=lambda way: way.__name__)


def steps_of(env, shown, n_steps, *, seed):
    """Return all that an environment shows in steps of random actions, and what it shows then."""
    policy, seen = RandomPolicy(env_dims(env).n_actions, seed=seed), []
    for _ in range(n_steps):
        stepped, shown = env.step_and_maybe_reset(policy(shown))
        seen.append(exact(stepped))
    return seen, shown


@every_way
@pytest.mark.parametrize("name", [*RESUMED, "kernel"])
def test_a_pickled_environment_goes_on_bit_for_bit(name, way):
    engine = {"engine": "kernel", "verify": 0.0} if name == "kernel" else {}
    env = made(FAMILIES["vmas" if engine else name], **engine)
    env.set_seed(7)
    _, shown = steps_of(env, env.reset(), BEFORE, seed=0)
    twin = way.loads(way.dumps(env))
    assert str(twin.how) == str(env.how)
    expected = steps_of(env, shown.clone(), AFTER, seed=1)[0]
    assert steps_of(twin, shown.clone(), AFTER, seed=1)[0] == expected


@every_way
@pytest.mark.parametrize("mixer", ["qmix", "vdn", "none"])
def test_a_pickled_loss_learns_the_same(mixer, way):
    env = CounterEnv()
    loss = make_loss(env, make_agent(env), mixer=mixer)
    twin = way.loads(way.dumps(loss))
    assert exact(dict(twin.state_dict())) == exact(dict(loss.state_dict()))  # with the targets
    batch = slices(8, 1)[0]
    for each in (loss, twin):
        each(batch.clone())["loss"].backward()
    pairs = list(zip(loss.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(own.grad, other.grad) for own, other in pairs)
    assert all(own is not other for own, other in pairs)
    assert any((own.grad != 0).any() for own, _ in pairs)


def configured(name, **env):
    """Return a configuration of recipes with other settings of its environment."""
    config = load_config(CONFIGS / f"{name}.yaml")
    return replace(config, env=replace(config.env, n_envs=3, **env))


def shown_of(env, n_steps=6):
    """Return all that an environment shows after a reset."""
    return exact(env.reset()), steps_of(env, env.reset(), n_steps, seed=0)[0]


def test_a_factory_makes_the_configured_environments():
    config = configured("memory_qmix")
    factory = EnvFactory(config, seed=5)
    expected = shown_of(make_env(**settings(config.env), seed=5))
    assert shown_of(factory()) == expected == shown_of(factory())
    assert shown_of(pickle.loads(pickle.dumps(factory))()) == expected
    assert shown_of(EnvFactory(config, seed=6)()) != expected
    assert EnvFactory(config, seed=5, n_envs=2)().batch_size == (2,)
    waiting = EnvFactory(config, seed=5, reset_when_done=False)()
    assert not waiting.reset_when_done


def test_workers_have_streams_of_their_own():
    factory = EnvFactory(configured("memory_qmix"), seed=5)
    seen = [shown_of(each()) for each in (factory, *map(factory.for_worker, range(3)))]
    assert all(first != second for i, first in enumerate(seen) for second in seen[:i])
    assert shown_of(factory.for_worker(1)()) == seen[2]


def test_a_worker_steps_its_environments_itself():
    pytest.importorskip("lbforaging", reason="needs the extra envs")
    factory = EnvFactory(configured("lbforaging_8x8_2p_2f_coop_qmix", processes=3), seed=0)
    env = factory.for_worker(0)()
    assert (env.batch_size, env.how.name) == ((3,), "Python loop")


def test_environments_carry_the_memory_of_an_agent():
    config = configured("memory_qmix")
    bare = EnvFactory(config, seed=5)()
    agent = build_agent(config, env_dims(bare), torch.device("cpu"))
    env = EnvFactory(config, seed=5, memory=agent.memory_spec)()
    assert exact(env.reset()) == exact(with_memory(bare, agent).reset())
    assert HIDDEN in env.reset().keys(True, True)
    summing = EnvFactory(config, seed=5, memory=agent.memory_spec, sums_rewards=True)
    batch = summing.for_worker(0)().rollout(4, RandomPolicy(2, seed=0))
    returns = batch[next_key(EPISODE_REWARD)]
    torch.testing.assert_close(returns, batch[next_key(REWARD)].cumsum(1))
    assert HIDDEN in batch.keys(True, True)


def test_a_host_without_a_compiler_runs_the_next_engine_and_says_so(tmp_path):
    factory = EnvFactory(configured("balance_quick", verify=0.0, scenario_kwargs={}), seed=0)
    assert factory().how.name == "kernel"
    said = subprocess.run(
        [sys.executable, "-c", "import pickle, sys; print(pickle.load(sys.stdin.buffer)().how)"],
        input=pickle.dumps(factory),
        env={**os.environ, "PATH": str(tmp_path), "CXX": "", "QMIX_TRL_CACHE": str(tmp_path)},
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert said.startswith("eager (no kernel: no C++ compiler was found")


def test_a_state_of_another_engine_is_refused(monkeypatch):
    env = made(FAMILIES["vmas"], engine="auto", verify=0.0)
    sent = pickle.dumps(env)
    assert env.how.name == "kernel"
    monkeypatch.setattr("qmix_trl.envs.compiled.choose.MAKERS", {"eager": MAKERS["eager"]})
    with pytest.raises(ValueError, match="expected kernel, which took the steps before, got eager"):
        pickle.loads(sent)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_torchrls_parallel_environment_steps_factories():
    factory = EnvFactory(configured("memory_qmix"), seed=5)
    makers = [factory.for_worker(i) for i in range(2)]
    expected = [shown_of(make()) for make in makers]
    env = ParallelEnv(2, makers)  # [2, E]
    try:
        shown = env.reset()
        assert [exact(part) for part in shown] == [first for first, _ in expected]
        stepped = env.rollout(9, RandomPolicy(2, seed=0), break_when_any_done=False)  # [2, E, T]
    finally:
        env.close()
    mask = stepped[ACTION_MASK]
    assert not mask.all()
    assert mask.gather(-1, stepped[ACTION].unsqueeze(-1)).all()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (MultiSyncCollector, "memory_qmix"),
        (MultiAsyncCollector, "memory_qmix"),
        (MultiSyncCollector, "balance_qmix_recurrent"),
    ],
)
def test_torchrls_collectors_act_in_factories(kind, name):
    config = configured(name)
    dims = env_dims(EnvFactory(config, seed=0)())
    agent = build_agent(config, dims, torch.device("cpu"))
    factory = EnvFactory(config, seed=5, memory=agent.memory_spec)
    policy = make_policy(agent, EpsilonGreedyAction(0.5, 0.5, 0, seed=1))
    n_steps = 8
    collector = kind(
        [factory.for_worker(i) for i in range(2)],
        policy,
        frames_per_batch=(2 if kind is MultiSyncCollector else 1) * 3 * n_steps,
        total_frames=4 * 3 * n_steps,
        auto_register_policy_transforms=False,
        **({"cat_results": 0} if kind is MultiSyncCollector else {}),
    )
    try:
        batches = [batch.clone() for batch in collector]
    finally:
        collector.shutdown()
    assert sum(batch.numel() for batch in batches) == 4 * 3 * n_steps
    for batch in batches:  # [E, T], of one worker or of both
        if name == "memory_qmix":
            assert batch[ACTION_MASK].gather(-1, batch[ACTION].unsqueeze(-1)).all()
        # The rows hold all that the agent read: training finds the values by which it acted.
        values = unrolled(mark_all_valid(batch), agent)
        torch.testing.assert_close(values, batch[ACTION_VALUE], atol=1e-5, rtol=1e-5)
    first, second = torch.cat(batches)[:6].split(3)
    assert not torch.equal(first[OBSERVATION], second[OBSERVATION])
