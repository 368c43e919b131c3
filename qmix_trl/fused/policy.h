// Agents that act in the environments of a compiled step. A block of environments goes through many
// steps: networks, epsilon-greedy choice, step, and memory for the next step. A sample is one agent
// in one environment. networks.h and the structure Acting, printed from policy_kernel.py, stand in
// front of this file.
//
// Layers have outputs padded to whole vectors by zero weights. ReLU, layer norms and the equations
// of the GRU keep padding finite, and the zero weights of the next layer ignore it.

#include <stdlib.h>

// one_step of rollout.h.
typedef int64_t (*OneStep)(const void *rollout, int64_t first, int64_t last, int64_t t);

INLINE void copy(float *to, const float *from, int64_t n) { memcpy(to, from, n * sizeof(float)); }
INLINE void clear(float *to, int64_t n) { memset(to, 0, n * sizeof(float)); }
// The first place of the highest number where the mask, if there is one, is not zero; 0 if it is
// zero everywhere.
INLINE int64_t argmax(const float *x, const float *mask, int64_t n) {
  int64_t best = 0;
  while (mask && best < n && mask[best] == 0) best++;
  if (best == n) return 0;
  for (int64_t i = best + 1; i < n; i++)
    if (x[i] > x[best] && (!mask || mask[i] != 0)) best = i;
  return best;
}

// One block of environments at one step, and its scratch memory.
struct Block {
  const Acting *a;
  int64_t n_groups, per_group;  // samples that share weights stand together
  float *layer;                 // [n_layers + 1, samples, stride]; the last holds the hidden state, too
  float *gates, *new_input, *new_recurrent, *values;  // [samples, stride]
  int64_t first, n, t;

  int64_t size() const { return n_groups * per_group * a->stride; }
  int64_t sample(int64_t e, int64_t agent) const {
    return (a->shared ? e * a->n_agents + agent : agent * per_group + e) * a->stride;
  }
  // The place of an agent at step t in an array [n_envs, steps, n_agents].
  int64_t place(int64_t e, int64_t agent, int64_t steps, int64_t t) const {
    return ((first + e) * steps + t) * a->n_agents + agent;
  }
  float *last_layer() const { return layer + a->n_layers * size(); }
  float *hidden() const { return last_layer() + a->gates->inputs / 2; }

  // Observation, state and mask of an environment at the present step.
  const float *seen(int64_t e) const {
    return a->seen + place(e, 0, a->buffer_steps + 1, t) / a->n_agents * a->seen_size;
  }

  void read(int64_t e, int64_t agent) const {
    const int64_t at = place(e, agent, a->buffer_steps + 1, t);
    float *x = layer + sample(e, agent);
    copy(x, seen(e) + agent * a->observation_dim, a->observation_dim);
    x += a->observation_dim;
    if (a->use_last_action) {
      copy(x, a->last_action + at * a->n_actions, a->n_actions);
      x += a->n_actions;
    }
    if (a->use_agent_id)
      for (int64_t i = 0; i < a->n_agents; i++) x[i] = i == agent;
    if (a->gates) copy(hidden() + sample(e, agent), a->hidden + at * a->hidden_dim, a->hidden_dim);
  }

  void gru(int64_t group) const {
    const int64_t begin = group * per_group * a->stride, width = a->gates->inputs / 2;
    const float *x = last_layer() + begin;
    linear(a->gates, group, x, gates + begin, a->stride, per_group, false);
    linear(a->new_input, group, x, new_input + begin, a->stride, per_group, false);
    linear(a->new_recurrent, group, hidden() + begin, new_recurrent + begin, a->stride, per_group,
           false);
    for (int64_t i = 0; i < per_group; i++)
      for (int64_t j = 0; j < width; j += W) {
        const int64_t at = begin + i * a->stride + j;
        const vf reset = sigmoid(load(gates + at)), update = sigmoid(load(gates + at + width));
        const vf candidate = hyperbolic_tangent(load(new_input + at) + reset * load(new_recurrent + at));
        const vf h = load(hidden() + at);
        store(hidden() + at, candidate + update * (h - candidate));
      }
  }

  void compute_values(int64_t group) const {
    const int64_t begin = group * per_group * a->stride;
    for (int64_t i = 0; i < a->n_layers; i++) {
      float *y = layer + (i + 1) * size() + begin;
      linear(a->layers + i, group, layer + i * size() + begin, y, a->stride, per_group, !a->norms);
      if (a->norms) norm_and_relu(a->norms[i], group, y, a->stride, per_group);
    }
    if (a->gates) gru(group);
    const float *x = a->gates ? hidden() : last_layer();
    linear(a->head, group, x + begin, values + begin, a->stride, per_group, false);
  }

  void write(int64_t e, int64_t agent) const {
    const int64_t at = place(e, agent, a->buffer_steps, t), n_actions = a->n_actions;
    const int64_t draw = ((t - a->first) * a->n_envs + first + e) * a->n_agents + agent;
    const float *q = values + sample(e, agent);
    const bool explores = a->explore && a->explore[draw] < a->epsilon;
    const float *mask = a->mask_at < 0 ? nullptr : seen(e) + a->mask_at + agent * n_actions;
    const int64_t action = argmax(explores ? a->choose + draw * n_actions : q, mask, n_actions);
    copy(a->action_value + at * n_actions, q, n_actions);
    a->action[at] = action;
    clear(a->next_last_action + at * n_actions, n_actions);
    a->next_last_action[at * n_actions + action] = 1.0f;
    if (a->gates)
      copy(a->next_hidden + at * a->hidden_dim, hidden() + sample(e, agent), a->hidden_dim);
  }

  // Write the memory of the next step; zeros after the end of an episode.
  void carry(int64_t e) const {
    const int64_t now = place(e, 0, a->buffer_steps, t);
    const int64_t next = place(e, 0, a->buffer_steps + 1, t + 1);
    const bool done = a->done[now / a->n_agents];
    a->is_init[next / a->n_agents] = done && a->reset_when_done;
    if (a->gates)
      carry(a->hidden + next * a->hidden_dim, a->next_hidden + now * a->hidden_dim,
            a->n_agents * a->hidden_dim, done);
    if (a->last_action)
      carry(a->last_action + next * a->n_actions, a->next_last_action + now * a->n_actions,
            a->n_agents * a->n_actions, done);
  }
  static void carry(float *to, const float *from, int64_t n, bool done) {
    if (done)
      clear(to, n);
    else
      copy(to, from, n);
  }
};

// Take all steps of a block of environments, `first` and up to a->block - 1 more.
static int64_t act_in_block(const Acting *a, OneStep one_step, const void *rollout, int64_t first) {
  Block b = {a};
  b.n_groups = a->shared ? 1 : a->n_agents;
  b.per_group = round_up(a->shared ? a->block * a->n_agents : a->block, TILE);
  b.first = first;
  b.n = a->n_envs - first < a->block ? a->n_envs - first : a->block;
  // Zeros: padding must hold finite numbers, as it is multiplied by zero weights.
  float *scratch = (float *)calloc((a->n_layers + 5) * b.size(), sizeof(float));
  b.layer = scratch;
  b.gates = b.last_layer() + b.size();
  b.new_input = b.gates + b.size();
  b.new_recurrent = b.new_input + b.size();
  b.values = b.new_recurrent + b.size();
  int64_t n_resets = 0;
  for (b.t = a->first; b.t < a->first + a->n_steps; b.t++) {
    for (int64_t e = 0; e < b.n; e++)
      for (int64_t agent = 0; agent < a->n_agents; agent++) b.read(e, agent);
    for (int64_t group = 0; group < b.n_groups; group++) b.compute_values(group);
    for (int64_t e = 0; e < b.n; e++)
      for (int64_t agent = 0; agent < a->n_agents; agent++) b.write(e, agent);
    n_resets += one_step(rollout, first, first + b.n, b.t - a->first);
    for (int64_t e = 0; e < b.n; e++) b.carry(e);
  }
  free(scratch);
  return n_resets;
}

// Act n_steps times in all environments; return the number of resets.
extern "C" int64_t act(const Acting *a, OneStep one_step, const void *rollout) {
  int64_t n_resets = 0;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads((int)a->threads) reduction(+ : n_resets) \
    if (a->threads > 1)
#endif
  for (int64_t first = 0; first < a->n_envs; first += a->block)
    n_resets += act_in_block(a, one_step, rollout, first);
  return n_resets;
}

// The number of outputs in a panel.
extern "C" int64_t lanes() { return W; }
