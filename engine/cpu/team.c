#include "engine/cpu/team.h"

#include <linux/futex.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/base/mem.h"
#include "runtime/base/status.h"

// Below so many multiplications waking a helper costs more than it saves.
static const double min_cost = 300000;

enum { SPINS = 1000 }; // about 50 us

struct mob_team {
  int threads, spins, started;
  pthread_t *ids;
  _Atomic uint32_t generation; // of loops; helpers sleep on it
  _Atomic uint32_t busy;       // helpers still in the loop; the caller sleeps on it
  _Atomic uint32_t stop;
  _Atomic int64_t next; // first unit that nobody took
  int64_t units;
  void (*fn)(void *arg, int64_t unit, int thread);
  void *arg;
};

typedef struct helper {
  mob_team_t *team;
  int thread;
} helper_t;

static void take_units(mob_team_t *team, int thread) {
  int64_t unit;
  while ((unit = atomic_fetch_add_explicit(&team->next, 1, memory_order_relaxed)) < team->units)
    team->fn(team->arg, unit, thread);
}

static void wait_change(_Atomic uint32_t *word, uint32_t seen, int spins) {
  for (int i = 0; i < spins && atomic_load(word) == seen; i++) __builtin_ia32_pause();
  while (atomic_load(word) == seen)
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void *helper_main(void *arg) {
  helper_t *self = arg;
  mob_team_t *team = self->team;
  uint32_t seen = 0;
  for (;;) {
    wait_change(&team->generation, seen, team->spins);
    seen++;
    if (atomic_load(&team->stop)) break;
    take_units(team, self->thread);
    if (atomic_fetch_sub(&team->busy, 1) == 1)
      syscall(SYS_futex, &team->busy, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
  }
  free(self);
  return NULL;
}

mob_team_t *mob_team_new(int threads, bool may_spin) {
  mob_team_t *team = MOB_NEW(mob_team_t);
  team->threads = threads < 1 ? 1 : threads;
  team->spins = may_spin ? SPINS : 0;
  team->ids = MOB_NEW_ARRAY(pthread_t, (size_t)team->threads);
  for (int t = 1; t < team->threads; t++) {
    helper_t *helper = MOB_NEW(helper_t);
    *helper = (helper_t){team, t};
    if (pthread_create(&team->ids[t], NULL, helper_main, helper) != 0) { // go on with fewer
      free(helper);
      break;
    }
    team->started++;
  }
  team->threads = team->started + 1;
  return team;
}

static void start(mob_team_t *team) {
  atomic_fetch_add(&team->generation, 1);
  syscall(SYS_futex, &team->generation, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void mob_team_free(mob_team_t *team) {
  if (!team) return;
  atomic_store(&team->stop, 1);
  if (team->started) start(team);
  for (int t = 1; t <= team->started; t++) pthread_join(team->ids[t], NULL);
  free(team->ids);
  free(team);
}

int mob_team_size(const mob_team_t *team) {
  return team->threads;
}

void mob_team_run(mob_team_t *team, int64_t units, double cost,
                  void (*fn)(void *arg, int64_t unit, int thread), void *arg) {
  if (team->threads == 1 || units < 2 || cost < min_cost) {
    for (int64_t unit = 0; unit < units; unit++) fn(arg, unit, 0);
    return;
  }
  team->units = units;
  team->fn = fn;
  team->arg = arg;
  atomic_store(&team->next, 0);
  atomic_store(&team->busy, (uint32_t)team->started);
  start(team);
  take_units(team, 0);
  for (int i = 0; i < team->spins && atomic_load(&team->busy) != 0; i++) __builtin_ia32_pause();
  uint32_t busy;
  while ((busy = atomic_load(&team->busy)) != 0)
    syscall(SYS_futex, &team->busy, FUTEX_WAIT_PRIVATE, busy, NULL, NULL, 0);
}
