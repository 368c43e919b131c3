"""The bounds of whole numbers: a kernel has 32 bits where torch mostly has 64.

What a bound cannot be proved for is taken to be below one, and raises an alarm in the step in which
it is not: the rewards of that step are NaN.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from qmix_trl.envs.compiled.lower.arrays import Unlowerable
from qmix_trl.envs.compiled.lower.expressions import (
    BOOL,
    FLOAT,
    INT,
    Expression,
    Scalar,
    live,
)
from qmix_trl.envs.compiled.lower.ops import OPS
from qmix_trl.envs.compiled.lower.step import StateNumber, Step

MOST = 2.0**31 - 1
COUNT = 2.0**20  # a factor, or a whole number made of a float, is taken to be below this
SUMS, PRODUCTS = ("add", "sub"), ("mul", "remainder", "floor_divide")
LONG_COUNT = 2.0**30  # any other count of the state is taken to be below this
MOST_GAIN = 1000.0  # of a count in a step: 32 bits last for two million steps

Bound = Callable[[Scalar], float]


def check_whole_numbers(step: Step) -> None:
    """Refuse a step whose whole numbers may leave 32 bits.

    Raises:
        Unlowerable: if a product may, a constant is beyond them, or a number of the state grows
            by more than ``MOST_GAIN`` in a step.
    """
    bounds: dict[Scalar, float] = {}

    def bound(x: Scalar) -> float:
        if not isinstance(x, Expression):
            return abs(float(x))
        return bounds[x]

    for x in live(step.outputs):
        constants = [arg for arg in x.args if isinstance(arg, int)] if x.op in OPS else []
        if any(abs(constant) > MOST for constant in constants):
            raise Unlowerable("a whole number of its step is beyond 32 bits")
    for x in step.program.expressions:
        bounds[x] = bound_of(x, bound) if x.dtype in (INT, BOOL) else 0.0
    for number in step.numbers:
        if number.now.dtype == INT and gain(number.then, number, bound) > MOST_GAIN:
            raise Unlowerable("a whole number of its state may leave 32 bits")
    for x in step.program.expressions:
        if x.dtype == INT and bounds[x] > MOST:
            raise Unlowerable("a product of its whole numbers may leave 32 bits")


def bound_of(x: Expression, bound: Bound) -> float:
    """Return the greatest magnitude of a whole number or a boolean.

    Args:
        x: the expression.
        bound: returns it for the arguments.
    """
    if x.dtype == BOOL:
        return 1.0
    args = [bound(arg) for arg in x.args if not isinstance(arg, Expression) or arg.dtype != "f"]
    match x.op:
        case "add" | "sub":
            return sum(args)
        case "mul":
            return args[0] * args[1]
        case "sign":
            return 1.0
        case "remainder" | "neg" | "abs" | "floor_divide" | "minimum" | "maximum" | "where":
            return max(args)
        case "cast":
            return max(args, default=COUNT)
    return COUNT


def gain(x: Scalar, number: StateNumber, bound: Bound) -> float:
    """Return by how much a number of the state may grow in a step.

    Args:
        x: its next value, or a part of it.
        number: the number.
        bound: returns the greatest magnitude of an expression.
    """
    if x is number.now or not isinstance(x, Expression):
        return 0.0
    if x.op in ("add", "sub") and depends(x, number.now):
        a, b = x.args
        kept, added = (a, b) if depends(a, number.now) else (b, a)
        is_once = not depends(added, number.now) and (x.op == "add" or kept is a)
        return gain(kept, number, bound) + bound(added) if is_once else float("inf")
    if x.op in ("where", "minimum", "maximum"):
        return max(gain(arg, number, bound) for arg in x.args[-2:])
    return 0.0 if (bound(x) <= COUNT and x.op != "mul") or not depends(x, number.now) else MOST


def depends(x: Scalar, leaf: Expression) -> bool:
    """Return whether a scalar is computed from a leaf."""
    waiting, seen = [x], set()
    while waiting:
        each = waiting.pop()
        if each is leaf:
            return True
        if isinstance(each, Expression) and each not in seen:
            seen.add(each)
            waiting.extend(each.inputs)
    return False


def with_alarms(step: Step) -> Step:
    """Return a step whose rewards are NaN where a whole number is beyond the bound taken for it."""
    program, alarm = step.program, False
    for x, limit in doubtful(step):
        size = program.apply("abs", x, dtype=x.dtype)
        is_below = program.apply("lt", size, limit if x.dtype == FLOAT else int(limit), dtype=BOOL)
        is_beyond = program.apply("not", is_below, dtype=BOOL)
        alarm = program.apply("or", alarm, is_beyond, dtype=BOOL)

    def alarmed(reward: Scalar) -> Scalar:
        return program.apply("where", alarm, float("nan"), reward, dtype=FLOAT)

    agent_reward = [alarmed(reward) for reward in step.agent_reward]
    return replace(step, agent_reward=agent_reward, reward=alarmed(step.reward))


def doubtful(step: Step) -> Iterator[tuple[Expression, float]]:
    """Yield the numbers for which a bound is taken without a proof, each with the bound."""
    needed = sorted(live(step.outputs), key=lambda x: x.index)
    for x in needed:
        if x.op == "cast" and x.dtype == INT and x.args[0].dtype == FLOAT:
            yield x.args[0], COUNT
    for number in step.numbers:
        if number.now.dtype == INT and number.then is not number.now:
            yield number.now, COUNT if is_computed_with(number, needed) else LONG_COUNT


def is_computed_with(number: StateNumber, needed: list[Expression]) -> bool:
    """Return whether whole numbers are computed from a number of the state, but for its own next.

    Args:
        number: the number.
        needed: the expressions of the step, each after its arguments.
    """
    then, reached = live([number.then]), {number.now}
    for x in needed:
        if reached.isdisjoint(x.inputs):
            continue
        reached.add(x)
        if x.dtype == INT and (x.op in PRODUCTS or (x.op in SUMS and x not in then)):
            return True
    return False
