// A GRU over sequences, forward and back in time: blocks of rows, each row one agent in one
// sequence, that do not depend on each other. networks.h stands in front.

#include <stdlib.h>

struct Sequences {
  int64_t n_sequences, n_steps, n_agents, width;  // B, T, N, H
  int64_t n_groups;                               // 1 where agents share their weights, else N
  int64_t block, threads;                         // rows that are computed together
  const Linear *recurrent;  // each gate filled up: [3, width]; transposed on the way back
  const bool *is_init;      // [B, T]
  const Real *first;        // [B, N, H]; null for zeros
  const Real *gates;        // [B, T, N, 3H], the input's share
  Real *hidden;             // [B, T, N, H]
  // What the way back needs, [B, T, N, H] each; null if there is none. In the order of the
  // equations: r, u, n, and the recurrent share of n before r has multiplied it.
  Real *before, *reset, *update, *fresh, *share;
  const Real *grad_hidden;  // [B, T, N, H]
  Real *grad_gates;         // [B, T, N, 3H]
  Real *grad_share;         // [B, T, N, H]
  Real *grad_first;         // [B, N, H]
};

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

// A block of rows: hidden states, or on the way back their gradients, and products with weights.
struct Rows {
  const Sequences *s;
  int64_t group, begin, n, filled, stride;
  Real *state, *products, *carried;  // [block, stride]

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
      store_part(s->grad_share + at + j, d_share, left);
      store(grad_recurrent + j, d_r);
      store(grad_recurrent + filled + j, d_u);
      store(grad_recurrent + 2 * filled + j, d_share);
      store(state + i * stride + j, d * u);
    }
  }

  void clear(int64_t i) const { memset(state + i * stride, 0, stride * sizeof(Real)); }

  void forward(int64_t t) const {
    for (int64_t i = 0; i < n; i++)
      if (begins(i, t)) clear(i);
    linear(s->recurrent, group, state, products, stride, whole(n, TILE), false);
    for (int64_t i = 0; i < n; i++) step(i, t);
  }

  void backward(int64_t t) const {
    for (int64_t i = 0; i < n; i++) step_back(i, t);
    linear(s->recurrent, group, products, carried, stride, whole(n, TILE), false);
    for (int64_t i = 0; i < n; i++) {
      for (int64_t j = 0; j < filled; j += W) {
        const int64_t at = i * stride + j;
        store(state + at, load(state + at) + load(carried + at));
      }
      if (begins(i, t)) clear(i);
    }
  }
};

// Take all blocks through time, forward or back.
static void run(const Sequences *s, bool back) {
  const int64_t n_rows = s->n_sequences * (s->n_groups == 1 ? s->n_agents : 1);
  const int64_t n_blocks = whole(n_rows, s->block) / s->block;
  const int64_t filled = whole(s->width, W), stride = 3 * filled;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads((int)s->threads) if (s->threads > 1)
#endif
  for (int64_t b = 0; b < s->n_groups * n_blocks; b++) {
    const int64_t begin = b % n_blocks * s->block;
    // Zero, so that rows of no agent and what fills rows up stay numbers.
    Real *scratch = (Real *)calloc(3 * s->block * stride, sizeof(Real));
    const Rows rows = {s,
                       b / n_blocks,
                       begin,
                       n_rows - begin < s->block ? n_rows - begin : s->block,
                       filled,
                       stride,
                       scratch,
                       scratch + s->block * stride,
                       scratch + 2 * s->block * stride};
    if (back) {
      for (int64_t t = s->n_steps - 1; t >= 0; t--) rows.backward(t);
      for (int64_t i = 0; i < rows.n; i++)
        memcpy(s->grad_first + rows.first_place(i), rows.state + i * stride,
               s->width * sizeof(Real));
    } else {
      for (int64_t i = 0; s->first && i < rows.n; i++)
        memcpy(rows.state + i * stride, s->first + rows.first_place(i), s->width * sizeof(Real));
      for (int64_t t = 0; t < s->n_steps; t++) rows.forward(t);
    }
    free(scratch);
  }
}

extern "C" void forward(const Sequences *s) { run(s, false); }
extern "C" void backward(const Sequences *s) { run(s, true); }
