"""Prints a step as C++: straight-line code over W environments, with guards.

A state value that is an integer or a boolean is stored as the float with the same bits.
"""

import math

import numpy as np

from qmix_trl.envs.compiled.codegen.printing import Language, Output, number_places, statements
from qmix_trl.envs.compiled.codegen.rollout import Rollout
from qmix_trl.envs.compiled.codegen.schedule import Guard
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT, INT, PAIR, Expression, Scalar
from qmix_trl.envs.compiled.lower.step import Step
from qmix_trl.envs.compiled.trace.draws import SPAWN_STREAM, SPAWN_TRIES
from qmix_trl.native.store import header
from qmix_trl.native.structures import c_struct

TYPES = {FLOAT: "vf", INT: "vi", BOOL: "vi", PAIR: "Pair"}
PARAMETERS = (
    "const vf *now, vf *then, const vi *action, const Draws &draws, "
    "vf *seen, vf *agent_reward, vf *reward, vi *terminated"
)
FORMS = {"first": "{0}.x", "second": "{0}.y"}  # all others are in OPS
CASTS = {
    (FLOAT, INT): "to_i({0})",
    (FLOAT, BOOL): "({0} != 0.0f)",
    (INT, FLOAT): "to_f({0})",
    (INT, BOOL): "({0} != 0)",
    (BOOL, FLOAT): "b_to_f({0})",
    (BOOL, INT): "b_to_i({0})",
}
CPP = Language(FORMS, {}, CASTS)


def source(step: Step) -> str:
    """Return the source of a step's library, headers included."""
    sizes = {
        "SPAWN_TRIES": f"{SPAWN_TRIES}u",
        "SPAWN_STREAM": f"{SPAWN_STREAM}u",
        "NUMBERS": len(step.numbers),
        "FROM_POOL": len(step.numbers) - step.n_carried,
        "AGENTS": step.n_agents,
        "SEEN": len(step.observation) + len(step.state),
    }
    return "\n".join(
        [
            *(f"#define {name} {size}" for name, size in sizes.items()),
            header("qmix_trl.native", "simd.h"),
            header(__package__, "draws.h"),
            function(step),
            c_struct(Rollout),
            header(__package__, "rollout.h"),
        ]
    )


def function(step: Step) -> str:
    """Return the C++ function that takes one step of W environments."""
    body = "\n  ".join(statements(outputs(step), Printer(number_places(step))))
    return f"static void step({PARAMETERS}) {{\n  {body}\n}}\n"


def outputs(step: Step) -> list[Output]:
    """Return the numbers that a step writes, in the order in which they are computed."""
    seen = [*step.observation, *step.state]
    return [
        *(Output(f"seen[{j}] = {{0}};", FLOAT, x) for j, x in enumerate(seen)),
        *(Output(f"agent_reward[{a}] = {{0}};", FLOAT, x) for a, x in enumerate(step.agent_reward)),
        Output("*reward = {0};", FLOAT, step.reward),
        Output("*terminated = {0};", BOOL, step.terminated),
        *(
            Output(f"{number_place(k, number.now.dtype)} = {{0}};", number.now.dtype, number.then)
            for k, number in enumerate(step.numbers)
        ),
    ]


def number_place(k: int, dtype: str) -> str:
    """Return the place of a number of the next state."""
    return f"then[{k}]" if dtype == FLOAT else f"*(vi *)&then[{k}]"


class Printer:
    """Prints expressions as C++.

    Args:
        number_of: the index of a state number, by path and place.
    """

    def __init__(self, number_of: dict[tuple[int, int], int]) -> None:
        self.number_of = number_of

    def definition(self, x: Expression) -> str:
        """Return the statement that computes an expression."""
        return f"const {TYPES[x.dtype]} v{x.index} = {self.form(x)};"

    def guard(self, guard: Guard) -> list[str]:
        """Return the statements of a guard."""
        other, mask = 3 - guard.side, f"v{guard.mask.index}"
        lines = [
            f"{TYPES[x.dtype]} v{x.index} = {self.value(x.args[other], x.dtype)};"
            for x in guard.selections
        ]
        lines.append(f"if (any({mask if guard.side == 1 else '~' + mask})) {{")
        for x in guard.members:
            selected = f"v{x.index} = {self.form(x)};"
            lines.append(f"  {selected if x in guard.selections else self.definition(x)}")
        return [*lines, "}"]

    def form(self, x: Expression) -> str:
        """Return the code of an expression."""
        match x.op:
            case "state":
                place = f"now[{self.number_of[x.args]}]"
                return place if x.dtype == FLOAT else f"(vi){place}"
            case "action":
                return f"action[{x.args[1]}]"
            case "uniform" | "normal":
                return f"{x.op}(draws, {x.args[0]}u)"
            case "environment":
                return "(vi)draws.environment"
            case "spawn":
                return self._spawn(x)
        return CPP.operation(x, self.value)

    def _spawn(self, x: Expression) -> str:
        (site, *settings), *occupied = x.args
        numbers = ", ".join(number(value) for value in settings)
        listed = ", ".join(self.value(value, FLOAT) for value in occupied)
        n = len(occupied) // 2
        return f"spawn<{n}>(draws, {site}u, {numbers}, Points<{n}>{{{{{listed}}}}})"

    def value(self, x: Scalar, dtype: str) -> str:
        """Return the code of a value; a constant is printed as the type."""
        if isinstance(x, Expression):
            return f"v{x.index}"
        if dtype == FLOAT:
            return f"F({number(x)})"
        return f"N({-int(x) if dtype == BOOL else int(x)})"

    def stored(self, x: Scalar, dtype: str) -> str:
        """Return the code of a value, converted to the type as which it is written."""
        if isinstance(x, Expression) and x.dtype != dtype:
            return CASTS[x.dtype, dtype].format(self.value(x, x.dtype))
        return self.value(x, dtype)


def number(x: float) -> str:
    """Return the literal of a float32."""
    x = float(np.float32(x))
    if math.isinf(x) or math.isnan(x):
        return "NAN" if math.isnan(x) else "INFINITY" if x > 0 else "-INFINITY"
    text = repr(x)
    return text + ("f" if "." in text or "e" in text else ".0f")
