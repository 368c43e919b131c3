"""Whole numbers that may leave the 32 bits of a kernel are refused, all others are not."""

import math
from dataclasses import replace

import pytest
from compiled_tools import evaluated

from qmix_trl.envs.compiled.lower.arrays import Unlowerable
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT, INT, Program
from qmix_trl.envs.compiled.lower.step import StateNumber, Step
from qmix_trl.envs.compiled.lower.whole_numbers import check_whole_numbers, with_alarms


def step_with(then):
    """Return a step whose only number of the state is a count; ``then`` returns its next value."""
    program = Program()
    count = program.leaf("state", 0, 0, dtype=INT)
    number = StateNumber(0, 0, count, then(program, count))
    return Step(program, [], [], [], 0.0, False, [number], 0)


def added(amount):
    """Return a function of the count that adds a constant."""
    return lambda p, n: p.apply("add", n, amount, dtype=INT)


def flag(p):
    """Return a boolean of the state."""
    return p.leaf("state", 1, 0, dtype=BOOL)


RIGHT = {
    "a count of steps": added(1),
    "a count of events": lambda p, n: p.apply("add", n, p.cast(flag(p), INT), dtype=INT),
    "a count that restarts": lambda p, n: p.apply("where", flag(p), 0, added(1)(p, n), dtype=INT),
    "a count down to zero": lambda p, n: p.apply(
        "maximum", p.apply("sub", n, 1, dtype=INT), 0, dtype=INT
    ),
    "an index": lambda p, n: p.cast(p.leaf("state", 2, 0, dtype=FLOAT), INT),
    # 1,000 a step reach 2^31 after 2.1 million steps.
    "the greatest gain": added(1000),
}
WRONG = {
    "money": added(1001),
    "money of one way": lambda p, n: p.apply(
        "where", flag(p), added(10**6)(p, n), added(1)(p, n), dtype=INT
    ),
    "a doubled count": lambda p, n: p.apply("add", n, n, dtype=INT),
    "a debt from a count": lambda p, n: p.apply("sub", 5, n, dtype=INT),
    "a constant beyond them": lambda p, n: p.apply("minimum", n, 10**10, dtype=INT),
    # A count is taken to be below 2^20: its square fits neither way.
    "a square": lambda p, n: p.apply("mul", n, n, dtype=INT),
    "a count times 4,096": lambda p, n: p.apply("mul", n, 4096, dtype=INT),
}


@pytest.mark.parametrize("then", RIGHT.values(), ids=RIGHT)
def test_counts_and_indices_fit(then):
    check_whole_numbers(step_with(then))


@pytest.mark.parametrize("then", WRONG.values(), ids=WRONG)
def test_numbers_that_may_grow_beyond_32_bits_are_refused(then):
    with pytest.raises(Unlowerable, match=r"may leave 32 bits|is beyond 32 bits"):
        check_whole_numbers(step_with(then))


def seen_by(observation):
    """Return a step that counts, with an observation that is a function of the count."""
    step = step_with(added(1))
    (number,) = step.numbers
    return replace(step, observation=[observation(step.program, number.now)])


@pytest.mark.parametrize(
    ("step", "below", "beyond"),
    [
        (step_with(RIGHT["an index"]), 2.0**20 - 1, 2.0**20),
        (step_with(RIGHT["an index"]), -(2.0**20) + 1, math.nan),
        (step_with(added(1)), 2**30 - 1, 2**30),
        (seen_by(lambda p, n: p.apply("mul", n, 2000, dtype=INT)), 2**20 - 1, 2**20),
        (seen_by(lambda p, n: p.apply("remainder", n, 7, dtype=INT)), 2**20 - 1, 2**20),
        (seen_by(lambda p, n: p.apply("add", n, n, dtype=INT)), 2**20 - 1, 2**20),
        (seen_by(lambda p, n: p.apply("minimum", n, 7, dtype=INT)), 2**30 - 1, 2**30),
    ],
    ids=["an index", "an index of NaN", "a count", "a factor", "a rest", "a sum", "a minimum"],
)
def test_a_number_beyond_its_bound_makes_the_rewards_nan(step, below, beyond):
    reward = with_alarms(step).reward

    def rewarded(value):
        return evaluated(
            reward, lambda leaf: value if leaf.dtype == type(value).__name__[0] else 0, {}
        )

    assert rewarded(below) == 0
    assert math.isnan(rewarded(beyond))
