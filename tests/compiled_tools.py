"""Helpers for tests of the compiler: a scenario, traced functions, and printed C++."""

import ctypes
import math
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from vmas.simulator.core import Agent, Landmark, World
from vmas.simulator.scenario import BaseScenario

from qmix_trl.envs.compiled.codegen import cpp
from qmix_trl.envs.compiled.compiled_step import CompiledStep
from qmix_trl.envs.compiled.engines.packed_state import as_bits
from qmix_trl.envs.compiled.lower.expressions import CASTS, Expression, Program, live
from qmix_trl.envs.compiled.lower.ops import OPS
from qmix_trl.envs.compiled.lower.step import Run, StateNumber, Step
from qmix_trl.envs.compiled.trace import draws
from qmix_trl.envs.compiled.trace.graph import TRACE_ENVS, StepGraph
from qmix_trl.envs.compiled.trace.guard import Guard
from qmix_trl.envs.compiled.trace.pure import MaskMode
from qmix_trl.envs.compiled.trace.state import StatePaths
from qmix_trl.envs.vmas_simulation import Task, VmasSimulation
from qmix_trl.native import build, store

E = TRACE_ENVS

# ---------------------------------------------------------------------------- scenarios


class Plain(BaseScenario):
    """One agent that moves freely, and two landmarks."""

    def make_world(self, batch_dim, device, **kwargs):
        world = World(batch_dim, device)
        world.add_agent(Agent(name="agent_0", collide=False))
        for i in range(2):
            world.add_landmark(Landmark(name=f"mark_{i}", collide=False))
        return world

    def reset_world_at(self, env_index=None):
        self.world.agents[0].set_pos(torch.zeros(1, 2), batch_index=env_index)

    def reward(self, agent):
        return agent.state.pos[:, 0]

    def observation(self, agent):
        return agent.state.pos


class Scattered(Plain):
    """Begins at a random place, and sees it with noise."""

    def reset_world_at(self, env_index=None):
        n_rows = self.world.batch_dim if env_index is None else 1
        self.world.agents[0].set_pos(torch.rand(n_rows, 2), batch_index=env_index)

    def observation(self, agent):
        return agent.state.pos + 0.1 * torch.randn(self.world.batch_dim, 2)


def task_of(scenario, **changes):
    """Return a scenario as a task."""
    settings = {"scenario_kwargs": {}, "state": "world", "team_reward": "mean", "group": None}
    return Task(name="own", scenario=scenario, **(settings | changes))


def bare_step(numbers, layout, *, shared=False):
    """Return a step without a library, choices or Python values."""
    return CompiledStep(
        library=None,
        numbers=numbers,
        paths=StatePaths((), (), {}, (), (), (), frozenset(), ()),
        layout=layout,
        choices=[[[]]],
        constants={},
        guard=Guard({}, frozenset(), frozenset()),
        carried=(),
        draws=False,
        shared=shared,
        reads_in_resets=False,
        seconds={},
    )


def simulation_of(scenario, n_envs=3):
    """Return a running scenario."""
    return VmasSimulation(task_of(scenario), n_envs, 0, torch.device("cpu"))


BOUNDS = ([-1.0, -0.5], [1.0, 1.0])  # low and high of x and y, for spawning


def occupied_by(*points, n_envs):
    """Return positions [E, K, 2], the same in all environments."""
    return torch.tensor(points, dtype=torch.float32).view(1, -1, 2).expand(n_envs, -1, 2)


# ------------------------------------------------------------ a state, and functions of it


def example_state():
    """Return the tensors of a state of 37 environments, by name."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(E, *shape, generator=g)

    def whole(low, high, *shape):
        return torch.randint(low, high, (E, *shape), generator=g)

    odd = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.5, -2.0])
    signs = whole(0, 2, 4) * 2 - 1
    return {
        "x": normal(4) * 2,
        "y": normal(4),
        "u": normal(4).abs() + 0.1,
        "r": whole(-2, 3, 4) / 2,  # with ties
        "p": normal(3, 2),
        "q": normal(2, 2),
        "i": whole(-6, 7, 4),
        "d": whole(1, 4, 4),  # divisors
        "e": whole(1, 4, 4) * signs,  # negative ones, too
        "k": whole(0, 4, 4),
        "b": whole(0, 2, 4).bool(),
        "c": whole(0, 2, 4).bool(),
        "l": normal(3, 3).tril(-1) + torch.diag_embed(normal(3).abs() + 1),
        "n": odd[whole(0, 6, 4)],
        "shared": torch.randn(3, generator=g),
    }


STATE = example_state()


@cache
def traced(function):
    """Return the graph of a function of the state, in the form of ``trace_step``."""

    def step(state, action, numbers, key):
        return [function(SimpleNamespace(**dict(zip(STATE, state, strict=True))))]

    arguments = [value.clone() for value in STATE.values()]
    action, key = torch.zeros(E, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    with torch.no_grad(), MaskMode(E):
        graph = make_fx(step, tracing_mode="real")(arguments, action, [], key)
    graph.graph.set_codegen(CodeGen())
    graph.recompile()
    return StepGraph(
        graph=graph,
        paths=None,
        choices=(),
        state=list(STATE.values()),
        draws=(),
        n_envs=E,
        names=frozenset(),
    )


@cache
def lowered(function):
    """Return the expressions of a function's result."""
    (output,) = Run(traced(function), Program()).outputs()
    return list(output.flat)


def evaluated(x, leaf, known):
    """Return the value of an expression by the folds of ``OPS``.

    Args:
        x: the expression.
        leaf: a function of a leaf that returns its value.
        known: the values found so far, by expression.
    """
    if not isinstance(x, Expression):
        return x
    if x not in known:
        if x.op in OPS:
            value = OPS[x.op].fold(*(evaluated(arg, leaf, known) for arg in x.args))
        else:
            value = leaf(x)
        known[x] = CASTS[x.dtype](value)
    return known[x]


def of_environment(tensor, e):
    """Return the numbers of one environment, or all of a tensor that environments share."""
    axes = [axis for axis, size in enumerate(tensor.shape) if size == E]
    return (tensor.narrow(axes[0], e, 1) if axes else tensor).flatten().tolist()


# By path and environment.
NUMBERS = [[of_environment(value, e) for e in range(E)] for value in STATE.values()]


def state_leaf(e):
    """Return a function that returns the value of an environment's leaf."""

    def value(leaf):
        if leaf.op == "environment":
            return e
        path, place = leaf.args
        return NUMBERS[path][e][place]

    return value


def by_definition(outputs):
    """Return the values of outputs [E, n] by the folds of ``OPS``."""
    values = []
    for e in range(E):
        known = {}
        values.append([float(evaluated(x, state_leaf(e), known)) for x in outputs])
    return torch.tensor(values, dtype=torch.float32)


def by_torch(function):
    """Return torch's result of a function of the state, float32 [E, n]."""
    result = function(SimpleNamespace(**{name: value.clone() for name, value in STATE.items()}))
    return torch.tensor([of_environment(result, e) for e in range(E)], dtype=torch.float32)


def close(got, expected):
    """Compare to a few roundings, since torch sums in another order."""
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6, equal_nan=True)


# ------------------------------------------------------------------------- printed C++

WRAPPER = """
extern "C" void case_{i}(const float *state, float *seen, int n_envs) {{
  const int places[] = {{{places}}};
  for (int b = 0; b < n_envs; b += W) {{
    vf now[{n_numbers} + 1], then[{n_numbers} + 1], out[{n_out}], reward, agents[1];
    vi terminated;
    for (int k = 0; k < {n_numbers}; k++)
      memcpy(&now[k], state + places[k] * n_envs + b, sizeof(vf));
    Draws draws = {{{{}}, 0, 0}};
    for (int l = 0; l < W; l++) draws.environment[l] = b + l;
    step_{i}(now, then, 0, draws, out, agents, &reward, &terminated);
    for (int j = 0; j < {n_out}; j++) memcpy(seen + j * n_envs + b, &out[j], sizeof(vf));
  }}
}}
"""
ROUND = 48  # environments of printed cases: full blocks of any width


def header(width=8):
    """Return ``simd.h`` and ``draws.h`` with the sizes that are printed in front of them."""
    sizes = {"W": width, "SPAWN_TRIES": f"{draws.SPAWN_TRIES}u"}
    sizes["SPAWN_STREAM"] = f"{draws.SPAWN_STREAM}u"
    text = store.header("qmix_trl.native", "simd.h") + store.header(cpp.__package__, "draws.h")
    return "".join(f"#define {name} {size}\n" for name, size in sizes.items()) + text


def loaded(source, folder):
    """Return the library of a source."""
    try:
        build.compiler()
    except build.NoCompiler as error:
        pytest.skip(str(error))
    build.build(source, folder / "lib.so")
    return ctypes.CDLL(str(folder / "lib.so"))


def columns_of_state():
    """Return the bits of the state, float32 [K, ROUND], and the number of each (path, place)."""
    columns, number = [], {}
    for path, value in enumerate(STATE.values()):
        values = value if value.shape[0] == E else value.expand(E, *value.shape)
        bits = as_bits(values, torch.float32 if values.is_floating_point() else values.dtype)
        for place, column in enumerate(bits.reshape(E, -1).unbind(1)):
            number[path, place] = len(columns)
            columns.append(torch.cat([column, column[: ROUND - E]]))
    return torch.stack(columns).contiguous(), number


def printed(i, outputs, number):
    """Return the C++ of one case."""
    leaves = [x for x in live(outputs) if x.op == "state"]
    numbers = [StateNumber(*x.args, x, 0) for x in sorted(leaves, key=lambda x: x.args)]
    step = Step(Program(), outputs, [], [], 0.0, False, numbers, 0)
    text = cpp.function(step).replace("static void step(", f"static void step_{i}(")
    places = ", ".join(str(number[x.tensor, x.place]) for x in numbers)
    return text + WRAPPER.format(i=i, places=places, n_numbers=len(numbers), n_out=len(outputs))


def run_as_cpp(outputs, folder):
    """Return a function of a name that runs the C++ of its outputs on the state: float32 [E, n]."""
    state, number = columns_of_state()
    source = [header(), *(printed(i, xs, number) for i, xs in enumerate(outputs.values()))]
    library = loaded("\n".join(source), folder)

    def run(name):
        seen = torch.empty(len(outputs[name]), ROUND)
        function = getattr(library, f"case_{list(outputs).index(name)}")
        function(ctypes.c_void_p(state.data_ptr()), ctypes.c_void_p(seen.data_ptr()), ROUND)
        return seen[:, :E].t()

    return run
