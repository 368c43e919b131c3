// A GRU over sequences, forward and back in time: blocks of rows, each row one agent in one
// sequence, that do not depend on each other. networks.h stands in front.

struct Sequences {
  int64_t n_sequences, n_steps, n_agents, width;  // B, T, N, H
  int64_t n_groups;                               // 1 where agents share their weights, else N
  int64_t threads;
  const Layer *recurrent;   // from H to 3H
  const bool *is_init;      // [B, T]
  const Real *first;        // [B, N, H]; null for zeros
  const Real *gates;        // [B, T, N, 3H], the input's share
  Real *hidden;             // [B, T, N, H]
  // What the way back needs, [B, T, N, H] each; null if there is none. In the order of the
  // equations: r, u, n, and the recurrent share of n before r has multiplied it.
  Real *before, *reset, *update, *fresh, *share;
  const Real *grad_hidden;  // [B, T, N, H]
  Real *grad_gates;         // [B, T, N, 3H]
  Real *grad_first;         // [B, N, H]
};

// A block of rows: hidden states, or on the way back their gradients, and products with weights.
struct Rows {
  const Sequences *s;
  Linear recurrent;  // each gate filled up; transposed on the way back
  Sums *sums;
  int64_t thread, group, begin, n, filled, stride;
  Real *state, *products, *other;  // [rows, stride]

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
      const vr h = load(state + i * stride + j), share = load(recurrent + 2 * filled + j);
      const vr r = sigmoid(load_part(gates + j, left) + load(recurrent + j));
      const vr u = sigmoid(load_part(gates + width + j, left) + load(recurrent + filled + j));
      const vr n = hyperbolic_tangent(load_part(gates + 2 * width + j, left) + r * share);
      const vr next = n + u * (h - n);
      store(state + i * stride + j, next);
      store_part(s->hidden + at + j, next, left);
      if (!s->before) continue;
      store_part(s->before + at + j, h, left);
      store_part(s->reset + at + j, r, left);
      store_part(s->update + at + j, u, left);
      store_part(s->fresh + at + j, n, left);
      store_part(s->share + at + j, share, left);
    }
  }

  void step_back(int64_t i, int64_t t) const {
    const int64_t at = place(i, t), width = s->width;
    Real *grad_gates = s->grad_gates + 3 * at, *grad_recurrent = products + i * stride;
    for (int64_t j = 0; j < width; j += W) {
      const int64_t left = width - j;
      const vr h = load_part(s->before + at + j, left), n = load_part(s->fresh + at + j, left);
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
      store(grad_recurrent + filled + j, d_u);
      store(grad_recurrent + 2 * filled + j, d_share);
      store(state + i * stride + j, d * u);
      store(other + i * stride + j, h);
    }
    other[i * stride + width] = 1;  // the bias's
  }

  void clear(int64_t i) const { memset(state + i * stride, 0, stride * sizeof(Real)); }

  void forward(int64_t t) const {
    for (int64_t i = 0; i < n; i++)
      if (begins(i, t)) clear(i);
    linear(&recurrent, group, state, products, stride, whole(n, TILE), false);
    for (int64_t i = 0; i < n; i++) step(i, t);
  }

  void backward(int64_t t) const {
    for (int64_t i = 0; i < n; i++) step_back(i, t);
    sums->add(thread, group, other, products, stride, n);
    linear(&recurrent, group, products, other, stride, whole(n, TILE), false);
    for (int64_t i = 0; i < n; i++) {
      for (int64_t j = 0; j < filled; j += W) {
        const int64_t at = i * stride + j;
        store(state + at, load(state + at) + load(other + at));
      }
      if (begins(i, t)) clear(i);
    }
  }

  void all_forward() const {
    for (int64_t i = 0; s->first && i < n; i++)
      memcpy(state + i * stride, s->first + first_place(i), s->width * sizeof(Real));
    for (int64_t t = 0; t < s->n_steps; t++) forward(t);
  }

  void all_backward() const {
    for (int64_t t = s->n_steps - 1; t >= 0; t--) backward(t);
    for (int64_t i = 0; i < n; i++)
      memcpy(s->grad_first + first_place(i), state + i * stride, s->width * sizeof(Real));
  }
};

// The recurrent layer, each gate filled up to whole vectors.
static Panels panels_of(const Sequences *s, bool back) {
  const int64_t width = s->width, filled = whole(width, W);
  Panels p = back ? Panels(s->n_groups, 3 * filled, width) : Panels(s->n_groups, width, 3 * filled);
  for (int64_t g = 0; g < s->n_groups; g++)
    for (int64_t gate = 0; gate < 3; gate++) {
      const int64_t at = (g * 3 + gate) * width;
      const Real *weight = s->recurrent->weight + at * width;
      if (back) {
        p.put(g, 0, gate * filled, weight, width, width, 1, width);
      } else {
        p.put(g, gate * filled, 0, weight, width, width, width, 1);
        memcpy(p.bias.data() + g * p.outputs + gate * filled, s->recurrent->bias + at,
               width * sizeof(Real));
      }
    }
  return p;
}

// Take all blocks through time, forward or back.
static void run(const Sequences *s, bool back) {
  const int64_t per_group = s->n_sequences * s->n_agents / s->n_groups;
  const int64_t block = block_of(per_group, s->threads), n_blocks = whole(per_group, block) / block;
  const int64_t filled = whole(s->width, W), stride = std::max(3 * filled, room(s->width));
  const Panels panels = panels_of(s, back);
  Sums sums(s->n_groups, back ? s->threads : 0, s->width, 3 * filled);
  // A thread's share is the same at each call: sums over rows have one order.
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads((int)s->threads) if (s->threads > 1)
#endif
  for (int64_t thread = 0; thread < s->threads; thread++) {
    const int64_t size = block * stride;
    std::vector<Real> scratch(3 * size);
    for (int64_t b = thread; b < s->n_groups * n_blocks; b += s->threads) {
      // Zero, so that rows of no agent and what fills rows up stay numbers.
      std::fill(scratch.begin(), scratch.end(), (Real)0);
      const int64_t group = b / n_blocks, begin = b % n_blocks * block;
      const Rows rows = {s, panels.linear(), &sums, thread, group, begin,
                         std::min(block, per_group - begin), filled, stride, scratch.data(),
                         scratch.data() + size, scratch.data() + 2 * size};
      back ? rows.all_backward() : rows.all_forward();
    }
  }
  for (int64_t gate = 0; back && gate < 3; gate++)
    sums.write(*s->recurrent, gate * filled, s->width, gate * s->width);
}

extern "C" void forward(const Sequences *s) { run(s, false); }
extern "C" void backward(const Sequences *s) { run(s, true); }
