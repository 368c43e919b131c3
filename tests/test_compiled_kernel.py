"""The arithmetic of C++ kernels, and their build."""

import ctypes
import math
from itertools import product

import numpy as np
import pytest
import torch
from compiled_tools import BOUNDS, header, loaded, occupied_by

from qmix_trl.envs.compiled.trace import draws
from qmix_trl.native import build

# -------------------------------------------------------------------- simd.h, draws.h

ONE = (
    "vexp",
    "vlog",
    "vlog1p",
    "vsin",
    "vcos",
    "vtan",
    "vtanh",
    "vfloor",
    "vsqrt",
    "vabs",
    "vsign",
)
TWO = ("vatan2", "vlogaddexp", "vmin", "vmax", "vremainder")
WHOLE = ("floor_divide", "iremainder", "imin", "imax")
POINTS = "Points<2>{{F(0.0f), F(0.0f), F(0.5f), F(0.5f)}}"
SPAWN = f"spawn<2>(draws, 3u, 0.6f, -1.0f, -0.5f, 1.0f, 1.0f, {POINTS})"
DRIVERS = """
#define MAP(name, T, V, form)                                                 \\
  extern "C" void run_##name(const T *a, const T *b, T *out, int n) {        \\
    for (int i = 0; i < n; i += W) {                                          \\
      V x, y, z;                                                              \\
      memcpy(&x, a + i, sizeof x);                                            \\
      memcpy(&y, b + i, sizeof y);                                            \\
      z = form;                                                               \\
      memcpy(out + i, &z, sizeof z);                                          \\
    }                                                                         \\
  }
#define DRAW(name, form)                                                      \\
  extern "C" void draw_##name(uint32_t seed, uint32_t step, uint32_t number, vf *out, int n) { \\
    for (int i = 0; i < n; i += W) {                                          \\
      Draws draws = {{}, seed, step};                                         \\
      for (int l = 0; l < W; l++) draws.environment[l] = i + l;               \\
      vf z = form;                                                            \\
      memcpy((float *)out + i, &z, sizeof z);                                 \\
    }                                                                         \\
  }
INLINE vf word(const Draws &draws, uint32_t number, int which) {
  vu x, y;
  threefry(draws, number - (vu){}, &x, &y);
  return (vf)(which ? y : x);
}
"""
TRANSPOSE = """
#ifdef TRANSPOSES
extern "C" int transposed(const vf *in, vf *out) { transpose(in, out); return 1; }
#else
extern "C" int transposed(const vf *in, vf *out) { return 0; }
#endif
"""


@pytest.fixture(scope="module", params=[16, 8, 4], ids="{} lanes".format)
def simd(request, tmp_path_factory):
    """Return the functions of ``simd.h``, in vectors of 16, 8 and 4 lanes."""
    floats = [f"MAP({name}, float, vf, {name}(x))" for name in ONE]
    floats += [f"MAP({name}, float, vf, {name}(x, y))" for name in TWO]
    whole = [f"MAP({name}, int32_t, vi, {name}(x, y))" for name in WHOLE]
    drawn = [f"DRAW({kind}, {kind}(draws, number))" for kind in ("uniform", "normal")]
    drawn += [f"DRAW(word{i}, word(draws, number, {i}))" for i in (0, 1)]
    drawn += [f"DRAW(spawn_{axis}, ({SPAWN}.{axis}))" for axis in ("x", "y")]
    source = [header(request.param), DRIVERS, *floats, *whole, *drawn, TRANSPOSE]
    return loaded("\n".join(source), tmp_path_factory.mktemp("simd"))


def pointer(x):
    """Return the address of an array, for C."""
    return x.ctypes.data_as(ctypes.c_void_p)


def mapped(simd, name, *xs):
    """Return the result [n] of a function of ``simd.h`` on NumPy arrays [n]."""
    dtype = np.int32 if name in WHOLE else np.float32
    padded = [np.resize(np.asarray(x, dtype), -(-len(x) // 16) * 16) for x in xs]
    out = np.empty_like(padded[0])
    getattr(simd, f"run_{name}")(*map(pointer, (padded[0], padded[-1], out)), len(out))
    return out[: len(xs[0])]


def ulps(got, expected, scale=None):
    """Return the difference of float32 from float64, in units in the last place."""
    scale = np.abs(expected) if scale is None else np.maximum(np.abs(expected), scale)
    unit = np.spacing(np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32))
    return np.abs(got.astype(np.float64) - expected) / unit


def spread(low, high, n=20000, *, signs=False):
    """Return random floats of all magnitudes from low to high, float32 [n]."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(np.log(low), np.log(high), n))
    return (x * rng.choice((-1, 1), n) if signs else x).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "exact", "x"),
    [
        ("vexp", np.exp, spread(1e-10, 87, signs=True)),
        ("vlog", np.log, spread(1e-44, 3e38)),
        ("vlog", np.log, spread(0.5, 2)),
        ("vlog1p", np.log1p, spread(1e-30, 1e10)),
        ("vsin", np.sin, spread(1e-10, 1, signs=True)),
        ("vsin", np.sin, spread(1, 1000, signs=True)),
        ("vcos", np.cos, spread(1e-10, 1, signs=True)),
        ("vcos", np.cos, spread(1, 1000, signs=True)),
        ("vtan", np.tan, spread(1e-10, 1000, signs=True)),
        ("vtanh", np.tanh, spread(1e-10, 100, signs=True)),
        ("vtanh", np.tanh, spread(0.5, 0.75, signs=True)),
        ("vsqrt", np.sqrt, spread(1e-30, 1e30)),
    ],
)
def test_functions_are_good_to_4_units_in_the_last_place(simd, name, exact, x):
    assert ulps(mapped(simd, name, x), exact(x.astype(np.float64))).max() <= 4


def test_atan2_is_good_to_4_units_in_the_last_place(simd):
    y, x = spread(1e-10, 1e10, signs=True), spread(1e-3, 1e3, signs=True)[::-1].copy()
    exact = np.arctan2(y.astype(np.float64), x.astype(np.float64))
    assert ulps(mapped(simd, "vatan2", y, x), exact).max() <= 4


def test_logaddexp_is_good_to_4_units_in_the_last_place_of_its_terms(simd):
    a, b = spread(1e-3, 60, signs=True), spread(1e-3, 60, signs=True)[::-1].copy()
    exact = np.logaddexp(a.astype(np.float64), b.astype(np.float64))
    # It is the greater argument plus log(1 + exp(-distance)); the two may cancel.
    greater = np.maximum(a, b).astype(np.float64)
    terms = np.maximum(np.abs(greater), np.abs(exact - greater))
    assert ulps(mapped(simd, "vlogaddexp", a, b), exact, terms).max() <= 4


INF, NAN, DENORMAL = math.inf, math.nan, 1e-40


@pytest.mark.parametrize(
    ("name", "exact", "x"),
    [
        ("vexp", np.exp, [0, -0.0, INF, -INF, NAN, DENORMAL, 88.7227, -87.3, 1000, -1000]),
        ("vlog", np.log, [0, -0.0, INF, -INF, NAN, -1, -DENORMAL, DENORMAL, 1]),
        ("vsin", np.sin, [0, -0.0, INF, -INF, NAN, DENORMAL, -DENORMAL]),
        ("vcos", np.cos, [0, -0.0, INF, -INF, NAN, DENORMAL]),
        ("vtan", np.tan, [0, -0.0, INF, -INF, NAN, DENORMAL]),
        ("vtanh", np.tanh, [0, -0.0, INF, -INF, NAN, DENORMAL, 50, -50]),
        ("vsqrt", np.sqrt, [0, INF, -INF, NAN, -1, DENORMAL]),
        ("vfloor", np.floor, [0, INF, -INF, NAN, -0.5, 1.5, -1.5, -2, 3e9, -DENORMAL]),
        ("vabs", np.abs, [0, -0.0, INF, -INF, NAN, -1.5, -DENORMAL]),
        ("vsign", np.sign, [0, -0.0, INF, -INF, -1.5, DENORMAL, -DENORMAL]),
    ],
)
def test_special_values_of_one_argument(simd, name, exact, x):
    x = np.array(x, np.float32)
    with np.errstate(all="ignore"):
        expected = exact(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(mapped(simd, name, x), expected, rtol=5e-7, atol=0)


PAIRS = np.array(
    list(product([0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, DENORMAL, -DENORMAL, 2.5], repeat=2)),
    np.float32,
)


@pytest.mark.parametrize(("name", "exact"), [("vatan2", np.arctan2), ("vlogaddexp", np.logaddexp)])
def test_special_values_of_two_arguments(simd, name, exact):
    a, b = PAIRS.T.copy()
    with np.errstate(all="ignore"):
        expected = exact(a.astype(np.float64), b.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(mapped(simd, name, a, b), expected, rtol=5e-7, atol=2e-45)


def test_exp_gives_zero_where_floats_are_denormal(simd):
    x = np.array([-87.4, -95, -103], np.float32)
    assert np.exp(x.astype(np.float64)).max() < np.finfo(np.float32).tiny
    assert (mapped(simd, "vexp", x) == 0).all()


@pytest.mark.parametrize(("name", "exact"), [("vmin", np.minimum), ("vmax", np.maximum)])
def test_min_and_max(simd, name, exact):
    a, b = PAIRS.T.copy()  # where either is NaN, so is the result
    assert np.array_equal(mapped(simd, name, a, b), exact(a, b), equal_nan=True)


def whole_pairs(low, high, divisors):
    """Return all pairs of whole numbers, int32 [n] each."""
    return np.array(list(product(range(low, high), divisors)), np.int32).T.copy()


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param(whole_pairs(-60, 60, range(1, 30)), id="small"),
        pytest.param(whole_pairs(2**22 - 9, 2**22, (1, 2, 3, 7, 1000)), id="22 bits"),
        pytest.param(whole_pairs(-(2**22), -(2**22) + 9, (1, 2, 3, 7, 1000)), id="negative"),
        pytest.param(whole_pairs(-60, 60, range(-29, 0)), id="negative divisors"),
        pytest.param(whole_pairs(2**23, 2**23 + 9, (1, 2, 3)), id="24 bits"),
        # Floats of this size are 8 apart, so a quotient may be 1 too small or too great before it
        # is corrected; the quotients are below 2^22.
        pytest.param(whole_pairs(2**26, 2**26 + 200, range(17, 40)), id="27 bits"),
    ],
)
def test_floored_division_of_whole_numbers(simd, pairs):
    a, b = pairs
    assert np.array_equal(mapped(simd, "floor_divide", a, b), a // b)
    assert np.array_equal(mapped(simd, "iremainder", a, b), a % b)


def test_least_and_greatest_whole_numbers(simd):
    a, b = whole_pairs(-5, 6, (-3, 0, 3))
    assert np.array_equal(mapped(simd, "imin", a, b), np.minimum(a, b))
    assert np.array_equal(mapped(simd, "imax", a, b), np.maximum(a, b))


def test_remainder_of_floats(simd):
    a, b = spread(1e-3, 10, signs=True), spread(0.5, 5, signs=True)[::-1].copy()
    got, exact = mapped(simd, "vremainder", a, b), np.mod(a.astype(np.float64), b)
    off = np.abs(got - exact)
    off = np.minimum(off, np.abs(np.abs(b) - off))  # a multiple may be rounded to either side
    assert (off <= 4 * np.spacing(np.abs(a) + np.abs(b))).all()


@pytest.mark.parametrize("simd", [8], indirect=True, ids=["8 lanes"])
def test_transpose(simd):
    matrix = np.arange(64, dtype=np.float32).reshape(8, 8)
    aligned = (ctypes.c_float * (64 * 2 + 16))()
    first = (-ctypes.addressof(aligned) % 64) // 4  # vectors need addresses of their alignment
    memory_of = np.frombuffer(aligned, np.float32)[first:]
    before, after = memory_of[:64].reshape(8, 8), memory_of[64:128].reshape(8, 8)
    before[:] = matrix
    if not simd.transposed(pointer(before), pointer(after)):
        pytest.skip("this compiler has no shuffles of vectors")
    assert np.array_equal(after, matrix.T)


SEED, STEP, NUMBER = 0xDEADBEEF, 12, 5


def drawn(simd, name, number=NUMBER, n=64):
    """Return random numbers of ``simd.h`` for n environments, float32 [n]."""
    out = np.empty(n, np.float32)
    words = (ctypes.c_uint32(x) for x in (SEED, STEP, number))
    getattr(simd, f"draw_{name}")(*words, pointer(out), n)
    return out


def test_draws_of_the_kernel_equal_torchs(simd):
    key = torch.tensor([SEED, STEP])
    words = draws.threefry(key, torch.arange(64), NUMBER)
    for i, word in enumerate(words):
        assert np.array_equal(drawn(simd, f"word{i}").view(np.uint32), word.numpy())
    uniform = draws.draw("uniform", key, 64, NUMBER, ()).numpy()
    assert np.array_equal(drawn(simd, "uniform"), uniform)
    normal = draws.draw("normal", key, 64, NUMBER, ()).numpy()
    np.testing.assert_allclose(drawn(simd, "normal"), normal, rtol=2e-6, atol=2e-6)


def test_spawns_of_the_kernel_equal_torchs(simd):
    occupied = occupied_by((0.0, 0.0), (0.5, 0.5), n_envs=64)
    expected = draws.spawn(occupied, torch.tensor([SEED, STEP]), 3, 0.6, *BOUNDS)[:, 0]
    ours = np.stack([drawn(simd, "spawn_x"), drawn(simd, "spawn_y")], -1)
    np.testing.assert_allclose(ours, expected.numpy(), atol=2e-7)


# ------------------------------------------------------------------------------ build


def test_a_source_that_the_compiler_refuses_is_an_error_that_says_why(tmp_path):
    with pytest.raises(build.BuildFailed, match="error"):
        loaded('extern "C" int f() { return missing; }', tmp_path)


def test_cxx_names_the_compiler_and_none_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "own_compiler")
    with pytest.raises(build.NoCompiler, match="install one"):
        build.command.__wrapped__()
    own = tmp_path / "own_compiler"
    own.touch(0o755)
    assert build.command.__wrapped__() == (str(own),)
