// Layers of networks, on rows that stand at equal distances. simd.h stands in front; a row's end is
// filled up to whole vectors.

#include <algorithm>
#include <vector>

#ifdef DOUBLE
typedef double Real;
typedef double vr __attribute__((vector_size(8 * W)));
#else
typedef float Real;
typedef vf vr;
#endif

#ifdef __AVX512F__
#define TILE 24  // rows whose sums stay in registers
#else
#define TILE 12
#endif
#define ROWS_TOGETHER 96  // a multiple of TILE
#define SUM_TILE 12       // and numbers of a row, where sums are over rows

// A layer in panels of W outputs.
struct Linear {
  const Real *weight;  // [groups, outputs / W, inputs, W]
  const Real *bias;    // [groups, outputs], filled up
  int64_t inputs, outputs;
};

// A layer as torch has it.
struct Layer {
  const Real *weight;             // [groups, outputs, inputs]
  const Real *bias;               // [groups, outputs]
  int64_t inputs, outputs;
  Real *grad_weight, *grad_bias;  // to be written on the way back
};

INLINE vr load(const Real *from) {
  vr x;
  memcpy(&x, from, sizeof(vr));
  return x;
}
INLINE void store(Real *to, vr x) { memcpy(to, &x, sizeof(vr)); }
INLINE vr load_part(const Real *from, int64_t n) {
  if (n >= W) return load(from);
  vr x = {};
  memcpy(&x, from, n * sizeof(Real));
  return x;
}
INLINE void store_part(Real *to, vr x, int64_t n) {
  if (n >= W) return store(to, x);
  memcpy(to, &x, n * sizeof(Real));
}
// Roomy: up to W - 1 numbers more may be read and written.
INLINE void copy_row(Real *to, const Real *from, int64_t n, bool roomy) {
  if (!roomy) {
    memcpy(to, from, n * sizeof(Real));
    return;
  }
  for (int64_t j = 0; j < n; j += W) store(to + j, load(from + j));
}

#ifdef DOUBLE
INLINE vr sigmoid(vr x) {
  for (int i = 0; i < W; i++) x[i] = 1.0 / (1.0 + exp(-x[i]));
  return x;
}
INLINE vr hyperbolic_tangent(vr x) {
  for (int i = 0; i < W; i++) x[i] = tanh(x[i]);
  return x;
}
INLINE vr exp_minus_1(vr x) {
  for (int i = 0; i < W; i++) x[i] = expm1(x[i]);
  return x;
}
#else
INLINE vr sigmoid(vr x) { return 1.0f / (1.0f + vexp(-x)); }
INLINE vr hyperbolic_tangent(vr x) { return vtanh(x); }
INLINE vr exp_minus_1(vr x) { return vexp(x) - 1.0f; }
#endif

static int64_t whole(int64_t n, int64_t of) { return (n + of - 1) / of * of; }
// What a row takes of n numbers, and of a 1 behind them where sums are over rows.
static int64_t room(int64_t n) { return std::max(whole(n + 1, SUM_TILE), whole(n, W)); }
// How many rows a thread computes together: enough for the weights, few for the cache.
static int64_t block_of(int64_t n_rows, int64_t threads) {
  const int64_t share = whole(whole(n_rows, threads) / threads, TILE);
  return std::max<int64_t>(TILE, std::min<int64_t>(share, ROWS_TOGETHER));
}

// y = x weight + bias, a panel of W outputs after the other: its weights stay in the nearest cache
// while all rows pass by, TILE at a time. Rows are width apart, their number a multiple of TILE.
static void linear(const Linear *l, int64_t group, const Real *x, Real *y, int64_t width,
                   int64_t n_rows, bool relu) {
  for (int64_t p = 0; p < l->outputs; p += W) {
    const Real *panel = l->weight + (group * l->outputs + p) * l->inputs;
    const vr bias = load(l->bias + group * l->outputs + p);
    for (int64_t i = 0; i < n_rows; i += TILE) {
      vr sum[TILE];
#pragma GCC unroll 32
      for (int m = 0; m < TILE; m++) sum[m] = bias;
      for (int64_t k = 0; k < l->inputs; k++) {
        const vr w = load(panel + k * W);
#pragma GCC unroll 32
        for (int m = 0; m < TILE; m++) sum[m] += x[(i + m) * width + k] * w;
      }
#pragma GCC unroll 32
      for (int m = 0; m < TILE; m++) {
        if (relu) sum[m] = sum[m] > 0 ? sum[m] : vr{};
        store(y + (i + m) * width + p, sum[m]);
      }
    }
  }
}

// sums += x^T y over rows, a tile of SUM_TILE numbers of x by W of y at a time: sums of these rows
// stay in registers while they pass by, and are short, so that little is rounded away.
// sums: [whole(n_x, SUM_TILE), n_y]; x may be read up to whole(n_x, SUM_TILE).
static void outer(const Real *x, const Real *y, Real *sums, int64_t width, int64_t n_rows,
                  int64_t n_x, int64_t n_y) {
  for (int64_t p = 0; p < n_y; p += W)
    for (int64_t i = 0; i < n_x; i += SUM_TILE) {
      vr sum[SUM_TILE] = {};
      for (int64_t r = 0; r < n_rows; r++) {
        const vr of_y = load(y + r * width + p);
#pragma GCC unroll 16
        for (int m = 0; m < SUM_TILE; m++) sum[m] += x[r * width + i + m] * of_y;
      }
#pragma GCC unroll 16
      for (int m = 0; m < SUM_TILE; m++) {
        Real *to = sums + (i + m) * n_y + p;
        store(to, load(to) + sum[m]);
      }
    }
}

// A layer's panels, of zeros until they are put.
struct Panels {
  int64_t n_groups, inputs, outputs;
  std::vector<Real> weight, bias;

  Panels(int64_t n_groups, int64_t inputs, int64_t n_outputs)
      : n_groups(n_groups), inputs(inputs), outputs(whole(n_outputs, W)),
        weight(n_groups * inputs * outputs), bias(n_groups * outputs) {}
  Linear linear() const { return {weight.data(), bias.data(), inputs, outputs}; }

  // Part of a weight: output o of input i stands at from[o * output_step + i * input_step].
  void put(int64_t group, int64_t first_output, int64_t first_input, const Real *from,
           int64_t n_outputs, int64_t n_inputs, int64_t output_step, int64_t input_step) {
    for (int64_t o = 0; o < n_outputs; o++) {
      const int64_t at = group * outputs + first_output + o;
      Real *to = weight.data() + (at / W * inputs + first_input) * W + at % W;
      for (int64_t i = 0; i < n_inputs; i++) to[i * W] = from[o * output_step + i * input_step];
    }
  }

  static Panels of(const Layer &l, int64_t n_groups) {
    Panels p(n_groups, l.inputs, l.outputs);
    for (int64_t g = 0; g < n_groups; g++) {
      p.put(g, 0, 0, l.weight + g * l.outputs * l.inputs, l.outputs, l.inputs, l.inputs, 1);
      memcpy(p.bias.data() + g * p.outputs, l.bias + g * l.outputs, l.outputs * sizeof(Real));
    }
    return p;
  }
  // Through which gradients go back.
  static Panels transposed(const Layer &l, int64_t n_groups) {
    Panels p(n_groups, l.outputs, l.inputs);
    for (int64_t g = 0; g < n_groups; g++)
      p.put(g, 0, 0, l.weight + g * l.outputs * l.inputs, l.inputs, l.outputs, 1, l.inputs);
    return p;
  }
};

// The gradients of a layer's weight and bias, summed by each thread for itself: transposed, the
// bias below the weight.
struct Sums {
  int64_t n_groups, n_threads, n_x, n_y, size;
  std::vector<Real> values;

  Sums(int64_t n_groups, int64_t n_threads, int64_t inputs, int64_t outputs)
      : n_groups(n_groups), n_threads(n_threads), n_x(inputs + 1), n_y(whole(outputs, W)),
        size(whole(n_x, SUM_TILE) * n_y), values(n_threads * n_groups * size) {}

  // One row more of each x is the bias's: its place behind the inputs holds a 1.
  void add(int64_t thread, int64_t group, const Real *x, const Real *y, int64_t width,
           int64_t n_rows) {
    outer(x, y, values.data() + (thread * n_groups + group) * size, width, n_rows, n_x, n_y);
  }
  Real total(int64_t group, int64_t i, int64_t o) const {
    Real sum = 0;
    for (int64_t t = 0; t < n_threads; t++)
      sum += values[(t * n_groups + group) * size + i * n_y + o];
    return sum;
  }
  // Part of the outputs, from first on.
  void write(const Layer &l, int64_t first, int64_t n_outputs, int64_t to) const {
    for (int64_t g = 0; g < n_groups; g++)
      for (int64_t o = 0; o < n_outputs; o++) {
        const int64_t output = g * l.outputs + to + o;
        for (int64_t i = 0; i < l.inputs; i++)
          l.grad_weight[output * l.inputs + i] = total(g, i, first + o);
        l.grad_bias[output] = total(g, l.inputs, first + o);
      }
  }
  void write(const Layer &l) const { write(l, 0, l.outputs, 0); }
};
