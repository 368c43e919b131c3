// The random numbers of draws.py, for W environments at a time: Threefry-2x32 (Salmon et al. 2011).

struct Draws {
  vu environment;
  uint32_t seed, step;
};
struct Pair {
  vf x, y;
};
template <int K>
struct Points {
  vf at[2 * K + 1];
};
INLINE vu rotated(vu x, int by) { return (x << by) | (x >> (32 - by)); }
INLINE void threefry(const Draws &draws, vu counter, vu *first, vu *second) {
  const int rotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};
  const uint32_t keys[3] = {draws.seed, draws.step, draws.seed ^ draws.step ^ 0x1BD11BDAu};
  vu x = draws.environment + keys[0], y = counter + keys[1];
  for (int block = 0; block < 5; block++) {
    for (int i = 0; i < 4; i++) {
      x += y;
      y = rotated(y, rotations[4 * (block % 2) + i]) ^ x;
    }
    x += keys[(block + 1) % 3];
    y += keys[(block + 2) % 3] + (uint32_t)(block + 1);
  }
  *first = x;
  *second = y;
}
INLINE vf unit(vu word) { return to_f((vi)(word >> 8)) * 5.9604644775390625e-8f; }
INLINE vf uniform(const Draws &draws, uint32_t number) {
  vu x, y;
  threefry(draws, number - (vu){}, &x, &y);
  return unit(x);
}
INLINE vf normal(const Draws &draws, uint32_t number) {
  vu x, y;
  threefry(draws, number - (vu){}, &x, &y);
  return vsqrt(-2.0f * vlog(1.0f - unit(x))) * vcos(6.283185307179586f * unit(y));
}
template <int K>
static __attribute__((noinline)) Pair spawn(const Draws &draws, uint32_t site, float min_distance,
                                            float low_x, float low_y, float high_x, float high_y,
                                            const Points<K> &occupied) {
  Pair position = {F(0.0f), F(0.0f)};
  vi waiting = N(-1);
  for (uint32_t i = 0; i < SPAWN_TRIES && any(waiting); i++) {
    vu x, y;
    threefry(draws, ((site + 1) * SPAWN_STREAM + i) - (vu){}, &x, &y);
    position.x = waiting ? unit(x) * (high_x - low_x) + low_x : position.x;
    position.y = waiting ? unit(y) * (high_y - low_y) + low_y : position.y;
    waiting = N(0);
    for (int k = 0; k < K; k++) {
      vf dx = occupied.at[2 * k] - position.x, dy = occupied.at[2 * k + 1] - position.y;
      waiting |= vsqrt(dx * dx + dy * dy) < min_distance;
    }
  }
  return position;
}
