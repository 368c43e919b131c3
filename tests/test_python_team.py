"""Environments stepped in Python: in processes, waiting, resumed, and wrong actions."""

import pytest
import torch
from recipe_tools import check_told, run, summary

from qmix_trl import CheckpointError, RandomPolicy, load_run, make_env, save_run
from qmix_trl.checkpoint.run import read_manifest
from qmix_trl.errors import exit_on_mistake
from qmix_trl.keys import ACTION, DONE, IS_INIT, OBSERVATION, REWARD, TRUNCATED, next_key

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("pettingzoo", reason="needs the extra envs")
pytest.importorskip("lbforaging", reason="needs the extra envs")

from pettingzoo_tools import Mines  # noqa: E402

from qmix_trl.envs.python_team import episode_seed  # noqa: E402

MINES = "pettingzoo_tools:mines"


def made(scenario=MINES, **changes):
    """Return environments of PettingZoo."""
    settings = {
        "n_envs": 4,
        "max_steps": 4,
        "state": "observations",
        "team_reward": "sum",
        "seed": 7,
        **changes,
    }
    return make_env("pettingzoo", scenario=scenario, **settings)


def test_seeds_of_episodes_differ():
    seeds = {episode_seed(s, e, k) for s in (0, 1) for e in range(30) for k in range(30)}
    assert len(seeds) == 2 * 30 * 30
    assert max(seeds) < 2**31


def test_an_environment_that_is_done_waits_for_the_joint_reset():
    raw = []

    def make():
        raw.append(Mines())
        return raw[-1]

    env = made(make, reset_when_done=False, max_steps=3)
    batch = env.rollout(7, RandomPolicy(3, seed=0), break_when_any_done=False)
    assert batch[next_key(DONE)][0, :, 0].tolist() == [False] * 2 + [True] * 5
    assert (batch[next_key(REWARD)][:, 3:] == 0).all()
    assert (batch[OBSERVATION][:, 3:] == batch[next_key(OBSERVATION)][:, 2:3]).all()
    assert [each.t for each in raw[-4:]] == [3] * 4
    env.reset()
    assert [each.t for each in raw[-4:]] == [0] * 4


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (torch.full((4, 3), 3), "expected actions from 0 to 2, got 3"),
        (torch.full((4, 3), -1), "expected actions from 0 to 2, got -1"),
        (
            torch.zeros(4, 3, 1, dtype=torch.int64),
            r"expected actions int64 \[4, 3\], got torch.int64",
        ),
        (torch.zeros(4, 3), r"expected actions int64 \[4, 3\], got torch.float32"),
    ],
)
def test_wrong_actions_are_refused(action, message):
    env = made()
    with pytest.raises(ValueError, match=message):
        env.step(env.reset().set(ACTION, action))


def test_a_step_needs_a_reset():
    env = made()
    with pytest.raises(RuntimeError, match="expected a call of reset before the first step"):
        env.step(env.rand_action())


def test_an_episode_that_began_before_the_present_seed_goes_on(tmp_path):
    env, other = made(), made(seed=1)
    shown = env.rollout(2, RandomPolicy(3, seed=0))[:, -1]["next"]
    env.set_seed(5)
    save_run(tmp_path, env=env)
    load_run(tmp_path, env=other)
    shown = shown.set(ACTION, torch.zeros(4, 3).long())
    steps = [each.step(shown.clone())["next", OBSERVATION] for each in (env, other)]
    assert torch.equal(*steps)
    assert torch.equal(*[each.reset()[OBSERVATION] for each in (env, other)])


@pytest.mark.slow
def test_processes_step_as_one_does_and_go_on_from_its_state(tmp_path):
    one, two = made(), made(processes=2)
    try:
        assert str(two.how) == "Python loop in 2 processes"
        for seed in (7, 3):
            one.set_seed(seed)
            two.set_seed(seed)
            batches = [
                env.rollout(6, RandomPolicy(3, seed=0), break_when_any_done=False)
                for env in (one, two)
            ]
            assert batches[1].batch_size == (2, 2, 6)
            for key in (OBSERVATION, ACTION, next_key(REWARD), next_key(TRUNCATED), IS_INIT):
                assert torch.equal(batches[0][key], batches[1][key].flatten(0, 1)), key
        for saved, loaded in ((one, two), (two, one)):
            saved.rollout(2, RandomPolicy(3, seed=0))
            save_run(tmp_path, env=saved)
            loaded.set_seed(99)
            loaded.reset()
            load_run(tmp_path, env=loaded)
            action = torch.zeros(4, 3, dtype=torch.int64)
            after = []
            for env in (saved, loaded):
                shown = env.fake_tensordict().set(ACTION, action.reshape(*env.batch_size, 3))
                after.append(env.step(shown)["next", OBSERVATION].reshape(4, 3, 3))
            assert torch.equal(*after)
    finally:
        two.close()


@pytest.mark.slow
def test_a_run_in_processes_is_saved_at_its_end(tmp_path):
    """TorchRL's collector closes its environment with the last batch, before it is saved."""
    settings = [section("pettingzoo", MINES, processes=2), "checkpoint.every_seconds=0"]
    left = run(tmp_path, *settings)
    assert summary(left)["frames"] == 16
    newest = max((left / "checkpoints").iterdir())
    assert newest.name == "checkpoint-000002"  # of two batches
    assert read_manifest(newest)["greedy_return"] == summary(left)["return"]["greedy"]["mean"]


class Unseeded(Mines):
    """Mines that no seed reproduces."""

    drawn_before = 0.0

    def reset(self, seed=None, options=None):
        Unseeded.drawn_before += 0.1
        seen, infos = super().reset(seed, options)
        self.drawn = Unseeded.drawn_before
        return {agent: self.seen(agent) for agent in seen}, infos


def test_environments_that_no_seed_reproduces_are_not_resumed():
    env = made(Unseeded)
    env.reset()
    with pytest.raises(TypeError, match="equal episodes from equal seeds, got one that does not"):
        env.run_state()


def test_states_of_other_environments_are_refused(tmp_path):
    env = made()
    env.rollout(2, RandomPolicy(3, seed=0))
    save_run(tmp_path, env=env)
    with pytest.raises(CheckpointError, match=r"'actions' of shape \(3, 4, 3\), got \(4, 4, 3\)"):
        load_run(tmp_path, env=made(n_envs=3))

    def other():
        env = Mines()
        env.seen = lambda agent: 2 * Mines.seen(env, agent)
        return env

    with pytest.raises(CheckpointError, match="expected episodes that go on from their seeds"):
        load_run(tmp_path, env=made(other))


# Runs of train.py


def section(family, scenario, **changes):
    """Return the override that puts environments of a family in place."""
    of_family = {"group": "null", "others": "no_op", "pad": "false", "state": "world"}
    settings = {
        "scenario": scenario,
        "scenario_kwargs": "{}",
        **(of_family if family == "pettingzoo" else {}),
        "n_envs": 2,
        "max_steps": 4,
        "team_reward": "mean",
        "processes": 1,
        **changes,
    }
    return f"env={{family: {family}, {', '.join(f'{k}: {v}' for k, v in settings.items())}}}"


@pytest.mark.parametrize(
    ("family", "scenario"),
    [("pettingzoo", f"'{MINES}'"), ("lbforaging", "Foraging-5x5-2p-1f-v3")],
)
def test_a_run_is_trained_and_resumed(family, scenario, tmp_path, capsys):
    overrides = [section(family, scenario), "checkpoint.every_seconds=0"]
    whole = run(tmp_path, *overrides, "collection.total_frames=32")
    short = run(tmp_path, *overrides)
    run(tmp_path, "collection.total_frames=32", config=None, resume=short)
    texts = [(folder / "metrics.csv").read_text().splitlines() for folder in (whole, short)]
    columns = texts[0][0].split(",")
    timed = [columns.index(name) for name in ("frames_per_second", "seconds_left")]
    untimed = [
        [[v for i, v in enumerate(line.split(",")) if i not in timed] for line in text]
        for text in texts
    ]
    greedy = columns.index("greedy_return") - 1  # the short run was evaluated at its end, too
    for lines in untimed:
        for line in lines[1:]:
            line[greedy] = ""
    assert untimed[0] == untimed[1]
    assert summary(whole)["engine"] == "Python loop"
    assert "no checkpoints" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (section("pettingzoo", "no_such_package.x"), ["got 'no_such_package'", "[envs]"]),
        (section("pettingzoo", "mpe2.simple_spred_v3"), ["did you mean 'simple_spread_v3'"]),
        (
            section("pettingzoo", "mine.py:make"),
            ["expected a file, relative to the current folder"],
        ),
        (section("pettingzoo", "mpe2.simple_tag_v3"), ["of several groups: adversary, agent"]),
        (section("pettingzoo", "mpe2.simple_tag_v3", group="agents"), ["did you mean 'agent'"]),
        (section("pettingzoo", "'pettingzoo_tools:mines_of_sizes'"), ["env.pad=true"]),
        (section("pettingzoo", f"'{MINES}'", scenario_kwargs="{mask: infos}"), ["'masks'"]),
        (section("pettingzoo", "mpe2.simple_spread_v3", processes=3), ["does not divide env.n_e"]),
        (section("lbforaging", "Foraging-5x5-2p-1f-v2"), ["did you mean 'Foraging-5x5-2p-1f-v3'"]),
        (section("rware", "rware-tiny-2ag-v2", scenario_kwargs="{msg_bits: 1}"), ["MultiDiscrete"]),
        (section("rware", "rware-tiny-2ag-v2", group="null"), ["env.group: unknown key"]),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(override, parts, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended, exit_on_mistake():
        run(tmp_path, override)
    said = capsys.readouterr().err
    check_told(ended.value.code, said, 2, parts)
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("family", ["pettingzoo", "lbforaging", "rware"])
def test_a_missing_extra_is_told_with_its_remedy(family, tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, family, None)  # as if it was not installed
    with pytest.raises(SystemExit) as ended, exit_on_mistake():
        run(tmp_path, section(family, "any"))
    expected = [f"env.family: expected the package {family}", "pip install 'qmix-trl[envs]'"]
    check_told(ended.value.code, capsys.readouterr().err, 2, expected)
