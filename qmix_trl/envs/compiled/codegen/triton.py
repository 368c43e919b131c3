"""Prints a step as a Triton kernel: straight-line code over a block of environments, with guards.

The sibling of ``cpp``: the same operations, of the same names where they have names of their own
(``triton_simd``), and the rollout of ``rollout.h`` around them.
"""

import math

import numpy as np

from qmix_trl.envs.compiled.codegen.printing import (
    OPERATORS,
    Forms,
    Output,
    number_places,
    statements,
)
from qmix_trl.envs.compiled.codegen.schedule import Guard
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT, INT, Expression, Scalar
from qmix_trl.envs.compiled.lower.step import Step
from qmix_trl.envs.compiled.trace.draws import SPAWN_STREAM, SPAWN_TRIES

TYPES = {FLOAT: "tl.float32", INT: "tl.int32", BOOL: "tl.int1"}
FORMS = {
    **OPERATORS,
    "div": "tl.div_rn({0}, {1})",
    "not": "({0} == 0)",
    "where": "tl.where({0}, {1}, {2})",
    "abs": "tl.abs({0})",
    "sqrt": "tl.sqrt_rn({0})",
    "floor": "vfloor({0})",
    "first": "{0}[0]",
    "second": "{0}[1]",
}
FLOAT_FORMS = {
    "sign": "vsign({0})",
    "minimum": "vmin({0}, {1})",
    "maximum": "vmax({0}, {1})",
    "remainder": "vremainder({0}, {1})",
}
INT_FORMS = {
    "sign": "isign({0})",
    "minimum": "tl.minimum({0}, {1})",
    "maximum": "tl.maximum({0}, {1})",
    "remainder": "iremainder({0}, {1})",
}
OF_BLOCKS = ("atan2", "logaddexp", "floor_divide", "remainder")  # take no plain numbers
CASTS = {
    (FLOAT, INT): "{0}.to(tl.int32)",
    (FLOAT, BOOL): "({0} != 0.0)",
    (INT, FLOAT): "{0}.to(tl.float32)",
    (INT, BOOL): "({0} != 0)",
    (BOOL, FLOAT): "{0}.to(tl.float32)",
    (BOOL, INT): "{0}.to(tl.int32)",
}
ALL_FORMS = Forms(FORMS, FLOAT_FORMS, INT_FORMS, CASTS)
# Between numbers and the floats that hold their bits; a boolean is all bits or none.
FROM_BITS = {FLOAT: "{0}", INT: "as_bits({0})", BOOL: "(as_bits({0}) != 0)"}
TO_BITS = {FLOAT: "{0}", INT: "as_float({0})", BOOL: "as_float(-({0}.to(tl.int32)))"}

FUNCTIONS = (
    "as_bits as_float floor_divide iremainder isign normal put some spawn uniform vatan2 vcos vexp "
    "vfloor vlog vlogaddexp vmax vmin vremainder vsign vsin vtan vtanh"
)
HEAD = f"""\
import triton
import triton.language as tl

from qmix_trl.envs.compiled.codegen.triton_simd import {", ".join(FUNCTIONS.split())}

SIZES = ("first", "n_steps", "buffer_steps", "n_envs", "stride", "max_steps", "reset_when_done",
         "pool_size")
POINTERS = ("action", "seen", "last_seen", "agent_reward", "reward", "terminated", "truncated",
            "done", "state", "steps", "resets", "key", "pool")


# One kernel for all sizes: it takes long to compile.
@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=POINTERS)
def rollout(
    # The steps to take, of rows of buffer_steps; buffers as in buffers.py.
    first, n_steps, buffer_steps,
    action, seen, last_seen, agent_reward, reward, terminated, truncated, done,
    # State [NUMBERS, stride], steps since the last reset and resets since the pool was drawn
    # [n_envs], seed and number of the first step [2].
    n_envs, stride, state, steps, resets, key,
    max_steps, reset_when_done,
    # Fresh states [pool_size, NUMBERS + SEEN].
    pool, pool_size,
    BLOCK: tl.constexpr,
):
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < n_envs
    e = tl.minimum(lane, n_envs - 1)  # the last block is filled with copies
    e64 = e.to(tl.int64)
    steps_now = tl.load(steps + e)
    resets_now = tl.load(resets + e)
    seed = tl.load(key).to(tl.uint32)
    number = tl.load(key + 1).to(tl.uint32)
"""
BEGIN = """\
place = e64 * buffer_steps + t
draws = (e.to(tl.uint32), seed, number + (t - first).to(tl.uint32))
"""
# Environment e's next fresh state is row e + r n_envs of the pool, as in rollout.h.
END = """\
steps_now += 1
ends = {terminated}
cut = steps_now >= max_steps
over = (ends | cut) & inside
taken = tl.where(over, reset_when_done, 0) != 0
tl.store(terminated + place, ends, mask=inside)
tl.store(truncated + place, cut, mask=inside)
tl.store(done + place, ends | cut, mask=inside)
turn = e64 + resets_now.to(tl.int64) * n_envs
fresh = pool + (turn + turn // pool_size) % pool_size * {width}
steps_now = tl.where(taken, 0, steps_now)
resets_now += taken.to(tl.int32)
seen_to = seen + (place + e64 + 1) * {seen}
last_to = last_seen + place * {seen}
"""
TAIL = """\
    tl.store(steps + e, steps_now, mask=inside)
    tl.store(resets + e, resets_now, mask=inside)
"""


def source(step: Step) -> str:
    """Return the source of a module whose ``rollout`` is a step's kernel."""
    rows = [f"tl.load(state + {k} * stride + e)" for k in range(len(step.numbers))]
    places = [f"tl.store(state + {k} * stride + e, s{k}, mask=inside)" for k in range(len(rows))]
    return "\n".join(
        [
            HEAD + "\n".join(f"    s{k} = {row}" for k, row in enumerate(rows)),
            "    for t in range(first, first + n_steps):",
            *(f"        {line}" for line in body(step)),
            *(f"    {place}" for place in places),
            TAIL,
        ]
    )


def body(step: Step) -> list[str]:
    """Return the lines that take one step of a block."""
    printer = Printer(number_places(step), step.n_agents)
    kept = (f"s{k} = t{k}" for k in range(len(step.numbers)))
    return [*BEGIN.splitlines(), *statements(outputs(step), printer), *kept]


def outputs(step: Step) -> list[Output]:
    """Return all that a step writes.

    Whether an environment ends comes first: where a reset follows, all that is written behind it
    is the fresh state's.
    """
    seen = [*step.observation, *step.state]
    n_rows, n = len(step.numbers), step.n_agents
    end = END.format(terminated="{0}", width=n_rows + len(seen), seen=len(seen))
    return [
        Output(end, BOOL, step.terminated),
        Output("tl.store(reward + place, {0}, mask=inside)", FLOAT, step.reward),
        *(
            Output(f"tl.store(agent_reward + place * {n} + {a}, {{0}}, mask=inside)", FLOAT, x)
            for a, x in enumerate(step.agent_reward)
        ),
        *(Output(seen_place(j, n_rows), FLOAT, x) for j, x in enumerate(seen)),
        *(
            Output(number_place(k, row.now.dtype), row.now.dtype, row.then)
            for k, row in enumerate(step.numbers)
        ),
    ]


def seen_place(j: int, n_rows: int) -> str:
    """Return how a number of what is seen is written."""
    return f"put(seen_to + {j}, last_to + {j}, fresh + {n_rows + j}, {{0}}, over, taken, inside)"


def number_place(k: int, dtype: str) -> str:
    """Return how a row of the next state is kept; whole numbers as their bits."""
    return f"t{k} = tl.load(fresh + {k}, mask=taken, other={TO_BITS[dtype]})"


class Printer:
    """Prints expressions.

    Args:
        number_of: the row of the state that holds a path's place.
        n_agents: N.
    """

    def __init__(self, number_of: dict[tuple[int, int], int], n_agents: int) -> None:
        self.number_of = number_of
        self.n_agents = n_agents

    def definition(self, x: Expression) -> str:
        """Return the statement that computes an expression."""
        return f"v{x.index} = {self.form(x)}"

    def guard(self, guard: Guard) -> list[str]:
        """Return the statements of a guard; its selections keep type and shape in the branch."""
        other, mask = 3 - guard.side, f"v{guard.mask.index}"
        return [
            *(f"v{x.index} = {self.stored(x.args[other], x.dtype)}" for x in guard.selections),
            f"if some({mask if guard.side == 1 else FORMS['not'].format(mask)}):",
            *(f"    {self.definition(x)}" for x in guard.members),
        ]

    def form(self, x: Expression) -> str:
        """Return the code of an expression."""
        match x.op:
            case "state":
                return FROM_BITS[x.dtype].format(f"s{self.number_of[x.args]}")
            case "action":
                return f"tl.load(action + place * {self.n_agents} + {x.args[1]}).to(tl.int32)"
            case "uniform" | "normal":
                return f"{x.op}(draws, {x.args[0]})"
            case "environment":
                return "e"
            case "spawn":
                return self._spawn(x)
        return ALL_FORMS.operation(x, self.stored if x.op in OF_BLOCKS else self.value)

    def _spawn(self, x: Expression) -> str:
        (site, *settings), *occupied = x.args
        first = wrapped((site + 1) * SPAWN_STREAM)
        numbers = ", ".join(number(value) for value in settings)
        listed = "".join(f"{self.stored(value, FLOAT)}, " for value in occupied)
        return f"spawn(draws, {first}, {SPAWN_TRIES}, {numbers}, ({listed}))"

    def value(self, x: Scalar, dtype: str) -> str:
        """Return an argument."""
        if isinstance(x, Expression):
            return f"v{x.index}"
        if dtype == FLOAT:
            return number(x)
        return str(bool(x)) if dtype == BOOL else str(wrapped(int(x)))

    def stored(self, x: Scalar, dtype: str) -> str:
        """Return a value as a block of the type that it is written in."""
        if not isinstance(x, Expression):
            return f"tl.full([BLOCK], {self.value(x, dtype)}, {TYPES[dtype]})"
        if x.dtype != dtype:
            return CASTS[x.dtype, dtype].format(self.value(x, x.dtype))
        return self.value(x, dtype)


def wrapped(x: int) -> int:
    """Return a whole number as 32 bits have it."""
    return (x + 2**31) % 2**32 - 2**31


def number(x: float) -> str:
    """Return a float constant, exact in 32 bits."""
    x = float(np.float32(x))
    if math.isinf(x) or math.isnan(x):
        return f'float("{x}")'
    # Triton takes what is too small for a normal number of 32 bits for one of 64.
    small = 0 < abs(x) < 2.0**-126
    return f"tl.full([BLOCK], {x!r}, tl.float32)" if small else repr(x)
