// Arithmetic on vectors of W numbers, by the vector extensions of GCC and Clang: the functions that
// steps and networks are made of.
//
// vf: floats; vi: integers; vu: unsigned integers. A boolean is an integer with all bits set, or
// none. Polynomials are those of Cephes (Moshier), accurate to about 2 units in the last place, so
// that no mathematics library is called.

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifndef W
#define W 8
#endif
typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
#define INLINE static inline __attribute__((always_inline))

// Vectors of one number: an operation of a number and a vector repeats the number.
INLINE vf F(float x) { return x - (vf){}; }
INLINE vi N(int32_t x) { return x - (vi){}; }
INLINE vf to_f(vi x) { return __builtin_convertvector(x, vf); }
INLINE vi to_i(vf x) { return __builtin_convertvector(x, vi); }
INLINE vf b_to_f(vi mask) { return (vf)(mask & (vi)F(1.0f)); }
INLINE vi b_to_i(vi mask) { return -mask; }

#if defined(__AVX__) && W == 8
INLINE vf vsqrt(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
INLINE vf vfloor(vf x) { return (vf)_mm256_floor_ps((__m256)x); }
// They return the first argument where one is NaN.
INLINE vf first_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)b, (__m256)a); }
INLINE vf first_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)b, (__m256)a); }
INLINE bool any(vi mask) { return !_mm256_testz_si256((__m256i)mask, (__m256i)mask); }
#elif defined(__AVX512F__) && W == 16
INLINE vf vsqrt(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
INLINE vf vfloor(vf x) { return (vf)_mm512_floor_ps((__m512)x); }
INLINE vf first_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)b, (__m512)a); }
INLINE vf first_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)b, (__m512)a); }
INLINE bool any(vi mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0; }
#else
INLINE vf vsqrt(vf x) {
  for (int i = 0; i < W; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
INLINE vf vfloor(vf x) {
  for (int i = 0; i < W; i++) x[i] = __builtin_floorf(x[i]);
  return x;
}
INLINE vf first_min(vf a, vf b) { return b < a ? b : a; }
INLINE vf first_max(vf a, vf b) { return b > a ? b : a; }
INLINE bool any(vi mask) {
  int32_t found = 0;
  for (int i = 0; i < W; i++) found |= mask[i];
  return found != 0;
}
#endif

#if W == 8 && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define TRANSPOSES
// Exchange the two dimensions of W vectors of W floats: pairs, pairs of pairs, then halves.
INLINE void transpose(const vf *in, vf *out) {
  vf x[8], a[8], b[8];
  for (int i = 0; i < 8; i++) {
    x[i] = in[i];
#ifdef __AVX__
    // Hides constants: GCC 12 with AVX-512 computes their exchange wrongly when it compiles.
    __asm__("" : "+x"(x[i]));
#endif
  }
  for (int i = 0; i < 8; i += 2) {
    a[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    a[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; k++) {
      b[i + 2 * k] = __builtin_shufflevector(a[i + k], a[i + 2 + k], 0, 1, 8, 9, 4, 5, 12, 13);
      b[i + 2 * k + 1] = __builtin_shufflevector(a[i + k], a[i + 2 + k], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int i = 0; i < 4; i++) {
    out[i] = __builtin_shufflevector(b[i], b[4 + i], 0, 1, 2, 3, 8, 9, 10, 11);
    out[4 + i] = __builtin_shufflevector(b[i], b[4 + i], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
#endif
#endif

INLINE vf vmin(vf a, vf b) { return b != b ? b : first_min(a, b); }
INLINE vf vmax(vf a, vf b) { return b != b ? b : first_max(a, b); }
INLINE vf vabs(vf x) { return (vf)((vi)x & N(0x7fffffff)); }
INLINE vf vsign(vf x) { return b_to_f(x > 0.0f) - b_to_f(x < 0.0f); }
INLINE vi imin(vi a, vi b) { return a < b ? a : b; }
INLINE vi imax(vi a, vi b) { return a > b ? a : b; }
INLINE vi iabs(vi x) { return x < 0 ? -x : x; }
INLINE vi isign(vi x) { return (x < 0) - (x > 0); }
// By floats, as processors do not divide vectors of integers; exact for quotients up to 2^22.
INLINE vi floor_divide(vi a, vi b) {
  vi q = to_i(vfloor(to_f(a) / to_f(b))), rest = a - q * b;
  q += iabs(rest) >= iabs(b) ? ((rest ^ b) < 0 ? N(-1) : N(1)) : N(0);
  rest = a - q * b;
  return q - (vi)((rest != 0) & ((rest ^ b) < 0) & 1);
}
INLINE vi iremainder(vi a, vi b) { return a - floor_divide(a, b) * b; }
INLINE vf vremainder(vf a, vf b) { return a - b * vfloor(a / b); }

INLINE vf vexp(vf x) {
  vi over = x > 88.7228f, under = x < -87.33f;
  vf n = vfloor(vmax(vmin(x, F(88.7228f)), F(-87.33f)) * 1.44269504088896341f + 0.5f);
  vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vf p = F(1.9875691500E-4f);
  p = p * r + 1.3981999507E-3f;
  p = p * r + 8.3334519073E-3f;
  p = p * r + 4.1665795894E-2f;
  p = p * r + 1.6666665459E-1f;
  p = p * r + 5.0000001201E-1f;
  p = p * r * r + r + 1.0f;
  vi half = to_i(n) >> 1;  // in two factors, as 2^128 is no float
  vf e = p * (vf)((half + 127) << 23) * (vf)((to_i(n) - half + 127) << 23);
  return over ? F(INFINITY) : (under ? F(0.0f) : e);
}

INLINE vf vlog(vf x) {
  vi tiny = x < 1.17549435e-38f;
  vf scaled = tiny ? x * 8388608.0f : x;
  vi bits = (vi)scaled;
  vi e = ((bits >> 23) & 0xff) - 126 - (tiny & 23);
  vf m = (vf)((bits & 0x007fffff) | 0x3f000000);
  vi small = m < 0.707106781186547524f;
  e = e + small;
  m = (small ? m + m : m) - 1.0f;
  vf z = m * m, p = F(7.0376836292E-2f);
  p = p * m - 1.1514610310E-1f;
  p = p * m + 1.1676998740E-1f;
  p = p * m - 1.2420140846E-1f;
  p = p * m + 1.4249322787E-1f;
  p = p * m - 1.6668057665E-1f;
  p = p * m + 2.0000714765E-1f;
  p = p * m - 2.4999993993E-1f;
  p = p * m + 3.3333331174E-1f;
  vf fe = to_f(e), r = m * z * p - fe * 2.12194440e-4f - 0.5f * z;
  r = m + r + fe * 0.693359375f;
  r = x == 0.0f ? F(-INFINITY) : r;
  r = x == INFINITY ? x : r;
  return (x < 0.0f) | (x != x) ? F(NAN) : r;
}

// log(1 + x) for x >= 0, corrected for the rounding of 1 + x.
INLINE vf vlog1p(vf x) {
  vf u = x + 1.0f;
  return vlog(u) + (x - (u - 1.0f)) / u;
}

// A large angle less whole turns; NaN from 2^31 on. It is the fraction of m 2^e / (2 pi), whose
// digits before the point are those that 64 bits lose.
static float turned(float x) {
  if (!(fabsf(x) < 2147483648.0f)) return NAN;
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  int64_t m = (bits & 0x7fffff) | 0x800000;
  int e = ((bits >> 23) & 0xff) - 150;
  uint64_t turn = 0x28be60db9391054a;  // 2^64 / (2 pi)
  uint64_t fraction = m * (e < 0 ? turn >> -e : turn << e);
  float angle = (int32_t)(fraction >> 32) * 1.4629180792671596e-09f;
  return x < 0 ? -angle : angle;
}
INLINE vf of_one_turn(vf x) {
  vi large = vabs(x) > 8192.0f;
  if (any(large))
    for (int i = 0; i < W; i++) x[i] = large[i] ? turned(x[i]) : x[i];
  return x;
}
INLINE void vsincos(vf x, vf *sine, vf *cosine) {
  x = of_one_turn(x);
  vi sign = (vi)x & N((int32_t)0x80000000);
  vf a = vabs(x);
  vi j = (to_i(a * 1.27323954473516f) + 1) & ~1;
  vf y = to_f(j);
  a = ((a - y * 0.78515625f) - y * 2.4187564849853515625e-4f) - y * 3.77489497744594108e-8f;
  vf z = a * a;
  vf c = F(2.443315711809948E-005f);
  c = c * z - 1.388731625493765E-003f;
  c = c * z + 4.166664568298827E-002f;
  c = c * z * z - 0.5f * z + 1.0f;
  vf s = F(-1.9515295891E-4f);
  s = s * z + 8.3321608736E-3f;
  s = s * z - 1.6666654611E-1f;
  s = s * z * a + a;
  vi swapped = (j & 2) != 0;
  *sine = (vf)((vi)(swapped ? c : s) ^ ((j & 4) << 29) ^ sign);
  *cosine = (vf)((vi)(swapped ? s : c) ^ (((j + 2) & 4) << 29));
}
INLINE vf vsin(vf x) {
  vf s, c;
  vsincos(x, &s, &c);
  return s;
}
INLINE vf vcos(vf x) {
  vf s, c;
  vsincos(x, &s, &c);
  return c;
}
INLINE vf vtan(vf x) {
  vf s, c;
  vsincos(x, &s, &c);
  return s / c;
}
INLINE vf vtanh(vf x) {
  vf a = vabs(x), z = x * x;
  vf p = F(-5.70498872745E-3f);
  p = p * z + 2.06390887954E-2f;
  p = p * z - 5.37397155531E-2f;
  p = p * z + 1.33314422036E-1f;
  p = p * z - 3.33332819422E-1f;
  vf near = p * z * x + x;
  vf far = 1.0f - 2.0f / (vexp(a + a) + 1.0f);
  far = (vf)((vi)far | ((vi)x & N((int32_t)0x80000000)));
  return a < 0.625f ? near : far;
}
INLINE vf vatan2(vf y, vf x) {
  vf ay = vabs(y), ax = vabs(x);
  vf low = vmin(ay, ax), high = vmax(ay, ax);
  vf t = high == 0.0f ? F(0.0f) : (low == high ? F(1.0f) : low / high);
  vi large = t > 0.4142135623730950f;
  vf u = large ? (t - 1.0f) / (t + 1.0f) : t;
  vf z = u * u, p = F(8.05374449538e-2f);
  p = p * z - 1.38776856032E-1f;
  p = p * z + 1.99777106478E-1f;
  p = p * z - 3.33329491539E-1f;
  vf r = p * z * u + u;
  r = large ? r + 0.785398163397448f : r;
  r = ay > ax ? 1.570796326794897f - r : r;
  r = (vi)x < 0 ? 3.141592653589793f - r : r;
  r = (vf)((vi)vabs(r) | ((vi)y & N((int32_t)0x80000000)));
  return (x != x) | (y != y) ? F(NAN) : r;
}
INLINE vf vlogaddexp(vf a, vf b) {
  vf m = vmax(a, b), d = vabs(a - b);
  return a == b ? a + 0.6931471805599453f : m + vlog1p(vexp(-d));
}
