"""Prints a step as a Triton kernel: straight-line code over a block of environments, with guards.

The kernel takes the steps and resets of ``rollout.h``. Its functions are in ``triton_simd``, under
the names of ``simd.h``.
"""

import math

import numpy as np

from qmix_trl.envs.compiled.codegen.printing import Language, Output, number_places, statements
from qmix_trl.envs.compiled.codegen.schedule import Guard
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT, INT, Expression, Scalar
from qmix_trl.envs.compiled.lower.step import Step
from qmix_trl.envs.compiled.trace.draws import SPAWN_STREAM, SPAWN_TRIES

TYPES = {FLOAT: "tl.float32", INT: "tl.int32", BOOL: "tl.int1"}
FORMS = {
    "div": "tl.div_rn({0}, {1})",
    "not": "({0} == 0)",
    "where": "tl.where({0}, {1}, {2})",
    "abs": "tl.abs({0})",
    "sqrt": "tl.sqrt_rn({0})",
    "first": "{0}[0]",
    "second": "{0}[1]",
}  # all others are in OPS
INT_FORMS = {"minimum": "tl.minimum({0}, {1})", "maximum": "tl.maximum({0}, {1})"}
OF_BLOCKS = ("atan2", "logaddexp", "floor_divide", "remainder")  # a constant must be a block
CASTS = {
    (FLOAT, INT): "{0}.to(tl.int32)",
    (FLOAT, BOOL): "({0} != 0.0)",
    (INT, FLOAT): "{0}.to(tl.float32)",
    (INT, BOOL): "({0} != 0)",
    (BOOL, FLOAT): "{0}.to(tl.float32)",
    (BOOL, INT): "{0}.to(tl.int32)",
}
TRITON = Language(FORMS, INT_FORMS, CASTS)
# The state holds an integer or a boolean as the float with the same bits; True has all bits set.
FROM_BITS = {FLOAT: "{0}", INT: "as_bits({0})", BOOL: "(as_bits({0}) != 0)"}
TO_BITS = {FLOAT: "{0}", INT: "as_float({0})", BOOL: "as_float(-({0}.to(tl.int32)))"}
# The functions of triton_simd that a kernel may call.
FUNCTIONS = {"as_bits", "as_float", "normal", "put", "some", "spawn", "uniform"}
FUNCTIONS |= TRITON.functions()
HEAD = f"""\
import triton
import triton.language as tl

from qmix_trl.envs.compiled.codegen.triton_simd import {", ".join(sorted(FUNCTIONS))}

SIZES = ("first", "n_steps", "buffer_steps", "n_envs", "stride", "max_steps", "reset_when_done",
         "pool_size")
POINTERS = ("action", "seen", "last_seen", "agent_reward", "reward", "terminated", "truncated",
            "done", "state", "steps", "resets", "key", "pool")


# One kernel serves all sizes, because compiling takes long.
@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=POINTERS)
def rollout(
    # The steps to take, in buffers (buffers.py) of buffer_steps steps.
    first, n_steps, buffer_steps,
    action, seen, last_seen, agent_reward, reward, terminated, truncated, done,
    # State [NUMBERS, stride]; steps since the last reset and resets since the pool was drawn, both
    # [n_envs]; the key [2]: the seed and the number of the first step.
    n_envs, stride, state, steps, resets, key,
    max_steps, reset_when_done,
    # States of the pool [pool_size, NUMBERS + SEEN].
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
# Reset r of environment e takes state e + r n_envs of the pool, as in rollout.h.
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
    """Return the source of a Python module whose ``rollout`` is the kernel of a step."""
    numbers = range(len(step.numbers))
    return "\n".join(
        [
            HEAD + "\n".join(f"    s{k} = tl.load(state + {k} * stride + e)" for k in numbers),
            "    for t in range(first, first + n_steps):",
            *(f"        {line}" for line in body(step)),
            *(f"    tl.store(state + {k} * stride + e, s{k}, mask=inside)" for k in numbers),
            TAIL,
        ]
    )


def body(step: Step) -> list[str]:
    """Return the lines that take one step of a block of environments."""
    printer = Printer(number_places(step), step.n_agents)
    kept = (f"s{k} = t{k}" for k in range(len(step.numbers)))
    return [*BEGIN.splitlines(), *statements(outputs(step), printer), *kept]


def outputs(step: Step) -> list[Output]:
    """Return the numbers that a step writes, in the order in which they are computed.

    ``terminated`` comes first: where a reset follows, the observation and the state that are
    written afterwards come from the pool.
    """
    seen = [*step.observation, *step.state]
    n_numbers, n = len(step.numbers), step.n_agents
    n_from_pool = n_numbers - step.n_carried
    end = END.format(terminated="{0}", width=n_numbers + len(seen), seen=len(seen))
    return [
        Output(end, BOOL, step.terminated),
        Output("tl.store(reward + place, {0}, mask=inside)", FLOAT, step.reward),
        *(
            Output(f"tl.store(agent_reward + place * {n} + {a}, {{0}}, mask=inside)", FLOAT, x)
            for a, x in enumerate(step.agent_reward)
        ),
        *(Output(seen_form(j, n_numbers), FLOAT, x) for j, x in enumerate(seen)),
        *(
            Output(number_form(k, number.now.dtype, n_from_pool), number.now.dtype, number.then)
            for k, number in enumerate(step.numbers)
        ),
    ]


def seen_form(j: int, n_numbers: int) -> str:
    """Return the statement that writes number j of observation and state."""
    return f"put(seen_to + {j}, last_to + {j}, fresh + {n_numbers + j}, {{0}}, over, taken, inside)"


def number_form(k: int, dtype: str, n_from_pool: int) -> str:
    """Return the statement that keeps number k of the next packed state.

    Where a reset follows, the first ``n_from_pool`` numbers come from the pool.
    """
    bits = TO_BITS[dtype]
    return f"t{k} = " + (
        f"tl.load(fresh + {k}, mask=taken, other={bits})" if k < n_from_pool else bits
    )


class Printer:
    """Prints expressions as Triton.

    Args:
        number_of: the index of a state number, by path and place.
        n_agents: N.
    """

    def __init__(self, number_of: dict[tuple[int, int], int], n_agents: int) -> None:
        self.number_of = number_of
        self.n_agents = n_agents

    def definition(self, x: Expression) -> str:
        """Return the statement that computes an expression."""
        return f"v{x.index} = {self.form(x)}"

    def guard(self, guard: Guard) -> list[str]:
        """Return the statements of a guard.

        Triton wants a variable to have one type and shape before and inside a branch.
        """
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
        return TRITON.operation(x, self.stored if x.op in OF_BLOCKS else self.value)

    def _spawn(self, x: Expression) -> str:
        (site, *settings), *occupied = x.args
        first = wrapped((site + 1) * SPAWN_STREAM)
        numbers = ", ".join(number(value) for value in settings)
        listed = "".join(f"{self.stored(value, FLOAT)}, " for value in occupied)
        return f"spawn(draws, {first}, {SPAWN_TRIES}, {numbers}, ({listed}))"

    def value(self, x: Scalar, dtype: str) -> str:
        """Return the code of a value; a constant is printed as the type."""
        if isinstance(x, Expression):
            return f"v{x.index}"
        if dtype == FLOAT:
            return number(x)
        return str(bool(x)) if dtype == BOOL else str(wrapped(int(x)))

    def stored(self, x: Scalar, dtype: str) -> str:
        """Return the code of a value as a block of the type as which it is written."""
        if not isinstance(x, Expression):
            return f"tl.full([BLOCK], {self.value(x, dtype)}, {TYPES[dtype]})"
        if x.dtype != dtype:
            return CASTS[x.dtype, dtype].format(self.value(x, x.dtype))
        return self.value(x, dtype)


def wrapped(x: int) -> int:
    """Return an integer wrapped to 32 bits, two's complement."""
    return (x + 2**31) % 2**32 - 2**31


def number(x: float) -> str:
    """Return the literal of a float32."""
    x = float(np.float32(x))
    if math.isinf(x) or math.isnan(x):
        return f'float("{x}")'
    # Triton takes a literal below the smallest normal float32 for a float64.
    small = 0 < abs(x) < 2.0**-126
    return f"tl.full([BLOCK], {x!r}, tl.float32)" if small else repr(x)
