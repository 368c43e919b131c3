// Linear layers with ReLUs between them, forward and back, a block of rows through all layers at a
// time. networks.h stands in front.

struct Dense {
  int64_t n_rows, n_groups, n_layers;  // row r is of group r % n_groups
  int64_t threads;
  const Layer *layers;        // [n_layers]
  const Real *const *inputs;  // [n_layers] of [n_rows, inputs], what each layer read
  Real *const *outputs;       // [n_layers] of [n_rows, outputs]; null where not kept
  const Real *grad_output;    // [n_rows, outputs of the last]
  Real *grad_input;           // [n_rows, inputs of the first]; null if not wanted
};

struct Block {
  const Dense *d;
  const Linear *layers;  // transposed on the way back
  int64_t width;         // numbers between rows, enough for all layers
  int64_t thread, group, begin, n;

  int64_t place(int64_t i) const { return (begin + i) * d->n_groups + group; }
  void read(const Real *from, int64_t size, Real *to) const {
    const bool roomy = (place(n - 1) + 1) * size + W <= d->n_rows * size;
    for (int64_t i = 0; i < n; i++) copy_row(to + i * width, from + place(i) * size, size, roomy);
  }
  void write(const Real *from, int64_t size, Real *to) const {
    for (int64_t i = 0; i < n; i++) {
      const bool roomy = d->n_groups == 1 && (n - 1 - i) * size >= W;  // next rows cover the rest
      copy_row(to + place(i) * size, from + i * width, size, roomy);
    }
  }

  void forward(Real *x, Real *y) const {
    read(d->inputs[0], d->layers[0].inputs, x);
    for (int64_t i = 0; i < d->n_layers; i++) {
      linear(layers + i, group, x, y, width, whole(n, TILE), i + 1 < d->n_layers);
      if (d->outputs[i]) write(y, d->layers[i].outputs, d->outputs[i]);
      Real *const free = x;
      x = y;
      y = free;
    }
  }

  void backward(Real *x, Real *grad, Real *grad_x, std::vector<Sums> &sums) const {
    read(d->grad_output, d->layers[d->n_layers - 1].outputs, grad);
    for (int64_t i = d->n_layers - 1; i >= 0; i--) {
      const int64_t size = d->layers[i].inputs;
      read(d->inputs[i], size, x);
      for (int64_t r = 0; r < n; r++) x[r * width + size] = 1;  // the bias's
      sums[i].add(thread, group, x, grad, width, n);
      if (i == 0 && !d->grad_input) return;
      linear(layers + i, group, grad, grad_x, width, whole(n, TILE), false);
      if (i == 0) return write(grad_x, size, d->grad_input);
      for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < whole(size, W); j += W) {
          const int64_t at = r * width + j;
          store(grad_x + at, load(x + at) > 0 ? load(grad_x + at) : vr{});
        }
      Real *const free = grad;
      grad = grad_x;
      grad_x = free;
    }
  }
};

static void run(const Dense *d, bool back) {
  std::vector<Panels> panels;
  std::vector<Linear> layers;
  std::vector<Sums> sums;
  int64_t width = 0;
  for (int64_t i = 0; i < d->n_layers; i++) {
    const Layer &l = d->layers[i];
    panels.push_back(back ? Panels::transposed(l, d->n_groups) : Panels::of(l, d->n_groups));
    if (back) sums.emplace_back(d->n_groups, d->threads, l.inputs, l.outputs);
    width = std::max({width, room(l.inputs), room(l.outputs)});
  }
  for (const Panels &p : panels) layers.push_back(p.linear());
  const int64_t per_group = d->n_rows / d->n_groups, rows = block_of(per_group, d->threads);
  const int64_t n_blocks = whole(per_group, rows) / rows;
  // A thread's share is the same at each call: sums over rows have one order.
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads((int)d->threads) if (d->threads > 1)
#endif
  for (int64_t thread = 0; thread < d->threads; thread++) {
    std::vector<Real> x(rows * width), y(rows * width), z(rows * width);
    for (int64_t b = thread; b < d->n_groups * n_blocks; b += d->threads) {
      const int64_t begin = b % n_blocks * rows;
      const Block block = {d,           layers.data(), width, thread,
                           b / n_blocks, begin,         std::min(rows, per_group - begin)};
      back ? block.backward(x.data(), y.data(), z.data(), sums) : block.forward(x.data(), y.data());
    }
  }
  for (int64_t i = 0; back && i < d->n_layers; i++) sums[i].write(d->layers[i]);
}

extern "C" void forward(const Dense *d) { run(d, false); }
extern "C" void backward(const Dense *d) { run(d, true); }
