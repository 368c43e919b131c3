"""The rule that lowers each aten operation.

A rule takes the ``Call`` and the operation's own arguments, by the names that aten gives them, with
arrays of expressions in place of tensors. It returns the result's array, or several; for an
operation in place, the value to write. Any rule may raise ``Unlowerable``.
"""

from collections.abc import Callable, Mapping

from qmix_trl.envs.compiled.lower import arithmetic, indices, reductions, views


def merged(*tables: Mapping[str, Callable]) -> dict[str, Callable]:
    """Return the rules of all tables.

    Raises:
        ValueError: if two tables have a rule for one operation.
    """
    rules: dict[str, Callable] = {}
    for table in tables:
        if twice := sorted(rules.keys() & table.keys()):
            raise ValueError(f"rules: expected one rule for {', '.join(twice)}, got two; drop one")
        rules.update(table)
    return rules


RULES = merged(views.RULES, arithmetic.RULES, reductions.RULES, indices.RULES)
