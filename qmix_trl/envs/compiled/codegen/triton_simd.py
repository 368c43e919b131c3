"""The functions of ``simd.h`` and ``draws.h`` in Triton, on a block of environments.

Only printed kernels import this module, since Triton is optional. Polynomials are evaluated as in
``simd.h``, operation by operation: the functions of a GPU round differently, and Triton's
interpreter lacks them.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def some(mask):
    return tl.max(mask.to(tl.int32), 0) != 0


@triton.jit
def vmin(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def vmax(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def vfloor(x):
    """Round down; Triton's own floor takes subnormal numbers for zero."""
    whole = x.to(tl.int32).to(tl.float32)
    return tl.where(tl.abs(x) < 8388608.0, whole - (whole > x).to(tl.float32), x)


@triton.jit
def vsign(x):
    return (x > 0).to(tl.float32) - (x < 0).to(tl.float32)


@triton.jit
def isign(x):
    return (x > 0).to(tl.int32) - (x < 0).to(tl.int32)


@triton.jit
def floor_divide(a, b):
    q = a // b  # towards zero
    rest = a - q * b
    return q - ((rest != 0) & ((rest ^ b) < 0)).to(tl.int32)


@triton.jit
def iremainder(a, b):
    return a - floor_divide(a, b) * b


@triton.jit
def vremainder(a, b):
    return a - b * vfloor(tl.div_rn(a, b))


@triton.jit
def as_float(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def as_bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def with_sign(x, sign):
    return as_float(as_bits(x) | (as_bits(sign) & -2147483648))


@triton.jit
def vexp(x):
    n = vfloor(vmax(vmin(x, 88.7228), -87.33) * 1.44269504088896341 + 0.5)
    r = x - n * 0.693359375 + n * 2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * r * r + r + 1.0
    whole = n.to(tl.int32)
    half = whole >> 1  # in two factors, for 2^128 is no float
    e = p * as_float((half + 127) << 23) * as_float((whole - half + 127) << 23)
    return tl.where(x > 88.7228, float("inf"), tl.where(x < -87.33, 0.0, e))


@triton.jit
def vlog(x):
    tiny = x < 1.1754943508222875e-38  # 2**-126; a literal below it would be a float64
    bits = as_bits(tl.where(tiny, x * 8388608.0, x))
    e = ((bits >> 23) & 0xFF) - 126 - tl.where(tiny, 23, 0)
    m = as_float((bits & 0x007FFFFF) | 0x3F000000)
    small = m < 0.707106781186547524
    e = e - small.to(tl.int32)
    m = tl.where(small, m + m, m) - 1.0
    z = m * m
    p = m * 7.0376836292e-2 - 1.1514610310e-1
    p = p * m + 1.1676998740e-1
    p = p * m - 1.2420140846e-1
    p = p * m + 1.4249322787e-1
    p = p * m - 1.6668057665e-1
    p = p * m + 2.0000714765e-1
    p = p * m - 2.4999993993e-1
    p = p * m + 3.3333331174e-1
    fe = e.to(tl.float32)
    r = m * z * p - fe * 2.12194440e-4 - 0.5 * z
    r = m + r + fe * 0.693359375
    r = tl.where(x == 0.0, float("-inf"), r)
    r = tl.where(x == float("inf"), x, r)
    return tl.where((x < 0.0) | (x != x), float("nan"), r)


@triton.jit
def vlog1p(x):
    u = x + 1.0
    return vlog(u) + tl.div_rn(x - (u - 1.0), u)


@triton.jit
def turned(x):
    """Return large angles less whole turns; NaN from 2^31 on."""
    bits = as_bits(x)
    m = ((bits & 0x7FFFFF) | 0x800000).to(tl.int64)
    e = ((bits >> 23) & 0xFF) - 150
    turn = tl.full(x.shape, 2935890503282001226, tl.int64)  # 2^64 / (2 pi)
    left, right = tl.maximum(e, 0).to(tl.int64), tl.maximum(-e, 0).to(tl.int64)
    fraction = m * ((turn << tl.minimum(left, 63)) >> tl.minimum(right, 63))
    angle = (fraction >> 32).to(tl.int32).to(tl.float32) * 1.4629180792671596e-09
    angle = tl.where(x < 0.0, -angle, angle)
    return tl.where(tl.abs(x) < 2147483648.0, angle, float("nan"))


@triton.jit
def vsincos(x):
    large = tl.abs(x) > 8192.0
    if some(large):
        x = tl.where(large, turned(x), x)
    a = tl.abs(x)
    j = ((a * 1.27323954473516).to(tl.int32) + 1) & -2
    y = j.to(tl.float32)
    a = ((a - y * 0.78515625) - y * 2.4187564849853515625e-4) - y * 3.77489497744594108e-8
    z = a * a
    c = z * 2.443315711809948e-005 - 1.388731625493765e-003
    c = c * z + 4.166664568298827e-002
    c = c * z * z - 0.5 * z + 1.0
    s = z * -1.9515295891e-4 + 8.3321608736e-3
    s = s * z - 1.6666654611e-1
    s = s * z * a + a
    swapped = (j & 2) != 0
    sign = as_bits(x) & -2147483648
    sine = as_float(as_bits(tl.where(swapped, c, s)) ^ ((j & 4) << 29) ^ sign)
    cosine = as_float(as_bits(tl.where(swapped, s, c)) ^ (((j + 2) & 4) << 29))
    return sine, cosine


@triton.jit
def vsin(x):
    sine, _ = vsincos(x)
    return sine


@triton.jit
def vcos(x):
    _, cosine = vsincos(x)
    return cosine


@triton.jit
def vtan(x):
    sine, cosine = vsincos(x)
    return tl.div_rn(sine, cosine)


@triton.jit
def vtanh(x):
    a = tl.abs(x)
    z = x * x
    p = z * -5.70498872745e-3 + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    near = p * z * x + x
    far = 1.0 - tl.div_rn(2.0, vexp(a + a) + 1.0)
    return tl.where(a < 0.625, near, with_sign(far, x))


@triton.jit
def vatan2(y, x):
    ay = tl.abs(y)
    ax = tl.abs(x)
    low = vmin(ay, ax)
    high = vmax(ay, ax)
    t = tl.where(high == 0.0, 0.0, tl.where(low == high, 1.0, tl.div_rn(low, high)))
    large = t > 0.4142135623730950
    u = tl.where(large, tl.div_rn(t - 1.0, t + 1.0), t)
    z = u * u
    p = z * 8.05374449538e-2 - 1.38776856032e-1
    p = p * z + 1.99777106478e-1
    p = p * z - 3.33329491539e-1
    r = p * z * u + u
    r = tl.where(large, r + 0.785398163397448, r)
    r = tl.where(ay > ax, 1.570796326794897 - r, r)
    r = tl.where(as_bits(x) < 0, 3.141592653589793 - r, r)
    return tl.where((x != x) | (y != y), float("nan"), with_sign(tl.abs(r), y))


@triton.jit
def vlogaddexp(a, b):
    apart = vmax(a, b) + vlog1p(vexp(-tl.abs(a - b)))
    return tl.where(a == b, a + 0.6931471805599453, apart)


# The random numbers of draws.py: Threefry-2x32 (Salmon et al. 2011). ``draws`` holds uint32: the
# numbers of the environments [BLOCK], the seed and the number of the step.
@triton.jit
def round_(x, y, by: tl.constexpr):
    x = x + y
    return x, ((y << by) | (y >> (32 - by))) ^ x


@triton.jit
def even_rounds(x, y):
    x, y = round_(x, y, 13)
    x, y = round_(x, y, 15)
    x, y = round_(x, y, 26)
    return round_(x, y, 6)


@triton.jit
def odd_rounds(x, y):
    x, y = round_(x, y, 17)
    x, y = round_(x, y, 29)
    x, y = round_(x, y, 16)
    return round_(x, y, 24)


@triton.jit
def threefry(draws, counter):
    environment, a, b = draws
    c = a ^ b ^ 0x1BD11BDA
    x, y = even_rounds(environment + a, environment * 0 + (b + counter))
    x, y = odd_rounds(x + b, y + c + 1)
    x, y = even_rounds(x + c, y + a + 2)
    x, y = odd_rounds(x + a, y + b + 3)
    x, y = even_rounds(x + b, y + c + 4)
    return x + c, y + a + 5


@triton.jit
def unit(word):
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-8


@triton.jit
def uniform(draws, number):
    word, _ = threefry(draws, number)
    return unit(word)


@triton.jit
def normal(draws, number):
    x, y = threefry(draws, number)
    return tl.sqrt_rn(-2.0 * vlog(1.0 - unit(x))) * vcos(6.283185307179586 * unit(y))


@triton.jit
def spawn(draws, first, tries, min_distance, low_x, low_y, high_x, high_y, occupied):
    environment, _, _ = draws
    x = environment.to(tl.float32) * 0
    y = x
    waiting = x == 0
    i = 0
    while (i < tries) & some(waiting):
        a, b = threefry(draws, first + i)
        x = tl.where(waiting, unit(a) * (high_x - low_x) + low_x, x)
        y = tl.where(waiting, unit(b) * (high_y - low_y) + low_y, y)
        waiting = x != x
        for k in tl.static_range(0, len(occupied), 2):
            dx = occupied[k] - x
            dy = occupied[k + 1] - y
            waiting = waiting | (tl.sqrt_rn(dx * dx + dy * dy) < min_distance)
        i += 1
    return x, y


@triton.jit
def put(seen, last_seen, fresh, value, done, taken, inside):
    """Write a number of observation or state; where ``taken``, ``seen`` gets the reset's."""
    tl.store(last_seen, value, mask=done)
    tl.store(seen, tl.load(fresh, mask=taken, other=value), mask=inside)
