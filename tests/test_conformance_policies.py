"""TorchRL's conventions, kept by every agent, head and policy of the library.

A new agent of ``AGENTS`` is tested at once; a new head or policy of ``qmix_trl.policy`` needs an
entry in ``CHOOSERS``.
"""

import copy
import pickle

import collect_tools
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch.func import functional_call, stack_module_state
from torchrl.envs import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MultiAgentMLP
from torchrl.modules.utils import get_primers_from_module

from qmix_trl import AGENTS, ConfigError, QMixLoss, RecurrentAgent, policy
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    ACTION_VALUE,
    HIDDEN,
    IS_INIT,
    LAST_ACTION,
    OBSERVATION,
)
from qmix_trl.policy import (
    EpsilonGreedyAction,
    GreedyAction,
    NoOpPolicy,
    RandomPolicy,
    RememberAction,
    make_policy,
    with_memory,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

E, N, O, A = 6, 2, 5, 4  # noqa: E741
VARIANTS = {
    "as made": {},
    "own weights": {"share_parameters": False},
    "layer norm": {"layer_norm": True},
    "layer norm, own weights": {"layer_norm": True, "share_parameters": False},
    "with the last action": {"use_last_action": True},
    "without the last action": {"use_last_action": False},
}
CHOOSERS = {
    "GreedyAction": lambda seed=0, **masked: GreedyAction(**masked),
    "EpsilonGreedyAction": lambda seed=0, **masked: EpsilonGreedyAction(
        0.8, 0.2, 100, seed=seed, **masked
    ),
    "RandomPolicy": lambda seed=0, **masked: RandomPolicy(A, seed=seed, **masked),
    "NoOpPolicy": lambda seed=0, **masked: NoOpPolicy(A, **masked),
}
RANDOM = ("EpsilonGreedyAction", "RandomPolicy")
# Neither chooses actions.
OTHERS = {"RememberAction", "AgentPolicy"}


def agent_of(name, variant="as made", *, seed=0):
    """Return an agent of the table, with weights of a seed."""
    torch.manual_seed(seed)
    return AGENTS[name](N, O, A, **VARIANTS[variant])


def step_of(agent=None, *, seed=0):
    """Return all that a policy can read in one step: a TensorDict [E]."""
    generator = torch.Generator().manual_seed(seed)
    step = TensorDict({}, [E])
    step[OBSERVATION] = torch.randn(E, N, O, generator=generator)
    step[ACTION_VALUE] = torch.randn(E, N, A, generator=generator)
    step[ACTION_MASK] = torch.rand(E, N, A, generator=generator) < 0.5
    step[IS_INIT] = torch.rand(E, 1, generator=generator) < 0.5
    if agent is not None:
        for key, spec in agent.memory_spec.items(True, True):
            step[key] = torch.randn(E, *spec.shape, generator=generator)
    return step


def outputs(module, step):
    """Return the entries of ``out_keys`` after a call, by key."""
    written = module(step.clone())
    return {key: written[key] for key in module.out_keys}


def assert_same(first, second):
    """Assert that two dictionaries of tensors are equal, bit for bit."""
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def arguments(module, step):
    """Return a module's inputs under the names that ``dispatch`` gives them."""
    names = ["_".join(key) if isinstance(key, tuple) else key for key in module.in_keys]
    return dict(zip(names, (step[key] for key in module.in_keys), strict=True))


every_agent = pytest.mark.parametrize("name", AGENTS)
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_chooser = pytest.mark.parametrize("name", CHOOSERS)


def test_every_module_that_chooses_actions_is_tested():
    own = {
        name
        for name, thing in vars(policy).items()
        if isinstance(thing, type)
        and issubclass(thing, TensorDictModuleBase)
        and thing.__module__ == policy.__name__
    }
    assert own == CHOOSERS.keys() | OTHERS


# ---------------------------------------------------------------------------------- in_keys


@every_variant
@every_agent
def test_an_agent_reads_exactly_its_in_keys(name, variant):
    agent = agent_of(name, variant)
    step = step_of(agent)
    assert_same(outputs(agent, step.select(*agent.in_keys)), outputs(agent, step))
    for key in agent.in_keys:
        with pytest.raises(KeyError):
            agent(step.exclude(key))


@every_chooser
def test_a_head_reads_exactly_its_in_keys(name):
    step = step_of()
    reads = CHOOSERS[name]().in_keys
    assert reads[1] == ACTION_MASK
    assert_same(
        outputs(CHOOSERS[name](), step.select(*reads)),
        outputs(CHOOSERS[name](), step),
    )
    assert not torch.equal(
        outputs(CHOOSERS[name](), step.exclude(ACTION_MASK))[ACTION],
        outputs(CHOOSERS[name](), step)[ACTION],
    )
    with pytest.raises(KeyError):
        CHOOSERS[name]()(step.exclude(reads[0]))


@every_chooser
def test_an_unmasked_head_names_no_mask_and_refuses_one(name):
    head, step = CHOOSERS[name](masked=False), step_of()
    assert ACTION_MASK not in head.in_keys
    assert_same(
        outputs(head, step.select(*head.in_keys)),
        outputs(CHOOSERS[name](), step.exclude(ACTION_MASK)),
    )
    with pytest.raises(ValueError, match=r"masked=False: expected no entry .* with masked=True"):
        head(step)


@every_chooser
def test_selected_inputs_give_available_actions(name):
    step = step_of()
    step[ACTION_MASK][..., 1] = True  # at least one action of each agent
    module = CHOOSERS[name]()
    action = module(step.select(*module.in_keys))[ACTION]
    assert step[ACTION_MASK].gather(-1, action.unsqueeze(-1)).all()


@every_agent
def test_a_policy_names_all_that_agent_and_head_read(name):
    agent = agent_of(name)
    made = make_policy(agent, GreedyAction())
    assert set(made.in_keys) == {*agent.in_keys, ACTION_MASK}
    unmasked = make_policy(agent, GreedyAction(masked=False))
    assert set(unmasked.in_keys) == set(agent.in_keys)
    step = step_of(agent)
    assert_same(outputs(made, step.select(*made.in_keys)), outputs(made, step))


# --------------------------------------------------------------------------------- dispatch


@every_variant
@every_agent
def test_an_agent_takes_tensors_by_name_and_by_place(name, variant):
    agent = agent_of(name, variant)
    step = step_of(agent)
    expected = outputs(agent, step)
    for found in (
        agent(**arguments(agent, step)),
        agent(*(step[key] for key in agent.in_keys)),
    ):
        found = found if isinstance(found, tuple) else (found,)
        assert_same(dict(zip(agent.out_keys, found, strict=True)), expected)


@every_chooser
def test_a_head_takes_tensors_by_name_and_by_place(name):
    step = step_of()
    expected = outputs(CHOOSERS[name](), step)[ACTION]
    by_name, by_place = CHOOSERS[name](), CHOOSERS[name]()
    assert torch.equal(by_name(**arguments(by_name, step)), expected)
    assert torch.equal(by_place(*(step[key] for key in by_place.in_keys)), expected)


def test_the_memory_of_actions_takes_tensors():
    (last,) = torch.eye(3)[None, [2, 0]]
    assert torch.equal(RememberAction(3)(agents_action=torch.tensor([2, 0])), last)


@every_agent
def test_a_policy_takes_its_mask_by_name(name):
    agent = agent_of(name)
    made = make_policy(agent, GreedyAction())
    step = step_of(agent)
    found = dict(zip(made.out_keys, made(**arguments(made, step)), strict=True))
    assert_same(found, outputs(made, step))


# ------------------------------------------------------- state dicts, copies, pickles, export


@every_variant
@every_agent
def test_an_agent_continues_from_its_state_dict(name, variant):
    first, second = (agent_of(name, variant, seed=seed) for seed in (0, 1))
    second.load_state_dict(first.state_dict())
    assert_same(outputs(second, step_of(first)), outputs(first, step_of(first)))


@every_variant
@every_agent
def test_copies_of_an_agent_compute_the_same(name, variant):
    agent = agent_of(name, variant)
    for twin in (copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))):
        assert_same(outputs(twin, step_of(agent)), outputs(agent, step_of(agent)))
        for parameter in twin.parameters():
            parameter.data.zero_()
        assert (outputs(twin, step_of(agent))[ACTION_VALUE] == 0).all()
        assert (outputs(agent, step_of(agent))[ACTION_VALUE] != 0).any()


@every_chooser
def test_a_head_continues_from_its_state_dict(name):
    first, second = (CHOOSERS[name](seed=seed) for seed in (0, 1))
    step = step_of()
    first(step.clone())  # some draws
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        assert_same(outputs(second, step), outputs(first, step))


@every_chooser
def test_copies_of_a_head_draw_the_same_on_their_own(name):
    head, step = CHOOSERS[name](), step_of()
    head(step.clone())  # some draws
    twins = [copy.deepcopy(head), pickle.loads(pickle.dumps(head))]
    expected = [outputs(head, step)[ACTION] for _ in range(3)]
    if name in RANDOM:
        assert any(not torch.equal(expected[0], later) for later in expected[1:])
    for twin in twins:
        assert all(torch.equal(outputs(twin, step)[ACTION], action) for action in expected)


def test_a_head_continues_repetitions_from_its_state_dict():
    first, second, third = (EpsilonGreedyAction(0.9, 0.1, 99, 1.0, seed=s) for s in (0, 1, 2))
    step = step_of()
    third(step.clone())  # it has repetitions of its own
    fresh = copy.deepcopy(first.state_dict())
    for _ in range(3):
        first(step.clone())
    first.step(20)
    for other in (second, third):
        other.load_state_dict(first.state_dict())
        assert other.epsilon == first.epsilon == pytest.approx(0.9 - 0.8 * 20 / 99)
    expected = [outputs(first, step)[ACTION] for _ in range(5)]
    for other in (second, third):
        assert all(torch.equal(outputs(other, step)[ACTION], action) for action in expected)
        other.load_state_dict(fresh)
        assert other.epsilon == 0.9


@pytest.mark.parametrize("name", RANDOM)
def test_the_states_of_own_and_global_streams_do_not_mix(name):
    own, shared = CHOOSERS[name](seed=0), CHOOSERS[name](seed=None)
    with pytest.raises(ValueError, match="expected one of a module with seed=None"):
        shared.load_state_dict(own.state_dict())
    with pytest.raises(ValueError, match="expected one of a module with a seed"):
        own.load_state_dict(shared.state_dict())


@every_variant
@every_agent
def test_an_agent_is_exported(name, variant):
    agent = agent_of(name, variant)
    step = step_of(agent)
    program = torch.export.export(agent, (), arguments(agent, step)).module()
    found = program(**arguments(agent, step))
    found = found if isinstance(found, (tuple, list)) else (found,)
    for key, expected in outputs(agent, step).items():
        torch.testing.assert_close(found[agent.out_keys.index(key)], expected)


@every_chooser
@set_exploration_type(ExplorationType.DETERMINISTIC)
def test_a_head_is_exported_with_its_mask(name):
    if name == "RandomPolicy":
        pytest.skip("its generator is no input of a program")
    head, step = CHOOSERS[name](), step_of()
    program = torch.export.export(head, (), arguments(head, step)).module()
    assert torch.equal(program(**arguments(head, step)), outputs(head, step)[ACTION])
    other = step_of(seed=1)
    assert torch.equal(program(**arguments(head, other)), outputs(head, other)[ACTION])


@every_agent
def test_a_policy_is_exported_with_its_mask(name):
    agent = agent_of(name)
    made, step = make_policy(agent, GreedyAction()), step_of(agent)
    program = torch.export.export(made, (), arguments(made, step)).module()
    found = program(**arguments(made, step))
    assert torch.equal(found[made.out_keys.index(ACTION)], outputs(made, step)[ACTION])


@every_variant
@every_agent
def test_weights_of_several_agents_are_mapped_over(name, variant):
    agents = [agent_of(name, variant, seed=seed) for seed in (0, 1)]
    parameters, buffers = stack_module_state(agents)
    step = step_of(agents[0])

    def values(parameters, buffers):
        return functional_call(
            agents[0], (parameters, buffers), args=(), kwargs=arguments(agents[0], step)
        )

    found = torch.vmap(values)(parameters, buffers)
    found = found if isinstance(found, tuple) else (found,)
    for i, agent in enumerate(agents):
        for key, expected in outputs(agent, step).items():
            torch.testing.assert_close(found[agent.out_keys.index(key)][i], expected)


# --------------------------------------------------------------- weights, autocast, memory


def bounds(agent):
    """Return the bound of each drawn weight by name, as torch's layers draw them uniformly.

    ``nn.Linear`` and ``nn.GRUCell`` draw up to 1 / sqrt(inputs) and 1 / sqrt(hidden size).
    """
    drawn = [(n, p) for n, p in agent.named_parameters() if "weight" in n and "norm" not in n]
    sizes = {name: p.shape[-1] for name, p in drawn}
    gru = {name: agent.rnn.weight_hh.shape[-1] for name in sizes if name.startswith("rnn.")}
    return {name: size**-0.5 for name, size in {**sizes, **gru}.items()}


@every_variant
@every_agent
def test_parameters_that_are_drawn_again_have_the_scale_of_their_layers(name, variant):
    agent = agent_of(name, variant)
    before = {name: p.clone() for name, p in agent.named_parameters()}
    agent.reset_parameters_recursive()
    for name, bound in bounds(agent).items():
        weight = agent.get_parameter(name)
        assert not torch.equal(weight, before[name])
        assert 0.8 * bound < weight.abs().max() <= bound
        assert before[name].abs().max() <= bound
    first = next(agent.parameters())
    if first.dim() == 3:
        assert not torch.equal(first[0], first[1])


@every_variant
@every_agent
def test_the_losss_parameters_that_are_drawn_again_have_that_scale(name, variant):
    agent = agent_of(name, variant)
    loss = QMixLoss(agent, None, gamma=0.9)
    loss.reset_parameters_recursive()
    parameters = loss.agent_params.flatten_keys(".")
    for name, bound in bounds(agent).items():
        assert 0.8 * bound < parameters[name].abs().max() <= bound


@every_variant
@every_agent
def test_agents_act_and_learn_under_autocast(name, variant):
    agent = agent_of(name, variant)
    step, n_steps = step_of(agent), 3
    sequence = [
        step[OBSERVATION].unsqueeze(1).expand(E, n_steps, N, O),
        torch.zeros(E, n_steps, N, A),
        torch.zeros(E, n_steps, 1, dtype=torch.bool),
    ]
    hidden = step.get(HIDDEN, None)

    def all_outputs():
        values, hiddens = agent.unroll(*sequence, hidden)
        values.sum().backward()
        first, _ = agent.unroll(*sequence, None)
        after = {} if hiddens is None else {"hiddens": hiddens}
        return {**outputs(agent, step), "values": values, "first": first, **after}

    exact = all_outputs()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = all_outputs()
    for key, expected in exact.items():
        # bfloat16 has 8 bits: 1/256 for each of a few layers whose values are about 1
        torch.testing.assert_close(rounded[key].float(), expected, rtol=0.03, atol=0.03)
        if "hidden" in key or "hiddens" in key:
            assert rounded[key].dtype == torch.float32  # as the memory's spec has it


@pytest.mark.parametrize("burn_in", [0, 2])
@pytest.mark.parametrize("name", collect_tools.AGENTS)
def test_the_loss_of_rows_with_stored_memory_runs_under_autocast(name, burn_in):
    env = collect_tools.CounterEnv()
    agent = collect_tools.make_agent(env, name)
    (batch,) = collect_tools.collect(env, agent, rows="slices", steps=9, n_batches=1)
    loss = collect_tools.make_loss(env, agent, td_lambda=0.5, burn_in=burn_in)
    expected = loss(batch)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss(batch)["loss"]
        rounded.backward()
    assert rounded.item() == pytest.approx(expected, rel=0.03)  # bfloat16 has 8 bits
    assert all(p.grad.isfinite().all() for p in loss.parameters() if p.grad is not None)


@every_variant
@every_agent
def test_agents_make_their_primer(name, variant):
    agent = agent_of(name, variant)
    primer = get_primers_from_module(make_policy(agent, GreedyAction()))
    assert isinstance(primer, TensorDictPrimer)
    assert set(primer.primers.keys(True, True)) == set(agent.memory_spec.keys(True, True))
    assert set(agent.memory_spec.keys(True, True)) <= set(agent.in_keys) & {HIDDEN, LAST_ACTION}


def test_a_missing_memory_is_named_with_its_remedy():
    agent = RecurrentAgent(N, O, A)
    with pytest.raises(KeyError, match=r"'hidden'.*with_memory\(env, agent\)"):
        agent(step_of(agent).exclude(HIDDEN))


def test_a_network_of_torchrl_is_no_agent():
    network = MultiAgentMLP(O, A, N, centralized=False, share_params=True)
    with pytest.raises(TypeError, match=r"make_policy: expected an agent .* got a MultiAgentMLP"):
        make_policy(network, GreedyAction())
    with pytest.raises(TypeError, match="with_memory: expected an agent"):
        with_memory(None, network)


# ------------------------------------------------------------------------------ exploration


@pytest.mark.parametrize("kind", ["MODE", "MEAN", "DETERMINISTIC"])
def test_an_exploring_head_is_greedy_where_torchrl_wants_no_exploration(kind):
    head, step = EpsilonGreedyAction(1.0, 1.0, 0, seed=0), step_of()
    before = head.generator.get_state()
    with set_exploration_type(ExplorationType[kind]):
        assert_same(outputs(head, step), outputs(GreedyAction(), step))
    assert torch.equal(head.generator.get_state(), before)
    with set_exploration_type(ExplorationType.RANDOM):
        assert not torch.equal(outputs(head, step)[ACTION], outputs(GreedyAction(), step)[ACTION])


def test_weights_that_are_sent_carry_epsilon():
    sent, kept = (EpsilonGreedyAction(1.0, 0.0, 100, seed=seed) for seed in (0, 1))
    sent.step(25)
    before = kept.generator.get_state()
    TensorDict.from_module(kept).data.update_(TensorDict.from_module(sent).data)
    assert kept.epsilon == 0.75
    assert torch.equal(kept.generator.get_state(), before)  # each worker has its own


def test_a_global_stream_follows_torchs_seed():
    head, step = EpsilonGreedyAction(1.0, 1.0, 0, seed=None), step_of()
    assert head.generators == ()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(outputs(head, step)[ACTION])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_new_frames_compile_nothing_again():
    programs = []

    def backend(graph, inputs):
        programs.append(graph)
        return graph.forward

    head, step = EpsilonGreedyAction(1.0, 0.0, 100, seed=None), step_of()
    compiled = torch.compile(head, backend=backend)
    compiled(step.clone())
    head.step(1)
    compiled(step.clone())
    first = len(programs)
    for _ in range(10):
        head.step(5)
        compiled(step.clone())
    assert len(programs) == first
    head.step(100)
    assert torch.equal(compiled(step.clone())[ACTION], outputs(GreedyAction(), step)[ACTION])


def test_an_environment_whose_agents_alone_are_done_has_no_memory():
    class Alone:
        reset_keys = [("agents", "_reset")]
        done_keys = [("agents", "done")]

    with pytest.raises(ConfigError, match=r"an entry 'done', got \[\('agents', 'done'\)\]"):
        with_memory(Alone(), RecurrentAgent(N, O, A))


def test_the_agents_of_a_sequential_module_are_agents_of_dispatch():
    agent = agent_of("feedforward")
    module = TensorDictSequential(agent, GreedyAction())
    step = step_of(agent)
    assert torch.equal(
        module(agents_observation=step[OBSERVATION], agents_action_mask=step[ACTION_MASK])[1],
        outputs(module, step)[ACTION],
    )
