"""Fused collection against TorchRL's, and its policy kernel against torch's networks."""

import resource
from functools import cache
from types import SimpleNamespace

import graph_tools
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.envs import RewardSum

from qmix_trl import (
    EpsilonGreedyAction,
    FeedforwardAgent,
    GreedyAction,
    RecurrentAgent,
    env_dims,
    make_collector,
    make_env,
    make_policy,
    with_memory,
)
from qmix_trl.chosen import CUDA_GRAPH, POLICY_KERNEL, Chosen
from qmix_trl.errors import MachineError
from qmix_trl.fused import FusedCollector, cuda_graph_loop, policy_kernel, triton_loop
from qmix_trl.keys import (
    ACTION,
    ACTION_VALUE,
    DONE,
    EPISODE_REWARD,
    HIDDEN,
    IS_INIT,
    LAST_ACTION,
    MASK,
    OBSERVATION,
    REWARD,
    next_key,
)
from qmix_trl.native import build
from qmix_trl.policy import AgentPolicy, RandomPolicy

try:
    build.compiler()
except build.NoCompiler as error:
    pytest.skip(str(error), allow_module_level=True)

# Entries that networks compute: they differ by rounding, as sums have another order.
COMPUTED = (ACTION_VALUE, HIDDEN, next_key(HIDDEN))
# Rounding of float32, 6e-8, times the longest sum, 130 terms of up to 1, over 12 steps of a GRU.
TOLERANCE = 1e-5


def base_env(*, n_envs=4, engine="kernel", rows="slices", device="cpu"):
    """Return an environment without transforms."""
    return make_env(
        "vmas",
        scenario="balance",
        n_envs=n_envs,
        max_steps=10,
        state="world",
        team_reward="mean",
        seed=0,
        engine=engine,
        device=device,
        reset_when_done=rows == "slices",
    )


@cache
def shared_env(n_envs):
    """Return an environment for tests to which its state does not matter: it is slow to make."""
    return base_env(n_envs=n_envs)


def env_of(agent_of, *, env=None, **settings):
    """Return an environment with the agent's memory and episode returns, and the agent."""
    torch.manual_seed(0)
    env = base_env(**settings) if env is None else env
    dims = env_dims(env)
    agent = agent_of(dims.n_agents, dims.observation_dim, dims.n_actions).to(env.device)
    env = with_memory(env, agent)
    env.append_transform(RewardSum([REWARD], [EPISODE_REWARD]))
    return env, agent


def collector_of(
    kind="fused",
    agent_of=RecurrentAgent,
    *,
    rows="slices",
    head=None,
    memory="every_step",
    **settings,
):
    """Return a collector of four batches of 12 steps, longer than an episode's 10."""
    env, agent = env_of(agent_of, rows=rows, **settings)
    device = settings.get("device", "cpu")
    explore = EpsilonGreedyAction(0.5, 0.5, 0, seed=0, device=device)
    policy = make_policy(agent, explore if head is None else head)
    settings = {"rows": rows, "steps": 12, "n_batches": 4, "collector": kind, "memory": memory}
    return make_collector(env, policy, **settings)


# --------------------------------------------------------------------- against TorchRL's


@pytest.mark.parametrize("agent_of", [RecurrentAgent, FeedforwardAgent])
@pytest.mark.parametrize("rows", ["slices", "episodes"])
@pytest.mark.parametrize("engine", ["kernel", "eager"])
def test_fused_batches_equal_torchrls(engine, rows, agent_of):
    stock = [b.clone() for b in collector_of("stock", agent_of, engine=engine, rows=rows)]
    collector = collector_of("fused", agent_of, engine=engine, rows=rows)
    assert collector.how.name == ("C++ loop" if engine == "kernel" else "step loop")
    fused = list(collector)
    assert len(stock) == len(fused) == 4
    compare_batches(stock, fused, engine)


@pytest.mark.parametrize("rows", ["slices", "episodes"])
def test_fused_batches_equal_torchrls_when_agents_repeat_actions(rows):
    stock, fused = (
        collector_of(kind, rows=rows, head=EpsilonGreedyAction(0.3, 0.3, 0, 2.0, seed=0))
        for kind in ("stock", "fused")
    )
    assert fused.how == Chosen("C++ loop")
    compare_batches([batch.clone() for batch in stock], list(fused), "kernel")


def compare_batches(stock, fused, engine):
    """Assert that valid steps are equal: exactly, or to rounding where a kernel computes."""
    for a, b in zip(stock, fused, strict=True):
        a = a.exclude(("collector", "traj_ids"))
        assert set(a.keys(True, True)) == set(b.keys(True, True))
        assert torch.equal(a[IS_INIT], b[IS_INIT])  # after an end, too
        valid = a[MASK]
        for key in a.keys(True, True):
            assert a[key].dtype == b[key].dtype, key
            rounded = TOLERANCE if engine == "kernel" and key in COMPUTED else 0
            torch.testing.assert_close(b[key][valid], a[key][valid], atol=rounded, rtol=0)


@pytest.mark.parametrize("engine", ["kernel", "eager"])
def test_a_new_collector_calls_the_policy_once_as_torchrls_does(engine):
    states = []
    for kind in ("stock", "fused"):
        head = EpsilonGreedyAction(0.5, 0.5, 0, seed=0)
        collector_of(kind, engine=engine, head=head)
        states.append(head.generator.get_state())
    assert torch.equal(*states)
    unused = EpsilonGreedyAction(0.5, 0.5, 0, seed=0)
    assert not torch.equal(states[0], unused.generator.get_state())


def test_batches_own_their_memory():
    first, second, *_ = collector_of()
    before = first.clone()
    second.zero_()
    assert (first == before).all()


def test_environments_that_fill_no_buffers_have_no_fused_collection():
    env = with_memory(
        make_env("games", scenario="two_step", n_envs=2, max_steps=2, state="world", seed=0),
        RecurrentAgent(2, 3, 2),
    )
    policy = RandomPolicy(2, seed=0)
    with pytest.raises(ValueError, match="FusedCollector: GameTeam does not fill buffers"):
        make_collector(env, policy, rows="slices", steps=2, n_batches=1, collector="fused")


# ------------------------------------------------------------------- the policy's kernel


def recurrent(**settings):
    """Return a function from sizes to a recurrent agent of these settings."""
    return lambda *sizes: RecurrentAgent(*sizes, **settings)


def feedforward(**settings):
    """Return a function from sizes to a feed-forward agent of these settings."""
    return lambda *sizes: FeedforwardAgent(*sizes, **settings)


NETWORKS = {
    "recurrent": recurrent(),
    "narrower than a vector": recurrent(hidden_dim=5),
    "several vectors and a part of one": recurrent(hidden_dim=37),
    "recurrent, with layer norm": recurrent(hidden_dim=37, layer_norm=True),
    "feed-forward, with layer norms": feedforward(hidden_dims=(40, 3, 17), layer_norm=True),
    "not shared, with layer norms": feedforward(layer_norm=True, share_parameters=False),
    "recurrent, not shared": recurrent(hidden_dim=20, share_parameters=False),
    "recurrent, only the observation": recurrent(use_last_action=False, use_agent_id=False),
    "one hidden layer": feedforward(hidden_dims=(9,)),
    "three hidden layers": feedforward(hidden_dims=(40, 3, 17)),
    "no hidden layer": feedforward(hidden_dims=()),
    "feed-forward, not shared": feedforward(hidden_dims=(24,), share_parameters=False),
    "feed-forward, with the last action": feedforward(use_last_action=True),
}


@pytest.mark.parametrize("n_envs", [1, 33, 70])
@pytest.mark.parametrize("network", NETWORKS)
def test_values_equal_the_networks_and_actions_are_greedy(network, n_envs):
    collector = collector_of(
        agent_of=NETWORKS[network], env=shared_env(n_envs), head=GreedyAction()
    )
    agent = collector.policy.module[0]
    assert collector.how == Chosen("C++ loop")
    # Values far apart; a GRU with such weights amplifies rounding from step to step.
    spread = [torch.randn_like(p) * 0.5 for p in agent.parameters()]
    for parameter, value in zip(agent.parameters(), spread, strict=True):
        parameter.data.copy_(value)
    hidden = None
    for batch in collector:
        if hidden is None and HIDDEN in batch.keys(True, True):
            hidden = batch[HIDDEN][:, 0]
        with torch.no_grad():
            values, hiddens = agent.unroll(
                batch[OBSERVATION], batch.get(LAST_ACTION, None), batch[IS_INIT], hidden
            )
        torch.testing.assert_close(batch[ACTION_VALUE], values, atol=1e-4, rtol=1e-5)
        assert torch.equal(batch[ACTION], batch[ACTION_VALUE].argmax(-1))
        if hiddens is not None:
            torch.testing.assert_close(batch[next_key(HIDDEN)], hiddens, atol=1e-4, rtol=0)
            hidden = hiddens[:, -1]
            done = batch[next_key(DONE)][:, -1, :, None]
            hidden = hidden.masked_fill(done, 0)


@pytest.mark.parametrize("agent_of", [RecurrentAgent, feedforward(use_last_action=True)])
def test_memory_is_carried_and_zero_after_an_end(agent_of):
    batches = list(collector_of(agent_of=agent_of, n_envs=20))
    batch = torch.cat(batches, 1)  # [E, 48]: four episodes and a part
    ended = batch[next_key(DONE)][:, :-1, :, None]
    assert ended.any()
    for key in {HIDDEN, LAST_ACTION} & set(batch.keys(True, True)):
        assert torch.equal(batch[key][:, 1:], batch[next_key(key)][:, :-1].masked_fill(ended, 0))
    assert torch.equal(batch[IS_INIT][:, 1:], batch[next_key(DONE)][:, :-1])
    one_hot = torch.nn.functional.one_hot(batch[ACTION], batch[ACTION_VALUE].shape[-1])
    assert torch.equal(batch[next_key(LAST_ACTION)], one_hot.float())


@pytest.mark.parametrize("repeat_exponent", [None, 1.5])
def test_draws_of_many_steps_equal_draws_step_by_step(repeat_exponent):
    ahead, by_steps = (EpsilonGreedyAction(1.0, 1.0, 0, repeat_exponent, seed=3) for _ in range(2))
    _, choose = ahead.draws(5, (4, 3, 6))
    for t in range(5):
        step = by_steps(TensorDict({ACTION_VALUE: torch.zeros(4, 3, 6)}, (4,)))
        assert torch.equal(step[ACTION], choose[t].argmax(-1))
    assert torch.equal(ahead.generator.get_state(), by_steps.generator.get_state())


def test_threads_change_no_bit():
    torch.set_num_threads(2)
    try:
        two = list(collector_of(n_envs=70))
    finally:
        torch.set_num_threads(1)
    for a, b in zip(two, list(collector_of(n_envs=70)), strict=True):
        assert (a == b).all()


def test_each_batch_uses_the_present_weights():
    collector = collector_of(head=GreedyAction())
    batches = iter(collector)
    next(batches)
    for parameter in collector.policy.parameters():
        parameter.data.zero_()
    batch = next(batches)
    assert (batch[ACTION_VALUE] == 0).all()
    assert (batch[ACTION] == 0).all()  # the first of equal values


def test_unknown_policies_have_no_kernel():
    env, agent = env_of(RecurrentAgent)

    class Louder(RecurrentAgent):
        """An agent that may compute something else."""

    class LastAction(GreedyAction):
        """A head that chooses in its own way."""

        def forward(self, tensordict):
            return tensordict.set(ACTION, tensordict.get(ACTION_VALUE).argmin(-1))

    louder = Louder(3, 16, 5)
    for policy, reason in (
        (make_policy(agent.double(), GreedyAction()), "the agent's weights are not float32"),
        (make_policy(louder, GreedyAction()), "the policy has no form in C++"),
        (TensorDictSequential(agent, GreedyAction()), "the policy has no form in C++"),
        (AgentPolicy(agent, GreedyAction()), "the policy has no form in C++"),
        (make_policy(agent, LastAction()), "the policy has no form in C++"),
    ):
        assert policy_kernel.why_not(policy, env.base_env) == reason


def test_without_a_library_the_step_loop_runs(monkeypatch):
    def refuse():
        raise build.BuildFailed("no room")

    expected = list(collector_of())
    monkeypatch.setattr(policy_kernel, "library", refuse)
    collector = collector_of()
    assert collector.how == Chosen("step loop", {"C++ loop": "no room"})
    for a, b in zip(expected, collector, strict=True):
        assert torch.equal(a[ACTION], b[ACTION])


def test_batches_leak_no_memory():
    collector = collector_of(n_envs=64)
    for _ in range(30):
        collector.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    for _ in range(100):
        collector.collect()
    # Hidden states of a batch, with the next ones, are 1.2 MB: 100 leaked batches are 120 MB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


# ------------------------------------------------------------------------ on a GPU


@pytest.fixture
def recorded(monkeypatch):
    """Let graphs be taken without a GPU."""
    monkeypatch.setattr(policy_kernel, "why_not", lambda *_: "as asked for")
    monkeypatch.setattr(cuda_graph_loop, "warmed_up", lambda function: function())
    monkeypatch.setattr(cuda_graph_loop, "captured", graph_tools.captured)
    monkeypatch.setattr(cuda_graph_loop, "free_bytes", lambda device: 2**40)


def graph_loop_of(collector):
    """Return the graph loop of a collector whose step loop runs, in the same state."""
    env, head = collector.env, collector.policy.head
    env.engine.advance = graph_tools.foreign(env.engine.advance)
    kept = head.random_state()
    start = collector._begins, collector._memory
    step = collector._loop.act(env.begin_buffers(1), 0, *start)
    head.set_random_state(kept)
    return cuda_graph_loop.GraphLoop(collector._loop, step, *start)


HEADS = {
    "annealed": lambda: EpsilonGreedyAction(1.0, 0.1, 100, seed=0),
    "repeats": lambda: EpsilonGreedyAction(0.5, 0.2, 100, 1.5, seed=0),
    "greedy": GreedyAction,
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("agent_of", [RecurrentAgent, FeedforwardAgent])
def test_the_graph_loop_equals_the_step_loop(agent_of, head, recorded):
    plain, by_graph = (collector_of(agent_of=agent_of, head=HEADS[head]()) for _ in range(2))
    by_graph._loop = graph_loop_of(by_graph)
    for a, b in zip(plain, by_graph, strict=True):
        assert (a == b).all()
        for collector in (plain, by_graph):
            if head != "greedy":
                collector.policy.head.step(a.numel())  # a graph reads the new epsilon


@pytest.mark.parametrize("kind", ["stock", "fused"])
def test_batches_without_the_memory_of_later_steps(kind, recorded):
    whole, first = (
        collector_of("fused" if memory == "every_step" else kind, memory=memory)
        for memory in ("every_step", "first_step")
    )
    if kind == "fused":
        first._loop = graph_loop_of(first)
    for a, b in zip(whole, first, strict=True):
        left_out = {next_key(HIDDEN), next_key(LAST_ACTION)}
        assert set(b.keys(True, True)) - {("collector", "traj_ids")} == (
            set(a.keys(True, True)) - left_out
        )
        for key in set(a.keys(True, True)) - left_out:
            expected = a[key][:, :1].expand_as(a[key]) if key in (HIDDEN, LAST_ACTION) else a[key]
            torch.testing.assert_close(b[key], expected, atol=0, rtol=0)


@pytest.mark.parametrize("memory", ["every_step", "first_step"])
def test_a_graph_needs_the_memory_of_its_tensors_and_of_a_batch(memory, recorded, monkeypatch):
    collector = collector_of(memory=memory)
    needs, needed = [], cuda_graph_loop.bytes_needed
    monkeypatch.setattr(
        cuda_graph_loop, "bytes_needed", lambda *given: needs.append(needed(*given)) or needs[0]
    )
    collector._loop = graph_loop_of(collector)
    entries, *_ = collector._loop._collected
    own = [*vars(collector._loop._buffers).values(), *entries.values()]
    after = sum(tensor.nbytes for tensor in own)
    batch = collector.collect()
    after += sum(storage_bytes(batch).values())
    after += collector._loop._buffers.last_seen.nbytes  # of the batch's buffers, until it is packed
    assert 0.95 * after < needs[0] < 1.05 * after


def storage_bytes(batch):
    """Return the bytes of a batch's storages by address, without entries that repeat one step."""
    tensors = [batch[key] for key in batch.keys(True, True)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.stride(1) > 0]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def test_a_graph_that_has_no_room_is_refused_with_sizes(recorded, monkeypatch):
    collector = collector_of(n_envs=32)
    monkeypatch.setattr(cuda_graph_loop, "free_bytes", lambda device: 1000)
    message = (
        r"expected at least \d+\.\d GiB of free memory on cpu for batches of 32 environments and "
        r"12 steps, got 0\.0 GiB; lower env\.n_envs or collection\.steps"
    )
    with pytest.raises(MachineError, match=message):
        graph_loop_of(collector)


@pytest.mark.parametrize("raised", [torch.OutOfMemoryError("no room"), RuntimeError("refused")])
def test_a_failed_capture_leaves_environment_and_policy_as_they_were(raised, recorded, monkeypatch):
    def refuse(function, generators):
        raise raised

    plain, collector = (collector_of(head=HEADS["repeats"]()) for _ in range(2))
    monkeypatch.setattr(cuda_graph_loop, "captured", refuse)
    of_room = isinstance(raised, torch.OutOfMemoryError)
    with pytest.raises(MachineError if of_room else RuntimeError, match=str(raised)):
        graph_loop_of(collector)
    for a, b in zip(plain, collector, strict=True):
        assert (a == b).all()


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        ("no Triton kernel", "no Triton kernel"),
        (None, "its steps cannot be captured: RuntimeError operation not permitted"),
    ],
)
def test_how_says_why_there_is_no_cuda_graph(refused, reason, monkeypatch):
    def refuse(*args):
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(cuda_graph_loop, "why_not", lambda *_: refused)
    monkeypatch.setattr(cuda_graph_loop, "GraphLoop", refuse)
    monkeypatch.setattr(triton_loop, "with_kernel", lambda loop: (loop, None))
    env = SimpleNamespace(device=torch.device("cuda"))
    collector = SimpleNamespace(env=env, policy=None, steps=1, _begins=None, _memory={})
    loop, how = FusedCollector._choose_loop(collector, "step loop", None)
    assert loop == "step loop"
    assert str(how) == f"step loop (no CUDA graph: {reason})"


def test_a_graph_without_room_does_not_fall_back(monkeypatch):
    def refuse(*args):
        raise MachineError("no room")

    monkeypatch.setattr(cuda_graph_loop, "why_not", lambda *_: None)
    monkeypatch.setattr(cuda_graph_loop, "GraphLoop", refuse)
    monkeypatch.setattr(triton_loop, "with_kernel", lambda loop: (loop, None))
    env = SimpleNamespace(device=torch.device("cuda"))
    collector = SimpleNamespace(env=env, policy=None, steps=1, _begins=None, _memory={})
    with pytest.raises(MachineError, match="no room"):
        FusedCollector._choose_loop(collector, "step loop", None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("acts", [POLICY_KERNEL, CUDA_GRAPH])
@pytest.mark.parametrize("agent_of", [RecurrentAgent, FeedforwardAgent])
@pytest.mark.parametrize("memory", ["every_step", "first_step"])
def test_on_a_gpu_the_graph_equals_the_step_loop(memory, agent_of, acts, monkeypatch):
    settings = {"agent_of": agent_of, "memory": memory, "device": "cuda"}
    no_kernel = {}
    if acts == CUDA_GRAPH:
        no_kernel[POLICY_KERNEL] = "as asked for"
        monkeypatch.setattr(triton_loop, "why_not", lambda *_: "as asked for")
    collector = collector_of(**settings)
    assert collector.how == Chosen(acts, no_kernel)
    monkeypatch.setattr(cuda_graph_loop, "why_not", lambda *_: "as asked for")
    for a, b in zip(collector_of(**settings), collector, strict=True):
        assert set(a.keys(True, True)) == set(b.keys(True, True))
        same = a[ACTION] == b[ACTION]
        if not same.all():  # later steps may differ, too
            assert_first_differences_tie(a, same)
            return
        for key in a.keys(True, True):
            torch.testing.assert_close(a[key], b[key], atol=1e-4, rtol=0)


def assert_first_differences_tie(batch, same):
    """Assert that the actions that differ first, in each environment, have equal values."""
    for e in (~same).any(-1).any(-1).nonzero()[:, 0].tolist():
        t = (~same[e]).any(-1).nonzero()[0, 0]
        best, second = batch[ACTION_VALUE][e, t][~same[e, t]].topk(2).values.T
        assert (best - second < 1e-4).all()


@pytest.mark.parametrize("step_loop", [False, True])
def test_the_pool_is_refilled_when_all_states_are_used(step_loop, monkeypatch):
    if step_loop:
        monkeypatch.setattr(policy_kernel, "why_not", lambda *_: "as asked for")
    n_envs = 256
    collector = collector_of(n_envs=n_envs)
    fresh = collector.env.engine.fresh
    renewals, renew = [], fresh.renew
    fresh.renew = lambda: (renewals.append(fresh.taken), renew())
    taken = n_envs  # by the collector's own reset
    for _ in range(30):
        taken += collector.collect()[next_key(DONE)].sum().item()
    most = 4 * len(fresh.pool)  # four environments use each state
    assert taken > 2 * most
    assert all(most <= n < most + 2 * n_envs for n in renewals)
    assert sum(renewals) + fresh.taken == taken
