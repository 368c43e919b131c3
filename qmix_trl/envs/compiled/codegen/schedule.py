"""The order of a step's statements, and the guards around parts that are rarely needed.

Most of a simulation is contact forces, which are zero in almost all environments: a selection
(``where``) by a mask, with an expensive side. A *guard* computes that side only if the mask holds
in an environment of the block.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from qmix_trl.envs.compiled.lower.expressions import Expression, Scalar, live
from qmix_trl.envs.compiled.lower.ops import OPS

LEAF_COSTS = {"uniform": 50, "normal": 100, "spawn": 500}  # of other leaves 1
GUARD_COST = 20  # the least cost of a guarded side
LEAVES = ("state", "action")  # known before the step


@dataclass(frozen=True, eq=False)
class Guard:
    """Selections by one mask, and the expressions that only they use.

    Attributes:
        mask: a boolean.
        side: the guarded side: 1 where the mask holds, 2 where it does not.
        selections: the ``where`` expressions, in order.
        body: the expressions that nothing outside the guarded side uses, in order.
    """

    mask: Expression
    side: int
    selections: tuple[Expression, ...]
    body: tuple[Expression, ...]

    @cached_property
    def members(self) -> tuple[Expression, ...]:
        """All expressions of the guard, in order: the body may use an earlier selection."""
        return _in_order({*self.selections, *self.body})

    @cached_property
    def span(self) -> tuple[int, int]:
        """The lowest and the highest index of its expressions."""
        indices = [x.index for x in self.members]
        return min(indices), max(indices)

    @cached_property
    def needs(self) -> set[Expression]:
        """The expressions that must be known before the guard."""
        inside = set(self.members)
        outside = {x for member in self.members for x in member.inputs if x not in inside}
        return outside | {self.mask}


Statement = Expression | Guard


def cost(expressions: Iterable[Expression]) -> int:
    """Return the cost of computing expressions, in additions."""
    return sum(OPS[x.op].cost if x.op in OPS else LEAF_COSTS.get(x.op, 1) for x in expressions)


def users_of(expressions: set[Expression], outputs: Iterable[Scalar]) -> dict:
    """Return the users of each expression; None stands for an output."""
    users: dict[Expression, set[Expression | None]] = {x: set() for x in expressions}
    for expression in expressions:
        for used in expression.inputs:
            users[used].add(expression)
    for output in outputs:
        if isinstance(output, Expression):
            users[output].add(None)
    return users


def guards(outputs: list[Scalar]) -> list[Guard]:
    """Return guards that share no expression and can be ordered, the most expensive first."""
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
    """Return the guard of selections by a mask, or None if it is too cheap or not possible."""
    others = {x.args[3 - side] for x in group if isinstance(x.args[3 - side], Expression)}
    sides = {x.args[side] for x in group} - others - {mask}
    selections = {x for x in group if x.args[side] in sides}
    body = _used_only_by(selections, sides, others | {mask}, users)
    selections = {x for x in selections if x.args[side] in body}
    # Dropping a selection can make a shared operand escape its guard, so check again.
    if any(not users[x] <= (body | selections) for x in body) or cost(body) < GUARD_COST:
        return None
    return Guard(mask, side, _in_order(selections), _in_order(body))


def _used_only_by(
    selections: set[Expression], sides: set[Expression], outside: set[Expression], users: dict
) -> set[Expression]:
    """Return the expressions that only selections use, directly or through each other.

    Args:
        selections: the selections.
        sides: their guarded sides.
        outside: expressions that are left out.
        users: of each expression.
    """
    body: set[Expression] = set()
    waiting = [(-x.index, x) for x in sides]
    heapq.heapify(waiting)
    considered = set(sides)
    while waiting:
        # Users have higher indices, so all users of x are decided before x.
        _, x = heapq.heappop(waiting)
        if x in outside or x in selections or x.op in LEAVES:
            continue
        if users[x] <= (body | selections):
            body.add(x)
            for used in x.inputs:
                if used not in considered:
                    considered.add(used)
                    heapq.heappush(waiting, (-used.index, used))
    return body


def _in_order(expressions: set[Expression]) -> tuple[Expression, ...]:
    return tuple(sorted(expressions, key=lambda x: x.index))


def _waits_for_itself(guard: Guard, accepted: dict[Expression, Guard]) -> bool:
    """Say whether an expression that a guard needs depends on the guard."""
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
    """Return an index below which no expression depends on a guard.

    An expression needs only expressions of lower index. A guard needs all that its members need,
    so a dependency can lead to a lower index only through a guard that spans both.
    """
    spans = [other.span for other in dict.fromkeys(accepted.values())]
    lowest = guard.span[0]
    while True:
        reached = min([low for low, high in spans if high >= lowest], default=lowest)
        if reached >= lowest:
            return lowest
        lowest = reached


def scheduled(outputs: list[Scalar]) -> Iterator[Statement | int]:
    """Yield statements in an order of dependencies, and each output's index once it is known."""
    guard_of = {member: guard for guard in guards(outputs) for member in guard.members}
    done: set[Statement] = set()
    for i, output in enumerate(outputs):
        if isinstance(output, Expression):
            yield from _before(guard_of.get(output, output), guard_of, done)
        yield i


def _before(target: Statement, guard_of: dict[Expression, Guard], done: set) -> Iterator[Statement]:
    """Yield the statements that a statement still needs, then the statement."""
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
        stack.extend((guard_of.get(x, x), False) for x in ordered)
