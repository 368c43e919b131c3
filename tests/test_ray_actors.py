"""Collection by actors of Ray: weights, streams, deaths, and hosts without a compiler."""

import copy
import os
import signal
import time
from pathlib import Path

import pytest
import ray_tools
import torch
from collect_tools import slow_steps, unrolled
from ray_tools import FRAMES, N_ACTORS, N_ENVS, STEPS, Deadly, Failing, actors_of, small_agent
from recipe_tools import metrics, run, summary
from resume_tools import exact

from qmix_trl import ConfigError, EpsilonGreedyAction, MachineError, load_run, save_run
from qmix_trl import ray_actors as module
from qmix_trl.functional import greedy_action
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
    LAST_ACTION,
    MASK,
    POLICY_VERSION,
    STATE,
)

KILLS = int(os.environ.get("QMIX_TRL_KILLS", "1"))
ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def _ray_runs():
    tests = Path(__file__).parent
    before = os.environ.get("PYTHONPATH", "")
    # Actors import these files.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(tests), str(tests.parent), before])
    )
    assert module.begin_ray(N_ACTORS)
    assert not module.begin_ray(N_ACTORS)  # it runs already
    yield
    ray.shutdown()
    os.environ["PYTHONPATH"] = before


@pytest.fixture
def begun():
    """Return actors, which end with the test."""
    made = []

    def begin(*arguments, **settings):
        made.append(actors_of(*arguments, **settings))
        return made[-1]

    yield begin
    for actors in made:
        actors.shutdown()


MANY = 10**6  # batches, more than a test takes


def states(actors):
    """Return what each actor tells of its policy and its process."""
    return ray.get([actor.acting.remote() for actor in actors.actors])


def numbers_of(batch):
    """Return the numbers of the actors whose rows are in a batch."""
    return set(batch[STATE][..., 2].flatten().int().tolist())


def test_ray_listens_on_the_loopback_interface_alone():
    addresses = ray_tools.listening(ray_tools.descendants(os.getpid()))
    assert len(addresses) > 3
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(addresses) <= loopback
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


def test_actors_act_by_the_learners_weights(begun):
    agent = small_agent()
    explore = EpsilonGreedyAction(1.0, 0.0, 2 * FRAMES, seed=1)
    actors = begun(agent, explore, n_batches=5)
    by_version, greedy = [copy.deepcopy(agent)], []
    for batch in actors:
        assert batch.shape == (N_ENVS, STEPS)
        assert batch[MASK].all()
        assert batch[ACTION_MASK].gather(-1, batch[ACTION].unsqueeze(-1)).all()
        version = batch[POLICY_VERSION][..., 0]  # [E, T]
        assert (version == version[:, :1]).all()
        behind = len(by_version) - 1 - version.double().mean().item()
        assert actors.staleness == behind
        for number in version[:, 0].unique().tolist():
            rows = batch[version[:, 0] == number]
            values = unrolled(rows, by_version[number])
            torch.testing.assert_close(values, rows[ACTION_VALUE], atol=1e-5, rtol=1e-5)
        best = greedy_action(batch[ACTION_VALUE], batch[ACTION_MASK])
        for number in version[:, 0].unique().tolist():  # actors may have weights of two versions
            rows = version[:, 0] == number
            greedy.append((number, (best == batch[ACTION])[rows].float().mean().item()))
        with torch.no_grad():
            for parameter in agent.parameters():
                parameter.mul_(1.5)
        explore.step(batch.numel())
        actors.update_policy_weights_()
        by_version.append(copy.deepcopy(agent))
    assert (batch[LAST_ACTION] != 0).any()
    # Epsilon is 1 with the first weights and 0 from the third ones on.
    assert {share for number, share in greedy if number >= 2} == {1.0}
    assert max(share for number, share in greedy if number == 0) < 0.9
    learner = {k: v for k, v in actors._policy.state_dict().items() if "extra" not in k}
    for i in range(N_ACTORS):
        actors._ask(i)  # the newest weights are sent
    for state in states(actors):
        sent = {k: v for k, v in state["policy"].items() if "extra" not in k}
        assert exact(sent) == exact(learner)


def test_rows_by_other_weights_than_those_that_were_sent_are_refused(begun):
    actors = begun(small_agent(), n_batches=2)
    batches = iter(actors)
    next(batches)
    actors._has = [version + 1 for version in actors._has]  # as if they had not arrived
    with pytest.raises(MachineError, match=r"weights of version 1, which it was sent, got \[0\]"):
        next(batches)


@pytest.mark.slow
def test_actors_draw_from_streams_of_their_own(begun):
    actors = begun(small_agent(), EpsilonGreedyAction(1.0, 1.0, 0, seed=1), n_batches=1)
    (batch,) = actors
    streams = [exact(v) for s in states(actors) for k, v in s["policy"].items() if "extra" in k]
    assert len(streams) == 2
    assert streams[0] != streams[1]
    # The actors see the same, but for their numbers; which two environments are whose is open.
    pairs = batch[ACTION].reshape(2, 2, STEPS, 2)
    assert 0.2 < (pairs[0] == pairs[1]).float().mean() < 0.8


@pytest.mark.slow
def test_episodes_begin_together_in_rows_of_episodes(begun):
    actors = begun(small_agent(), n_batches=2, rows="episodes", memory="first_step")
    for batch in actors:
        assert (batch["state"][:, 0, 0] == 0).all()  # the count of steps
        assert not batch[MASK].all()  # episodes end before the rows do


def kill_process(actors, i):
    os.kill(states(actors)[i]["process"], signal.SIGKILL)


def kill_actor(actors, i):
    ray.kill(actors.actors[i])


def check_contiguous(batches, number):
    """Check that an actor's rows hold all its steps, each once, in their order."""
    rows = [row for batch in batches for row in batch if row[STATE][0, 2] == number]
    for e in range(2):  # its environments take turns in the rows
        seen = torch.cat([row[STATE] for row in rows[e::2]])  # [n T, 3]
        expected = [(step.count / 5, step.episode / 5) for step in slow_steps(e, len(seen))]
        assert len(seen) > 0
        torch.testing.assert_close(seen[:, :2], torch.tensor(expected))


@pytest.mark.filterwarnings("ignore:actor . of 2 died")
def test_a_dead_actor_is_replaced_and_frames_count_once(begun):
    actors = begun(small_agent(), n_batches=MANY)
    batches, killed_at = [], 2
    for batch in actors:
        batches.append(batch)
        actors.update_policy_weights_()
        if len(batches) == killed_at:
            kill_process(actors, 1)
        if 2 in numbers_of(batch):  # of the new one, and so of its seeds
            break
    assert actors.n_replaced == 1
    assert {batch.shape for batch in batches} == {(N_ENVS, STEPS)}
    check_contiguous(batches, 0)
    version = batch[POLICY_VERSION][batch[STATE][..., 2] == 2]
    assert (version > killed_at).all()  # the newest weights, not those that the dead one had


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:actor . of 2 died")
def test_deaths_at_random_moments_are_survived(begun):
    actors = begun(small_agent(), n_batches=MANY)
    random = torch.Generator().manual_seed(0)
    batches, seen, in_place, n_killed = [], set(), [0, 1], 0
    for batch in actors:
        batches.append(batch)
        actors.update_policy_weights_()
        seen |= numbers_of(batch)
        if not seen.issuperset(in_place):  # one begins
            continue
        if n_killed == KILLS:
            break
        i = int(torch.randint(2, (), generator=random))
        time.sleep(torch.rand((), generator=random).item() / 20)
        kill_actor(actors, i)
        n_killed += 1
        in_place[i] = 1 + n_killed
    assert actors.n_replaced == KILLS
    assert seen == set(range(2 + KILLS))
    assert {batch.shape for batch in batches} == {(N_ENVS, STEPS)}
    for number in in_place:
        check_contiguous(batches, number)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:actor . of 2 died")
def test_an_actor_that_dies_again_and_again_ends_the_run(begun):
    actors = begun(small_agent(), make=Deadly, n_batches=2)
    with pytest.raises(MachineError, match="died 3 times before it sent any"):
        next(iter(actors))


def test_a_mistake_in_an_actor_is_told_as_here(begun):
    actors = begun(small_agent(), make=Failing, n_batches=2)
    with pytest.raises(ConfigError, match=r"^env.scenario: broken$"):
        next(iter(actors))


def test_actors_that_do_not_begin_are_told(monkeypatch):
    monkeypatch.setattr(module, "START_SECONDS", 2)
    monkeypatch.setattr(module, "RESOURCES", {"num_cpus": 1000})
    with pytest.raises(MachineError, match=r"expected 2 actors, each with a CPU .* env.processes"):
        actors_of(small_agent(), n_batches=1)


@pytest.mark.slow
def test_a_host_without_a_compiler_takes_the_next_engine_and_says_so(begun, tmp_path):
    elsewhere = ray_tools.WithoutCompiler(str(tmp_path))
    actors = begun(ray_tools.balance_agent(), make=elsewhere, n_batches=1)
    (batch,) = actors
    assert batch.shape == (N_ENVS, STEPS)
    assert str(actors.env.how).startswith("eager (no kernel: no C++ compiler was found")
    assert "torch's operations (no layers in C++: no C++ compiler was found" in str(actors.how)


LBF = (
    "env={family: lbforaging, scenario: Foraging-5x5-2p-1f-v3, scenario_kwargs: {}, n_envs: 4, "
    "max_steps: 4, team_reward: sum, processes: 2}"
)


@pytest.mark.slow
def test_a_training_collects_by_actors_stops_and_goes_on(tmp_path):
    pytest.importorskip("lbforaging", reason="needs the extra envs")
    options = [LBF, "collection.collector=ray", "checkpoint.every_seconds=0"]
    folder = run(tmp_path, *options, "collection.total_frames=64")
    assert metrics(folder)["frames"] == [16, 32, 48, 64]
    assert all(0 <= behind <= 3 for behind in metrics(folder)["staleness"])
    assert summary(folder)["engine"] == "Python loop"
    assert summary(folder)["collector"].startswith("2 actors of Ray, ")
    run(tmp_path, "collection.total_frames=96", resume=folder)
    assert metrics(folder)["frames"] == [16, 32, 48, 64, 80, 96]
    assert summary(folder)["gradient_steps"] == 6


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_frames_and_new_seeds(begun, tmp_path):
    agent = small_agent()
    first = begun(agent, n_batches=4)
    batches = iter(first)
    next(batches), first.update_policy_weights_(), next(batches)
    save_run(tmp_path, keep=1, collector=first)
    first.shutdown()  # the others need its processors
    second = begun(small_agent(), n_batches=4)
    load_run(tmp_path, collector=second)
    rest = list(second)
    assert len(rest) == 2
    assert [numbers_of(batch) for batch in rest] <= [{2, 3}] * 2
    assert all((batch[POLICY_VERSION] == 1).all() for batch in rest)
