"""The policy's Triton kernel against the policy by torch; ``policy_checks`` holds the checks."""

from types import SimpleNamespace

import policy_checks
import pytest
import torch
from torch import nn
from torchrl.data import Binary, Composite
from triton_checks import needs_interpreter, needs_triton, run_checks

from qmix_trl import (
    EpsilonGreedyAction,
    FeedforwardAgent,
    GreedyAction,
    RecurrentAgent,
    make_policy,
)
from qmix_trl.chosen import CUDA_GRAPH, POLICY_KERNEL, Chosen
from qmix_trl.fused import FusedCollector, cuda_graph_loop, triton_loop
from qmix_trl.native.build import BuildFailed

# A check takes 2 to 10 seconds, and a process 5.
INTERPRETED = [
    ["graph"],
    pytest.param(["agents", "heads", "settings", "ties"], marks=pytest.mark.slow),
]


@needs_interpreter
@pytest.mark.parametrize("names", INTERPRETED)
def test_in_the_interpreter(names, tmp_path):
    raised = run_checks(policy_checks.__file__, tmp_path, names, interpreted=True)
    assert raised == dict.fromkeys(names, "")


@needs_triton
@pytest.mark.slow
def test_it_compiles_for_a_gpu(tmp_path):
    name = "code_for_a_gpu"
    raised = run_checks(policy_checks.__file__, tmp_path, [name], interpreted=False)[name]
    assert not raised, raised


def env_of(**observed):
    """Return a stand-in for an environment that shows entries."""
    return SimpleNamespace(observation_spec=Composite(agents=Composite(**observed)))


class Louder(GreedyAction):
    """A head that may choose in its own way."""


POLICIES = {
    "agents have weights of their own": RecurrentAgent(2, 3, 4, share_parameters=False),
    "the agent has layer_norm, which the kernel does not compute": RecurrentAgent(
        2, 3, 4, layer_norm=True
    ),
    "the agent's weights are not float32": RecurrentAgent(2, 3, 4, dtype=torch.float64),
    "the agent has no hidden layer": FeedforwardAgent(2, 3, 4, hidden_dims=()),
    "expected layers of at most 64 units, got 65": RecurrentAgent(2, 3, 4, hidden_dim=65),
    "expected layers of at most 64 units, got 70": FeedforwardAgent(2, 3, 70),
    "the GRU has another width than the layer below it": RecurrentAgent(2, 3, 4),
    "the agent's weights are not contiguous": FeedforwardAgent(2, 3, 4),
}
POLICIES["the GRU has another width than the layer below it"].fc1 = nn.Linear(3 + 4 + 2, 32)
POLICIES["the agent's weights are not contiguous"].layers[0].weight.data = torch.rand(5, 64).t()


@pytest.mark.parametrize("reason", POLICIES)
def test_policies_without_a_kernel_are_refused(reason):
    assert triton_loop.why_not(make_policy(POLICIES[reason], GreedyAction()), env_of()) == reason


def test_other_heads_and_masks_are_refused():
    agent, masked = RecurrentAgent(2, 3, 4), env_of(action_mask=Binary(4))
    reason = "the head Louder may choose in another way"
    assert triton_loop.why_not(make_policy(agent, Louder()), env_of()) == reason
    policy = make_policy(agent, GreedyAction())
    assert triton_loop.why_not(policy, masked) == "the environment has an action mask"
    assert triton_loop.why_not(policy, env_of()) is None


@pytest.mark.parametrize("failure", [None, BuildFailed("Triton: no room")])
def test_how_says_whether_the_kernel_acts(failure, monkeypatch):
    """The capture is a stand-in."""

    def make(policy, env, n_steps, *, keeps_memory):
        if failure is not None:
            raise failure
        return (n_steps, keeps_memory)

    env = env_of()
    env.device = torch.device("cuda")
    policy = make_policy(RecurrentAgent(2, 3, 4), EpsilonGreedyAction(0.5, 0.5, 0, seed=0))
    loop = SimpleNamespace(policy=policy, env=env, n_steps=5, keeps_memory=False)
    collector = SimpleNamespace(policy=policy, env=env, _begins=None, _memory={})
    monkeypatch.setattr(triton_loop, "TritonLoop", make)
    monkeypatch.setattr(cuda_graph_loop, "why_not", lambda *_: None)
    monkeypatch.setattr(cuda_graph_loop, "GraphLoop", lambda loop, *_: loop)
    captured, how = FusedCollector._choose_loop(collector, loop, None)
    if failure is None:
        assert (captured, how) == ((5, False), Chosen(POLICY_KERNEL))
    else:
        assert (captured, how) == (loop, Chosen(CUDA_GRAPH, {POLICY_KERNEL: "Triton: no room"}))
