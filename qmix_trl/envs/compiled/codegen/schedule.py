"""In which order expressions are computed, and which of them only where they matter.

Most of a simulation is contact forces that are zero for almost all environments: a ``where`` on a
mask, with an expensive side. A *guard* computes that side only if the mask holds for any
environment of the block.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from qmix_trl.envs.compiled.lower.expressions import Expression, Scalar

COSTS = {
    **dict.fromkeys(("div", "sqrt", "floor_divide", "remainder"), 5),
    **dict.fromkeys(("sin", "cos", "tan", "exp", "log", "tanh", "atan2"), 20),
    **dict.fromkeys(("logaddexp", "uniform"), 50),
    "normal": 100,
    "spawn": 500,
}  # of one operation; 1 if it is not here
GUARD_COST = 20  # what a guarded side must cost
LEAVES = ("state", "action")


@dataclass(frozen=True, eq=False)
class Guard:
    """Selections on one mask, and what only they need.

    Attributes:
        mask: a boolean.
        side: which side is guarded, 1 where the mask holds, 2 where it does not.
        selections: the ``where`` expressions, in order.
        body: what is computed only if needed, in order.
    """

    mask: Expression
    side: int
    selections: tuple[Expression, ...]
    body: tuple[Expression, ...]

    @cached_property
    def members(self) -> tuple[Expression, ...]:
        """All expressions of the guard, in order: a body may read a selection before it."""
        return tuple(sorted(self.selections + self.body, key=lambda x: x.index))

    @cached_property
    def span(self) -> tuple[int, int]:
        """The lowest and the highest index of its expressions."""
        indices = [x.index for x in self.members]
        return min(indices), max(indices)

    @cached_property
    def needs(self) -> set[Expression]:
        """What must be known before."""
        inside = set(self.members)
        outside = {x for member in self.members for x in member.inputs if x not in inside}
        return outside | {self.mask}


Statement = Expression | Guard


def live(outputs: Iterable[Scalar]) -> set[Expression]:
    """Return all expressions that outputs depend on."""
    found: set[Expression] = set()
    waiting = [x for x in outputs if isinstance(x, Expression)]
    while waiting:
        expression = waiting.pop()
        if expression not in found:
            found.add(expression)
            waiting.extend(expression.inputs)
    return found


def cost(expressions: Iterable[Expression]) -> int:
    """Return what expressions cost together."""
    return sum(COSTS.get(x.op, 1) for x in expressions)


def users_of(expressions: set[Expression], outputs: Iterable[Scalar]) -> dict:
    """Return for each expression the expressions that use it, with None for an output."""
    users: dict[Expression, set[Expression | None]] = {x: set() for x in expressions}
    for expression in expressions:
        for used in expression.inputs:
            users[used].add(expression)
    for output in outputs:
        if isinstance(output, Expression):
            users[output].add(None)
    return users


def guards(outputs: list[Scalar]) -> list[Guard]:
    """Return guards that can be computed one by one, the most expensive first."""
    expressions = live(outputs)
    users = users_of(expressions, outputs)
    groups: dict[tuple[Expression, int], list[Expression]] = {}
    for x in sorted(expressions, key=lambda x: x.index):
        if x.op == "where":
            for side in (1, 2):
                if isinstance(x.args[side], Expression) and x.args[side].op not in LEAVES:
                    groups.setdefault((x.args[0], side), []).append(x)
    candidates = [_guard(mask, side, group, users) for (mask, side), group in groups.items()]
    candidates = [g for g in candidates if g is not None]
    candidates.sort(key=lambda g: -cost(g.body))
    accepted: dict[Expression, Guard] = {}
    for guard in candidates:
        if any(member in accepted for member in guard.members) or guard.mask in guard.members:
            continue
        accepted.update(dict.fromkeys(guard.members, guard))
        if _waits_for_itself(guard, accepted):
            for member in guard.members:
                del accepted[member]
    return list(dict.fromkeys(accepted.values()))


def _guard(mask: Expression, side: int, group: list[Expression], users: dict) -> Guard | None:
    """Return the guard of selections on a mask, None if it is not worth it."""
    other = {x.args[3 - side] for x in group if isinstance(x.args[3 - side], Expression)}
    sides = {x.args[side] for x in group} - other - {mask}
    selections = {x for x in group if x.args[side] in sides}
    body: set[Expression] = set()
    waiting = [(-x.index, x) for x in sides]
    heapq.heapify(waiting)
    considered = set(sides)
    while waiting:
        # Users come later in the program: when it is an expression's turn, all are decided.
        _, x = heapq.heappop(waiting)
        if x in other or x is mask or x in selections or x.op in LEAVES:
            continue
        if users[x] <= (body | selections):
            body.add(x)
            for used in x.inputs:
                if used not in considered:
                    considered.add(used)
                    heapq.heappush(waiting, (-used.index, used))
    selections = {x for x in selections if x.args[side] in body}
    # A side that is left alone may have held others: they are used outside now.
    if any(None in users[x] or not users[x] <= (body | selections) for x in body):
        return None
    if cost(body) < GUARD_COST:
        return None

    def in_order(xs: set[Expression]) -> tuple[Expression, ...]:
        return tuple(sorted(xs, key=lambda x: x.index))

    return Guard(mask, side, in_order(selections), in_order(body))


def _waits_for_itself(guard: Guard, accepted: dict[Expression, Guard]) -> bool:
    """Say whether something that a guard needs depends on what it gives."""
    lowest = _lowest_dependent(guard, accepted)
    seen: set[Statement] = set()
    waiting: list[Statement] = [accepted.get(x, x) for x in guard.needs]
    while waiting:
        statement = waiting.pop()
        if statement is guard:
            return True
        if statement in seen or (isinstance(statement, Expression) and statement.index < lowest):
            continue
        seen.add(statement)
        needs = statement.needs if isinstance(statement, Guard) else statement.inputs
        waiting.extend(accepted.get(x, x) for x in needs)
    return False


def _lowest_dependent(guard: Guard, accepted: dict[Expression, Guard]) -> int:
    """Return an index below which no expression can depend on a guard.

    Expressions need only what comes before them in the program. Guards need all that any of
    their members does: a way to later expressions leads through guards that span them.
    """
    spans = [other.span for other in dict.fromkeys(accepted.values())]
    lowest = guard.span[0]
    while True:
        reached = min([low for low, high in spans if high >= lowest], default=lowest)
        if reached >= lowest:
            return lowest
        lowest = reached


def scheduled(outputs: list[Scalar]) -> Iterator[Statement | int]:
    """Give statements in an order that can be computed, and the index of each output behind it."""
    of = {member: guard for guard in guards(outputs) for member in guard.members}
    done: set[Statement] = set()
    for i, output in enumerate(outputs):
        if isinstance(output, Expression):
            yield from _before(of.get(output, output), of, done)
        yield i


def _before(target: Statement, of: dict[Expression, Guard], done: set) -> Iterator[Statement]:
    """Give a statement behind all that it needs."""
    stack: list[tuple[Statement, bool]] = [(target, False)]
    while stack:
        statement, ready = stack.pop()
        if statement in done:
            continue
        if ready:
            done.add(statement)
            yield statement
            continue
        stack.append((statement, True))
        needs = statement.needs if isinstance(statement, Guard) else statement.inputs
        ordered = sorted(needs, key=lambda x: -x.index)
        stack.extend((of.get(x, x), False) for x in ordered)
