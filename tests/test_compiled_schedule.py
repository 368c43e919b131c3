"""Expressions and their schedule: simplification, guards, and their C++."""

import math
import random
from itertools import product

import numpy as np
import pytest
from compiled_tools import STATE, by_definition, close, evaluated, run_as_cpp

from qmix_trl.envs.compiled.codegen.schedule import GUARD_COST, Guard, cost, guards, scheduled
from qmix_trl.envs.compiled.lower.expressions import (
    BOOL,
    CASTS,
    FLOAT,
    INT,
    Expression,
    Program,
    live,
    single,
)
from qmix_trl.envs.compiled.lower.ops import OPS

# ------------------------------------------------------------------------------ expressions

UNARY = {FLOAT: ("neg", "abs", "sign", "floor", "sin", "cos"), BOOL: ("not",)}
BINARY = {FLOAT: ("add", "sub", "mul", "div", "minimum", "maximum"), BOOL: ("and", "or")}
COMPARISONS = ("lt", "le", "eq", "ne")
# Simplifications look for zero and one, and for divisions by powers of two.
CONSTANTS = {FLOAT: (0.0, 1.0, -1.0, 0.1, 2.0, 0.5, 4.0, -3.0), BOOL: (False, True)}
N_LEAVES = 3


def random_tree(rng, dtype, depth):
    """Return a random tree: (type, operation, arguments), with leaves and constants at its ends."""
    if depth == 0 or rng.random() < 0.1:
        if rng.random() < 0.4:
            return dtype, "constant", rng.choice(CONSTANTS[dtype])
        return dtype, "leaf", rng.randrange(N_LEAVES)
    kind = rng.random()
    if kind < 0.25:
        kinds = (BOOL, dtype, dtype)
        op = "where"
    elif kind < 0.45:
        op, kinds = rng.choice(UNARY[dtype]), (dtype,)
    elif kind < 0.55:
        other = FLOAT if dtype == BOOL else BOOL
        op, kinds = "cast", (other,)
    elif dtype == BOOL and kind < 0.75:
        op, kinds = rng.choice(COMPARISONS), (FLOAT, FLOAT)
    else:
        op, kinds = rng.choice(BINARY[dtype]), (dtype, dtype)
    return dtype, op, tuple(random_tree(rng, of, depth - 1) for of in kinds)


def built(program, tree):
    """Return a tree as an expression, simplified by the program."""
    dtype, op, args = tree
    if op == "constant":
        return program.cast(args, dtype)
    if op == "leaf":
        return program.leaf(dtype, args, dtype=dtype)
    if op == "cast":
        return program.cast(built(program, args[0]), dtype)
    return program.apply(op, *(built(program, arg) for arg in args), dtype=dtype)


def meaning(tree, leaves):
    """Return the value of a tree by the folds of ``OPS``."""
    dtype, op, args = tree
    if op == "constant":
        return CASTS[dtype](args)
    if op == "leaf":
        return leaves[dtype, args]
    return CASTS[dtype](OPS[op].fold(*(meaning(arg, leaves) for arg in args)))


def test_simplified_expressions_mean_the_same():
    rng, compared, simpler = random.Random(0), 0, 0
    for _ in range(400):
        tree, program = random_tree(rng, rng.choice((FLOAT, BOOL)), 5), Program()
        x = built(program, tree)
        simpler += not isinstance(x, Expression)
        for _ in range(3):
            leaves = {(FLOAT, i): single(rng.choice((0, 1, rng.gauss(0, 2)))) for i in range(3)}
            leaves |= {(BOOL, i): rng.random() < 0.5 for i in range(3)}
            expected = meaning(tree, leaves)
            got = evaluated(x, lambda leaf, given=leaves: given[leaf.op, leaf.args[0]], {})
            assert repr(got) == repr(expected), tree  # tells -0.0 from 0.0
            compared += 1
    assert compared == 1200
    assert simpler > 20  # 29 are constants


def leaves_of(program, n, dtype=FLOAT):
    """Return n leaves of the state."""
    return [program.leaf("state", 0, i, dtype=dtype) for i in range(n)]


def test_equal_expressions_are_one():
    program = Program()
    a, b = leaves_of(program, 2)
    first = program.apply("sin", program.apply("add", a, b, dtype=FLOAT), dtype=FLOAT)
    second = program.apply("sin", program.apply("add", b, a, dtype=FLOAT), dtype=FLOAT)
    assert first is second
    assert len(program.expressions) == 4  # a, b, their sum and its sine
    assert program.leaf("state", 0, 1, dtype=FLOAT) is b


@pytest.mark.parametrize("op", ["sub", "div", "lt", "le", "atan2", "minimum", "remainder"])
def test_the_order_of_arguments_matters(op):
    program = Program()
    a, b = leaves_of(program, 2)
    assert program.apply(op, a, b, dtype=FLOAT) is not program.apply(op, b, a, dtype=FLOAT)


def test_constants_of_other_types_are_others():
    program = Program()
    (a,) = leaves_of(program, 1, INT)
    of_int, of_bool = (program.apply("add", a, one, dtype=INT) for one in (1, True))
    assert of_int is not of_bool
    assert program.apply("add", a, 1, dtype=FLOAT) is not of_int


def test_arguments_come_before_what_uses_them():
    rng, program = random.Random(1), Program()
    for _ in range(50):
        built(program, random_tree(rng, FLOAT, 5))
    assert [x.index for x in program.expressions] == list(range(len(program.expressions)))
    assert all(used.index < x.index for x in program.expressions for used in x.inputs)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
def test_constants_are_folded_in_single_precision(op):
    numbers = (0.1, 0.7, 1e8, -3.3, 1e-30)
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[op]
    for a, b in product(numbers, numbers):
        a, b = np.float32(a), np.float32(b)
        with np.errstate(all="ignore"):
            expected = function(a, b)  # in float32, by NumPy
        folded = Program().apply(op, float(a), float(b), dtype=FLOAT)
        assert folded == float(expected)


def test_no_infinity_is_simplified_away():
    program = Program()
    (a,) = leaves_of(program, 1)
    gone = program.apply("sub", a, a, dtype=FLOAT)
    assert math.isnan(evaluated(gone, lambda leaf: math.inf, {}))
    ratio = program.apply("div", a, a, dtype=FLOAT)
    assert math.isnan(evaluated(ratio, lambda leaf: 0.0, {}))


@pytest.mark.parametrize(
    "divisor",
    [
        2.0,
        -2.0,
        2.0**-20,
        2.0**126,
        3.0,
        2.0**-140,  # its inverse is no float32
    ],
)
def test_a_division_by_a_constant_is_exact(divisor):
    program = Program()
    (a,) = leaves_of(program, 1)
    x = program.apply("div", a, divisor, dtype=FLOAT)
    factor = single(x.args[1])  # as it is printed
    assert x.op in ("mul", "div")
    for value in (0.0, 1.0, -0.3, 1e-20):
        value = np.float32(value)
        with np.errstate(all="ignore"):
            got = value * np.float32(factor) if x.op == "mul" else value / np.float32(factor)
            assert got == value / np.float32(divisor)


# ------------------------------------------------------------------------------ schedule


MASKS = list(STATE).index("b")


def masks_above(x, found):
    """Return the masks of all selections that an expression depends on."""
    if isinstance(x, Expression) and x not in found:
        above = [masks_above(arg, found) for arg in x.args]
        found[x] = frozenset().union(*above, {x.args[0]} if x.op == "where" else set())
    return found[x] if isinstance(x, Expression) else frozenset()


def random_program(rng, *, nested, size=60):
    """Return outputs of a random program full of selections with expensive sides.

    With ``nested`` a selection may depend on another one by the same mask.
    """
    program, above = Program(), {}
    floats = [program.leaf("state", 0, i, dtype=FLOAT) for i in range(4)]
    masks = [program.leaf("state", MASKS, i, dtype=BOOL) for i in range(3)]
    for _ in range(size):
        a, b = rng.choice(floats[-8:]), rng.choice(floats)
        mask, kind = rng.choice(masks), rng.random()
        if kind < 0.35:
            floats.append(program.apply(rng.choice(("sin", "cos", "tanh")), a, dtype=FLOAT))
        elif kind < 0.5:
            floats.append(program.apply(rng.choice(("add", "sub", "minimum")), a, b, dtype=FLOAT))
        elif kind < 0.6:
            masks.append(program.apply("lt", a, b, dtype=BOOL))
        elif kind < 0.65:
            masks.append(program.apply("and", mask, rng.choice(masks), dtype=BOOL))
        else:
            inside = masks_above(a, above) | masks_above(b, above)
            if nested or mask not in inside:
                sides = rng.choice(((a, b), (b, a), (a, 0.0)))
                floats.append(program.apply("where", mask, *sides, dtype=FLOAT))
    outputs = [*rng.sample(floats, 3), floats[-1], rng.choice(masks), 0.5]
    return [program.cast(x, FLOAT) for x in outputs]


def run_guard(guard, columns, compute):
    """Run a guard in the printed order: other sides, then members if the mask holds anywhere."""
    for x in guard.selections:
        columns[x] = list(column_of(x.args[3 - guard.side], columns))
    holds = [bool(mask) is (guard.side == 1) for mask in columns[guard.mask]]
    if any(holds):
        for x in guard.members:
            columns[x] = compute(x)
    for x in guard.body:
        columns.pop(x, None)  # in print, the variables of the body end with it


def column_of(x, columns):
    """Return the values of an argument in all environments of a block."""
    return columns[x] if isinstance(x, Expression) else [x] * columns["size"]


def run_schedule(outputs, leaves):
    """Return outputs [n][block] by running the schedule; KeyError if a statement is too early."""
    columns, results = {"size": len(leaves)}, {}

    def compute(x):
        if x.op == "state":
            return [leaf[x.args] for leaf in leaves]
        arguments = zip(*(column_of(arg, columns) for arg in x.args), strict=True)
        return [CASTS[x.dtype](OPS[x.op].fold(*args)) for args in arguments]

    for statement in scheduled(outputs):
        if isinstance(statement, Guard):
            run_guard(statement, columns, compute)
        elif isinstance(statement, Expression):
            columns[statement] = compute(statement)
        else:
            results[statement] = column_of(outputs[statement], columns)
    return [results[i] for i in range(len(outputs))]


def random_leaves(rng, n_envs):
    """Return the leaves of environments; masks hold with probability 0.3."""
    return [
        {(0, i): single(rng.gauss(0, 1)) for i in range(4)}
        | {(MASKS, i): rng.random() < 0.3 for i in range(3)}
        for _ in range(n_envs)
    ]


def plainly(outputs, leaves):
    """Return outputs [n][block] by plain evaluation, without a schedule."""
    known = [{} for _ in leaves]
    return [
        [
            evaluated(x, lambda leaf, values=values: values[leaf.args], memo)
            for values, memo in zip(leaves, known, strict=True)
        ]
        for x in outputs
    ]


@pytest.mark.parametrize("nested", [False, True])
def test_guards_preserve_the_meaning(nested):
    rng, n_guards, n_skipped = random.Random(0), 0, 0
    for _ in range(150):
        outputs = random_program(rng, nested=nested)
        found = [g for g in scheduled(outputs) if isinstance(g, Guard)]
        n_guards += len(found)
        for _ in range(2):
            leaves = random_leaves(rng, 2)
            expected = plainly(outputs, leaves)
            assert run_schedule(outputs, leaves) == expected
            masks = plainly([g.mask for g in found], leaves)
            n_skipped += sum(
                not any(bool(m) is (g.side == 1) for m in mask)
                for g, mask in zip(found, masks, strict=True)
            )
    assert n_guards > 150  # 235, and 269 if nested
    assert n_skipped > 50  # 182 and 177


def test_a_guarded_side_may_use_what_the_same_mask_selected():
    program = Program()
    a, b = leaves_of(program, 2)
    mask = program.leaf("state", 1, 0, dtype=BOOL)
    inner = program.apply("where", mask, program.apply("sin", a, dtype=FLOAT), b, dtype=FLOAT)
    outer = program.apply("where", mask, program.apply("cos", inner, dtype=FLOAT), b, dtype=FLOAT)
    leaves = [{(0, 0): 1.0, (0, 1): 2.0, (1, 0): True}]
    expected = math.cos(math.sin(1.0))  # of a, for the mask holds
    assert plainly([outer], leaves)[0] == pytest.approx([expected], rel=1e-6)
    assert run_schedule([outer], leaves)[0] == pytest.approx([expected], rel=1e-6)


def test_of_two_guards_that_need_each_other_one_is_kept():
    program = Program()
    (a,) = leaves_of(program, 1)
    one, other = (program.leaf("state", MASKS, i, dtype=BOOL) for i in (0, 1))

    def chosen(mask, op, x):
        return program.apply("where", mask, program.apply(op, x, dtype=FLOAT), 0.5, dtype=FLOAT)

    # By ``one``, the last waits for the third; by ``other``, the fourth waits for the first.
    first = chosen(one, "sin", a)
    between = program.apply("add", first, 1.0, dtype=FLOAT)
    third, fourth = chosen(other, "cos", a), chosen(other, "cos", between)
    last = chosen(one, "sin", program.apply("tanh", third, dtype=FLOAT))
    outputs = [between, third, fourth, last]
    # The body of one costs 60 (sin, sin, tanh), that of the other 40 (cos, cos): the first stays.
    assert [guard.mask for guard in guards(outputs)] == [one]
    leaves = random_leaves(random.Random(0), 4)
    assert run_schedule(outputs, leaves) == plainly(outputs, leaves)


@pytest.mark.parametrize("nested", [False, True])
def test_each_live_expression_is_computed_once_and_after_its_inputs(nested):
    rng = random.Random(1)
    for _ in range(150):
        outputs, done, given = random_program(rng, nested=nested), [], []
        for statement in scheduled(outputs):
            if isinstance(statement, int):
                given.append(statement)
                wanted = outputs[statement]
                assert not isinstance(wanted, Expression) or wanted in done
                continue
            members = statement.members if isinstance(statement, Guard) else (statement,)
            needs = {x for member in members for x in member.inputs} - set(members)
            # This also shows that no guard depends on itself.
            assert needs <= set(done)
            done.extend(members)
        assert given == list(range(len(outputs)))
        assert len(done) == len(set(done))
        assert set(done) == live(outputs)


def test_nothing_outside_a_guard_uses_its_body():
    rng = random.Random(2)
    for _ in range(150):
        outputs = random_program(rng, nested=True)
        users = {x: [y for y in live(outputs) if x in y.inputs] for x in live(outputs)}
        for guard in (g for g in scheduled(outputs) if isinstance(g, Guard)):
            assert guard.mask not in guard.members
            assert cost(guard.body) >= GUARD_COST
            assert all(x.args[0] is guard.mask for x in guard.selections)
            for x in guard.body:
                assert x not in outputs
                assert set(users[x]) <= set(guard.members)


def test_a_side_that_costs_little_is_not_guarded():
    program = Program()
    a, b = leaves_of(program, 2)
    mask = program.apply("lt", a, b, dtype=BOOL)
    cheap = program.apply("add", a, b, dtype=FLOAT)  # 1, less than 20
    dear = program.apply("sin", a, dtype=FLOAT)  # 20
    for side, expected in ((cheap, 0), (dear, 1)):
        output = program.apply("where", mask, side, 0.0, dtype=FLOAT)
        assert sum(isinstance(g, Guard) for g in scheduled([output])) == expected


# ------------------------------------------------------------------------------ printed C++


def program_outputs(i, *, nested=False):
    """Return the outputs of the i-th random program."""
    return random_program(random.Random(100 + i), nested=nested)


PROGRAMS = {f"program {i}": program_outputs(i) for i in range(8)}
PROGRAMS |= {f"nested program {i}": program_outputs(i, nested=True) for i in range(4)}


@pytest.fixture(scope="module")
def as_cpp(tmp_path_factory):
    """Return a function that runs a program's C++: outputs [E, n]."""
    return run_as_cpp(PROGRAMS, tmp_path_factory.mktemp("programs"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_printed_schedule_equals_plain_evaluation(as_cpp, program):
    close(as_cpp(program), by_definition(PROGRAMS[program]))
