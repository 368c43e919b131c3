// Linear layers with ReLUs between them, forward and back, a block of rows through all layers at a
// time. networks.h stands in front.

#include <stdlib.h>

struct Dense {
  int64_t n_rows, n_groups, n_layers;  // row r is of group r % n_groups
  int64_t block, threads, width;       // rows together; numbers between rows, enough for all layers
  const int64_t *sizes;                // [n_layers + 1]
  const Linear *layers;                // [n_layers]; transposed, without bias, on the way back
  const Real *const *inputs;           // [n_layers] of [n_rows, sizes[i]], what each layer read
  Real *const *outputs;                // [n_layers] of [n_rows, sizes[i + 1]]; null where not kept
  const Real *grad_output;             // [n_rows, sizes[n_layers]]
  Real *grad_input;                    // [n_rows, sizes[0]]; null if not wanted
  // [n_layers] of [threads, n_groups, whole(sizes[i] + 1, TILE), whole(sizes[i + 1], W)]: weights
  // transposed, and below them the bias.
  Real *const *grads;
};

struct Block {
  const Dense *d;
  int64_t group, begin, n;

  int64_t place(int64_t i) const { return (begin + i) * d->n_groups + group; }
  // Filled up with zeros, rows to a whole tile, and each to what layers and sums read of it.
  void read(const Real *from, int64_t size, Real *to) const {
    const int64_t tiles = whole(size + 1, TILE), vectors = whole(size, W);
    const int64_t filled = tiles > vectors ? tiles : vectors;
    for (int64_t i = 0; i < whole(n, TILE); i++) {
      const int64_t there = i < n ? size : 0;
      memcpy(to + i * d->width, from + (i < n ? place(i) : 0) * size, there * sizeof(Real));
      memset(to + i * d->width + there, 0, (filled - there) * sizeof(Real));
    }
  }
  void write(const Real *from, int64_t size, Real *to) const {
    for (int64_t i = 0; i < n; i++)
      memcpy(to + place(i) * size, from + i * d->width, size * sizeof(Real));
  }

  void forward(Real *x, Real *y) const {
    read(d->inputs[0], d->sizes[0], x);
    for (int64_t i = 0; i < d->n_layers; i++) {
      linear(d->layers + i, group, x, y, d->width, whole(n, TILE), i + 1 < d->n_layers);
      if (d->outputs[i]) write(y, d->sizes[i + 1], d->outputs[i]);
      Real *const free = x;
      x = y;
      y = free;
    }
  }

  void backward(Real *x, Real *grad, Real *grad_x, int64_t thread) const {
    const int64_t last = d->n_layers - 1;
    read(d->grad_output, d->sizes[last + 1], grad);
    for (int64_t i = last; i >= 0; i--) {
      const int64_t size = d->sizes[i], n_y = whole(d->sizes[i + 1], W);
      read(d->inputs[i], size, x);
      for (int64_t r = 0; r < n; r++) x[r * d->width + size] = 1;  // the bias's
      const int64_t n_sums = whole(size + 1, TILE) * n_y;
      outer(x, grad, d->grads[i] + (thread * d->n_groups + group) * n_sums, d->width, n, size + 1,
            n_y);
      if (i == 0 && !d->grad_input) return;
      linear(d->layers + i, group, grad, grad_x, d->width, whole(n, TILE), false);
      if (i == 0) return write(grad_x, size, d->grad_input);
      for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < whole(size, W); j += W) {
          const int64_t at = r * d->width + j;
          store(grad_x + at, load(x + at) > 0 ? load(grad_x + at) : vr{});
        }
      Real *const free = grad;
      grad = grad_x;
      grad_x = free;
    }
  }
};

static void run(const Dense *d, bool back) {
  const int64_t per_group = d->n_rows / d->n_groups;
  const int64_t n_blocks = whole(per_group, d->block) / d->block;
  // A thread's share is the same at each call: sums over rows have one order.
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads((int)d->threads) if (d->threads > 1)
#endif
  for (int64_t thread = 0; thread < d->threads; thread++) {
    Real *scratch = (Real *)malloc(3 * d->block * d->width * sizeof(Real));
    Real *x = scratch, *y = x + d->block * d->width, *z = y + d->block * d->width;
    for (int64_t b = thread; b < d->n_groups * n_blocks; b += d->threads) {
      const int64_t begin = b % n_blocks * d->block;
      const int64_t left = per_group - begin;
      const Block block = {d, b / n_blocks, begin, left < d->block ? left : d->block};
      back ? block.backward(x, y, z, thread) : block.forward(x, y);
    }
    free(scratch);
  }
}

extern "C" void forward(const Dense *d) { run(d, false); }
extern "C" void backward(const Dense *d) { run(d, true); }
