// QMIX's mixing network, forward and backward: a block of samples goes through all hypernetworks
// and is mixed. A sample is one state with the utilities of its agents. networks.h and the structure
// Mixer, printed from mixer.py, stand in front of this file.

// One linear layer, or two with a ReLU between them, and the sums of their gradients.
struct Hypernet {
  std::vector<Panels> panels;
  std::vector<Linear> layers;
  std::vector<Sums> sums;
  std::vector<Panels> transposed;  // the last layer's, if there is a hidden one
  int64_t first;                   // the number of its first layer among the mixer's layers
  int64_t n_hidden;                // 0 for one layer

  Hypernet(const Mixer *m, int64_t first, int64_t n_layers, bool is_backward)
      : first(first), n_hidden(n_layers == 2 ? m->layers[first].outputs : 0) {
    for (const Layer *l = m->layers + first; l < m->layers + first + n_layers; l++) {
      if (is_backward)
        sums.emplace_back(1, l->inputs, l->outputs);
      else
        panels.push_back(Panels::of(*l, 1));
    }
    for (const Panels &p : panels) layers.push_back(p.linear());
    if (is_backward && n_hidden)
      transposed.push_back(Panels::transposed(m->layers[first + 1], 1));
  }
  int64_t last() const { return n_hidden ? first + 1 : first; }
};

enum { W1, B1, W2, V, NETS };

INLINE vr magnitude(vr x) { return x < 0 ? -x : x; }
INLINE vr sign(vr x) { return x > 0 ? vr{} + 1 : (x < 0 ? vr{} - 1 : vr{}); }

struct Block {
  const Mixer *m;
  std::vector<Hypernet> *nets;
  int64_t stride, part, begin, n;
  Real *state, *grad_hidden;          // [n, stride]
  Real *hidden[NETS], *output[NETS];  // [n, stride]

  void read(const Real *from, int64_t size, Real *to) const {
    const bool roomy = (begin + n) * size + W <= m->n_samples * size;
    for (int64_t i = 0; i < n; i++) {
      copy_numbers(to + i * stride, from + (begin + i) * size, size, roomy);
      to[i * stride + size] = 1;  // for the bias's gradient
    }
  }
  void keep(const Real *from, int64_t layer) const {
    if (!m->kept) return;
    const int64_t size = m->layers[layer].outputs;
    for (int64_t i = 0; i < n; i++) {
      // Numbers written past a sample's end are overwritten by the next samples.
      const bool roomy = (n - 1 - i) * size >= W;
      copy_numbers(m->kept[layer] + (begin + i) * size, from + i * stride, size, roomy);
    }
  }

  void compute_weights() const {
    read(m->state, m->n_state, state);
    for (int i = 0; i < NETS; i++) {
      const Hypernet &net = (*nets)[i];
      const Real *x = state;
      if (net.n_hidden) {
        linear(&net.layers[0], 0, state, hidden[i], stride, round_up(n, TILE), true);
        keep(hidden[i], net.first);
        x = hidden[i];
      }
      linear(&net.layers.back(), 0, x, output[i], stride, round_up(n, TILE), false);
      keep(output[i], net.last());
    }
  }
  void read_weights() const {
    read(m->state, m->n_state, state);
    for (int i = 0; i < NETS; i++) {
      const Hypernet &net = (*nets)[i];
      if (net.n_hidden) read(m->kept[net.first], net.n_hidden, hidden[i]);
      read(m->kept[net.last()], m->layers[net.last()].outputs, output[i]);
    }
  }

  // The inputs of W ELUs: q |w1| + b1.
  vr elu_input(int64_t i, int64_t j) const {
    const int64_t at = i * stride, left = m->n_embed - j;
    vr x = load_part(output[B1] + at + j, left);
    for (int64_t a = 0; a < m->n_agents; a++)
      x += m->chosen[(begin + i) * m->n_agents + a] *
           magnitude(load_part(output[W1] + at + a * m->n_embed + j, left));
    return x;
  }

  void forward() const {
    compute_weights();
    for (int64_t i = 0; i < n; i++) {
      vr total = {};
      for (int64_t j = 0; j < m->n_embed; j += W) {
        const vr x = elu_input(i, j);
        total += (x > 0 ? x : exp_minus_1(x)) *
                 magnitude(load_part(output[W2] + i * stride + j, m->n_embed - j));
      }
      m->total[begin + i] = sum(total) + output[V][i * stride];
    }
  }

  // Replace the hypernetworks' outputs by their gradients.
  void outputs_to_gradients(int64_t i) const {
    const int64_t at = i * stride, sample = begin + i;
    const Real grad = m->grad_total[sample];
    Real *grad_chosen = m->grad_chosen + sample * m->n_agents;
    for (int64_t a = 0; a < m->n_agents; a++) grad_chosen[a] = 0;
    for (int64_t j = 0; j < m->n_embed; j += W) {
      const int64_t left = m->n_embed - j;
      const vr x = elu_input(i, j), w2 = load_part(output[W2] + at + j, left);
      const vr below = exp_minus_1(x);
      store_part(output[W2] + at + j, grad * (x > 0 ? x : below) * sign(w2), left);
      const vr d = grad * magnitude(w2) * (x > 0 ? vr{} + 1 : below + 1);
      store_part(output[B1] + at + j, d, left);
      for (int64_t a = 0; a < m->n_agents; a++) {
        Real *agent_weights = output[W1] + at + a * m->n_embed + j;
        const vr w1 = load_part(agent_weights, left);
        grad_chosen[a] += sum(d * magnitude(w1));
        store_part(agent_weights, d * m->chosen[sample * m->n_agents + a] * sign(w1), left);
      }
    }
    output[V][at] = grad;
  }

  void add_gradients(Hypernet &net, const Real *hidden, const Real *grad) const {
    net.sums.back().add(part, 0, net.n_hidden ? hidden : state, grad, stride, n);
    if (!net.n_hidden) return;
    const Linear back = net.transposed[0].linear();
    linear(&back, 0, grad, grad_hidden, stride, round_up(n, TILE), false);
    for (int64_t i = 0; i < n; i++)
      mask_by_relu(grad_hidden + i * stride, hidden + i * stride, back.outputs);
    net.sums[0].add(part, 0, state, grad_hidden, stride, n);
  }

  void backward() const {
    read_weights();
    for (int64_t i = 0; i < n; i++) outputs_to_gradients(i);
    for (int i = 0; i < NETS; i++) add_gradients((*nets)[i], hidden[i], output[i]);
  }
};

static void run(const Mixer *m, bool is_backward) {
  std::vector<Hypernet> nets;
  int64_t stride = padded_size(m->n_state), first = 0;
  for (int i = 0; i < NETS; i++) {
    nets.emplace_back(m, first, m->net_layers[i], is_backward);
    first += m->net_layers[i];
  }
  for (int64_t i = 0; i < m->n_layers; i++)
    stride = std::max(stride, padded_size(m->layers[i].outputs));
  const int64_t block = block_size(m->n_samples), size = block * stride;
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads((int)m->threads) if (m->threads > 1)
#endif
  for (int64_t part = 0; part < PARTS; part++) {
    // Zeros: padding must hold finite numbers, as it is multiplied by zero weights.
    std::vector<Real> scratch((2 + 2 * NETS) * size);
    Block b = {m, &nets, stride, part, 0, 0, scratch.data(), scratch.data() + size};
    for (int i = 0; i < NETS; i++) {
      b.hidden[i] = scratch.data() + (2 + 2 * i) * size;
      b.output[i] = b.hidden[i] + size;
    }
    for (b.begin = part * block; b.begin < m->n_samples; b.begin += PARTS * block) {
      b.n = std::min(block, m->n_samples - b.begin);
      if (is_backward)
        b.backward();
      else
        b.forward();
    }
  }
  for (const Hypernet &net : nets)
    for (size_t i = 0; i < net.sums.size(); i++) net.sums[i].write(m->layers[net.first + i]);
}

extern "C" void forward(const Mixer *m) { run(m, false); }
extern "C" void backward(const Mixer *m) { run(m, true); }
