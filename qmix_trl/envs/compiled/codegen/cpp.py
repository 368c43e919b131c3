"""Prints a step as C++: straight-line code over W environments, with guards."""

import math

import numpy as np

from qmix_trl.envs.compiled.codegen.printing import (
    OPERATORS,
    Forms,
    Output,
    number_places,
    statements,
)
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
FORMS = {
    **OPERATORS,
    "div": "({0} / {1})",
    "not": "(~{0})",
    "where": "({0} ? {1} : {2})",
    "floor": "vfloor({0})",
    "sqrt": "vsqrt({0})",
    "first": "{0}.x",
    "second": "{0}.y",
}
FLOAT_FORMS = {
    "abs": "vabs({0})",
    "sign": "vsign({0})",
    "minimum": "vmin({0}, {1})",
    "maximum": "vmax({0}, {1})",
    "remainder": "vremainder({0}, {1})",
}
INT_FORMS = {
    "abs": "iabs({0})",
    "sign": "isign({0})",
    "minimum": "imin({0}, {1})",
    "maximum": "imax({0}, {1})",
    "remainder": "iremainder({0}, {1})",
}
CASTS = {
    (FLOAT, INT): "to_i({0})",
    (FLOAT, BOOL): "({0} != 0.0f)",
    (INT, FLOAT): "to_f({0})",
    (INT, BOOL): "({0} != 0)",
    (BOOL, FLOAT): "b_to_f({0})",
    (BOOL, INT): "b_to_i({0})",
}
ALL_FORMS = Forms(FORMS, FLOAT_FORMS, INT_FORMS, CASTS)


def source(step: Step) -> str:
    """Return the whole source of a step's library."""
    sizes = {
        "SPAWN_TRIES": f"{SPAWN_TRIES}u",
        "SPAWN_STREAM": f"{SPAWN_STREAM}u",
        "NUMBERS": len(step.numbers),
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
    """Return the function that takes one step of W environments."""
    body = "\n  ".join(statements(outputs(step), Printer(number_places(step))))
    return f"static void step({PARAMETERS}) {{\n  {body}\n}}\n"


def outputs(step: Step) -> list[Output]:
    """Return all that a step writes."""
    seen = [*step.observation, *step.state]
    return [
        *(Output(f"seen[{j}] = {{0}};", FLOAT, x) for j, x in enumerate(seen)),
        *(Output(f"agent_reward[{a}] = {{0}};", FLOAT, x) for a, x in enumerate(step.agent_reward)),
        Output("*reward = {0};", FLOAT, step.reward),
        Output("*terminated = {0};", BOOL, step.terminated),
        *(
            Output(f"{number_place(k, row.now.dtype)} = {{0}};", row.now.dtype, row.then)
            for k, row in enumerate(step.numbers)
        ),
    ]


def number_place(k: int, dtype: str) -> str:
    """Return where a row of the next state is written; whole numbers as their bits."""
    return f"then[{k}]" if dtype == FLOAT else f"*(vi *)&then[{k}]"


class Printer:
    """Prints expressions.

    Args:
        number_of: the row of the state that holds a path's place.
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
                row = f"now[{self.number_of[x.args]}]"
                return row if x.dtype == FLOAT else f"(vi){row}"
            case "action":
                return f"action[{x.args[1]}]"
            case "uniform" | "normal":
                return f"{x.op}(draws, {x.args[0]}u)"
            case "environment":
                return "(vi)draws.environment"
            case "spawn":
                return self._spawn(x)
        return ALL_FORMS.operation(x, self.value)

    def _spawn(self, x: Expression) -> str:
        (site, *settings), *occupied = x.args
        numbers = ", ".join(number(value) for value in settings)
        listed = ", ".join(self.value(value, FLOAT) for value in occupied)
        n = len(occupied) // 2
        return f"spawn<{n}>(draws, {site}u, {numbers}, Points<{n}>{{{{{listed}}}}})"

    def value(self, x: Scalar, dtype: str) -> str:
        """Return an argument."""
        if isinstance(x, Expression):
            return f"v{x.index}"
        if dtype == FLOAT:
            return f"F({number(x)})"
        return f"N({-int(x) if dtype == BOOL else int(x)})"

    def stored(self, x: Scalar, dtype: str) -> str:
        """Return a value as the type that it is written in."""
        if isinstance(x, Expression) and x.dtype != dtype:
            return CASTS[x.dtype, dtype].format(self.value(x, x.dtype))
        return self.value(x, dtype)


def number(x: float) -> str:
    """Return a float constant, exact in 32 bits."""
    x = float(np.float32(x))
    if math.isinf(x) or math.isnan(x):
        return "NAN" if math.isnan(x) else "INFINITY" if x > 0 else "-INFINITY"
    text = repr(x)
    return text + ("f" if "." in text or "e" in text else ".0f")
