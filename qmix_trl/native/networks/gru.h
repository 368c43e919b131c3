// A GRU over sequences, forward and backward through time. A sample is one agent in one sequence;
// blocks of samples do not depend on each other. networks.h and the structure Sequences, printed
// from gru.py, stand in front of this file.

// A block of samples: hidden states, or their gradients in backward, and products with weights.
struct Block {
  const Sequences *s;
  Linear recurrent;  // each gate padded; transposed for backward
  Sums *sums;
  int64_t part, group, begin, n;
  int64_t padded;  // H, padded to whole vectors
  int64_t stride;
  Real *state, *products, *other;  // [n, stride]

  int64_t sequence(int64_t i) const {
    return s->n_groups == 1 ? (begin + i) / s->n_agents : begin + i;
  }
  int64_t agent(int64_t i) const { return s->n_groups == 1 ? (begin + i) % s->n_agents : group; }
  int64_t first_place(int64_t i) const {
    return (sequence(i) * s->n_agents + agent(i)) * s->width;
  }
  int64_t place(int64_t i, int64_t t) const {
    return ((sequence(i) * s->n_steps + t) * s->n_agents + agent(i)) * s->width;
  }
  bool begins(int64_t i, int64_t t) const { return s->is_init[sequence(i) * s->n_steps + t]; }

  void step(int64_t i, int64_t t) const {
    const int64_t at = place(i, t), width = s->width;
    const Real *gates = s->gates + 3 * at, *recurrent = products + i * stride;
    for (int64_t j = 0; j < width; j += W) {
      const int64_t left = width - j;
      const vr h = load(state + i * stride + j), share = load(recurrent + 2 * padded + j);
      const vr r = sigmoid(load_part(gates + j, left) + load(recurrent + j));
      const vr u = sigmoid(load_part(gates + width + j, left) + load(recurrent + padded + j));
      const vr n = hyperbolic_tangent(load_part(gates + 2 * width + j, left) + r * share);
      const vr next = n + u * (h - n);
      store(state + i * stride + j, next);
      store_part(s->hidden + at + j, next, left);
      if (!s->previous) continue;
      store_part(s->previous + at + j, h, left);
      store_part(s->reset + at + j, r, left);
      store_part(s->update + at + j, u, left);
      store_part(s->candidate + at + j, n, left);
      store_part(s->share + at + j, share, left);
    }
  }

  void step_back(int64_t i, int64_t t) const {
    const int64_t at = place(i, t), width = s->width;
    Real *grad_gates = s->grad_gates + 3 * at, *grad_recurrent = products + i * stride;
    for (int64_t j = 0; j < width; j += W) {
      const int64_t left = width - j;
      const vr h = load_part(s->previous + at + j, left), n = load_part(s->candidate + at + j, left);
      const vr r = load_part(s->reset + at + j, left), u = load_part(s->update + at + j, left);
      const vr share = load_part(s->share + at + j, left);
      const vr d = load(state + i * stride + j) + load_part(s->grad_hidden + at + j, left);
      const vr d_n = d * (1 - u) * (1 - n * n);
      const vr d_r = d_n * share * r * (1 - r), d_u = d * (h - n) * u * (1 - u);
      const vr d_share = d_n * r;
      store_part(grad_gates + j, d_r, left);
      store_part(grad_gates + width + j, d_u, left);
      store_part(grad_gates + 2 * width + j, d_n, left);
      store(grad_recurrent + j, d_r);
      store(grad_recurrent + padded + j, d_u);
      store(grad_recurrent + 2 * padded + j, d_share);
      store(state + i * stride + j, d * u);
      store(other + i * stride + j, h);
    }
    other[i * stride + width] = 1;  // for the bias's gradient
  }

  void clear(int64_t i) const { memset(state + i * stride, 0, stride * sizeof(Real)); }

  void forward(int64_t t) const {
    for (int64_t i = 0; i < n; i++)
      if (begins(i, t)) clear(i);
    linear(&recurrent, group, state, products, stride, round_up(n, TILE), false);
    for (int64_t i = 0; i < n; i++) step(i, t);
  }

  void backward(int64_t t) const {
    for (int64_t i = 0; i < n; i++) step_back(i, t);
    sums->add(part, group, other, products, stride, n);
    linear(&recurrent, group, products, other, stride, round_up(n, TILE), false);
    for (int64_t i = 0; i < n; i++) {
      for (int64_t j = 0; j < padded; j += W) {
        const int64_t at = i * stride + j;
        store(state + at, load(state + at) + load(other + at));
      }
      if (begins(i, t)) clear(i);
    }
  }

  void all_forward() const {
    if (s->first)
      for (int64_t i = 0; i < n; i++)
        memcpy(state + i * stride, s->first + first_place(i), s->width * sizeof(Real));
    for (int64_t t = 0; t < s->n_steps; t++) forward(t);
  }

  void all_backward() const {
    for (int64_t t = s->n_steps - 1; t >= 0; t--) backward(t);
    for (int64_t i = 0; i < n; i++)
      memcpy(s->grad_first + first_place(i), state + i * stride, s->width * sizeof(Real));
  }
};

// The recurrent layer, each gate padded to whole vectors.
static Panels padded_gates(const Sequences *s, bool is_backward) {
  const int64_t width = s->width, padded = round_up(width, W);
  Panels p = is_backward ? Panels(s->n_groups, 3 * padded, width)
                         : Panels(s->n_groups, width, 3 * padded);
  for (int64_t g = 0; g < s->n_groups; g++)
    for (int64_t gate = 0; gate < 3; gate++) {
      const int64_t at = (g * 3 + gate) * width;
      const Real *weight = s->recurrent->weight + at * width;
      if (is_backward) {
        p.put(g, 0, gate * padded, weight, width, width, 1, width);
      } else {
        p.put(g, gate * padded, 0, weight, width, width, width, 1);
        memcpy(p.bias.data() + g * p.outputs + gate * padded, s->recurrent->bias + at,
               width * sizeof(Real));
      }
    }
  return p;
}

// Compute all blocks through time, forward or backward.
static void run(const Sequences *s, bool is_backward) {
  const int64_t per_group = s->n_sequences * s->n_agents / s->n_groups;
  const int64_t block = block_size(per_group);
  const int64_t n_blocks = round_up(per_group, block) / block;
  const int64_t padded = round_up(s->width, W);
  const int64_t stride = std::max(3 * padded, padded_size(s->width));
  const Panels panels = padded_gates(s, is_backward);
  Sums sums(is_backward ? s->n_groups : 0, s->width, 3 * padded);
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads((int)s->threads) if (s->threads > 1)
#endif
  for (int64_t part = 0; part < PARTS; part++) {
    const int64_t size = block * stride;
    std::vector<Real> scratch(3 * size);
    for (int64_t b = part; b < s->n_groups * n_blocks; b += PARTS) {
      // Padding must hold finite numbers, as it is multiplied by zero weights.
      std::fill(scratch.begin(), scratch.end(), (Real)0);
      const int64_t group = b / n_blocks, begin = b % n_blocks * block;
      const Block samples = {s, panels.linear(), &sums, part, group, begin,
                             std::min(block, per_group - begin), padded, stride, scratch.data(),
                             scratch.data() + size, scratch.data() + 2 * size};
      if (is_backward)
        samples.all_backward();
      else
        samples.all_forward();
    }
  }
  if (!is_backward) return;
  for (int64_t gate = 0; gate < 3; gate++)
    sums.write(*s->recurrent, gate * padded, s->width, gate * s->width);
}

extern "C" void forward(const Sequences *s) { run(s, false); }
extern "C" void backward(const Sequences *s) { run(s, true); }
