// Level-based foraging: foraging_rules.py in C++, one environment after another. The structure
// Foraging (foraging_engines.py) stands in front of this file.
//
// A unit is a food or a player: row, column, level. Foods stand before players.

#include <stdint.h>
#include <string.h>

#define MOST 99  // of players, foods, rows and columns
#define LOAD 5

static const float MOVES[6][2] = {{0, 0}, {-1, 0}, {1, 0}, {0, -1}, {0, 1}, {0, 0}};
static const float ABSENT[3] = {-1, -1, 0};

// The random numbers of one environment's start.
struct Draws {
  uint32_t seed, environment, episode, n_drawn;

  // Threefry-2x32 (Salmon et al. 2011), the first word.
  uint32_t word() {
    const int rotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};
    const uint32_t keys[3] = {seed, episode, seed ^ episode ^ 0x1BD11BDAu};
    uint32_t x = environment + keys[0], y = n_drawn++ + keys[1];
    for (uint32_t block = 0; block < 5; block++) {
      for (int i = 0; i < 4; i++) {
        const int by = rotations[4 * (block % 2) + i];
        x += y;
        y = ((y << by) | (y >> (32 - by))) ^ x;
      }
      x += keys[(block + 1) % 3];
      y += keys[(block + 2) % 3] + block + 1;
    }
    return x;
  }
  int64_t whole(int64_t lowest, int64_t highest) {
    return lowest + (int64_t)((uint64_t)word() * (uint64_t)(highest - lowest + 1) >> 32);
  }
};

// The cells [first_row, end_row) x [first_column, end_column) of a field.
struct Region {
  int64_t first_row, end_row, first_column, end_column;
};

// Return one of the region's cells that are not taken; n_cells if there is none.
static int64_t draw_cell(const bool *taken, Region in, int64_t n_columns, int64_t n_cells,
                         Draws *draws) {
  int64_t n_free = 0;
  for (int64_t r = in.first_row; r < in.end_row; r++)
    for (int64_t c = in.first_column; c < in.end_column; c++) n_free += !taken[r * n_columns + c];
  int64_t before = draws->whole(0, n_free - 1);
  for (int64_t r = in.first_row; r < in.end_row; r++)
    for (int64_t c = in.first_column; c < in.end_column; c++)
      if (!taken[r * n_columns + c] && before-- == 0) return r * n_columns + c;
  return n_cells;
}

static int64_t distance(int64_t a, int64_t b) { return a < b ? b - a : a - b; }

// Mark the cells in which a food keeps others from lying.
static void take_near(const Foraging *f, int64_t food, bool *taken) {
  const int64_t row = food / f->n_columns, column = food % f->n_columns;
  for (int64_t r = row < 2 ? 0 : row - 2; r <= row + 2 && r < f->n_rows; r++)
    for (int64_t c = column < 2 ? 0 : column - 2; c <= column + 2 && c < f->n_columns; c++) {
      const int64_t rows = distance(r, row), columns = distance(c, column);
      if ((rows <= 1 && columns <= 1) || rows * columns == 0) taken[r * f->n_columns + c] = true;
    }
}

static void sort(int64_t *x, int64_t n) {
  for (int64_t i = 1; i < n; i++)
    for (int64_t j = i; j > 0 && x[j - 1] > x[j]; j--) {
      const int64_t larger = x[j - 1];
      x[j - 1] = x[j];
      x[j] = larger;
    }
}

// Write the levels of all units.
static void draw_levels(const Foraging *f, Draws *draws, int64_t *level) {
  int64_t sorted[MOST], highest = f->max_food_level, *players = level + f->n_foods;
  for (int64_t i = 0; i < f->n_players; i++)
    sorted[i] = players[i] = draws->whole(f->min_player_level, f->max_player_level);
  if (highest == 0) {
    sort(sorted, f->n_players);
    for (int64_t i = 0; i < f->n_players && i < 3; i++) highest += sorted[i];
    if (f->excludes_highest && highest > 1) highest--;
  }
  for (int64_t j = 0; j < f->n_foods; j++)
    level[j] = draws->whole(f->force_coop ? highest : f->min_food_level, highest);
}

// Begin a new episode.
static void spawn(const Foraging *f, int64_t e) {
  const int64_t n_cells = f->n_rows * f->n_columns, n_units = f->n_foods + f->n_players;
  Draws draws = {(uint32_t)f->seed, (uint32_t)e, (uint32_t)f->episodes[e], 0};
  bool taken[MOST * MOST];
  int64_t cell[2 * MOST], level[2 * MOST];
  memset(taken, 0, n_cells);
  for (int64_t i = f->n_foods; i < n_units; i++) {
    cell[i] = draw_cell(taken, {0, f->start_rows, 0, f->start_columns}, f->n_columns, n_cells, &draws);
    taken[cell[i]] = true;
  }
  for (int64_t j = 0; j < f->n_foods; j++) {
    cell[j] = draw_cell(taken, {1, f->n_rows - 1, 1, f->n_columns - 1}, f->n_columns, n_cells, &draws);
    if (cell[j] < n_cells) take_near(f, cell[j], taken);
  }
  sort(cell, f->n_foods);
  draw_levels(f, &draws, level);
  float *unit = f->units + e * n_units * 3;
  f->spawned[e] = 0;
  for (int64_t i = 0; i < n_units; i++, unit += 3) {
    const float here[3] = {(float)(cell[i] / f->n_columns), (float)(cell[i] % f->n_columns),
                           (float)level[i]};
    memcpy(unit, cell[i] < n_cells ? here : ABSENT, sizeof(here));
    if (i < f->n_foods) f->spawned[e] += unit[2];
  }
  f->steps[e] = 0;
  f->episodes[e]++;
}

// Write a unit as seen from a corner, if it is at most `end` from it; return the next place.
static float *show(const float *unit, const float *corner, const float *end, float *to) {
  const float row = unit[0] - corner[0], column = unit[1] - corner[1];
  if (row < 0 || column < 0 || row > end[0] || column > end[1]) return to;
  to[0] = row;
  to[1] = column;
  to[2] = unit[2];
  return to + 3;
}

static void fill_absent(float *from, const float *end) {
  for (; from < end; from += 3) memcpy(from, ABSENT, sizeof(ABSENT));
}

// Write observations, and the state if it is the world's.
static void see(const Foraging *f, int64_t e, float *to) {
  float *const first = to;
  const int64_t n_units = f->n_foods + f->n_players;
  const float *foods = f->units + e * n_units * 3, *players = foods + f->n_foods * 3;
  const float sight = (float)f->sight, all[2] = {2 * sight, 2 * sight};
  for (int64_t i = 0; i < f->n_players; i++, to += n_units * 3) {
    const float *own = players + i * 3;
    const float corner[2] = {own[0] > sight ? own[0] - sight : 0, own[1] > sight ? own[1] - sight : 0};
    const float end[2] = {own[0] - corner[0] + sight, own[1] - corner[1] + sight};
    float *next = to;
    for (int64_t j = 0; j < f->n_foods; j++) next = show(foods + j * 3, corner, end, next);
    fill_absent(next, to + f->n_foods * 3);
    next = show(own, corner, all, to + f->n_foods * 3);
    for (int64_t k = 0; k < f->n_players; k++)
      if (k != i) next = show(players + k * 3, corner, all, next);
    fill_absent(next, to + n_units * 3);
  }
  if (f->shows_world) memcpy(to, foods, n_units * 3 * sizeof(float));
  if (f->unit == 1) return;
  for (int64_t i = 0; i < f->seen_size; i++) first[i] /= (float)f->unit;
}

static void move(const Foraging *f, const float *foods, float *players, const int64_t *action) {
  float wanted[MOST][2];
  bool alone[MOST];
  const float last[2] = {(float)f->n_rows - 1, (float)f->n_columns - 1};
  for (int64_t i = 0; i < f->n_players; i++) {
    const float *place = players + i * 3;
    for (int k = 0; k < 2; k++) {
      const float x = place[k] + MOVES[action[i]][k];
      wanted[i][k] = x < 0 ? 0 : x > last[k] ? last[k] : x;
    }
    for (int64_t j = 0; j < f->n_foods; j++)
      if (foods[j * 3] == wanted[i][0] && foods[j * 3 + 1] == wanted[i][1])
        memcpy(wanted[i], place, sizeof(wanted[i]));
  }
  for (int64_t i = 0; i < f->n_players; i++) {
    alone[i] = true;
    for (int64_t k = 0; k < f->n_players; k++)
      if (k != i && wanted[k][0] == wanted[i][0] && wanted[k][1] == wanted[i][1]) alone[i] = false;
  }
  for (int64_t i = 0; i < f->n_players; i++)
    if (alone[i]) memcpy(players + i * 3, wanted[i], sizeof(wanted[i]));
}

// Return whether a player loads a food: it is next to it.
static bool loads(const float *player, const float *food, int64_t action) {
  const float rows = player[0] - food[0], columns = player[1] - food[1];
  return action == LOAD && rows * rows + columns * columns == 1;
}

// Take a step without its reset; return whether no food is left.
static bool step(const Foraging *f, int64_t e, const int64_t *action, float *reward) {
  float *foods = f->units + e * (f->n_foods + f->n_players) * 3, *players = foods + f->n_foods * 3;
  move(f, foods, players, action);
  memset(reward, 0, f->n_players * sizeof(float));
  bool ends = true;
  for (float *food = foods; food < players; food += 3) {
    float strength = 0;
    for (int64_t i = 0; i < f->n_players; i++)
      if (loads(players + i * 3, food, action[i])) strength += players[i * 3 + 2];
    const bool taken = strength > 0 && strength >= food[2];
    const float divisor = f->normalize_reward ? strength * f->spawned[e] : 1;
    for (int64_t i = 0; i < f->n_players; i++)
      if (loads(players + i * 3, food, action[i]))
        reward[i] = taken ? players[i * 3 + 2] * food[2] / divisor : -f->penalty;
    if (taken) memcpy(food, ABSENT, sizeof(ABSENT));
    ends = ends && food[2] == 0;
  }
  return ends;
}

// Take step t of an environment, with its reset; return the number of resets.
static int64_t advance(const Foraging *f, int64_t e, int64_t t) {
  const int64_t at = e * f->buffer_steps + t, size = f->seen_size;
  float *seen = f->seen + (e * (f->buffer_steps + 1) + t + 1) * size;
  float *reward = f->agent_reward + at * f->n_players;
  const bool ends = step(f, e, f->action + at * f->n_players, reward);
  const bool late = ++f->steps[e] >= f->max_steps;
  f->reward[at] = 0;
  for (int64_t i = 0; i < f->n_players; i++) f->reward[at] += reward[i];
  f->terminated[at] = ends;
  f->truncated[at] = late;
  f->done[at] = ends || late;
  see(f, e, seen);
  if (!f->done[at]) return 0;
  memcpy(f->last_seen + at * size, seen, size * sizeof(float));
  if (!f->reset_when_done) return 0;
  spawn(f, e);
  see(f, e, seen);
  return 1;
}

// Take step t of the environments from first to last; return the number of resets.
extern "C" int64_t one_step(const Foraging *f, int64_t first, int64_t last, int64_t t) {
  int64_t n_resets = 0;
  for (int64_t e = first; e < last; e++) n_resets += advance(f, e, t);
  return n_resets;
}

// Take n_steps steps of all environments.
extern "C" void rollout(const Foraging *f) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads((int)f->threads) if (f->threads > 1)
#endif
  for (int64_t e = 0; e < f->n_envs; e++)
    for (int64_t t = 0; t < f->n_steps; t++) advance(f, e, t);
}

// Reset the environments of a mask [n_envs], and write to seen [n_envs, seen_size].
extern "C" void reset(const Foraging *f, const bool *mask, float *seen) {
  for (int64_t e = 0; e < f->n_envs; e++)
    if (mask[e]) {
      spawn(f, e);
      see(f, e, seen + e * f->seen_size);
    }
}
