// Layers of networks, computed for many samples at a time. A sample is what one agent reads in one
// environment, or one state. Samples stand `stride` numbers apart, each padded to whole vectors.
// In front of this file stand simd.h, the type Real (float or double) and the structures Linear,
// Layer and Norm, printed from layers.py.

#include <algorithm>
#include <cmath>
#include <vector>

// vr: a vector of Real.
#ifdef DOUBLE
typedef double vr __attribute__((vector_size(8 * W)));
#else
typedef vf vr;
#endif

#ifdef __AVX512F__
#define TILE 24  // samples whose sums stay in registers
#else
#define TILE 12
#endif
#define SAMPLES_TOGETHER 96  // a multiple of TILE
#define SUM_TILE 12          // numbers of a sample whose sums over samples stay in registers
// Samples are computed in parts, each by one thread and with sums of its own: so sums round alike
// for any number of threads, of which PARTS have work.
#define PARTS 4

INLINE vr load(const Real *from) {
  vr x;
  memcpy(&x, from, sizeof(vr));
  return x;
}
INLINE void store(Real *to, vr x) { memcpy(to, &x, sizeof(vr)); }
// The first n numbers; zeros follow.
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
// roomy: up to W - 1 numbers past the n may be read and overwritten.
INLINE void copy_numbers(Real *to, const Real *from, int64_t n, bool roomy) {
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

static int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
// The stride that a sample of n numbers needs, with a 1 after them for the bias's gradient.
static int64_t padded_size(int64_t n) {
  return std::max(round_up(n + 1, SUM_TILE), round_up(n, W));
}
// The number of samples of a part that are computed together: weights are read once for all of
// them, and their numbers fit the cache.
static int64_t block_size(int64_t n_samples) {
  const int64_t share = round_up(round_up(n_samples, PARTS) / PARTS, TILE);
  return std::max<int64_t>(TILE, std::min<int64_t>(share, SAMPLES_TOGETHER));
}

// y = x weight + bias, one panel of W outputs after another: the panel's weights stay in the nearest
// cache while all samples are computed, TILE at a time. n_samples is a multiple of TILE.
static void linear(const Linear *l, int64_t group, const Real *x, Real *y, int64_t stride,
                   int64_t n_samples, bool relu) {
  for (int64_t p = 0; p < l->outputs; p += W) {
    const Real *panel = l->weight + (group * l->outputs + p) * l->inputs;
    const vr bias = load(l->bias + group * l->outputs + p);
    for (int64_t i = 0; i < n_samples; i += TILE) {
      vr sum[TILE];
#pragma GCC unroll 32
      for (int m = 0; m < TILE; m++) sum[m] = bias;
      for (int64_t k = 0; k < l->inputs; k++) {
        const vr w = load(panel + k * W);
#pragma GCC unroll 32
        for (int m = 0; m < TILE; m++) sum[m] += x[(i + m) * stride + k] * w;
      }
#pragma GCC unroll 32
      for (int m = 0; m < TILE; m++) {
        if (relu) sum[m] = sum[m] > 0 ? sum[m] : vr{};
        store(y + (i + m) * stride + p, sum[m]);
      }
    }
  }
}

INLINE Real sum(vr x) {
  Real s = 0;
  for (int i = 0; i < W; i++) s += x[i];
  return s;
}

// Turn a sample's numbers into those of mean 0 and variance 1; return the factor. x is padded to
// whole vectors, by zeros, and stays so.
INLINE Real normalise(const Norm &norm, Real *x) {
  const int64_t n = norm.size, padded = round_up(n, W);
  vr total = {}, squares = {};
  for (int64_t j = 0; j < padded; j += W) total += load(x + j);
  const Real mean = sum(total) / n;
  for (int64_t j = 0; j < padded; j += W) store(x + j, load(x + j) - mean);
  std::fill(x + n, x + padded, (Real)0);
  for (int64_t j = 0; j < padded; j += W) squares += load(x + j) * load(x + j);
  const Real factor = 1 / std::sqrt(sum(squares) / n + (Real)norm.eps);
  for (int64_t j = 0; j < padded; j += W) store(x + j, load(x + j) * factor);
  return factor;
}
// The layer norm of n samples with its ReLU, in place. NaN stays, as in torch.
static void norm_and_relu(const Norm &norm, int64_t group, Real *x, int64_t stride, int64_t n) {
  const Real *scale = norm.scale + group * norm.size, *shift = norm.shift + group * norm.size;
  for (Real *end = x + n * stride; x < end; x += stride) {
    normalise(norm, x);
    for (int64_t j = 0; j < norm.size; j += W) {
      const int64_t left = norm.size - j;
      const vr y = load(x + j) * load_part(scale + j, left) + load_part(shift + j, left);
      store(x + j, y < 0 ? vr{} : y);
    }
  }
}

// The gradient of a ReLU: zero where its output, activated, is zero. Numbers of one sample.
INLINE void mask_by_relu(Real *grad, const Real *activated, int64_t n) {
  for (int64_t j = 0; j < n; j += W)
    store(grad + j, load(activated + j) > 0 ? load(grad + j) : vr{});
}

// sums += x^T y over samples, a tile of SUM_TILE numbers of x by W numbers of y at a time. A tile's
// sums over these few samples stay in registers; short sums round little.
// sums: [round_up(n_x, SUM_TILE), n_y]; x is read up to round_up(n_x, SUM_TILE).
static void add_outer_products(const Real *x, const Real *y, Real *sums, int64_t stride,
                               int64_t n_samples, int64_t n_x, int64_t n_y) {
  for (int64_t p = 0; p < n_y; p += W)
    for (int64_t i = 0; i < n_x; i += SUM_TILE) {
      vr sum[SUM_TILE] = {};
      for (int64_t s = 0; s < n_samples; s++) {
        const vr y_part = load(y + s * stride + p);
#pragma GCC unroll 16
        for (int m = 0; m < SUM_TILE; m++) sum[m] += x[s * stride + i + m] * y_part;
      }
#pragma GCC unroll 16
      for (int m = 0; m < SUM_TILE; m++) {
        Real *to = sums + (i + m) * n_y + p;
        store(to, load(to) + sum[m]);
      }
    }
}

// A layer copied into panels; zeros where nothing is put.
struct Panels {
  int64_t n_groups, inputs, outputs;
  std::vector<Real> weight, bias;

  Panels(int64_t n_groups, int64_t inputs, int64_t n_outputs)
      : n_groups(n_groups), inputs(inputs), outputs(round_up(n_outputs, W)),
        weight(n_groups * inputs * outputs), bias(n_groups * outputs) {}
  Linear linear() const {
    Linear l = {};
    l.weight = weight.data();
    l.bias = bias.data();
    l.inputs = inputs;
    l.outputs = outputs;
    return l;
  }

  // Put part of a weight: output o of input i stands at from[o * output_step + i * input_step].
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
  // The transposed weight without a bias: it takes gradients of outputs to gradients of inputs.
  static Panels transposed(const Layer &l, int64_t n_groups) {
    Panels p(n_groups, l.outputs, l.inputs);
    for (int64_t g = 0; g < n_groups; g++)
      p.put(g, 0, 0, l.weight + g * l.outputs * l.inputs, l.inputs, l.outputs, 1, l.inputs);
    return p;
  }
};

// The gradients of a layer's weight and bias, one sum for each part: [inputs + 1, outputs], the
// bias's last.
struct Sums {
  int64_t n_groups, n_x, n_y, size;
  std::vector<Real> values;

  Sums(int64_t n_groups, int64_t inputs, int64_t outputs)
      : n_groups(n_groups), n_x(inputs + 1), n_y(round_up(outputs, W)),
        size(round_up(n_x, SUM_TILE) * n_y), values(PARTS * n_groups * size) {}

  // x: inputs, and a 1 after each sample's, by which the bias's gradient is summed.
  void add(int64_t part, int64_t group, const Real *x, const Real *y, int64_t stride,
           int64_t n_samples) {
    Real *sums = values.data() + (part * n_groups + group) * size;
    add_outer_products(x, y, sums, stride, n_samples, n_x, n_y);
  }
  Real total(int64_t group, int64_t i, int64_t o) const {
    Real sum = 0;
    for (int64_t part = 0; part < PARTS; part++)
      sum += values[(part * n_groups + group) * size + i * n_y + o];
    return sum;
  }
  // Write sums from output `first` on to the layer's outputs from `to` on.
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

// The gradients of a layer norm's scale and shift, one sum for each part.
struct NormSums {
  int64_t n_groups, padded;
  std::vector<Real> values;  // [parts, groups, 2, padded]

  NormSums(int64_t n_groups, int64_t size)
      : n_groups(n_groups), padded(round_up(size, W)), values(PARTS * n_groups * 2 * padded) {}

  // x: normalised numbers of n samples; grad: the gradients of what they are scaled and shifted to.
  void add(int64_t part, int64_t group, const Real *x, const Real *grad, int64_t stride,
           int64_t n) {
    Real *sums = values.data() + (part * n_groups + group) * 2 * padded;
    for (int64_t j = 0; j < padded; j += W) {
      vr scale = {}, shift = {};  // sums over these few samples round little
      for (int64_t at = j; at < n * stride; at += stride) {
        scale += load(x + at) * load(grad + at);
        shift += load(grad + at);
      }
      store(sums + j, load(sums + j) + scale);
      store(sums + padded + j, load(sums + padded + j) + shift);
    }
  }
  Real total(int64_t group, int64_t i) const {
    Real sum = 0;
    for (int64_t part = 0; part < PARTS; part++)
      sum += values[(part * n_groups + group) * 2 * padded + i];
    return sum;
  }
  void write(const Norm &norm) const {
    for (int64_t g = 0; g < n_groups; g++)
      for (int64_t j = 0; j < norm.size; j++) {
        norm.grad_scale[g * norm.size + j] = total(g, j);
        norm.grad_shift[g * norm.size + j] = total(g, padded + j);
      }
  }
};
