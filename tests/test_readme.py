"""The pages: their files and links exist, their lists are complete, their commands and code run."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from loss_tools import A, N, O, random_batch
from recipe_tools import run, tiny
from support.commands import COMMANDS
from tensordict import TensorDict

from qmix_trl import (
    EnvDims,
    QMixLoss,
    VDNMixer,
    keys,
    load_agent,
    load_config,
    load_mixer,
    save_config,
    save_weights,
)
from qmix_trl.keys import ACTION_VALUE
from qmix_trl.trained import build_agent, build_mixer

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "qmix_trl/README.md",
    "qmix_trl/UPSTREAM.md",
    "qmix_trl/envs/compiled/README.md",
    "qmix_trl/native/README.md",
    "recipes/README.md",
    "recipes/RESULTS.md",
    "recipes/SCALING.md",
    "recipes/TRUST.md",
)
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
COMPILER = "qmix_trl/envs/compiled/README.md"
MOST_LINES = 170  # of the front page
SCREEN = 60  # lines; a longer page has a list of contents

# The section that lists the files of a folder, by paths from there; but for folders listed apart.
MAPS = {
    "qmix_trl": ("qmix_trl/README.md", "Files"),
    "qmix_trl/envs/compiled": (COMPILER, "Files"),
    "qmix_trl/native": ("qmix_trl/native/README.md", "Files"),
    "recipes": ("recipes/README.md", "Files"),
}

# What makes a command's run short: arguments put behind its own.
TINY_RUN = (
    "env.n_envs=2 env.max_steps=4 env.engine=eager collection.steps=4 collection.total_frames=16 "
    "replay.capacity_rows=16 replay.batch_rows=2 update.per_batch=1 evaluation.episodes=2"
)
SHORTER = {
    "recipes/train.py": TINY_RUN,
    "recipes/evaluate.py": "--episodes 2",
    "recipes/reuse/mixers.py": "--updates 1",
    "recipes/reuse/exploration.py": "--batches 1",
    "recipes/throughput.py": "--what env --envs 2 --engines eager --rounds 1",
}
SLOW = ("recipes/throughput.py", "doctor")  # even then
# Commands that no test runs as they stand, and when each was last run.
TOO_LONG = {
    "python3 -m venv .venv": "2026-11-26",
    '.venv/bin/pip install -q -e ".[recipes]"': "2026-11-26",
    '.venv/bin/pip install -q -e ".[recipes,dev]"': "2026-11-26",
    ".venv/bin/pytest -q -n 2": "2026-11-26",
    '.venv/bin/pip install -q -e ".[recipes,envs]"': "2026-11-27",
    '.venv/bin/pip install -q -e ".[recipes,tensorboard,wandb]"': "2026-11-27",
    # test_loggers.py has them on.
    ".venv/bin/python recipes/train.py recipes/configs/balance_quick.yaml "
    "'logging=[tensorboard, wandb]'": "2026-11-27",
    ".venv/bin/python recipes/train.py recipes/configs/pettingzoo_spread_qmix.yaml": "2026-11-27",
    ".venv/bin/pip install -q notebook": "2026-11-27",
    ".venv/bin/jupyter notebook recipes/quickstart.ipynb": "2026-11-27",
    # test_torchrun.py trains by it.
    ".venv/bin/torchrun --standalone --nproc-per-node 2 recipes/train.py "
    "recipes/configs/balance_qmix_recurrent.yaml": "2026-11-27",
    ".venv/bin/python recipes/names.py engines": "2026-11-23",
    # test_reuse.py trains by their functions.
    ".venv/bin/python recipes/reuse/factored_critic.py": "2026-11-27",
    ".venv/bin/python recipes/reuse/mixed_value.py": "2026-11-27",
    ".venv/bin/python recipes/reuse/sequence_replay.py": "2026-11-27",
    ".venv/bin/python recipes/games.py": "2026-11-26",
    ".venv/bin/python recipes/benchmark.py": "2026-11-25",
    ".venv/bin/python recipes/benchmark.py recipes/configs/two_step_qmix.yaml --seeds 0-9 "
    "--set loss.td_lambda=0.0,0.9": "2026-11-27",
    ".venv/bin/python recipes/benchmark.py --tasks balance navigation --algorithms qmix "
    "benchmarl_qmix --seeds 1": "2026-11-25",
    ".venv/bin/python recipes/train_benchmarl.py recipes/configs/balance_qmix.yaml": "2026-11-25",
}


def blocks(text: str, language: str = "") -> list[str]:
    """Return the code blocks of a language; those that name none by default."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


def prose(text: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def section(page: str, heading: str) -> str:
    """Return a page from a heading of the second level to the next one."""
    return re.split(r"^## ", TEXTS[page].split(f"\n## {heading}\n", 1)[1], flags=re.M)[0]


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: str, level: str = "#+") -> list[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(rf"^{level} (.+)$", prose(TEXTS[page]), re.MULTILINE)
    return [anchor(heading) for heading in headings]


def links(text: str) -> list[str]:
    """Return the targets of a text's links within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [target for target in targets if not target.startswith("http")]


# Length, contents and links


def is_long(text):
    """Return whether a page has several sections on more than a screen."""
    return len(text.splitlines()) > SCREEN and text.count("\n## ") > 1


def test_the_front_page_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", [p for p in PAGES if is_long(TEXTS[p])])
def test_a_long_page_has_a_list_of_contents(page):
    top = TEXTS[page].split("\n## ", 1)[0]
    listed = [target[1:] for target in links(top) if target.startswith("#")]
    assert listed == anchors(page, "##")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in links(TEXTS[page]):
        name, _, part = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if part:
            assert part in anchors(path.resolve().relative_to(ROOT).as_posix()), target


# Files


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_file_that_a_page_names_is_there(page):
    folders = (ROOT, ROOT / "qmix_trl", (ROOT / page).parent)
    by_name = {path.name for path in ROOT.rglob("*") if ".venv" not in path.parts}
    paths = re.findall(r"(?<![\w/])(?:recipes|qmix_trl|tests)/[\w/.]+\w", TEXTS[page])
    for code in re.findall(r"`([^`\n]+)`", prose(TEXTS[page])):
        paths += re.findall(r"(?<![\w*}/.-])[\w/.-]+\.(?:py|h|md|yaml)\b", code)
    assert page in ("recipes/RESULTS.md", "recipes/TRUST.md") or len(paths) >= 6
    for path in [path for path in paths if "NAME" not in path]:
        assert path in by_name or any((folder / path).exists() for folder in folders), path


def owner(path: Path) -> str:
    """Return the folder of ``MAPS`` whose section lists a file."""
    return max((f for f in MAPS if (ROOT / f) in path.parents), key=len)


def sources() -> list[Path]:
    """Return all files that a map lists."""
    found = [p for folder in ("qmix_trl", "recipes") for p in (ROOT / folder).rglob("*")]
    return [p for p in found if p.suffix in (".py", ".h", ".ipynb") and p.name != "__init__.py"]


@pytest.mark.parametrize("folder", MAPS)
def test_every_source_file_stands_in_the_map(folder):
    (listing, *_) = blocks(section(*MAPS[folder]))
    listed = re.findall(r"^(\S+)", listing, re.MULTILINE)
    assert len(listed) == len(set(listed))
    expected = {p.relative_to(ROOT / folder).as_posix() for p in sources() if owner(p) == folder}
    assert {name for name in listed if not name.endswith("/")} == expected
    assert [name for name in listed if not (ROOT / folder / name).exists()] == []


# Code


@pytest.mark.filterwarnings("ignore")
def test_the_snippet_runs_and_learns_from_what_it_collects():
    snippet, _ = blocks(TEXTS["README.md"], "python")
    short = snippet.replace("n_envs=32", "n_envs=4").replace("n_batches=30", "n_batches=2")
    short = short.replace("n_steps=60", "n_steps=2").replace("batch_rows=16", "batch_rows=2")
    assert sum(a != b for a, b in zip(snippet.split(), short.split(), strict=True)) == 4
    names = {}
    exec(short, names)
    assert names["explore"].frames == 2 * 4 * 100
    assert len(names["replay"]) == 2 * 4


@pytest.mark.filterwarnings("ignore")
def test_the_snippet_of_pettingzoo_is_short_and_runs():
    pytest.importorskip("mpe2", reason="needs the extra envs")
    _, snippet = blocks(TEXTS["README.md"], "python")
    assert len(snippet.splitlines()) <= 12
    short = snippet.replace("n_envs=20", "n_envs=2").replace("n_batches=80", "n_batches=2")
    short = short.replace("n_steps=20", "n_steps=2").replace("batch_rows=32", "batch_rows=2")
    assert sum(a != b for a, b in zip(snippet.split(), short.split(), strict=True)) == 4
    exec(short, names := {})
    assert names["explore"].frames == 2 * 2 * 25
    assert len(names["learner"].replay) == 2 * 2
    assert names["env"].n_agents == 3


def test_the_librarys_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "balance_qmix_recurrent-1").mkdir(parents=True)
    folder = tmp_path / "runs" / "balance_qmix_recurrent-1"
    config = load_config(ROOT / "recipes" / "configs" / "balance_qmix_recurrent.yaml")
    save_config(config, folder / "config.yaml")
    dims = EnvDims(n_agents=4, observation_dim=16, n_actions=9, state_shape=torch.Size([36]))
    cpu = torch.device("cpu")
    agent, mixer = build_agent(config, dims, cpu), build_mixer(config, dims, cpu)
    for weights in ("last", "best"):
        save_weights(folder, agent, mixer, weights=weights, dims=dims)
    team, load, resume, mixer, own_agent = blocks(TEXTS["qmix_trl/README.md"], "python")
    exec(team, names := {})
    # TorchRL's balance: three agents of 16 numbers, and 3 x 3 forces.
    assert (names["dims"].n_agents, names["dims"].observation_dim) == (3, 16)
    exec(load, names := {})
    assert torch.equal(names["agent"].fc2.weight, agent.fc2.weight)
    assert names["mixer"].state_shape == (36,)
    exec(resume, names := {})
    assert names["run"].values == {"frames": 6000}
    assert len(mixer.splitlines()) <= 15
    (tmp_path / "joint.py").write_text(mixer)
    (line,) = (x for x in blocks(TEXTS["qmix_trl/README.md"], "yaml") if "custom" in x)
    text = tiny(tmp_path).read_text()
    section = text[text.index("mixer:") : text.index("exploration:")]
    (tmp_path / "tiny.yaml").write_text(text.replace(section, line))
    folder = run(tmp_path, config=tmp_path / "tiny.yaml")
    trained = load_mixer(folder)
    assert type(trained).__name__ == "JointMixer"
    exec(own_agent, names := {})
    loss = QMixLoss(names["TanhAgent"](O, A), VDNMixer(), gamma=0.99)
    rows = random_batch(2, 3).apply(lambda x: x.float() if x.is_floating_point() else x)
    loss(rows)["loss"].backward()
    acted = names["TanhAgent"](O, A)(rows[:, 0].clone())
    assert acted[ACTION_VALUE].shape == (2, N, A)
    assert trained.factor.in_features == 4 * 9  # balance: 4 agents of 9 actions
    exec(mixer, names := {})
    loss = QMixLoss(load_agent(folder), names["JointMixer"](4, 9), gamma=0.99)
    assert loss(batch(n_agents=4, observation_dim=16, n_actions=9))["loss"].isfinite()


def batch(*, n_agents: int, observation_dim: int, n_actions: int) -> TensorDict:
    """Return random experience [B, T] with a team reward."""
    shape = (2, 5)
    observation = torch.rand(*shape, n_agents, observation_dim)
    made = TensorDict({}, shape)
    made[keys.OBSERVATION] = made[keys.next_key(keys.OBSERVATION)] = observation
    made[keys.ACTION] = torch.randint(n_actions, (*shape, n_agents))
    made[keys.next_key(keys.REWARD)] = torch.rand(*shape, 1)
    made[keys.next_key(keys.TERMINATED)] = torch.zeros(*shape, 1, dtype=torch.bool)
    return made


def test_no_other_page_has_code_in_python():
    tested = ["README.md", "qmix_trl/README.md", "qmix_trl/UPSTREAM.md"]  # the last: test_upstream
    assert [p for p in PAGES if blocks(TEXTS[p], "python")] == tested


# Commands


def commands() -> list[str]:
    """Return the commands of all pages, in their order, those joined by && one by one."""
    code = "".join(block for text in TEXTS.values() for block in blocks(text, "bash"))
    return [command for line in code.splitlines() for command in line.split(" && ")]


def behind(marker: str) -> str:
    """Return the command behind a marker of the front page."""
    (command,) = re.findall(rf"<!-- {marker} -->\n```bash\n(.+)\n```", TEXTS["README.md"])
    return command


def run_shortened(command: str, workspace: Path) -> None:
    """Run a recipe in this process and in a folder, by a command with ``SHORTER`` behind it."""
    python, recipe, *arguments = shlex.split(command)
    if python == ".venv/bin/qmix-trl":
        recipe = f"recipes/{COMMANDS[recipe].file}"
    else:
        assert python == ".venv/bin/python", command
    arguments += SHORTER.get(recipe, "").split()
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr(sys, "argv", [recipe, *arguments])
        runpy.run_path(recipe, run_name="__main__")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Return a folder with the recipes, in which the first command's recipe has run."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    run_shortened(behind("first command").split(" && ")[-1], folder)
    return folder


@pytest.mark.parametrize("marker", ["first command", "test command"])
def test_a_command_stands_behind_each_marker(marker):
    assert behind(marker).startswith("python3 -m venv .venv && .venv/bin/pip install")


@pytest.mark.filterwarnings("ignore")
def test_the_first_command_leaves_a_run(workspace):
    assert (workspace / "runs" / "balance_quick-1" / "weights.pt").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.slow if shlex.split(command)[1] in SLOW else ())
        for command in dict.fromkeys(commands())
        if command not in TOO_LONG and command not in behind("first command")
    ],
)
def test_a_command_runs(command, workspace):
    run_shortened(command, workspace)


def test_commands_that_take_too_long_stand_on_a_page():
    assert [command for command in TOO_LONG if command not in commands()] == []
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\d", date) for date in TOO_LONG.values())


# The compiler's page follows one line through all stages


def without_numbers(text: str) -> str:
    """Return code with the numbers of its variables left out: they count what comes before."""
    return re.sub(r"(?<=[a-z])_*\d+\b(?!\.)", "", " ".join(text.split()))


@pytest.mark.slow
def test_the_compilers_page_shows_what_the_compiler_makes():
    from vmas.scenarios import load

    from qmix_trl.envs.compiled.codegen import cpp
    from qmix_trl.envs.compiled.codegen.schedule import guards
    from qmix_trl.envs.compiled.lower.expressions import live
    from qmix_trl.envs.compiled.lower.step import lower
    from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS
    from qmix_trl.envs.compiled.trace.trace import traced
    from qmix_trl.envs.vmas_simulation import Task, VmasSimulation

    settings = {"scenario_kwargs": {}, "state": "world", "team_reward": "mean", "group": None}
    task = Task(name="balance", scenario=load("balance.py").Scenario(), **settings)
    (graph,) = traced(VmasSimulation(task, TRACE_ENVS, 0, torch.device("cpu"))).graphs
    step = lower([graph], state_is_observations=False)
    python, aten, lowered, line, guard = blocks(section(COMPILER, "One line, from Python to C++"))
    assert python.strip() in (Path(load.__code__.co_filename).parent / "balance.py").read_text()
    graph_code, printed = without_numbers(graph.graph.code), without_numbers(cpp.function(step))
    for shown, made in ((aten, graph_code), (line, printed), (guard, printed)):
        for statement in shown.strip().removesuffix("...").strip().splitlines():
            assert without_numbers(statement) in made, statement

    penalties = [x for x in step.program.expressions if x.op == "where" and x.args[1:] == (-10, 0)]
    (penalty,) = penalties
    (on_the_ground,) = penalty.inputs
    assert [line.split()[1:3] for line in lowered.strip().splitlines()] == [
        [on_the_ground.op, on_the_ground.dtype],
        [penalty.op, penalty.dtype],
    ]
    n_nodes, n_live = len(graph.graph.graph.nodes), len(live(step.outputs))
    guarded = [len(guard.members) for guard in guards(step.outputs)]
    for said in (
        f"{n_nodes:,} such nodes",
        f"{n_live:,} expressions, which read {len(step.numbers)} numbers of state",
        f"{len(guarded)} guards hold {sum(guarded):,} of the expressions",
    ):
        assert said in " ".join(TEXTS[COMPILER].split())
