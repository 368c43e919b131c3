"""A step whose observation holds every operation, and the same numbers by definition."""

import torch

from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT, INT, PAIR, Program
from qmix_trl.envs.compiled.lower.ops import OPS
from qmix_trl.envs.compiled.lower.step import StateNumber, Step
from qmix_trl.envs.compiled.trace import draws

E = 40  # environments: more than one block
TRIES = 5  # of a spawn: so few that some environments find no place
KEY = torch.tensor([11, 7])
UNARY = ("neg", "abs", "sign", "floor", "sqrt", "exp", "log", "sin", "cos", "tan", "tanh")
BINARY = ("add", "sub", "mul", "div", "minimum", "maximum", "remainder", "atan2", "logaddexp")
COMPARED = ("lt", "le", "eq", "ne")
WHOLE = ("add", "sub", "mul", "minimum", "maximum", "remainder", "floor_divide")
CASES = [
    *((op, "a", FLOAT) for op in UNARY),
    *((op, "ab", FLOAT) for op in BINARY),
    *((op, "ab", BOOL) for op in COMPARED),
    ("isnan", "n", BOOL),
    *((op, pair, FLOAT) for op in ("minimum", "maximum") for pair in ("an", "na")),
    *((op, "i", INT) for op in ("neg", "abs", "sign")),
    *((op, "ij", INT) for op in WHOLE),
    *((op, "pq", BOOL) for op in ("and", "or", "eq", "ne")),
    ("not", "p", BOOL),
    *(("where", "p" + pair, dtype) for pair, dtype in (("ab", FLOAT), ("ij", INT), ("qp", BOOL))),
    *((op, (2.5, "b"), FLOAT) for op in BINARY),
    *((op, ("i", 3), INT) for op in WHOLE),
    *((op, (-7, "j"), INT) for op in WHOLE),
    ("where", ("p", 1e-40, "a"), FLOAT),
    ("where", ("p", float("-inf"), float("nan")), FLOAT),
    ("where", ("p", True, "q"), BOOL),
]
TYPES = {"a": FLOAT, "b": FLOAT, "n": FLOAT, "i": INT, "j": INT, "p": BOOL, "q": BOOL}
SPAWN = (200, 0.9, -1.0, -1.0, 1.0, 1.0)  # site (counters over 31 bits), distance, low, high


def columns():
    """Return the values [E] of each letter."""
    i = torch.arange(E)
    a = (i - 20.3) * 0.37
    return {
        "a": a,
        "b": torch.where(i % 5 == 0, -a, (i % 7 - 3.5) * 1.3),
        "n": torch.where(i % 3 == 0, torch.nan, a + 0.5),
        "i": (i - 20) * 3,
        "j": i % 11 - 5 + (i % 11 == 5) * 4,  # never 0
        "p": i % 2 == 0,
        "q": i % 3 == 0,
    }


def operations_step():
    """Return a step whose observation holds every operation on the numbers of its state."""
    program = Program()
    leaves = {
        x: program.leaf("state", path, 0, dtype=dtype)
        for path, (x, dtype) in enumerate(TYPES.items())
    }
    values = [
        program.apply(op, *(leaves[x] if isinstance(x, str) else x for x in args), dtype=dtype)
        for op, args, dtype in CASES
    ]
    spawned = program.leaf("spawn", SPAWN, leaves["a"], leaves["b"], 0.25, 0.5, dtype=PAIR)
    alone = program.leaf("spawn", SPAWN, dtype=PAIR)
    values += [
        program.leaf(op, pair, dtype=FLOAT)
        for pair in (spawned, alone)
        for op in ("first", "second")
    ]
    values += [program.leaf(kind, 3, dtype=FLOAT) for kind in ("uniform", "normal")]
    values.append(program.leaf("environment", dtype=INT))
    # Costly and used nowhere else, so it is guarded.
    costly = program.apply("tan", program.apply("add", leaves["n"], 3.5, dtype=FLOAT), dtype=FLOAT)
    values.append(program.apply("where", leaves["q"], costly, 0.0, dtype=FLOAT))
    values.append(program.apply("where", leaves["p"], 1.5, costly, dtype=FLOAT))
    large = program.apply("mul", leaves["a"], 1e7, dtype=FLOAT)  # whole turns are taken off
    values += [program.apply(op, large, dtype=FLOAT) for op in ("sin", "cos")]
    values += [program.cast(leaves[x], to) for x in "aip" for to in (FLOAT, INT, BOOL)]
    observation = [program.cast(value, FLOAT) for value in values]
    numbers = [StateNumber(path, 0, leaf, leaf) for path, leaf in enumerate(leaves.values())]
    return Step(program, observation, [], [0.5], leaves["b"], leaves["q"], numbers, 1)


def by_definition():
    """Return the observation of that step by the definitions of operations, float32 [E, R]."""
    x = columns()

    def argument(name, e):
        return x[name][e].item() if isinstance(name, str) else name

    made = [
        torch.tensor([float(OPS[op].fold(*(argument(name, e) for name in args))) for e in range(E)])
        for op, args, _ in CASES
    ]
    fixed = torch.tensor([0.25, 0.5]).expand(E, 2)
    occupied = torch.stack([torch.stack([x["a"], x["b"]], -1), fixed], 1)  # [E, 2, 2]
    site, distance, *corners = SPAWN
    for near in (occupied, occupied[:, :0]):
        spawned = draws.spawn(near, KEY, site, distance, corners[:2], corners[2:])[:, 0]
        made += list(spawned.unbind(-1))
    made += [draws.draw(kind, KEY, E, 3, (1,))[:, 0] for kind in ("uniform", "normal")]
    costly = torch.tan(x["n"] + 3.5)
    made += [torch.arange(E), torch.where(x["q"], costly, 0.0), torch.where(x["p"], 1.5, costly)]
    large = (x["a"] * 1e7).double()
    made += [torch.sin(large), torch.cos(large)]
    made += [x[name].to(to) for name in "aip" for to in (torch.float32, torch.int32, torch.bool)]
    return torch.stack([value.to(torch.float32) for value in made], 1)
