"""Parts of a run that are saved and resumed: N + N steps equal 2 N bit for bit."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from collect_tools import CounterEnv, make_agent, make_loss
from compiled_tools import Scattered
from resume_tools import batch_of, check_resumes, exact
from tensordict import TensorDict
from torchrl.envs import RewardSum, StepCounter, TransformedEnv
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.objectives import HardUpdate, SoftUpdate

from qmix_trl import (
    EpsilonGreedyAction,
    GreedyAction,
    RandomPolicy,
    SequenceRows,
    TeamEnv,
    Update,
    load_run,
    make_collector,
    make_env,
    make_hard_updater,
    make_policy,
    make_replay,
    save_run,
    with_memory,
)
from qmix_trl.checkpoint.streams import random_state, set_random_state
from qmix_trl.errors import CheckpointError
from qmix_trl.keys import ACTION, ACTION_VALUE, EPISODE_REWARD, OBSERVATION, REWARD
from qmix_trl.replay import STORAGES

pytestmark = pytest.mark.filterwarnings(
    "ignore:No target network updater", "ignore:Updated already initialized"
)


def loss_of(seed, **arguments):
    """Return a loss with new weights, whose targets differ from them."""
    env = CounterEnv()
    return make_loss(env, make_agent(env, seed=seed), **arguments)


VMAS = {"family": "vmas", "scenario": "balance", "state": "world", "team_reward": "mean"}
GAME = {
    "family": "games",
    "scenario": "memory",
    "scenario_kwargs": {"delay": 2},
    "state": "world",
}


FORAGING = {"family": "foraging", "scenario": "2s-5x5-2p-2f", "state": "observations"}
NAVIGATION = {**VMAS, "scenario": "navigation"}


def env_of(settings, seed, *, rows, team=False, **changes):
    """Return 3 environments with short episodes; ``team`` wraps them."""
    settings = {**settings, **changes}
    family = settings.pop("family")
    env = make_env(
        family, **settings, n_envs=3, max_steps=7, seed=seed, reset_when_done=rows == "slices"
    )
    return TeamEnv(env, max_steps=3) if team else env


# -------------------------------------------------------------------- updates


@pytest.mark.parametrize(
    "make_updater",
    [
        lambda loss: make_hard_updater(loss, period_updates=3),
        lambda loss: HardUpdate(loss, value_network_update_interval=2),
        lambda loss: SoftUpdate(loss, tau=0.25),
    ],
    ids=["hard", "TorchRL's hard", "soft"],
)
def test_targets_and_their_updater_resume(make_updater, tmp_path):
    def make(seed):
        loss = loss_of(seed)
        return {"loss": loss, "updater": make_updater(loss)}

    def advance(parts):
        for parameter in parts["loss"].parameters():
            parameter.data.add_(1)
        parts["updater"].step()
        return dict(parts["loss"].target_agent_params.data.items(True, True))

    def value(parts):  # the weights as well: targets of a hard update stand still
        targets = advance(parts)
        return targets, [p.clone() for p in parts["loss"].parameters()]

    for before in (1, 2, 3):  # wherever the counter stands
        check_resumes(tmp_path, make, value, before=before, after=5)


@pytest.mark.parametrize("bounded_targets", [False, True])
def test_gradient_steps_resume_with_weights_targets_and_optimiser(bounded_targets, tmp_path):
    replay = make_replay(SequenceRows(max_steps=5), capacity_rows=8, batch_rows=4, seed=0)
    replay.extend(batch_of(0))

    def make(seed):
        loss = loss_of(seed, bounded_targets=bounded_targets)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
        return {
            "loss": loss,
            "optimizer": optimizer,
            "updater": make_hard_updater(loss, period_updates=3),
            "replay": replay,
        }

    def advance(parts):
        update = Update(parts["loss"], parts["optimizer"], parts["updater"], max_grad_norm=1.0)
        outputs = update(parts["replay"].sample())
        return outputs, parts["loss"].state_dict(), parts["optimizer"].state_dict()

    check_resumes(tmp_path, make, advance, before=4, after=6)


# -------------------------------------------------------------------- exploration, replay


@pytest.mark.parametrize("repeat_exponent", [None, 1.5])
@pytest.mark.parametrize("seeded", [True, False], ids=["own stream", "global stream"])
def test_exploration_resumes(repeat_exponent, seeded, tmp_path):
    def make(seed):
        own = seed if seeded else None
        return {"head": EpsilonGreedyAction(1.0, 0.1, 40, repeat_exponent, seed=own)}

    def advance(parts):
        head = parts["head"]
        head.step(3)
        values = TensorDict({ACTION_VALUE: torch.zeros(30, 2, 7)}, [30])
        return head(values).get("agents").get("action"), head.epsilon

    check_resumes(tmp_path, make, advance, before=5, after=5)


def test_a_random_policy_resumes(tmp_path):
    def make(seed):
        return {"policy": RandomPolicy(5, seed=seed)}

    def advance(parts):
        seen = TensorDict({OBSERVATION: torch.zeros(30, 2, 3)}, [30])
        return parts["policy"](seen).get("agents").get("action")

    check_resumes(tmp_path, make, advance, before=3, after=3)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("burn_in", [0, 2])
@pytest.mark.parametrize("before", [1, 2, 4], ids=["begun", "half full", "overwritten"])
def test_replay_resumes(storage, burn_in, before, tmp_path):
    agent = make_agent(env_of(GAME, 0, rows="slices"))

    def make(seed):
        env = env_of(GAME, seed, rows="slices")
        head = EpsilonGreedyAction(1.0, 1.0, 0, seed=seed)
        rows = SequenceRows(max_steps=4, burn_in=burn_in)
        return {
            "collector": make_collector(
                with_memory(env, agent),
                make_policy(agent, head),
                rows="slices",
                steps=5,
                n_batches=100,
                collector="stock",
            ),
            "replay": make_replay(
                rows,
                capacity_rows=8,
                batch_rows=6,
                seed=seed,
                storage=storage,
                folder=tmp_path / "replay",
            ),
        }

    def advance(parts):
        replay = parts["replay"]
        replay.extend(next(iter(parts["collector"])))
        return [replay.sample() for _ in range(3)]

    check_resumes(tmp_path, make, advance, before=before, after=4)


@pytest.mark.parametrize(("saved", "loaded"), [STORAGES, STORAGES[::-1]])
def test_replay_resumes_in_another_storage(saved, loaded, tmp_path):
    def make(storage):
        rows = SequenceRows(max_steps=5)
        folder = tmp_path / "replay"
        sizes = {"capacity_rows": 6, "batch_rows": 4, "seed": 0}
        return make_replay(rows, **sizes, storage=storage, folder=folder)

    replay, other = make(saved), make(loaded)
    replay.extend(batch_of(0))
    save_run(tmp_path, replay=replay)
    load_run(tmp_path, replay=other)
    for buffer in (replay, other):
        buffer.extend(batch_of(1))
    assert exact(replay.sample()) == exact(other.sample())


def test_rows_of_a_killed_process_are_removed_and_the_checkpoint_counts(tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from resume_tools import batch_of
from qmix_trl import SequenceRows, make_replay, save_run
replay = make_replay(SequenceRows(max_steps=5), capacity_rows=8, batch_rows=4, seed=0,
                     storage="memmap", folder={str(tmp_path / "replay")!r})
replay.extend(batch_of(0))
save_run({str(tmp_path)!r}, replay=replay)
replay.extend(batch_of(1))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    (rest,) = (tmp_path / "replay").iterdir()
    assert {path.name for path in rest.iterdir()} > {"state.memmap", "next"}
    rows = SequenceRows(max_steps=5)
    sizes = {"capacity_rows": 8, "batch_rows": 4, "seed": 1}
    replay = make_replay(rows, **sizes, storage="memmap", folder=tmp_path / "replay")
    assert not rest.exists()
    load_run(tmp_path, replay=replay)
    expected = make_replay(SequenceRows(max_steps=5), capacity_rows=8, batch_rows=4, seed=0)
    expected.extend(batch_of(0))
    assert len(replay) == 4
    assert exact(replay.sample()) == exact(expected.sample())


def test_replay_saves_the_rows_that_it_holds_and_no_others(tmp_path):
    replay = make_replay(SequenceRows(max_steps=5), capacity_rows=5000, batch_rows=2, seed=0)
    replay.extend(batch_of(0))
    size = sum(x.nbytes for x in replay.storage.get(slice(0, 4)).values(True, True))
    assert (save_run(tmp_path, replay=replay) / "replay.bin").stat().st_size < size + 10_000


def test_an_empty_replay_resumes(tmp_path):
    def make(seed):
        rows = SequenceRows(max_steps=5)
        return {"replay": make_replay(rows, capacity_rows=10, batch_rows=6, seed=seed)}

    save_run(tmp_path, **make(0))
    full = make(1)
    full["replay"].extend(batch_of(0))
    load_run(tmp_path, **full)
    assert len(full["replay"]) == 0
    unbroken = make(0)
    for parts in (full, unbroken):
        parts["replay"].extend(batch_of(1))
    samples = [parts["replay"].sample() for parts in (full, unbroken)]
    assert exact(samples[0]) == exact(samples[1])


def test_replay_of_another_capacity_is_refused(tmp_path):
    save_run(tmp_path, replay=make_replay(SequenceRows(), capacity_rows=9, batch_rows=2, seed=0))
    other = make_replay(SequenceRows(), capacity_rows=8, batch_rows=2, seed=0)
    with pytest.raises(CheckpointError, match=r"replay does not fit: .* capacity 9 .* got 8"):
        load_run(tmp_path, replay=other)


# -------------------------------------------------------------------- collection

CASES = {
    "kernel": (VMAS, {"engine": "kernel"}, "fused", "slices", "recurrent"),
    "kernel, episodes": (VMAS, {"engine": "kernel"}, "fused", "episodes", "feedforward"),
    "kernel, stock": (VMAS, {"engine": "kernel"}, "stock", "slices", "feedforward"),
    "eager": (VMAS, {"engine": "eager"}, "fused", "slices", "recurrent"),
    "eager, stock": (VMAS, {"engine": "eager"}, "stock", "episodes", "recurrent"),
    "infos": (NAVIGATION, {"engine": "eager", "info": True}, "fused", "slices", "feedforward"),
    "TeamEnv": (GAME, {"team": True}, "stock", "slices", "recurrent"),
    "games": (GAME, {}, "stock", "slices", "recurrent"),
    "games, episodes": (GAME, {}, "stock", "episodes", "feedforward"),
    "foraging": (FORAGING, {"engine": "kernel"}, "fused", "slices", "recurrent"),
    "foraging, tensors": (FORAGING, {"engine": "tensors"}, "fused", "episodes", "feedforward"),
    "foraging, stock": (FORAGING, {"engine": "kernel"}, "stock", "slices", "recurrent"),
}


def check_collector(tmp_path, settings, changes, collector, rows, agent_name):
    """Check that a collector resumes in the middle of episodes."""

    def make(seed):
        env = env_of(settings, seed, rows=rows, **changes)
        agent = make_agent(env, agent_name, seed=seed)
        env = with_memory(env, agent).append_transform(RewardSum([REWARD], [EPISODE_REWARD]))
        head = EpsilonGreedyAction(0.5, 0.1, 100, 1.5, seed=seed)
        return {
            "collector": make_collector(
                env,
                make_policy(agent, head),
                rows=rows,
                steps=5 if rows == "slices" else 7,
                n_batches=100,
                collector=collector,
            )
        }

    def advance(parts):
        parts["collector"].policy.get_submodule("module.1").step(9)
        return next(iter(parts["collector"])).clone()

    check_resumes(tmp_path, make, advance, before=3, after=5)


@pytest.mark.parametrize("name", CASES)
def test_collection_resumes_in_the_middle_of_episodes(name, tmp_path):
    check_collector(tmp_path, *CASES[name])


@pytest.mark.slow
def test_collection_by_inductor_resumes(tmp_path):
    changes = {"engine": "inductor", "scenario": Scattered()}
    check_collector(tmp_path, VMAS, changes, "fused", "slices", "recurrent")


def test_an_environment_alone_resumes(tmp_path):
    def make(seed):
        env = env_of(GAME, seed, rows="slices")
        env = TransformedEnv(env, StepCounter())
        env.reset()
        return {"env": env}

    def advance(parts):
        env, generator = parts["env"], torch.Generator().manual_seed(0)
        first = env.base_env._observe()
        actions = torch.randint(2, (3, 2), generator=generator)
        return first, env.base_env.step(first.set(ACTION, actions))

    check_resumes(tmp_path, make, advance, before=2, after=1)


def test_an_environment_without_a_state_is_refused(tmp_path):
    env = CounterEnv()
    collector = make_collector(
        with_memory(env, make_agent(env)),
        make_policy(make_agent(env), GreedyAction()),
        rows="slices",
        steps=5,
        n_batches=1,
        collector="stock",
    )
    for part in (env, with_memory(env, make_agent(env)), collector):
        with pytest.raises(TypeError, match=r"CounterEnv: expected run_state.*new ones"):
            save_run(tmp_path, part=part)
    assert not list(tmp_path.iterdir())


def test_states_of_another_number_of_environments_are_refused(tmp_path):
    env = env_of(GAME, 0, rows="slices")
    save_run(tmp_path, env=env)
    settings = {key: value for key, value in GAME.items() if key != "family"}
    other = make_env("games", **settings, n_envs=4, max_steps=7, seed=0)
    with pytest.raises(CheckpointError, match=r"env does not fit: .*'place' of shape \(4,\)"):
        load_run(tmp_path, env=other)


# -------------------------------------------------------------------- engines


def test_a_run_that_went_on_with_vmas_resumes_with_it(tmp_path):
    def make(seed):
        env = env_of(VMAS, seed, rows="slices")
        agent = make_agent(env)
        policy = make_policy(agent, EpsilonGreedyAction(1.0, 1.0, 0, seed=seed))
        return {
            "collector": make_collector(
                with_memory(env, agent), policy, rows="slices", steps=5, n_batches=100
            )
        }

    def advance(parts):
        return next(iter(parts["collector"])).clone()

    whole, other = make(0), make(1)
    advance(whole)
    whole["collector"].env.engine.fresh.refusal = "a state is out of its range"
    with pytest.warns(UserWarning, match="goes on with eager"):
        advance(whole)
    save_run(tmp_path, **whole)
    assert other["collector"].env.how.name == "kernel"
    load_run(tmp_path, **other)
    assert other["collector"].env.how.name == "eager"
    assert other["collector"].how.name == "step loop"
    assert [exact(advance(whole)) for _ in range(3)] == [exact(advance(other)) for _ in range(3)]


def test_a_state_of_another_engine_is_refused_where_one_was_asked_for(tmp_path):
    save_run(tmp_path, env=env_of(VMAS, 0, rows="slices", engine="eager"))
    other = env_of(VMAS, 0, rows="slices", engine="kernel")
    with pytest.raises(CheckpointError, match=r"env\.engine: expected eager, .* got kernel"):
        load_run(tmp_path, env=other)


# -------------------------------------------------------------------- streams of the process


def drawn():
    """Return numbers of all random streams of the process, VMAS's included."""
    env = VmasEnv("balance", num_envs=2, seed=None)  # draws from VMAS's stream
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(3).tolist(),  # noqa: NPY002
        np.random.randn(),  # noqa: NPY002
        torch.rand(3).tolist(),
        env.reset().get(OBSERVATION).tolist(),
    )


@pytest.mark.parametrize("disk", [False, True])
def test_the_streams_of_the_process_resume(disk, tmp_path):
    drawn()
    if disk:
        save_run(tmp_path)
    state = random_state()
    expected = drawn()
    assert drawn() != expected
    if disk:
        load_run(tmp_path)
    else:
        set_random_state(state)
    assert drawn() == expected


def test_streams_of_a_gpu_are_left_out_without_one():
    state = {**random_state(), "torch_cuda": [torch.zeros(16, dtype=torch.uint8)]}
    expected = torch.rand(2)
    set_random_state(state)
    assert torch.equal(torch.rand(2), expected) or torch.cuda.is_available()
