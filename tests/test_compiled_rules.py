"""Each lowering rule compared with torch, by definition and as C++; and the refusals."""

import re
from functools import partial
from itertools import permutations

import pytest
import torch
from compiled_tools import E, by_definition, by_torch, close, lowered, run_as_cpp, traced

from qmix_trl.envs.compiled.codegen import cpp, triton
from qmix_trl.envs.compiled.lower.arrays import Unlowerable
from qmix_trl.envs.compiled.lower.expressions import BOOL, FLOAT, INT, live
from qmix_trl.envs.compiled.lower.ops import OPS
from qmix_trl.envs.compiled.lower.rules import RULES, merged
from qmix_trl.envs.compiled.trace.nodes import writes
from qmix_trl.native.store import header

FIXED = torch.arange(12.0).view(4, 3) / 7
OF_EACH = torch.arange(E)[:, None] / 7  # a constant that differs between environments
aten = torch.ops.aten


def changed(x, change):
    """Return a copy that a function has written to."""
    y = x.clone()
    change(y)
    return y


def write(*index, value):
    """Return a function that writes a value at an index."""

    def change(y):
        y[index] = value

    return change


def in_environments(y, mask, value):
    """Write to the environments of a mask."""
    y[mask] = value


def written_through_a_view(y):
    """Write to the first number by a view of all; return the whole."""
    y.view(E, -1)[:, 0].fill_(0)
    return y


def add_to_parts(y):
    """Write through the views of unbind."""
    for i, part in enumerate(y.unbind(1)):
        part += i


def masked_twice(s):
    """Write to some environments, then write there again."""
    y, mask = s.x.clone(), s.x[:, 0] > 0
    y[mask] = s.y[mask] * 2
    y[mask, 1] = y[mask, 0] + 1
    return y


def on(op, *names):
    """Return a function of torch, applied to tensors of the state."""
    return lambda s: getattr(torch, op)(*(getattr(s, name) for name in names))


def power(exponent, s):
    """Return a power."""
    return s.u**exponent


def compared(op, s):
    """Compare floats with ties, with infinities and NaN, and numbers of two types."""
    f = getattr(torch, op)
    return torch.cat([f(s.r, s.r[:, :1]), f(s.n, 0.0), f(s.i, 1.5)], 1)


def with_index(op, s):
    """Return the extremes along two axes with their indices."""
    f = getattr(torch, op)
    kept = f(s.p, -2, keepdim=True)
    return torch.cat([torch.stack([*f(s.r, 1)], 1), *(x.flatten(1) for x in kept)], 1)


VIEWS = {
    "alias": lambda s: aten.alias(s.x),
    "detach": lambda s: s.x.detach(),
    "clone": lambda s: changed(s.x, lambda y: y.clone().add_(1)),
    "float to int": lambda s: s.x.to(torch.int64),
    "by way of doubles": lambda s: torch.stack([s.x.double(), s.y.double()], 1).float(),
    "float to bool": lambda s: s.r.to(torch.bool),
    "int to float": lambda s: s.i.float() / 4,
    "int to bool": lambda s: s.i.bool(),
    "bool to float": lambda s: s.b.float(),
    "bool to int": lambda s: s.b.to(torch.int64),
    "constant": lambda s: torch.tensor([0.1, 2.0, 3.0, 4.0]) * s.x,
    "view": lambda s: s.p.view(E, 6),
    "view -1": lambda s: s.p.view(E, -1, 1, 3),
    "merged and parted": lambda s: s.p.view(E * 3, 2).view(E, 3, 2),
    "_unsafe_view": lambda s: aten._unsafe_view(s.p, [E, 2, 3]),
    "expand": lambda s: s.x[:, :1].expand(E, 4) * s.y,
    "expand in front": lambda s: s.x.expand(2, E, 4),
    "select": lambda s: s.p[:, -1],
    "select of a negative axis": lambda s: s.p.select(-1, -2),
    "slice": lambda s: s.x[:, 1:-1],
    "slice with steps": lambda s: s.x[:, ::2],
    "slice of a negative axis": lambda s: aten.slice(s.p, -2, 1, 3),
    "slice of all environments": lambda s: s.x[0:E],
    "unsqueeze": lambda s: s.x.unsqueeze(-1) * s.x.unsqueeze(-2) + s.x.unsqueeze(1),
    "squeeze": lambda s: s.x[:, None, :, None].squeeze(-1).squeeze(1),
    "squeeze all": lambda s: s.x[:, None, :, None].squeeze(),
    "permute": lambda s: s.p.permute(0, -1, 1),
    "permute the batch": lambda s: s.p.permute(2, 0, 1),
    "transpose": lambda s: s.p.transpose(-1, -2),
    "transpose the batch": lambda s: s.p.transpose(0, 1) * 2,
    "t": lambda s: s.x.t().t(),
    "unbind": lambda s: s.p.unbind(-1)[1] - s.p.unbind(1)[0][:, :1],
    "diagonal": lambda s: s.l.diagonal(dim1=1, dim2=2),
    "diagonal below": lambda s: s.l.diagonal(offset=-1, dim1=-2, dim2=-1),
    "cat": lambda s: torch.cat([s.x, s.y[:, :1]], 1),
    "cat along the last axis": lambda s: torch.cat([s.p, s.p[..., :1]], -1),
    "cat of types": lambda s: torch.cat([s.x, s.i, s.b], -1),
    "cat with nothing": lambda s: torch.cat([torch.zeros(0), s.x], 1),
    "stack": lambda s: torch.stack([s.x, s.y], 1),
    "stack at the end": lambda s: torch.stack([s.x, s.y], -1),
    "stack in front": lambda s: torch.stack([s.x, s.y], 0),
    "repeat": lambda s: s.p.repeat(1, 2, 3),
    "repeat in front": lambda s: s.x.repeat(2, 1, 1),
    "repeat for all": lambda s: s.shared.repeat(E, 2) * s.x[:, :1],
}
CONSTANT = {
    "zeros": lambda s: changed(torch.zeros(E, 4), lambda y: y[:, 1:].copy_(s.x[:, 1:])),
    "zeros_like": lambda s: torch.zeros_like(s.x) - s.x,
    "ones": lambda s: torch.ones(E, 4) - s.x,
    "ones_like": lambda s: torch.ones_like(s.i) + s.i,
    "full": lambda s: torch.full((E, 4), 0.1) * s.x,
    "full of whole numbers": lambda s: torch.full((E, 4), 3) * s.i,
    "full_like": lambda s: torch.full_like(s.x, 0.3) * s.x,
    "empty": lambda s: torch.empty(E, 4).copy_(s.x),
    "empty_like": lambda s: torch.empty_like(s.x).fill_(2.5) * s.x,
    "new_zeros": lambda s: s.x.new_zeros(E, 2) - s.x[:, :2],
    "new_ones": lambda s: s.x.new_ones(E, 2) - s.x[:, :2],
    "scalar_tensor": lambda s: torch.where(s.b, torch.scalar_tensor(0.1), s.x),
    "arange": lambda s: torch.arange(4) * s.i,
    "arange with steps": lambda s: torch.arange(1, 9, 2) + s.i,
    "arange of floats": lambda s: torch.arange(0, 1, 0.25) + s.x,
    "arange of environments": lambda s: torch.arange(E)[:, None] + s.i,
    "linspace": lambda s: torch.linspace(-1, 1, 4) * s.x,
}
WRITES = {
    "write to a place": lambda s: changed(s.x, write(slice(None), 1, value=s.y[:, 0])),
    "write of whole numbers": lambda s: changed(s.x, write(slice(None), 1, value=s.i[:, 0])),
    "write of floats": lambda s: changed(s.i, lambda z: z.copy_(s.x)),
    "write to a slice": lambda s: changed(s.x, lambda z: z[:, ::2].add_(3)),
    "write of zeros": lambda s: changed(s.x, lambda z: z[:, 1].zero_()),
    "write to a view": lambda s: changed(s.x, lambda z: z.view(E, 2, 2)[:, 0].mul_(3)),
    "write to a transposed": lambda s: changed(s.p, lambda z: z.transpose(1, 2)[:, 0].neg_()),
    "write to a permuted": lambda s: changed(s.p, lambda z: z.permute(2, 0, 1)[0].sub_(1)),
    "write to a view of stacked": lambda s: written_through_a_view(torch.stack([s.p.mT] * 2, 1)),
    "write to a view of joined": lambda s: written_through_a_view(
        torch.cat([s.p.transpose(1, 2), s.p.mT], 1)
    ),
    "write to t": lambda s: changed(s.x, lambda z: z.t()[1].fill_(7)),
    "write to unbound": lambda s: changed(s.x, add_to_parts),
    "write to unsqueezed": lambda s: changed(s.x, lambda z: z.unsqueeze(1)[:, 0, 2].fill_(0)),
    "write to squeezed": lambda s: changed(s.p[:, :1], lambda z: z.squeeze(1)[:, 0].add_(1)),
    "write seen in a view": lambda s: (lambda z: (z[:, 1], z.add_(1))[0] * 1)(s.x.clone()),
    "write to a negative place": lambda s: changed(s.p, lambda z: z[..., -1].clamp_(-1, 0.5)),
    "write to a broadcast": lambda s: changed(s.p, write(..., value=s.x[:, :1, None])),
    "write to environments": lambda s: changed(
        s.x, lambda z: in_environments(z, s.b[:, 0], torch.tensor(5.0))
    ),
    "write of vectors to environments": masked_twice,
}
ARITHMETIC = {
    "add": lambda s: s.x + s.y,
    "add alpha": lambda s: torch.add(s.x, s.y, alpha=0.1),
    "add an int": lambda s: s.x + s.i,
    "add a bool to an int": lambda s: s.i + s.b,
    "add bools": lambda s: s.b + s.c,
    "add a column": lambda s: s.x[:, None] + s.p[..., :1],
    "add a shared tensor": lambda s: s.p[..., 0] + s.shared,
    "sub": lambda s: s.x - s.y,
    "sub alpha": lambda s: torch.sub(s.x, s.y, alpha=3),
    "sub a float from an int": lambda s: s.i - 0.5,
    "rsub": lambda s: torch.rsub(s.x, 1.5, alpha=2),
    "scalar minus": lambda s: 1.5 - s.x,
    "mul": lambda s: s.x * s.y,
    "mul by a constant": lambda s: s.x * 0.1,
    "mul by a bool": lambda s: s.x * s.b,
    "mul of bools": lambda s: s.b * s.c,
    "mul of ints": lambda s: s.i * s.d,
    "div": lambda s: s.x / s.u,
    "div of ints": lambda s: s.i / s.d,
    "div by a power of two": lambda s: s.x / 4,
    "div by a constant": lambda s: s.x / 0.3,
    "div floor": lambda s: torch.div(s.x, s.u, rounding_mode="floor"),
    "div floor of ints": lambda s: torch.div(s.i, s.d, rounding_mode="floor"),
    "remainder": lambda s: torch.remainder(s.x, s.u),
    "remainder by a scalar": lambda s: s.x % 0.7,
    "remainder by a negative": lambda s: s.x % -0.7,
    "remainder of ints": lambda s: s.i % s.d,
    "remainder of an int by a scalar": lambda s: s.i % 3,
    "floor_divide": lambda s: s.i // s.d,
    "remainder by negative ints": lambda s: s.i % s.e,
    "floor_divide by negative ints": lambda s: s.i // s.e,
    "floor_divide by a scalar": lambda s: s.i // 4,
    "floor_divide of floats": lambda s: s.x // 0.7,
    **{f"pow {n}": partial(power, n) for n in (0.5, 1, 2, 3, 8, -1, -2)},
    "pow of ints": lambda s: s.i**3,
    "reciprocal": lambda s: s.u.reciprocal(),
    **{op: on(op, "u") for op in ("sqrt", "log")},
    **{
        op: on(op, "x")
        for op in ("exp", "sin", "cos", "tan", "tanh", "floor", "neg", "abs", "sign")
    },
    # Beyond 8,192 whole turns are taken off first.
    **{f"{op} of large": lambda s, op=op: getattr(s.x * 1e7, op)() for op in ("sin", "cos")},
    "sin of infinities and NaN": lambda s: s.n.sin(),
    "tan of large": lambda s: (s.x * 2e4).tan().atan2(s.u / s.u),
    "zero times infinities and NaN": lambda s: s.n * 0.0,
    "a negative zero and zero": lambda s: torch.atan2(s.u * 0.0, s.u * -0.0 + 0.0),
    "exp of ints": lambda s: s.i.exp(),
    "atan2": lambda s: torch.atan2(s.x, s.r),
    "logaddexp": lambda s: torch.logaddexp(s.x, s.y),
    "floor of ints": lambda s: s.i.floor() / 2,
    **{f"{op} of ints": on(op, "i") for op in ("neg", "abs")},
    "sign of ints": lambda s: s.i.sign(),
    "minimum": lambda s: torch.minimum(s.x, s.y),
    "maximum": lambda s: torch.maximum(s.r, s.y),
    "minimum of ints": lambda s: torch.minimum(s.i, s.k),
    "maximum of types": lambda s: torch.maximum(s.i, s.x),
    "minimum of bools": lambda s: torch.minimum(s.b, s.c),
    "maximum of bools": lambda s: torch.maximum(s.b, s.c),
    "min of two": lambda s: torch.min(s.x, s.y),
    "max of two": lambda s: torch.max(s.x, s.y),
    "minimum of NaN": lambda s: torch.minimum(s.n, s.x),
    "minimum with NaN": lambda s: torch.minimum(s.x, s.n),
    "clamp": lambda s: s.x.clamp(-0.5, 0.7),
    "clamp below": lambda s: s.x.clamp(min=0.1),
    "clamp above": lambda s: s.x.clamp(max=0.1),
    "clamp by tensors": lambda s: s.x.clamp(-s.u, s.u),
    "clamp of ints": lambda s: s.i.clamp(-2, 3),
    "clamp upside down": lambda s: s.x.clamp(1.0, -1.0),
    "clamp of infinities and NaN": lambda s: s.n.clamp(-1, 1),
    "nan_to_num": lambda s: s.n.nan_to_num(),
    "nan_to_num to others": lambda s: s.n.nan_to_num(nan=3, posinf=4, neginf=-5),
}
LOGIC = {
    **{op: partial(compared, op) for op in ("lt", "le", "gt", "ge", "eq", "ne")},
    **{f"{op} of bools": on(op, "b", "c") for op in ("lt", "le", "gt", "ge", "eq", "ne")},
    "eq of ints": lambda s: s.i == s.k,
    "bitwise_and": lambda s: s.b & s.c,
    "bitwise_or": lambda s: s.b | s.c,
    "bitwise_xor": lambda s: s.b ^ s.c,
    "bitwise_not": lambda s: ~s.b,
    "__and__": lambda s: aten.__and__(s.b, s.c),
    "__or__": lambda s: aten.__or__(s.b, s.c),
    "logical_and": lambda s: torch.logical_and(s.i, s.b),
    "logical_or": lambda s: torch.logical_or(s.r, s.b),
    "logical_xor": lambda s: torch.logical_xor(s.r, s.b),
    "logical_not": lambda s: torch.logical_not(s.r),
    "where": lambda s: torch.where(s.b, s.x, s.y),
    "where of types": lambda s: torch.where(s.b[:, :1], s.i, 0.5),
    # Expensive sides, which are guarded: needed in all environments, or in none.
    "where the other side is needed": lambda s: torch.where(s.x > 100, 0.5, s.x.sin()),
    "where the other side is not": lambda s: torch.where(s.x < 100, 0.5, s.x.sin()),
    "where a side is needed": lambda s: torch.where(s.x < 100, s.x.sin(), 0.5),
    "where a side is not": lambda s: torch.where(s.x > 100, s.x.sin(), 0.5),
    "where of bools": lambda s: torch.where(s.b, s.c, ~s.c),
    "where of scalars": lambda s: torch.where(s.b, 1, 0),
    "where broadcast": lambda s: torch.where(s.b[:, :3, None], s.p, s.q[:, :1]),
    "isnan": lambda s: s.n.isnan(),
    "isnan of ints": lambda s: aten.isnan(s.i),
}
REDUCTIONS = {
    "sum": lambda s: s.p.sum(1),
    "sum of negative axes": lambda s: s.p.sum((-1, -2), keepdim=True),
    "sum of bools": lambda s: s.b.sum(-1),
    "sum to floats": lambda s: s.i.sum(1, dtype=torch.float32),
    "mean": lambda s: s.p.mean((1, 2)),
    "mean of one axis": lambda s: s.p.mean(-1, keepdim=True),
    "all": lambda s: s.b.all(1),
    "all of floats": lambda s: s.r.all(-1, keepdim=True),
    "any": lambda s: s.b.any(-1),
    "any of ints": lambda s: s.i.clamp(0, 1).any(1),
    "prod": lambda s: s.x.prod(1),
    "prod of bools": lambda s: s.b.prod(-1, keepdim=True),
    **{f"{op} by axis": partial(with_index, op) for op in ("min", "max")},
    "max of bools": lambda s: s.b[:, :2].max(1).indices,
    "max of ints": lambda s: torch.stack([*s.i.max(-1)], 1),
    "amin": lambda s: s.p.amin((1, -1)),
    "amax": lambda s: s.p.amax(-1, keepdim=True),
    "amax of bools": lambda s: s.b.amax(1),
    **{f"{op} with NaN": lambda s, op=op: getattr(s.n, op)(1) for op in ("argmin", "argmax")},
    "min with NaN": lambda s: torch.stack([*s.n.min(1)], 1),
    "argmin": lambda s: s.r.argmin(-1),
    "argmax": lambda s: s.p.argmax(1, keepdim=True),
    "vector norm": lambda s: torch.linalg.vector_norm(s.p, dim=-1),
    "vector norm of a part": lambda s: torch.linalg.vector_norm(s.p, dim=(1, 2), keepdim=True),
    "vector norm of one": lambda s: torch.linalg.vector_norm(s.x[:, :1], dim=-1),
    "mm": lambda s: s.x @ FIXED,
    "bmm": lambda s: s.l @ s.p,
    "bmm transposed": lambda s: s.p @ s.q.transpose(1, 2),
    "cdist": lambda s: torch.cdist(s.p, s.q),
    "cumsum": lambda s: s.x.cumsum(1),
    "cumsum of bools": lambda s: s.b.cumsum(-1),
    "cumsum of a middle axis": lambda s: s.p.cumsum(-2),
    "solve_triangular": lambda s: torch.linalg.solve_triangular(s.l, s.p, upper=False),
}
INDICES = {
    "scatter": lambda s: s.x.scatter(1, s.k[:, :1], 9.0),
    "scatter of a middle axis": lambda s: s.p.scatter(
        -2, s.k[:, :1, None].expand(E, 1, 2) % 3, 9.0
    ),
    "gather": lambda s: s.x.gather(1, s.k),
    "gather of a part": lambda s: s.x.gather(-1, s.k[:, 1:3]),
    "gather of a middle axis": lambda s: s.p.gather(1, s.k[:, :2, None].expand(E, 2, 2) % 3),
    "gather of fewer": lambda s: s.p.gather(1, s.k[:, :, None] % 3),
    "gather at constants": lambda s: s.x.gather(1, torch.tensor([[2, 0, 2]]).expand(E, 3)),
    "index": lambda s: s.x[torch.arange(E), s.k[:, 0]],
    "index of vectors": lambda s: s.p[torch.arange(E), s.k[:, 0] % 3],
    "index from the end": lambda s: s.x[torch.arange(E), s.k[:, 0] - 4],
    "index of two axes": lambda s: s.p[torch.arange(E), s.k[:, 0] % 3, s.k[:, 1] % 2],
    "index of a shared tensor": lambda s: s.shared[s.k % 3],
    "index_put": lambda s: changed(s.x, write(torch.arange(E), s.k[:, 0], value=s.y[:, 1])),
    "index_put from the end": lambda s: changed(
        s.x, write(torch.arange(E), s.k[:, 0] - 4, value=s.y[:, 1])
    ),
    "index_put of a constant": lambda s: changed(
        s.b, write(torch.arange(E), s.k[:, 0], value=torch.tensor(True))
    ),
}
CASES = VIEWS | CONSTANT | WRITES | ARITHMETIC | LOGIC | REDUCTIONS | INDICES


@pytest.mark.parametrize("case", CASES)
def test_a_rule_equals_torch(case):
    close(by_definition(lowered(CASES[case])), by_torch(CASES[case]))


@pytest.fixture(scope="module")
def as_cpp(tmp_path_factory):
    """Return a function that runs a case's C++: outputs [E, n]."""
    outputs = {name: lowered(function) for name, function in CASES.items()}
    return run_as_cpp(outputs, tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("case", CASES)
def test_a_printed_rule_equals_torch(as_cpp, case):
    close(as_cpp(case), by_torch(CASES[case]))


# Composite operations: a trace holds their parts.
NEVER_TRACED = {"__and__", "__or__", "_reshape_alias", "contiguous", "reshape", "view_as"}


def operations(function):
    """Return the names of the rules that a function's graph asks for."""
    nodes = [n for n in traced(function).graph.graph.nodes if n.op == "call_function"]
    names = [(str(node.target).split("."), node) for node in nodes if "." in str(node.target)]
    return {name[1].removesuffix("_") if writes(node) else name[1] for name, node in names}


def test_every_rule_has_a_case():
    reached = set().union(*map(operations, CASES.values()))
    assert set(RULES) - reached == NEVER_TRACED


def test_two_rules_for_one_operation_are_refused():
    with pytest.raises(ValueError, match="expected one rule for add, got two"):
        merged({"add": print, "sub": print}, {"add": print})


# ------------------------------------------------------------------- the table of operations

LANGUAGES = {
    "C++": (cpp.CPP, header("qmix_trl.native", "simd.h"), r"INLINE v[fi] (\w+)\("),
    "Triton": (triton.TRITON, header(triton.__package__, "triton_simd.py"), r"def (\w+)\("),
}


def test_every_operation_has_a_case():
    """Each case compares the fold and the C++ form with torch."""
    reached = {x.op for function in CASES.values() for x in live(lowered(function))}
    assert set(OPS) - reached == set()


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_language_can_write_every_operation(name):
    language, functions, definition = LANGUAGES[name]
    assert set(language.casts) == set(permutations((FLOAT, INT, BOOL), 2))
    for op in OPS.keys() - {"cast"}:
        assert "{0}" in language.form(op, FLOAT)
        assert "{0}" in language.form(op, INT)
    assert language.functions() - set(re.findall(definition, functions)) == set()


# Operations by which one environment depends on another one.
ACROSS = {
    "sum": lambda s: s.x.sum(0),
    "sum of all": lambda s: s.x.sum(),
    "sum of a negative axis": lambda s: s.x.sum(-2),
    "sum of merged axes": lambda s: s.x.view(-1).sum(0),
    "mean": lambda s: s.x.mean((0, 1)),
    "amax": lambda s: s.x.amax(0),
    "max of all": lambda s: s.x.max(),
    "min": lambda s: s.x.min(0)[0],
    "argmax of all": lambda s: s.x.argmax(),
    "argmin": lambda s: s.x.argmin(0),
    "any of all": lambda s: s.b.any(),
    "all": lambda s: s.b.all(0),
    "prod": lambda s: s.x.prod(0),
    "cumsum": lambda s: s.x.cumsum(0),
    "vector norm of all": lambda s: torch.linalg.vector_norm(s.x),
    "vector norm": lambda s: torch.linalg.vector_norm(s.x, dim=0),
    "select": lambda s: s.x[0],
    "select from the end": lambda s: s.x[-1],
    "select of the last axis": lambda s: s.x.transpose(0, 1)[:, 3],
    "select of merged axes": lambda s: s.x.view(-1)[1].expand(E),
    "slice": lambda s: s.x[:5],
    "slice with steps": lambda s: s.x[::2],
    "slice of merged axes": lambda s: s.x.view(-1)[:4].expand(E, 4),
    "unbind": lambda s: s.x.unbind(0)[3],
    "cat": lambda s: torch.cat([s.x, s.y]),
    "cat with one more": lambda s: torch.cat([s.x, torch.zeros(1, 4)])[1:],
    "repeat": lambda s: s.x.repeat(2, 1).view(E, 2, 4),
    "reshape": lambda s: s.p.permute(1, 0, 2).reshape(E, 6),
    "mm": lambda s: s.x.t() @ s.y,
    "mm of pairs": lambda s: (s.x @ s.y.t()).sum(1),
    "all pairs": lambda s: s.x[:, None, 0] - s.x[None, :, 0],
    "index of others": lambda s: s.x[torch.arange(E - 1, -1, -1)],
    "index of any": lambda s: s.x[s.k[:, 0], s.k[:, 1]],
    "gather": lambda s: s.x.gather(0, s.k * 9),
    "scatter": lambda s: s.x.scatter(0, s.k, 9.0),
    "a constant of each": lambda s: s.x + OF_EACH,
    "arange from 1": lambda s: s.x[:, 0] + torch.arange(1, E + 1),
    "linspace": lambda s: s.x[:, 0] + torch.linspace(0, 1, E),
}


@pytest.mark.parametrize("case", ACROSS)
def test_what_crosses_environments_is_refused(case):
    with pytest.raises(Unlowerable, match="environment"):
        lowered(ACROSS[case])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s: torch.div(s.x, 2, rounding_mode="trunc"), "rounded to trunc"),
        (lambda s: s.u**0.3, "a power of 0.3"),
        (lambda s: 2**s.x, "aten.pow.Scalar"),
        (lambda s: s.u**s.x, "aten.pow.Tensor_Tensor"),
        (lambda s: torch.linalg.vector_norm(s.x, 1, dim=1), "a norm of order 1"),
        (lambda s: torch.cdist(s.p, s.q, p=1), "distances of order 1"),
        (lambda s: s.i & s.k, "and of bits"),
        (lambda s: s.x.view(torch.int32), "bits as another type"),
        (lambda s: s.x.clone().expand(E, 4)[:, 0].fill_(1), "a write to an expanded tensor"),
        # The array is laid out in memory in another order than the tensor: its views are copies.
        (lambda s: written_through_a_view(s.p.mT.cumsum(1)), "a write to an expanded tensor"),
        (lambda s: s.x.scatter(1, s.k[:, :2], 9.0), "a scatter of many values"),
        (lambda s: s.x.scatter(1, s.k[:, :1], 9.0, reduce="add"), "a scatter of many values"),
        (lambda s: s.p.scatter(1, s.k[:, :1, None] % 3, 9.0), "a scatter to a part"),
        (lambda s: s.x[:, torch.tensor([0, 2])], "leaves out an axis"),
        (lambda s: s.p[:, :0].sum(1), "sum.dim_IntList of nothing"),
        (lambda s: s.b[:, :0].any(1), "any.dim of nothing"),
        (lambda s: torch.linalg.vector_norm(s.p[..., :0], dim=-1), "vector_norm.* of nothing"),
        (lambda s: s.i.to(torch.uint8), "no torch.uint8 in a kernel"),
        (lambda s: s.x.half() + 1, "no torch.float16 in a kernel"),
        (lambda s: s.x.double() + 1, "add.Tensor in double precision"),
        (lambda s: s.x < torch.tensor(0.1, dtype=torch.float64).view(1), "lt.* in double"),
        (lambda s: s.x.erf(), "no rule for aten.erf.default"),
        (
            lambda s: torch.linalg.solve_triangular(s.l.transpose(1, 2), s.p, upper=True),
            "not lower",
        ),
    ],
)
def test_a_rule_refuses_what_it_cannot_do(function, message):
    with pytest.raises(Unlowerable, match=message):
        lowered(function)
