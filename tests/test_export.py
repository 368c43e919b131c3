"""Exported policies: they decide as their agents, in this process and in programs without them."""

import subprocess
import sys
from pathlib import Path

import export
import pytest
import torch
from recipe_tools import AGENTS, call, check_told, game, run
from support.components import build_env
from support.export_programs import program
from support.parity import parity

from qmix_trl import (
    CheckpointError,
    FeedforwardAgent,
    PlainPolicy,
    RecurrentAgent,
    SaveError,
    export_policy,
    load_agent,
    load_config,
)
from qmix_trl.export import load_policy

FORMATS = ("pt2", "onnx", "safetensors")
PACKAGES = {"onnx": "onnxscript", "safetensors": "safetensors"}
NORMED = AGENTS["recurrent"].replace("layer_norm: false", "layer_norm: true")
OWN = AGENTS["recurrent"].replace("share_parameters: true", "share_parameters: false")
MEMORY = game("memory", "delay: 3, n_agents: 3, n_cues: 4")  # with action masks
# overrides and N of each run
RUNS = {
    "recurrent with layer norm, two_step": ([NORMED, game("two_step")], 2),
    "feedforward, balance": ([AGENTS["feedforward"]], 4),
    "recurrent with own parameters, memory": ([OWN, MEMORY], 3),
    "feedforward with own parameters and last action, memory": (
        [
            "agent={name: feedforward, hidden_dims: [8, 8], layer_norm: true, "
            "share_parameters: false, use_last_action: true, use_agent_id: false}",
            MEMORY,
        ],
        3,
    ),
}
# The programs below run the third one in every format.
QUICK = set(zip(RUNS, ("onnx", "pt2", None, "safetensors"), strict=True))
CASES = [
    pytest.param(name, format, marks=() if (name, format) in QUICK else pytest.mark.slow)
    for name in RUNS
    for format in FORMATS
]


def exported(folder: Path, format: str, weights: str = "last"):
    """Return the policy of a run that is exported to its default file, and its parity."""
    pytest.importorskip(PACKAGES.get(format, "torch"), reason="needs the extra export")
    return export.export(folder, format=format, out=folder / f"policy.{format}", weights=weights)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "format"), CASES)
def test_a_file_decides_as_its_agent_for_200_steps(name, format, tmp_path):
    overrides, n_agents = RUNS[name]
    folder = run(tmp_path, *overrides)
    policy, found = exported(folder, format)
    assert (found.steps, found.decisions) == (200, 200 * 2 * n_agents)
    assert found.holds
    assert found.other_actions == 0
    assert found.difference <= 1e-5
    loaded = load_policy(policy, folder / f"policy.{format}", format=format)
    for n_decisions in (1, 5):
        inputs = policy.inputs(n_decisions)
        for output, expected in zip(loaded(inputs), policy(**inputs), strict=True):
            assert output.shape == expected.shape
            assert torch.allclose(output, expected, atol=1e-6)


@pytest.fixture
def memory_run(tmp_path):
    """A run with a recurrent agent, an action mask and parameters of each agent's own."""
    return run(tmp_path, OWN, MEMORY)


def found_parity(folder, change):
    """Return the parity of a run's policy whose inputs and outputs go through a function."""
    config = load_config(folder / "config.yaml")
    env = build_env(config, torch.device("cpu"), n_envs=2, seed=0, reset_when_done=True)
    agent = load_agent(folder)
    policy = PlainPolicy(agent, masked=True)
    return parity(env, agent, policy, lambda inputs: change(policy, dict(inputs)), n_steps=20)


def unchanged(policy, inputs):
    return policy(**inputs)


def without_memory(policy, inputs):
    return policy(**{**inputs, "hidden": torch.zeros_like(inputs["hidden"])})


def of_another_agent(policy, inputs):
    return policy(**{**inputs, "agent_id": (inputs["agent_id"] + 1) % 3})


def without_last_action(policy, inputs):
    return policy(**{**inputs, "last_action": torch.full_like(inputs["last_action"], -1)})


def the_worst_action(policy, inputs):
    _, values, hidden = policy(**inputs)
    return values.argmin(-1), values, hidden


@pytest.mark.parametrize(
    "change", [without_memory, of_another_agent, without_last_action, the_worst_action]
)
def test_parity_finds_what_differs(change, memory_run):
    assert found_parity(memory_run, unchanged).holds
    found = found_parity(memory_run, change)
    assert not found.holds
    if change is the_worst_action:
        assert (found.other_actions, found.difference) == (120, 0)  # 20 steps, 2 x 3 agents
    else:
        assert found.difference > 1e-3


def test_a_file_that_decides_otherwise_is_not_kept(memory_run, monkeypatch):
    def broken(policy, path, *, format):
        policy.head.bias.data[:, 0] += 100.0
        export_policy(policy, path, format=format)
        policy.head.bias.data[:, 0] -= 100.0

    monkeypatch.setattr(export, "export_policy", broken)
    with pytest.raises(CheckpointError, match="not kept, as it decides otherwise"):
        exported(memory_run, "safetensors")
    assert not [path for path in memory_run.iterdir() if "policy" in path.name]


def test_the_best_weights_are_exported(memory_run):
    best = torch.load(memory_run / "best_weights.pt", weights_only=True)
    best["agent"]["fc2.bias"].fill_(7)
    torch.save(best, memory_run / "best_weights.pt")
    for weights, is_best in (("last", False), ("best", True)):
        policy, _ = exported(memory_run, "safetensors", weights)
        assert bool((policy.head.bias == 7).all()) is is_best


def test_a_file_that_cannot_be_written_gets_one_line(memory_run):
    (memory_run / "policy.safetensors").mkdir()
    with pytest.raises(SaveError, match=r"policy\.safetensors: cannot be written: Is a directory"):
        exported(memory_run, "safetensors")


# Programs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "agent",
    [
        RecurrentAgent(3, 5, 4, share_parameters=False),
        FeedforwardAgent(3, 5, 4, hidden_dims=[8] * 6, use_last_action=True),
        FeedforwardAgent(3, 5, 4, hidden_dims=[]),
    ],
    ids=["recurrent", "feedforward", "linear"],
)
@pytest.mark.parametrize("format", FORMATS)
def test_a_program_is_short(format, agent, masked):
    text = program(PlainPolicy(agent, masked=masked), Path("policy"), format)
    assert len(text.splitlines()) <= 15
    assert max(map(len, text.splitlines())) <= 100
    compile(text, "program", "exec")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", FORMATS)
def test_a_printed_program_runs_without_the_training_packages(format, memory_run, capsys):
    pytest.importorskip(PACKAGES.get(format, "torch"), reason="needs the extra export")
    capsys.readouterr()
    call("export.py", str(memory_run), "--format", format)
    said = capsys.readouterr().out
    head, rest = said.split("alone:\n\n")
    text, following = rest.rsplit("\n\n", 1)
    assert following == "next: save these lines as act.py; python act.py\n"
    assert "0 of 1,200 actions in 200 steps differ" in head
    absent = "{'qmix_trl', 'torchrl', 'tensordict', 'vmas'}"
    check = f"\nimport sys\nassert not {absent} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", text + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The agent itself, for three steps of observations of zeros.
    agent = load_agent(memory_run)
    last_action, hidden, expected = torch.zeros(3, 4), torch.zeros(3, 8), []
    for _ in range(3):
        values, hidden = agent.step(torch.zeros(3, 5), last_action, hidden)
        last_action = torch.eye(4)[values.argmax(-1)]
        expected.append(str(values.argmax(-1).tolist()))
    assert done.stdout.splitlines() == expected


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--out", "policy.txt"], ["--out", "ends in .pt2", "policy.txt"]),
        (["--out", "policy.onnx", "--format", "pt2"], ["--out", "ends in .pt2"]),
        (["--out", "missing/policy.pt2"], ["--out", "folder that exists"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_mistake_gets_one_line(arguments, parts, memory_run, monkeypatch, capsys):
    monkeypatch.chdir(memory_run)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call("export.py", ".", *arguments)
    check_told(caught.value.code, capsys.readouterr().err, 2, ["error: ", *parts])


@pytest.mark.parametrize("format", PACKAGES)
def test_a_missing_package_is_named_with_its_extra(format, memory_run, monkeypatch, capsys):
    monkeypatch.setattr("qmix_trl.errors.find_spec", lambda name: None)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call("export.py", str(memory_run), "--format", format)
    parts = [PACKAGES[format], "pip install 'qmix-trl[export]'"]
    check_told(caught.value.code, capsys.readouterr().err, 2, parts)
    policy = PlainPolicy(load_agent(memory_run), masked=True)
    with pytest.raises(ValueError, match="not installed"):
        export_policy(policy, memory_run / "policy", format=format)
    with pytest.raises(ValueError, match="expected a format of pt2, onnx, safetensors, got 'pt'"):
        export_policy(policy, memory_run / "policy", format="pt")
