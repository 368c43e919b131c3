// Agents that act in environments of a compiled step, a block of environments at a time: networks,
// epsilon-greedy choice, step, and what is carried to the next step. networks.h stands in front.
//
// Outputs of layers are filled up to whole vectors with zero weights; ReLU and the equations of the
// GRU keep what they give zero.

#include <stdlib.h>

struct Acting {
  int64_t n_envs, n_agents, n_actions, observation_dim, hidden_dim;
  int64_t shared, use_last_action, use_agent_id;
  int64_t n_layers;                          // with ReLUs
  const Linear *layers;                      // [n_layers]
  const Linear *gates;                       // null without a GRU; of both inputs: [reset, update]
  const Linear *new_input, *new_recurrent;   // of the GRU's candidate
  const Linear *head;                        // to the values of actions
  int64_t width;                             // floats of a row, enough for every layer
  float epsilon;
  int64_t block;  // environments that are stepped together
  int64_t reset_when_done, first, n_steps, buffer_steps, seen_size, threads;
  const float *explore;  // [n_steps, n_envs, n_agents] in [0, 1); null for the greedy action
  const float *choose;   // [n_steps, n_envs, n_agents, n_actions]
  // Rows of buffer_steps steps, one more where it says so.
  const float *seen;        // [n_envs, buffer_steps + 1, seen_size]
  const bool *done;         // [n_envs, buffer_steps]
  bool *is_init;            // [n_envs, buffer_steps + 1]
  float *hidden;            // [n_envs, buffer_steps + 1, n_agents, hidden_dim]
  float *next_hidden;       // [n_envs, buffer_steps, n_agents, hidden_dim]
  float *last_action;       // [n_envs, buffer_steps + 1, n_agents, n_actions]; null if not carried
  float *next_last_action;  // [n_envs, buffer_steps, n_agents, n_actions]
  float *action_value;      // [n_envs, buffer_steps, n_agents, n_actions]
  int64_t *action;          // [n_envs, buffer_steps, n_agents]
};

// one_step of rollout.h.
typedef int64_t (*OneStep)(const void *rollout, int64_t first, int64_t last, int64_t t);

INLINE void copy(float *to, const float *from, int64_t n) { memcpy(to, from, n * sizeof(float)); }
INLINE void fill(float *to, int64_t n) { memset(to, 0, n * sizeof(float)); }
INLINE int64_t argmax(const float *x, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; i++)
    if (x[i] > x[best]) best = i;
  return best;
}

// One block of environments at one step, and its scratch: rows of one agent in one environment.
struct Block {
  const Acting *a;
  int64_t n_groups, per_group;  // rows that share weights stand together
  float *layer;                 // [n_layers + 1, rows, width]; in the last, the hidden state too
  float *gates, *new_input, *new_recurrent, *values;  // [rows, width]
  int64_t first, n, t;

  int64_t size() const { return n_groups * per_group * a->width; }
  int64_t row(int64_t e, int64_t agent) const {
    return (a->shared ? e * a->n_agents + agent : agent * per_group + e) * a->width;
  }
  // Where step t of an agent stands among rows of so many steps.
  int64_t place(int64_t e, int64_t agent, int64_t steps, int64_t of = 0) const {
    return ((first + e) * steps + t + of) * a->n_agents + agent;
  }
  float *last_layer() const { return layer + a->n_layers * size(); }
  float *hidden() const { return last_layer() + a->gates->inputs / 2; }

  void read(int64_t e, int64_t agent) const {
    const int64_t at = place(e, agent, a->buffer_steps + 1);
    float *x = layer + row(e, agent);
    copy(x, a->seen + at / a->n_agents * a->seen_size + agent * a->observation_dim,
         a->observation_dim);
    x += a->observation_dim;
    if (a->use_last_action) {
      copy(x, a->last_action + at * a->n_actions, a->n_actions);
      x += a->n_actions;
    }
    if (a->use_agent_id)
      for (int64_t i = 0; i < a->n_agents; i++) x[i] = i == agent;
    if (a->gates) copy(hidden() + row(e, agent), a->hidden + at * a->hidden_dim, a->hidden_dim);
  }

  void gru(int64_t group) const {
    const int64_t begin = group * per_group * a->width, width = a->gates->inputs / 2;
    const float *x = last_layer() + begin;
    linear(a->gates, group, x, gates + begin, a->width, per_group, false);
    linear(a->new_input, group, x, new_input + begin, a->width, per_group, false);
    linear(a->new_recurrent, group, hidden() + begin, new_recurrent + begin, a->width, per_group,
           false);
    for (int64_t i = 0; i < per_group; i++)
      for (int64_t j = 0; j < width; j += W) {
        const int64_t at = begin + i * a->width + j;
        const vf reset = sigmoid(load(gates + at)), update = sigmoid(load(gates + at + width));
        const vf candidate = hyperbolic_tangent(load(new_input + at) + reset * load(new_recurrent + at));
        const vf h = load(hidden() + at);
        store(hidden() + at, candidate + update * (h - candidate));
      }
  }

  void think(int64_t group) const {
    const int64_t begin = group * per_group * a->width;
    for (int64_t i = 0; i < a->n_layers; i++)
      linear(a->layers + i, group, layer + i * size() + begin, layer + (i + 1) * size() + begin,
             a->width, per_group, true);
    if (a->gates) gru(group);
    linear(a->head, group, (a->gates ? hidden() : last_layer()) + begin, values + begin, a->width,
           per_group, false);
  }

  void write(int64_t e, int64_t agent) const {
    const int64_t at = place(e, agent, a->buffer_steps), n_actions = a->n_actions;
    const int64_t drawn = ((t - a->first) * a->n_envs + first + e) * a->n_agents + agent;
    const float *q = values + row(e, agent);
    const bool explores = a->explore && a->explore[drawn] < a->epsilon;
    const int64_t action = argmax(explores ? a->choose + drawn * n_actions : q, n_actions);
    copy(a->action_value + at * n_actions, q, n_actions);
    a->action[at] = action;
    fill(a->next_last_action + at * n_actions, n_actions);
    a->next_last_action[at * n_actions + action] = 1.0f;
    if (a->gates)
      copy(a->next_hidden + at * a->hidden_dim, hidden() + row(e, agent), a->hidden_dim);
  }

  // Nothing is carried over an episode's end.
  void carry(int64_t e) const {
    const int64_t now = place(e, 0, a->buffer_steps), next = place(e, 0, a->buffer_steps + 1, 1);
    const bool done = a->done[now / a->n_agents];
    const int64_t n_hidden = a->n_agents * a->hidden_dim, n_last = a->n_agents * a->n_actions;
    a->is_init[next / a->n_agents] = done && a->reset_when_done;
    if (a->gates) {
      float *to = a->hidden + next * a->hidden_dim;
      done ? fill(to, n_hidden) : copy(to, a->next_hidden + now * a->hidden_dim, n_hidden);
    }
    if (a->last_action) {
      float *to = a->last_action + next * a->n_actions;
      done ? fill(to, n_last) : copy(to, a->next_last_action + now * a->n_actions, n_last);
    }
  }
};

// All steps of the environments from first on.
static int64_t act_in_block(const Acting *a, OneStep one_step, const void *rollout, int64_t first) {
  Block b = {a};
  b.n_groups = a->shared ? 1 : a->n_agents;
  b.per_group = whole(a->shared ? a->block * a->n_agents : a->block, TILE);
  b.first = first;
  b.n = a->n_envs - first < a->block ? a->n_envs - first : a->block;
  // Zero, so that rows of no agent hold numbers.
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
    for (int64_t group = 0; group < b.n_groups; group++) b.think(group);
    for (int64_t e = 0; e < b.n; e++)
      for (int64_t agent = 0; agent < a->n_agents; agent++) b.write(e, agent);
    n_resets += one_step(rollout, first, first + b.n, b.t - a->first);
    for (int64_t e = 0; e < b.n; e++) b.carry(e);
  }
  free(scratch);
  return n_resets;
}

// Act n_steps times in all environments; return how many were reset.
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

// How many outputs a panel has.
extern "C" int64_t lanes() { return W; }
