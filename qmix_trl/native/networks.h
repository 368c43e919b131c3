// Layers of networks, on rows that stand at equal distances. simd.h stands in front; a row's end is
// filled up to whole vectors.

#ifdef DOUBLE
typedef double Real;
typedef double vr __attribute__((vector_size(8 * W)));
#else
typedef float Real;
typedef vf vr;
#endif

struct Linear {
  const Real *weight;  // [groups, outputs / W, inputs, W]
  const Real *bias;    // [groups, outputs]
  int64_t inputs, outputs;
};

INLINE vr load(const Real *from) {
  vr x;
  memcpy(&x, from, sizeof(vr));
  return x;
}
INLINE void store(Real *to, vr x) { memcpy(to, &x, sizeof(vr)); }
#ifdef DOUBLE
INLINE vr sigmoid(vr x) {
  for (int i = 0; i < W; i++) x[i] = 1.0 / (1.0 + exp(-x[i]));
  return x;
}
INLINE vr hyperbolic_tangent(vr x) {
  for (int i = 0; i < W; i++) x[i] = tanh(x[i]);
  return x;
}
#else
INLINE vr sigmoid(vr x) { return 1.0f / (1.0f + vexp(-x)); }
INLINE vr hyperbolic_tangent(vr x) { return vtanh(x); }
#endif

static int64_t whole(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

// y = x weight + bias, a panel of W outputs after the other: its weights stay in the nearest cache
// while all rows pass by, TILE at a time. Rows are width apart, their number a multiple of TILE.
static void linear(const Linear *l, int64_t group, const Real *x, Real *y, int64_t width,
                   int64_t n_rows, bool relu) {
  for (int64_t p = 0; p < l->outputs; p += W) {
    const Real *panel = l->weight + (group * l->outputs + p) * l->inputs;
    const vr bias = load(l->bias + group * l->outputs + p);
    for (int64_t i = 0; i < n_rows; i += TILE) {
      vr sum[TILE];
#pragma GCC unroll 16
      for (int m = 0; m < TILE; m++) sum[m] = bias;
      for (int64_t k = 0; k < l->inputs; k++) {
        const vr w = load(panel + k * W);
#pragma GCC unroll 16
        for (int m = 0; m < TILE; m++) sum[m] += x[(i + m) * width + k] * w;
      }
#pragma GCC unroll 16
      for (int m = 0; m < TILE; m++) {
        if (relu) sum[m] = sum[m] > 0 ? sum[m] : vr{};
        store(y + (i + m) * width + p, sum[m]);
      }
    }
  }
}

// sums += x^T y over rows, a tile of TILE numbers of x by W of y at a time: sums stays in registers
// while all rows pass by. sums: [whole(n_x, TILE), n_y]; x may be read up to whole(n_x, TILE).
static void outer(const Real *x, const Real *y, Real *sums, int64_t width, int64_t n_rows,
                  int64_t n_x, int64_t n_y) {
  for (int64_t p = 0; p < n_y; p += W)
    for (int64_t i = 0; i < n_x; i += TILE) {
      vr sum[TILE];
#pragma GCC unroll 16
      for (int m = 0; m < TILE; m++) sum[m] = load(sums + (i + m) * n_y + p);
      for (int64_t r = 0; r < n_rows; r++) {
        const vr of_y = load(y + r * width + p);
#pragma GCC unroll 16
        for (int m = 0; m < TILE; m++) sum[m] += x[r * width + i + m] * of_y;
      }
#pragma GCC unroll 16
      for (int m = 0; m < TILE; m++) store(sums + (i + m) * n_y + p, sum[m]);
    }
}
