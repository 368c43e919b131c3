// QMIX's mixing network, forward and back, a block of states at a time: hypernetworks, and what
// they mix. networks.h stands in front.

struct Mixer {
  int64_t n_rows, n_agents, n_embed, n_state;  // R, N, E, S
  int64_t n_layers, threads;                   // n_layers: of all hypernetworks together
  const Layer *layers;                         // of w1, b1, w2 and V, one or two each
  const int64_t *layers_of;                    // [4], how many each has
  const Real *chosen;                          // [R, N]
  const Real *state;                           // [R, S]
  Real *const *kept;                           // [n_layers] of [R, outputs]; null where not kept
  Real *total;                                 // [R]
  const Real *grad_total;                      // [R]
  Real *grad_chosen;                           // [R, N]
};

// One or two layers, with ReLUs between them; and where their gradients are summed.
struct Hypernet {
  std::vector<Panels> panels;
  std::vector<Linear> layers;
  std::vector<Sums> sums;
  std::vector<Panels> back;
  int64_t first, n_hidden;  // its first layer among all

  Hypernet(const Mixer *m, int64_t first, int64_t n_layers, bool learns)
      : first(first), n_hidden(n_layers == 2 ? m->layers[first].outputs : 0) {
    for (const Layer *l = m->layers + first; l < m->layers + first + n_layers; l++) {
      if (learns)
        sums.emplace_back(1, m->threads, l->inputs, l->outputs);
      else
        panels.push_back(Panels::of(*l, 1));
    }
    for (const Panels &p : panels) layers.push_back(p.linear());
    if (learns && n_hidden) back.push_back(Panels::transposed(m->layers[first + 1], 1));
  }
  int64_t last() const { return first + (n_hidden > 0); }
};

enum { W1, B1, W2, V, NETS };

INLINE vr magnitude(vr x) { return x < 0 ? -x : x; }
INLINE vr sign(vr x) { return x > 0 ? vr{} + 1 : (x < 0 ? vr{} - 1 : vr{}); }
INLINE Real sum(vr x) {
  Real s = 0;
  for (int i = 0; i < W; i++) s += x[i];
  return s;
}

struct Block {
  const Mixer *m;
  std::vector<Hypernet> *nets;
  int64_t width, thread, begin, n;    // width: numbers between rows of what follows
  Real *state, *other;                // [rows, width]
  Real *hidden[NETS], *output[NETS];  // [rows, width]

  void read(const Real *from, int64_t size, Real *to) const {
    const bool roomy = (begin + n) * size + W <= m->n_rows * size;
    for (int64_t i = 0; i < n; i++) {
      copy_row(to + i * width, from + (begin + i) * size, size, roomy);
      to[i * width + size] = 1;  // the bias's
    }
  }
  void keep(const Real *from, int64_t layer) const {
    const int64_t size = m->layers[layer].outputs;
    for (int64_t i = 0; m->kept && i < n; i++) {
      const bool roomy = (n - 1 - i) * size >= W;  // next rows cover the rest
      copy_row(m->kept[layer] + (begin + i) * size, from + i * width, size, roomy);
    }
  }

  void take_all() const {
    read(m->state, m->n_state, state);
    for (int i = 0; i < NETS; i++) {
      const Hypernet &net = (*nets)[i];
      const Real *x = state;
      if (net.n_hidden) {
        linear(&net.layers[0], 0, state, hidden[i], width, whole(n, TILE), true);
        keep(hidden[i], net.first);
        x = hidden[i];
      }
      linear(&net.layers.back(), 0, x, output[i], width, whole(n, TILE), false);
      keep(output[i], net.last());
    }
  }
  void read_all() const {
    read(m->state, m->n_state, state);
    for (int i = 0; i < NETS; i++) {
      const Hypernet &net = (*nets)[i];
      if (net.n_hidden) read(m->kept[net.first], net.n_hidden, hidden[i]);
      read(m->kept[net.last()], m->layers[net.last()].outputs, output[i]);
    }
  }

  // What enters the ELUs.
  vr entering(int64_t i, int64_t j) const {
    const int64_t at = i * width, left = m->n_embed - j;
    vr x = load_part(output[B1] + at + j, left);
    for (int64_t a = 0; a < m->n_agents; a++)
      x += m->chosen[(begin + i) * m->n_agents + a] *
           magnitude(load_part(output[W1] + at + a * m->n_embed + j, left));
    return x;
  }

  void forward() const {
    take_all();
    for (int64_t i = 0; i < n; i++) {
      vr total = {};
      for (int64_t j = 0; j < m->n_embed; j += W) {
        const vr x = entering(i, j);
        total += (x > 0 ? x : exp_minus_1(x)) *
                 magnitude(load_part(output[W2] + i * width + j, m->n_embed - j));
      }
      m->total[begin + i] = sum(total) + output[V][i * width];
    }
  }

  // Puts the gradients of the hypernetworks' outputs in place of these.
  void back_to_outputs(int64_t i) const {
    const int64_t at = i * width, row = begin + i;
    const Real grad = m->grad_total[row];
    Real *grad_chosen = m->grad_chosen + row * m->n_agents;
    for (int64_t a = 0; a < m->n_agents; a++) grad_chosen[a] = 0;
    for (int64_t j = 0; j < m->n_embed; j += W) {
      const int64_t left = m->n_embed - j;
      const vr x = entering(i, j), w2 = load_part(output[W2] + at + j, left);
      const vr below = exp_minus_1(x);
      store_part(output[W2] + at + j, grad * (x > 0 ? x : below) * sign(w2), left);
      const vr d = grad * magnitude(w2) * (x > 0 ? vr{} + 1 : below + 1);
      store_part(output[B1] + at + j, d, left);
      for (int64_t a = 0; a < m->n_agents; a++) {
        Real *of_agent = output[W1] + at + a * m->n_embed + j;
        const vr w1 = load_part(of_agent, left);
        grad_chosen[a] += sum(d * magnitude(w1));
        store_part(of_agent, d * m->chosen[row * m->n_agents + a] * sign(w1), left);
      }
    }
    output[V][at] = grad;
  }

  void learn(Hypernet &net, const Real *of_hidden, const Real *grad) const {
    net.sums.back().add(thread, 0, net.n_hidden ? of_hidden : state, grad, width, n);
    if (!net.n_hidden) return;
    const Linear back = net.back[0].linear();
    linear(&back, 0, grad, other, width, whole(n, TILE), false);
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < back.outputs; j += W) {
        const int64_t at = i * width + j;
        store(other + at, load(of_hidden + at) > 0 ? load(other + at) : vr{});
      }
    net.sums[0].add(thread, 0, state, other, width, n);
  }

  void backward() const {
    read_all();
    for (int64_t i = 0; i < n; i++) back_to_outputs(i);
    for (int i = 0; i < NETS; i++) learn((*nets)[i], hidden[i], output[i]);
  }
};

static void run(const Mixer *m, bool back) {
  std::vector<Hypernet> nets;
  int64_t width = room(m->n_state), first = 0;
  for (int i = 0; i < NETS; first += m->layers_of[i++])
    nets.emplace_back(m, first, m->layers_of[i], back);
  for (int64_t i = 0; i < m->n_layers; i++) width = std::max(width, room(m->layers[i].outputs));
  const int64_t rows = block_of(m->n_rows, m->threads), size = rows * width;
  // A thread's share is the same at each call: sums over rows have one order.
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads((int)m->threads) if (m->threads > 1)
#endif
  for (int64_t thread = 0; thread < m->threads; thread++) {
    // Zero, so that rows of no state and what fills rows up are numbers.
    std::vector<Real> scratch((2 + 2 * NETS) * size);
    Block b = {m, &nets, width, thread, 0, 0, scratch.data(), scratch.data() + size};
    for (int i = 0; i < NETS; i++) {
      b.hidden[i] = scratch.data() + (2 + 2 * i) * size;
      b.output[i] = b.hidden[i] + size;
    }
    for (b.begin = thread * rows; b.begin < m->n_rows; b.begin += m->threads * rows) {
      b.n = std::min(rows, m->n_rows - b.begin);
      back ? b.backward() : b.forward();
    }
  }
  for (const Hypernet &net : nets)
    for (size_t i = 0; i < net.sums.size(); i++) net.sums[i].write(m->layers[net.first + i]);
}

extern "C" void forward(const Mixer *m) { run(m, false); }
extern "C" void backward(const Mixer *m) { run(m, true); }
