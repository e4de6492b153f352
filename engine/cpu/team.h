// The threads of one rank: the rank's own and helpers that share its loops. With one thread there
// are no helpers and a loop is a plain call.
#ifndef MOB_CPU_TEAM_H
#define MOB_CPU_TEAM_H

#include <stdbool.h>
#include <stdint.h>

typedef struct mob_team mob_team_t;

mob_team_t *mob_team_new(int threads, bool may_spin); // threads - 1 helpers are started
void mob_team_free(mob_team_t *team);
int mob_team_size(const mob_team_t *team);

// Calls fn(arg, unit, thread) for every unit in [0, units), each once, on any thread of the team;
// returns when all are done. `cost` estimates the multiplications of all units together: little
// work stays on the caller.
void mob_team_run(mob_team_t *team, int64_t units, double cost,
                  void (*fn)(void *arg, int64_t unit, int thread), void *arg);

#endif
