// Linear layers with ReLUs between them, and layer norms before these if there are any, forward and
// backward: a block of samples goes through all layers while it is in the cache. networks.h and the
// structure Dense, printed from dense.py, stand in front of this file.

struct Block {
  const Dense *d;
  const Linear *layers;  // transposed for backward
  int64_t stride;        // enough for all layers
  int64_t part, group, begin, n;

  int64_t place(int64_t i) const { return (begin + i) * d->n_groups + group; }
  void read(const Real *from, int64_t size, Real *to) const {
    const bool roomy = (place(n - 1) + 1) * size + W <= d->n_samples * size;
    for (int64_t i = 0; i < n; i++)
      copy_numbers(to + i * stride, from + place(i) * size, size, roomy);
  }
  void write(const Real *from, int64_t size, Real *to) const {
    for (int64_t i = 0; i < n; i++) {
      // Numbers written past a sample's end are overwritten by the next samples.
      const bool roomy = d->n_groups == 1 && (n - 1 - i) * size >= W;
      copy_numbers(to + place(i) * size, from + i * stride, size, roomy);
    }
  }

  void forward(Real *x, Real *y) const {
    read(d->inputs[0], d->layers[0].inputs, x);
    for (int64_t i = 0; i < d->n_layers; i++) {
      const bool is_hidden = i + 1 < d->n_layers, has_norm = is_hidden && d->norms;
      linear(layers + i, group, x, y, stride, round_up(n, TILE), is_hidden && !has_norm);
      if (has_norm) {
        if (d->sums[i]) write(y, d->layers[i].outputs, d->sums[i]);
        norm_and_relu(d->norms[i], group, y, stride, n);
      }
      if (d->outputs[i]) write(y, d->layers[i].outputs, d->outputs[i]);
      std::swap(x, y);
    }
  }

  // Gradients of a norm's outputs become those of its inputs. x: scratch.
  void norm_back(int64_t i, Real *x, Real *grad, NormSums &sums) const {
    const Norm &norm = d->norms[i];
    const Real *scale = norm.scale + group * norm.size;
    read(d->sums[i], norm.size, x);
    Real factors[SAMPLES_TOGETHER];
    for (int64_t s = 0; s < n; s++) {
      // Numbers of the next sample may stand behind a sample's own.
      std::fill(x + s * stride + norm.size, x + s * stride + round_up(norm.size, W), (Real)0);
      factors[s] = normalise(norm, x + s * stride);
    }
    sums.add(part, group, x, grad, stride, n);
    for (int64_t s = 0; s < n; s++) {
      Real *of_sample = grad + s * stride;
      const Real *normed = x + s * stride;
      vr total = {}, product = {};
      for (int64_t j = 0; j < norm.size; j += W) {
        const vr scaled = load(of_sample + j) * load_part(scale + j, norm.size - j);
        store(of_sample + j, scaled);
        total += scaled;
        product += scaled * load(normed + j);
      }
      const Real mean = sum(total) / norm.size, slope = sum(product) / norm.size;
      for (int64_t j = 0; j < norm.size; j += W)
        store(of_sample + j, (load(of_sample + j) - mean - load(normed + j) * slope) * factors[s]);
    }
  }

  void backward(Real *x, Real *grad, Real *grad_x, std::vector<Sums> &sums,
                std::vector<NormSums> &norm_sums) const {
    read(d->grad_output, d->layers[d->n_layers - 1].outputs, grad);
    for (int64_t i = d->n_layers - 1; i >= 0; i--) {
      const int64_t size = d->layers[i].inputs;
      read(d->inputs[i], size, x);
      for (int64_t s = 0; s < n; s++) x[s * stride + size] = 1;  // for the bias's gradient
      sums[i].add(part, group, x, grad, stride, n);
      if (i == 0 && !d->grad_input) return;
      linear(layers + i, group, grad, grad_x, stride, round_up(n, TILE), false);
      if (i == 0) return write(grad_x, size, d->grad_input);
      for (int64_t s = 0; s < n; s++) mask_by_relu(grad_x + s * stride, x + s * stride, size);
      if (d->norms) norm_back(i - 1, x, grad_x, norm_sums[i - 1]);
      std::swap(grad, grad_x);
    }
  }
};

static void run(const Dense *d, bool is_backward) {
  std::vector<Panels> panels;
  std::vector<Linear> layers;
  std::vector<Sums> sums;
  std::vector<NormSums> norm_sums;
  int64_t stride = 0;
  for (int64_t i = 0; i < d->n_layers; i++) {
    const Layer &l = d->layers[i];
    panels.push_back(is_backward ? Panels::transposed(l, d->n_groups) : Panels::of(l, d->n_groups));
    if (is_backward) sums.emplace_back(d->n_groups, l.inputs, l.outputs);
    if (is_backward && d->norms && i + 1 < d->n_layers)
      norm_sums.emplace_back(d->n_groups, l.outputs);
    stride = std::max({stride, padded_size(l.inputs), padded_size(l.outputs)});
  }
  for (const Panels &p : panels) layers.push_back(p.linear());
  const int64_t per_group = d->n_samples / d->n_groups;
  const int64_t size = block_size(per_group);
  const int64_t n_blocks = round_up(per_group, size) / size;
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads((int)d->threads) if (d->threads > 1)
#endif
  for (int64_t part = 0; part < PARTS; part++) {
    std::vector<Real> x(size * stride), y(size * stride), z(size * stride);
    for (int64_t b = part; b < d->n_groups * n_blocks; b += PARTS) {
      const int64_t begin = b % n_blocks * size;
      const Block block = {d,           layers.data(), stride, part,
                           b / n_blocks, begin,         std::min(size, per_group - begin)};
      if (is_backward)
        block.backward(x.data(), y.data(), z.data(), sums, norm_sums);
      else
        block.forward(x.data(), y.data());
    }
  }
  for (size_t i = 0; i < sums.size(); i++) sums[i].write(d->layers[i]);
  for (size_t i = 0; i < norm_sums.size(); i++) norm_sums[i].write(d->norms[i]);
}

extern "C" void forward(const Dense *d) { run(d, false); }
extern "C" void backward(const Dense *d) { run(d, true); }
