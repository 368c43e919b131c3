// Steps and resets of all environments, W at a time. The step, Rollout (rollout.py), NUMBERS, AGENTS
// and SEEN are printed before this; and FROM_POOL: resets take the first so many numbers from the
// pool, and leave the others as they are.

// Return the state of the pool for the next reset of environment e. Reset r takes state
// e + r n_envs: no two environments share a state before all are used. Each further pass through
// the pool is shifted by one state, so that an environment never uses a state twice.
static inline const float *fresh(const Rollout *r, int64_t e) {
  int64_t place = e + (int64_t)r->resets[e] * r->n_envs;
  return r->pool + (place + place / r->pool_size) % r->pool_size * (NUMBERS + SEEN);
}

// Write the observation and state of each environment of the block to its place.
static inline void scatter(const vf *seen, float *const *to, int lanes) {
  int j = 0;
#ifdef TRANSPOSES
  if (lanes == W)
    for (; j + W <= SEEN; j += W) {
      vf lane[W];
      transpose(seen + j, lane);
      for (int l = 0; l < W; l++) memcpy(to[l] + j, &lane[l], sizeof(vf));
    }
#endif
  for (; j < SEEN; j++)
    for (int l = 0; l < lanes; l++) to[l][j] = ((const float *)&seen[j])[l];
}

// Take steps first to last of W environments from b on; return the number of resets.
static int64_t advance(const Rollout *r, int64_t b, int64_t first, int64_t last) {
  const int lanes = r->n_envs - b < W ? (int)(r->n_envs - b) : W;
  vf now[NUMBERS + 1], then[NUMBERS + 1], seen[SEEN + 1], agent_reward[AGENTS], reward;
  vi action[AGENTS], terminated;
  int64_t n_resets = 0;
  for (int k = 0; k < NUMBERS; k++) memcpy(&now[k], r->state + k * r->stride + b, sizeof(vf));
  for (int64_t t = first; t < last; t++) {
    for (int a = 0; a < AGENTS; a++) {
      action[a] = N(0);
      for (int l = 0; l < lanes; l++)
        action[a][l] = (int32_t)r->action[((b + l) * r->buffer_steps + t) * AGENTS + a];
    }
    Draws draws = {{}, (uint32_t)r->key[0], (uint32_t)(r->key[1] + t)};
    for (int l = 0; l < W; l++) draws.environment[l] = (uint32_t)(b + l);
    step(now, then, action, draws, seen, agent_reward, &reward, &terminated);
    float *to[W];
    for (int l = 0; l < W; l++)
      to[l] = r->seen + ((b + l) * (r->buffer_steps + 1) + t + 1) * SEEN;
    scatter(seen, to, lanes);
    for (int l = 0; l < lanes; l++) {
      const int64_t e = b + l, place = e * r->buffer_steps + t;
      for (int a = 0; a < AGENTS; a++)
        r->agent_reward[place * AGENTS + a] = ((const float *)&agent_reward[a])[l];
      r->reward[place] = reward[l];
      const bool ends = terminated[l] != 0, late = ++r->steps[e] >= r->max_steps;
      r->terminated[place] = ends;
      r->truncated[place] = late;
      r->done[place] = ends | late;
      if (!(ends | late)) continue;
      memcpy(r->last_seen + place * SEEN, to[l], SEEN * sizeof(float));
      if (!r->reset_when_done) continue;
      const float *state = fresh(r, e);
      for (int k = 0; k < FROM_POOL; k++) ((float *)&then[k])[l] = state[k];
      memcpy(to[l], state + NUMBERS, SEEN * sizeof(float));
      r->steps[e] = 0;
      r->resets[e]++;
      n_resets++;
    }
    memcpy(now, then, NUMBERS * sizeof(vf));
  }
  for (int k = 0; k < NUMBERS; k++) memcpy(r->state + k * r->stride + b, &now[k], sizeof(vf));
  return n_resets;
}

// Take n_steps steps of all environments; return the number of resets.
extern "C" int64_t rollout(const Rollout *r) {
  int64_t n_resets = 0;
#ifdef _OPENMP
  if (r->threads > 1) {
// torch sets the number of threads of the OpenMP runtime that both share, so it is given here.
#pragma omp parallel for schedule(static) num_threads((int)r->threads) reduction(+ : n_resets)
    for (int64_t b = 0; b < r->n_envs; b += W) n_resets += advance(r, b, 0, r->n_steps);
    return n_resets;
  }
#endif
  for (int64_t b = 0; b < r->n_envs; b += W) n_resets += advance(r, b, 0, r->n_steps);
  return n_resets;
}

// Take step t of the environments from first, a multiple of W, to last; return the number of
// resets. For a caller that chooses actions step by step.
extern "C" int64_t one_step(const Rollout *r, int64_t first, int64_t last, int64_t t) {
  int64_t n_resets = 0;
  for (int64_t b = first; b < last; b += W) n_resets += advance(r, b, t, t + 1);
  return n_resets;
}

// Reset the environments of a mask [n_envs] and write their observations and states to
// seen [n_envs, SEEN]; return the number of resets.
extern "C" int64_t reset(const Rollout *r, const bool *mask, float *seen) {
  int64_t n_resets = 0;
  for (int64_t e = 0; e < r->n_envs; e++) {
    if (!mask[e]) continue;
    const float *state = fresh(r, e);
    for (int k = 0; k < FROM_POOL; k++) r->state[k * r->stride + e] = state[k];
    memcpy(seen + e * SEEN, state + NUMBERS, SEEN * sizeof(float));
    r->steps[e] = 0;
    r->resets[e]++;
    n_resets++;
  }
  return n_resets;
}
